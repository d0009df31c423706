"""The executable `dual_vlm_node`; it handles signals before the slow imports."""

from __future__ import annotations

import sys

from gmskip_ros.signals import StopSignals


def main() -> int:
    """Run the node until Ctrl-C or SIGTERM; return the exit status."""
    stop = StopSignals().listen()
    from gmskip_ros.ros.node import run

    return run(stop)


if __name__ == '__main__':
    sys.exit(main())
