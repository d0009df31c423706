"""The real node, made to leak memory and an open file per image, and to report GPU memory."""

from __future__ import annotations

import os
import sys
from typing import Any

from gmskip_ros.ros import conversions
from gmskip_ros.vlm import Vlm

LEAK = b'\x01' * (4 << 20)  # 4 MiB per image
leaked: list[Any] = []
read_image = conversions.image_to_rgb


def image_to_rgb(message: Any) -> Any:
    leaked.append((bytearray(LEAK), open(os.devnull)))
    return read_image(message)


conversions.image_to_rgb = image_to_rgb  # before the node imports it
Vlm.device_memory_bytes = lambda vlm: len(leaked) * len(LEAK)

from gmskip_ros.ros.dual_vlm_node import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
