"""The doctor's checks of PyTorch, GPU, model files, memory and skip lists."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gmskip_ros.doctor.processes import Trial
from gmskip_ros.doctor.setup import FAIL, Finding, Setup, fail, failed, joined, ok, warn
from gmskip_ros.numbers import numbers_in
from gmskip_ros.pipeline.pipeline import plan_frame
from gmskip_ros.pipeline.settings import (
    ParameterError,
    Settings,
    check_operating_point,
    load_skip_lists,
)
from gmskip_ros.skipping import SkipListError
from gmskip_ros.vlm.engine import SMALLER_WEIGHTS, smaller_dtype
from gmskip_ros.vlm.memory import GIB, free_bytes

# The oldest version tested, and the first one that is too new (None: no limit).
VERSIONS = {'torch': ((2, 8), None), 'transformers': ((5, 10), (6,))}
INSTALL = "pip install 'torch>=2.8' 'transformers>=5.10,<6'"
PYTORCH = 'https://pytorch.org/get-started'
# CUDA release (major number) -> the oldest Linux driver that runs its programs.
OLDEST_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}


def check_engine(setup: Setup) -> Finding:
    """Import PyTorch and Transformers and compare their versions with the supported ones."""
    trial = setup.torch
    findings = []
    for name, (oldest, too_new) in VERSIONS.items():
        version = trial[name]
        if version is None:
            problem = trial[f'{name}_problem'] or trial.problem
            return failed(trial, f'{name} cannot be imported: {problem}', INSTALL)
        numbers = _numbers(version)
        if numbers < oldest or (too_new is not None and numbers >= too_new):
            findings.append(
                warn(f'{name} {version} has not been tested with this package', INSTALL)
            )
        else:
            findings.append(ok(f'{name} {version}'))
    return joined(findings)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version.partition('+')[0])[:3])


def check_gpu(setup: Setup) -> Finding:
    """Check that the device exists and computes, and that the driver suits PyTorch."""
    trial, device = setup.torch, setup.settings.device
    if trial['torch'] is None:
        return fail('skipped: the engine check failed', 'fix that first')
    if trial['gpus'] is None:
        message = f'PyTorch cannot search for GPUs: {trial.problem}'
        return failed(trial, message, 'check that nvidia-smi works')
    driver = _driver_version()
    build = f"PyTorch's CUDA {trial['cuda']}" if trial['cuda'] else 'PyTorch without CUDA'
    if trial['gpu'] is not None:
        name = trial['gpus'][trial['gpu']]
        gpu = f'{name} as cuda:{trial["gpu"]}, driver {driver or "unknown"}, {build}'
        if trial['works']:
            return ok(gpu)
        remedy = 'check that nvidia-smi works in this shell, and stop other users of the GPU'
        if 'kernel image' in trial.problem:
            capability = trial['capability']
            remedy = f'install a PyTorch built for compute capability {capability} ({PYTORCH})'
        message = f'{gpu}: a test computation failed: {trial.problem}'
        return failed(trial, message, f'{remedy}; or use device cpu')
    reasons = [_why_no_gpu(trial, driver)] if driver and not trial['gpus'] else []
    if device.startswith('cuda'):
        found = ', '.join(trial['gpus']) or 'none'
        refusal = f'device {device!r} does not exist: PyTorch sees {found}'
        return joined([fail(refusal, "use 'cpu' or 'auto'"), *reasons])
    if device == 'auto' and reasons:
        return joined(reasons)
    if setup.is_demo:
        return ok('the CPU: sufficient for the demo model')
    return warn(
        f'no GPU in use (device {device}): a model of billions of parameters takes seconds per '
        'answer',
        'device: auto, on a machine with an NVIDIA GPU',
    )


def _why_no_gpu(trial: Trial, driver: str) -> Finding:
    """Return why PyTorch sees no GPU although a driver is installed."""
    if trial['cuda'] is None:
        return warn(
            f'driver {driver} is installed, but PyTorch {trial["torch"]} is built without CUDA',
            f'install a build with CUDA ({PYTORCH})',
        )
    oldest = OLDEST_DRIVERS.get(_numbers(trial['cuda'])[0], (0, 0))
    if _numbers(driver) < oldest:
        return warn(
            f"driver {driver} is too old for PyTorch's CUDA {trial['cuda']}",
            f'install driver {oldest[0]}.{oldest[1]} or newer, or a PyTorch for an older CUDA',
        )
    warning = f': {trial["warning"]}' if trial['warning'] else ''
    return warn(
        f'driver {driver} is installed, but PyTorch sees no GPU{warning}',
        'check that nvidia-smi works in this shell (in a container: --gpus all) and that '
        'CUDA_VISIBLE_DEVICES is not empty',
    )


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, '' if there is none."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=10.0).stdout
    except (OSError, subprocess.TimeoutExpired):
        printed = ''
    if match := re.match(r'\d+\.[\d.]+', printed):
        return match[0]
    try:  # a container without --gpus has no nvidia-smi and still sees the host's driver
        printed = Path('/proc/driver/nvidia/version').read_text()
    except OSError:
        return ''
    match = re.search(r'Kernel Module\D*(\d+\.[\d.]+)', printed)
    return match[1] if match else ''


def check_model(setup: Setup) -> Finding:
    """Check that the model's files are on this machine, complete and supported."""
    if check_engine(setup).level == FAIL:
        return fail('skipped: the engine check failed', 'fix that first')
    trial = setup.model
    if trial['refusals']:
        return joined([_refusal(line) for line in trial['refusals']])
    if trial.problem:
        message = f'model {setup.settings.model} cannot be read: {trial.problem}'
        return failed(trial, message, 'fetch or copy the checkpoint again')
    weights = _gib(trial['need']['weights_bytes'])
    numbers = numbers_in(trial['dtype'], setup.settings.quantization)
    return ok(
        f'{setup.settings.model}: {trial["num_blocks"]} blocks ({trial["text_model_type"]}), '
        f'{weights} of weights in {numbers}, all files found'
    )


