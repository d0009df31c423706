"""
What `gmskip doctor` tries out, each in a process of its own (see doctor_processes.py).

A trial reports what it has found as soon as it has it: the next step may crash. What it raises is
its problem, in one line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gmskip_ros.doctor.processes import ERROR_KEY, REPORT_VARIABLE
from gmskip_ros.ros.trials import TrialError, first_line


def report(**values: Any) -> None:
    """Add to what this process has found."""
    with open(os.environ[REPORT_VARIABLE], 'a', encoding='utf-8') as file:
        file.write(json.dumps(values) + '\n')


def try_rclpy() -> None:
    """Report what gmskip_ros.ros.trials.examine_rclpy finds."""
    from gmskip_ros.ros.trials import examine_rclpy

    for found in examine_rclpy():
        report(**found)


def try_cv_bridge() -> None:
    """Report what gmskip_ros.ros.trials.examine_cv_bridge finds."""
    from gmskip_ros.ros.trials import examine_cv_bridge

    for found in examine_cv_bridge():
        report(**found)


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
    report(gpus=gpus, warning=first_line(caught[0].message) if caught else '')
    try:
        import transformers

        report(transformers=transformers.__version__)
    except Exception as error:  # of no matter to the GPU
        report(transformers_problem=first_line(error))
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
        report(**{ERROR_KEY: first_line(error)})
        sys.exit(1)
