"""
What `gmskip doctor` tries out, each in a process of its own (see doctor_processes.py).

A trial reports what it has found as soon as it has it: the next step may crash. What it raises is
its problem, in one line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gmskip_ros.doctor.processes import ERROR_KEY, REPORT_VARIABLE

# What the node and the camera take from each of their packages: loading it loads its C library.
INTERFACES = {
    'diagnostic_msgs': 'msg.DiagnosticArray',
    'rcl_interfaces': 'msg.ParameterDescriptor',
    'rosgraph_msgs': 'msg.Clock',
    'sensor_msgs': 'msg.Image',
    'std_msgs': 'msg.Header',
    'std_srvs': 'srv.SetBool',
}


class TrialError(Exception):
    """Something answered, and wrongly; the message is one line."""


def report(**values: Any) -> None:
    """Add to what this process has found."""
    with open(os.environ[REPORT_VARIABLE], 'a', encoding='utf-8') as file:
        file.write(json.dumps(values) + '\n')


def try_rclpy() -> None:
    """
    Report `where` rclpy is, whether it is `loaded`, and what is `missing` beside it.

    The last is {package: problem} of the message packages that the node needs.
    """
    spec = importlib.util.find_spec('rclpy')
    report(where=os.path.dirname(spec.origin) if spec is not None and spec.origin else None)
    import rclpy
    from rclpy.impl.implementation_singleton import rclpy_implementation
    from rclpy.type_support import check_for_type_support

    assert rclpy and rclpy_implementation
    report(loaded=True)
    missing = {}
    for package, what in INTERFACES.items():
        kind, name = what.split('.')
        try:
            interface = getattr(importlib.import_module(f'{package}.{kind}'), name)
            check_for_type_support(interface)
        except Exception as error:
            missing[package] = _first_line(error)
    report(missing=missing)


def try_cv_bridge() -> None:
    """Report the versions of `numpy`, `opencv` and `cv_bridge`; convert, and compare pixels."""
    import numpy as np

    report(numpy=np.__version__)
    import cv2

    report(opencv=cv2.__version__)
    from cv_bridge import CvBridge

    report(cv_bridge=_version('cv_bridge'))
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from gmskip_ros.ros.conversions import image_to_rgb, rgb_to_image

    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    bayer = np.empty((48, 64), np.uint8)  # of one colour
    bayer[0::2, 0::2], bayer[1::2, 1::2] = 200, 50
    bayer[0::2, 1::2] = bayer[1::2, 0::2] = 100
    pictures = {'rgb8': rgb, 'mono8': rgb[:, :, 0].copy(), 'bayer_rggb8': bayer}
    as_rgb = {
        'rgb8': rgb,
        'mono8': np.repeat(rgb[:, :, :1], 3, axis=2),
        'bayer_rggb8': np.broadcast_to(np.array([200, 100, 50], np.uint8), rgb.shape),
    }
    bridge = CvBridge()
    for encoding, pixels in pictures.items():
        message = Image(height=48, width=64, encoding=encoding, step=pixels[0].nbytes)
        message.data = pixels.tobytes()
        # cv_bridge: to OpenCV and back.
        wanted = 'bgr8' if encoding == 'rgb8' else encoding
        opencv = bridge.imgmsg_to_cv2(message, wanted)
        _compare(opencv, pixels[..., ::-1] if encoding == 'rgb8' else pixels, f'{encoding} image')
        back = np.frombuffer(bridge.cv2_to_imgmsg(opencv, wanted).data, np.uint8)
        _compare(back, opencv.ravel(), f'{wanted} message')
        # The node's own conversion, and the message that it makes of the picture.
        picture = image_to_rgb(message)
        _compare(picture, as_rgb[encoding], f'{encoding} picture')
        _compare(image_to_rgb(rgb_to_image(picture, Header())), picture, 'rgb8 picture')


def try_dds(
    width: int, height: int, transport: str, reliability: str, connect_within_s: float
) -> None:
    """Report what became of camera frames; see RoundTrip."""
    from gmskip_ros.ros.dds_round_trip import measure_round_trip

    found = measure_round_trip(
        width, height, transport, reliability, connect_within_s=connect_within_s
    )
    report(**asdict(found))


def try_torch(device: str) -> None:
    """
    Report PyTorch, what it sees of GPUs, and how `device` does.

    `torch`, `cuda` (that it was built for, None for a CPU build), `gpus` (names), `warning` (what
    it says of the driver), `gpu` (the index that `device` means, None for the CPU), `capability`,
    `free_bytes`, `works`; `transformers` or `transformers_problem`.
    """
    import torch

    report(torch=torch.__version__, cuda=torch.version.cuda)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        gpus = []
        if torch.cuda.is_available():
            gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report(gpus=gpus, warning=_first_line(caught[0].message) if caught else '')
    try:
        import transformers

        report(transformers=transformers.__version__)
    except Exception as error:  # of no matter to the GPU
        report(transformers_problem=_first_line(error))
    index = int(device.partition(':')[2] or 0)
    if device == 'cpu' or index >= len(gpus):
        return
    report(gpu=index)
    report(capability='{}.{}'.format(*torch.cuda.get_device_capability(index)))
    numbers = torch.ones(64, 64, dtype=torch.float16, device=f'cuda:{index}')
    if float((numbers @ numbers).sum()) != 64.0**3:
        raise TrialError(f'cuda:{index} multiplies wrongly')
    report(works=True, free_bytes=torch.cuda.mem_get_info(index)[0])


def try_model(
    model: str, device: str, dtype: str, prompts: Sequence[str], max_new_tokens: int
) -> None:
    """
    Report what is wrong with a checkpoint's files, and what it is and needs; loads no weights.

    `refusals` (lines), `folder`, `num_blocks`, `text_model_type`, `template_sha256`, `device` and
    `dtype` as they will be, and `need` (see MemoryNeed).
    """
    from gmskip_ros.vlm import ModelLoadError
    from gmskip_ros.vlm import load as loading
    from gmskip_ros.vlm.memory import memory_need, read_weight_files

    refusals: list[str] = []
    try:
        torch_device = loading.resolve_device(device)
    except ModelLoadError:  # the trial of the GPU says it; here the rest goes on
        torch_device = loading.resolve_device('cpu')
    dtype = str(loading.resolve_dtype(dtype, torch_device)).removeprefix('torch.')
    report(device=str(torch_device), dtype=dtype)
    try:
        folder = loading.find_local_folder(model)
        report(folder=str(folder))
        with loading.quiet_hugging_face():
            config = loading.read_config(model, folder)
        report(
            num_blocks=config.text_config.num_hidden_layers,
            text_model_type=config.text_config.model_type,
        )
    except ModelLoadError as error:
        report(refusals=[str(error)])
        return
    num_stored = None
    try:
        tensors = read_weight_files(model, folder)
        num_stored = sum(tensor.numel for tensor in tensors if tensor.is_weight)
    except ModelLoadError as error:
        refusals.append(str(error))
    try:
        skeleton = loading.load_skeleton(model)
        report(template_sha256=skeleton.template_sha256)
        if num_stored is not None and num_stored < skeleton.num_parameters:
            refusals.append(
                f'model {model} holds {num_stored} of the {skeleton.num_parameters} parameters of '
                'its config.json: fetch or copy the checkpoint again'
            )
    except ModelLoadError as error:
        refusals.append(str(error))
    report(refusals=refusals)
    if refusals:
        return
    # The placeholder of the image is one token more, the start token one less.
    text_tokens = max(len(skeleton.token_ids(skeleton.render_prompt(prompt))) for prompt in prompts)
    need = memory_need(folder, dtype, max_new_tokens=max_new_tokens, text_tokens=text_tokens)
    report(need=asdict(need))


def main(name: str, arguments: str) -> None:
    """Run one trial; its error is reported in one line, and the exit status is then 1."""
    # Python's own end, so that ROS gives back its shared memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    trials: dict[str, Callable[..., None]] = {
        'rclpy': try_rclpy,
        'cv_bridge': try_cv_bridge,
        'dds': try_dds,
        'torch': try_torch,
        'model': try_model,
    }
    try:
        trials[name](**json.loads(arguments))
    except Exception as error:
        report(**{ERROR_KEY: _first_line(error)})
        sys.exit(1)


def _compare(found: Any, expected: Any, what: str) -> None:
    import numpy as np

    if not np.array_equal(found, expected):
        raise TrialError(f'cv_bridge: the pixels of an {what} came out wrong')


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'version not known'


def _first_line(error: Exception | Warning | str) -> str:
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ''
    if isinstance(error, Exception) and not isinstance(error, (TrialError, Warning)):
        return f'{type(error).__name__}: {text}'
    return text