def check_view(setup: Setup) -> Finding:
    """Check how much of a frame the model sees, and in which words it is asked."""
    view, prompt = setup.model['view'], setup.model['prompt']
    if view is None:
        return warn('skipped: the model check failed', 'fix that first')
    tiles = '1 tile' if view['tiles'] == 1 else f'{view["tiles"]} tiles'
    message = (
        f'the model sees {100 * view["share"]:.0f} % of a frame of {setup.width}x{setup.height} '
        f'(image_fit {view["image_fit"]}): {tiles}, {view["tokens"]} image tokens; '
        f'prompt {prompt!r}'
    )
    findings = [warn(line, 'check the answers') for line in setup.model['warnings'] or ()]
    if view['share'] < 1:
        findings.append(warn(message, 'set image_fit: pad'))
    return joined(findings) if findings else ok(message)


def _refusal(line: str) -> Finding:
    """Split the message of a ModelLoadError, whose last clause is the remedy."""
    at = max(line.rfind(': '), line.rfind('; '))
    return fail(line[:at], line[at + 2 :])


def check_memory(setup: Setup, proc: Path = Path('/proc')) -> Finding:
    """Compare the free memory with the memory that the model needs."""
    trial, need = setup.model, setup.model['need']
    if need is None:
        return warn('skipped: the model check failed', 'fix that first')
    quantization = setup.settings.quantization
    numbers = numbers_in(trial['dtype'], quantization)
    needed = (
        f'{_gib(need["total_bytes"])} needed (weights {_gib(need["weights_bytes"])}, '
        f'key/value cache {_gib(need["kv_bytes"])}, activations '
        f'{_gib(need["activation_bytes"])}, the rest is reserve; {numbers})'
    )
    host_bytes = free_bytes('cpu', proc)
    remedy = f'stop other users of this memory, use {SMALLER_WEIGHTS[quantization]}a smaller model'
    half = smaller_dtype(trial['dtype'], trial['device'])
    remedy += f', or dtype: {half}' if half else ''
    if trial['device'].startswith('cuda'):
        free, where = setup.torch['free_bytes'], f'on {trial["device"]}'
        remedy += ' (nvidia-smi shows who uses the GPU)'
    else:
        free, where = host_bytes, 'of main memory'
    if free is None:
        return warn(f'{needed}; free memory {where} unknown', 'see the gpu check')
    headroom_gib = setup.settings.memory_headroom_gib
    message = f'{needed}; {_gib(free)} free {where}'
    if free < need['total_bytes'] + headroom_gib * GIB:
        return fail(
            f'{message}, of which {headroom_gib:g} GiB must stay free (memory_headroom_gib): the '
            'node refuses to load it',
            remedy,
        )
    if host_bytes is not None and host_bytes < need['weights_bytes']:
        return warn(
            f'{message}; weights are loaded through main memory, {_gib(host_bytes)} free',
            'stop other users of main memory, or add swap',
        )
    return ok(message)


def _gib(num_bytes: int) -> str:
    if num_bytes < 1 << 27:
        return f'{num_bytes / (1 << 20):.0f} MiB'
    return f'{num_bytes / (1 << 30):.1f} GiB'


def check_skip_lists(setup: Setup) -> Finding:
    """Check that each task's skip list is readable, fits the model and has the operating point."""
    settings = setup.settings
    if 'skip' not in settings.branches:
        return ok('none needed: no skip branch')
    return joined(
        [_check_skip_list(setup, replace(settings, tasks=(task,))) for task in settings.tasks]
    )


def _check_skip_list(setup: Setup, settings: Settings) -> Finding:
    """Check one task's list with the node's own code; `settings` has only that task."""
    task, trial = settings.tasks[0], setup.model
    calibrate = 'calibrate one for this model (gmskip calibrate), or choose one in skip_list.TASK'
    try:
        skip_lists = load_skip_lists(settings)
        check_operating_point(settings, skip_lists)
    except ParameterError as error:
        return fail(str(error), f'correct skip_list.{task} or operating_point')
    if not skip_lists:
        reason = f'{task} has no skip list: its skip branch runs all blocks'
        return warn(reason, calibrate)
    num_skipped = len(skip_lists[task].blocks_at(settings.operating_point))
    if trial['num_blocks'] is None:
        return warn(f'{task}: not compared: the model check failed', 'fix that first')
    vlm: Any = SimpleNamespace(
        name=settings.model,
        num_blocks=trial['num_blocks'],
        text_model_type=trial['text_model_type'],
        template_sha256=trial['template_sha256'],
        dtype=trial['dtype'],
        quantization=settings.quantization,
        image_fit=(trial['view'] or {}).get('image_fit'),
        max_image_tokens=settings.max_image_tokens,
        warnings=(),  # the view check reports them
        token_ids=lambda text: (0,),  # nothing is answered
    )
    try:
        plan = plan_frame(vlm, settings.make_tasks(), skip_lists, settings.operating_point)
    except SkipListError as error:
        return fail(str(error), calibrate)
    if plan.warnings:
        return warn('; '.join(plan.warnings), calibrate)
    return ok(f'{task} {num_skipped} of {trial["num_blocks"]} blocks')
