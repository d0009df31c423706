"""`gmskip benchmark latency`: how long answers take, beside Hugging Face and beside the floor.

All ways of answering take turns, each once a round, in an order that is reversed every round, so
that other load affects all alike; ratios are of the two times of one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gmskip_ros.benchmarks import bars, cards, pixels
from gmskip_ros.benchmarks.conditions import (
    Conditions,
    forget_peak,
    peak_bytes,
    resident_bytes,
)
from gmskip_ros.benchmarks.contenders import (
    COMPILED,
    DYNAMIC,
    PHASES,
    RIVALS,
    Contender,
    Sample,
    make_contenders,
)
from gmskip_ros.benchmarks.figures import Rounds
from gmskip_ros.benchmarks.floors import MatrixProbe, PhaseProbe, Rates
from gmskip_ros.benchmarks.natural import measure_natural
from gmskip_ros.benchmarks.rivals import RivalError, RivalProcess
from gmskip_ros.benchmarks.subject import (
    FREE_GIB,
    GIB,
    Subject,
    Wanted,
    check_options,
    load_subject,
    skip_sets,
    spread,
    what_to_measure,
)
from gmskip_ros.benchmarks.whole_frame import AGREEING, FrameFigures, measure_frames, measure_paced
from gmskip_ros.errors import UserError
from gmskip_ros.machine import machine, software
from gmskip_ros.vlm.release import release_memory

FORMAT = 'gmskip/benchmark-latency/1'
IMPOSSIBLE = (
    'below 1, so other load slowed the measurement of the floor: run again on an idle machine'
)
RIVAL_GPU_GIB = 2.5  # that a second process takes on a GPU beside weights, and the probes of floors
LEAST_WEIGHTS_BYTES = 256 << 20  # below, what libraries allocate would count as weights
# Unless a number is asked for, the rounds of a model take about ROUNDS_S at most, so that the whole
# run stays below 20 minutes on a slow machine as well; intervals want at least LEAST_ROUNDS.
MOST_ROUNDS, LEAST_ROUNDS, ROUNDS_S = 10, 5, 150.0


@dataclass(frozen=True)
class LatencySettings:
    """What to measure; `model` None: demo and random:llava-cpu."""

    model: str | None = None
    device: str = 'auto'
    dtype: str = 'auto'
    load_options: Mapping[str, Any] = field(default_factory=dict)  # further ones of load_vlm
    rounds: int | None = None  # None: as many as fit, see rounds_that_fit
    length: int = 9  # tokens of an answer in the rounds
    frames: int = 3  # whole frames per skip set
    paced: int = 5  # frames at 1 Hz
    pixel_rounds: int = 20
    rivals: bool = True
    why_not_compiled: str = ''  # why Hugging Face is not compiled as well; '' to compile it
    undecided: str = ''  # why the figures decide no bar; '' if they do
    seed: int = 0
    command: str = ''


def measure(
    settings: LatencySettings, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Return all figures as plain JSON values; `on_step` receives what is done next.

    Raises UserError and what loading a model raises; once a model has been measured, what goes
    wrong with a further one is in 'errors', as is a figure below its floor.
    """
    import torch

    on_step('starting the libraries')
    _start_libraries()
    models: list[dict[str, Any]] = []
    errors: list[str] = []
    all_wanted = what_to_measure(settings.model)
    for wanted in all_wanted:
        check_options(wanted, settings.load_options)
    for wanted in all_wanted:
        on_step(f'{wanted.model}: loading')
        try:
            models.append(_measure_model(settings, wanted, on_step))
        except UserError as error:
            if not models:
                raise
            errors.append(f'{wanted.model} was not measured: {error}')
    return {
        'format': FORMAT,
        'command': settings.command,
        'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'machine': machine(models[0]['device']),
        'software': software(),
        'threads': torch.get_num_threads(),
        'seed': settings.seed,
        'models': models,
        'bars': bars.judge([{**model, 'undecided': settings.undecided} for model in models]),
        'projections': cards.project(),
        'errors': [*(error for model in models for error in model['errors']), *errors],
    }


def rounds_that_fit(round_s: float) -> int:
    """Return how many rounds of so many seconds are measured, LEAST_ROUNDS to MOST_ROUNDS."""
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(ROUNDS_S / round_s)))


def _start_libraries() -> None:
    """Answer once with the demo model, so that what libraries allocate counts for no model."""
    from gmskip_ros.vlm import load_vlm

    image = np.zeros((64, 64, 3), np.uint8)
    load_vlm('demo', 'cpu').answer(image, 'What is this?', max_new_tokens=2)


def _measure_model(
    settings: LatencySettings, wanted: Wanted, on_step: Callable[[str], None]
) -> dict[str, Any]:
    release_memory()
    forget_peak()
    conditions = Conditions()
    before = resident_bytes()
    subject = load_subject(
        wanted, settings.device, settings.dtype, settings.load_options, settings.seed
    )
    vlm = subject.vlm
    weights, reasons = _weights_in_memory(subject, before)
    peak, gpu_bytes = peak_bytes(), vlm.device_memory_bytes()  # before the probes of floors

    def step(text: str) -> None:
        on_step(f'{subject.title}: {text}')

    try:
        answers = _take_turns(settings, subject, _why_no_rivals(settings, subject), step)
    except RivalError as error:  # what remains needs no rival
        answers = _take_turns(settings, subject, str(error), step)
    rounds, not_run = answers.rounds, answers.not_run
    if DYNAMIC in not_run:
        reasons.update({bar: not_run[DYNAMIC] for bar in (bars.HF_PREFILL, bars.HF_DECODE)})
    sets = skip_sets(vlm.num_blocks)
    frames = measure_frames(
        subject, sets, settings.frames, rounds.count, lambda: step('whole frames')
    )
    paced = measure_paced(subject, settings.paced, lambda: step('paced at 1 Hz'))
    step('pixels')
    pictures = _measure_pixels(settings, subject)
    measured = conditions.end()

    vision_ms = frames.rows[0]['parts_ms']['vision']['p50']
    notes, errors = rounds.differences()
    notes += [
        f'{row["name"]}: {row["differing"]} answers differ from those given alone, by rounding '
        f'in {vlm.dtype}'
        for row in frames.rows
        if row['differing']
    ]
    floors, undercuts = rounds.floors(answers.probes, vision_ms)
    values = {
        **rounds.values(vision_ms, floors),
        **_values_of_frames(frames, paced, is_on_gpu=vlm.device.startswith('cuda')),
        **{ratio['name']: ratio for ratio in _ratios_of(pictures)},
    }
    if weights is not None:
        values[bars.WEIGHTS] = weights
    for ratio_name in rounds.impossible_floors():
        del values[ratio_name]
        reasons[ratio_name] = IMPOSSIBLE
        notes.append(f'{ratio_name}: {IMPOSSIBLE}')
    return {
        'model': wanted.model,
        'image_tokens': subject.features.num_tokens,
        'prompt_tokens': subject.rows,
        'device': vlm.device,
        'gpu': machine(vlm.device)['gpu'],
        'dtype': vlm.dtype,
        'quantization': vlm.quantization,
        'num_blocks': vlm.num_blocks,
        'num_parameters': vlm.num_parameters,
        'image_fit': vlm.image_fit,
        'answer_tokens': settings.length,
        'rounds': rounds.count,
        'load_s': subject.load_s,
        'first_frame_ms': subject.first_ms,
        'conditions': measured,
        'memory': {
            'weights_bytes': subject.weights_bytes,
            'peak_bytes': peak,
            'rival_peak_bytes': answers.rival_peak_bytes,
            'gpu_bytes': gpu_bytes,
        },
        'rows': rounds.rows(),
        'ratios': [*rounds.ratios(), *frames.ratios, *_ratios_of(pictures)],
        'floors': floors,
        'natural': answers.natural,
        'frames': frames.rows,
        'paced': paced,
        'pixels': pictures,
        'not_run': [{'name': name, 'reason': reason} for name, reason in not_run.items()],
        'notes': notes,
        'values': values,
        'reasons': reasons,
        'errors': [f'{subject.title}: {error}' for error in (*errors, *undercuts)],
    }


def _values_of_frames(
    frames: FrameFigures, paced: Mapping[str, Any], *, is_on_gpu: bool
) -> dict[str, Any]:
    """Return what bars of whole frames are judged by."""
    values: dict[str, Any] = {ratio['name']: ratio for ratio in frames.ratios}
    if not is_on_gpu:
        return values
    values |= {bars.ON_GPU + name: ratio for name, ratio in values.items()}
    values[bars.GPU_ONE_WORD] = {'value': paced['ms']['p50']}
    for row in frames.rows:
        drafts = row['agreement'], row['previous_agreement']
        if row['skip_sets'] == bars.PUBLISHED and drafts == (AGREEING.agreement, None):
            values[bars.GPU_FRAME] = {'value': row['parts_ms']['whole']['p50']}
    return values


@dataclass(frozen=True)
class _Answers:
    """What turns of all contenders gave.

    not_run: maps names of rivals to the reason.
    """

    probes: Mapping[str, PhaseProbe]
    rounds: Rounds
    natural: list[dict[str, Any]]
    rival_peak_bytes: int | None
    not_run: dict[str, str]


def _take_turns(
    settings: LatencySettings,
    subject: Subject,
    why_no_rivals: str,
    on_step: Callable[[str], None],
) -> _Answers:
    """Answer in turns with Hugging Face, in a process of its own, unless there is a reason not to.

    Raises RivalError.
    """
    with ExitStack() as stack:
        rival, not_run = None, dict.fromkeys(RIVALS, why_no_rivals)
        if not why_no_rivals:
            rival, not_run = _start_rival(settings, subject, stack, on_step)
        on_step('rates of this machine')
        probes = _make_probes(subject)
        contenders = make_contenders(subject, rival, COMPILED not in not_run)
        rounds = _rounds(settings, subject, contenders, probes, on_step)
        on_step('answers of natural length')
        is_random = subject.wanted.image_size is not None  # its answers never end by themselves
        natural = [] if is_random else measure_natural(subject, rival, rounds.count)
        peak = None if rival is None else rival.peak_bytes
        return _Answers(probes, rounds, natural, peak, not_run)


def _start_rival(
    settings: LatencySettings,
    subject: Subject,
    stack: ExitStack,
    on_step: Callable[[str], None],
) -> tuple[RivalProcess, dict[str, str]]:
    """Return the process, which `stack` ends, and why it does not run compiled, if it does not."""
    on_step("loading Hugging Face's copy")
    rival = _load_rival(settings, subject, stack)
    not_compiled = settings.why_not_compiled
    if not not_compiled:
        on_step('compiling Hugging Face')
        not_compiled = _compile(settings, subject, rival)
    if rival.has_ended:
        on_step("loading Hugging Face's copy again")
        rival = _load_rival(settings, subject, stack)
    return rival, {COMPILED: not_compiled} if not_compiled else {}


def _why_no_rivals(settings: LatencySettings, subject: Subject) -> str:
    """Return why no second copy of the weights is loaded; '' if it is."""
    from gmskip_ros.vlm.memory import free_bytes

    if not settings.rivals:
        return '--no-rivals'
    free = free_bytes(subject.vlm.device)
    dense_bytes = subject.vlm.num_parameters * subject.decoder.number_bytes
    is_on_gpu = subject.vlm.device.startswith('cuda')
    needed = dense_bytes + (FREE_GIB + is_on_gpu * RIVAL_GPU_GIB) * GIB
    if free is not None and free < needed:
        return (
            f'a second copy of the weights needs {needed / GIB:.1f} GiB, and '
            f'{free / GIB:.1f} are free'
        )
    return ''


def _load_rival(settings: LatencySettings, subject: Subject, stack: ExitStack) -> RivalProcess:
    """Return a process with the model and the features of the image; `stack` ends it."""
    import torch

    rival = stack.enter_context(RivalProcess())
    rival.load(
        subject.wanted.model,
        folder=subject.folder,
        image_size=subject.wanted.image_size,
        seed=settings.seed,
        device=subject.vlm.device,
        dtype=subject.vlm.dtype,
        threads=torch.get_num_threads(),
        features=subject.features.tokens,
    )
    return rival


def _compile(settings: LatencySettings, subject: Subject, rival: RivalProcess) -> str:
    """Let the rival compile itself for answers of these lengths; return why it cannot, or ''."""
    try:
        rival.answer(subject.prompt_ids, settings.length, cache='compiled')
    except RivalError as error:
        return str(error)
    return ''


def _make_probes(subject: Subject) -> dict[str, PhaseProbe]:
    """Return the probes of the phases, each over weights of the part that does it.

    Raises UserError where they do not fit in memory beside the model.
    """
    import torch

    vlm, decoder, vision = subject.vlm, subject.decoder, subject.vision

    def probe(shape: Any, rows: int, num_blocks: int, quantization: str = 'none') -> MatrixProbe:
        layouts = [shape.linear_layers(fused) for fused in (True, False)]
        return MatrixProbe(layouts, rows, num_blocks, vlm.device, vlm.dtype, quantization)

    def decoder_probe(rows: int, quantization: str) -> MatrixProbe:
        return probe(decoder, rows, decoder.num_blocks, quantization)

    tile_rows = vision.tokens * subject.features.num_tiles
    try:
        reading = decoder_probe(1, 'none')
        decoding = reading if vlm.quantization == 'none' else decoder_probe(1, vlm.quantization)
        return {
            'vision': PhaseProbe(
                probe(vision, tile_rows, vision.layers), probe(vision, 1, vision.layers)
            ),
            'prefill': PhaseProbe(decoder_probe(subject.rows, vlm.quantization), reading),
            'decode': PhaseProbe(decoding, reading),
        }
    except torch.OutOfMemoryError as error:
        raise UserError(
            f'{subject.title}: no memory is left on {vlm.device} to measure the rates of this '
            'machine: stop other programs that use it, or use --quantization int8'
        ) from error


def _rounds(
    settings: LatencySettings,
    subject: Subject,
    contenders: Sequence[Contender],
    probes: Mapping[str, PhaseProbe],
    on_step: Callable[[str], None],
) -> Rounds:
    """Let all take turns."""
    samples: dict[str, list[Sample]] = {contender.label: [] for contender in contenders}
    rates: dict[str, list[Rates]] = {phase: [] for phase in PHASES}

    def take_turns(number: int) -> None:
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            samples[contender.label].append(contender.answer(settings.length))
        for phase in PHASES:
            rates[phase].append(probes[phase].measure())

    on_step('warming up')
    started = time.perf_counter()
    take_turns(0)
    count = settings.rounds or rounds_that_fit(time.perf_counter() - started)
    for of_warm_up in samples.values():
        of_warm_up.clear()
    for rates_of_warm_up in rates.values():
        rates_of_warm_up.clear()
    for number in range(1, count + 1):
        on_step(f'round {number} of {count}')
        take_turns(number)
    return Rounds(subject, settings.length, contenders, samples, rates)


def _weights_in_memory(
    subject: Subject, before: int
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Return memory held for both branches / one copy of the weights, or why it is not known.

    After answers of both, each alone and then together.
    """
    from gmskip_ros.vlm import FrameQuestion, SkipSet

    vlm = subject.vlm
    half = spread(vlm.num_blocks, vlm.num_blocks // 2)
    for skipped in ((), half, ()):
        vlm.answer(subject.features, subject.prompt, skipped, forced_length=2)
    questions = [FrameQuestion(subject.prompt, SkipSet.of(half)), FrameQuestion(subject.prompt)]
    vlm.share_frame(subject.features, questions).answer([0, 1], forced_lengths={0: 2, 1: 2})
    release_memory()
    if vlm.device.startswith('cuda'):
        import torch

        held = torch.cuda.memory_allocated(vlm.device)
    elif subject.weights_bytes < LEAST_WEIGHTS_BYTES:
        return None, {bars.WEIGHTS: 'the weights are smaller than what libraries allocate'}
    else:
        held = resident_bytes() - before
    value = held / subject.weights_bytes
    return {'value': value, 'held_bytes': held, 'weights_bytes': subject.weights_bytes}, {}


def _ratios_of(pictures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {'name': name, 'phase': 'before the model', **picture['ratio']}
        for name, picture in pictures.items()
    ]


def _measure_pixels(settings: LatencySettings, subject: Subject) -> dict[str, Any]:
    """Return how long a 1080p frame takes to the model's square, and a JPEG to RGB."""
    processor = subject.processor
    pictures = {bars.JPEG: pixels.measure_jpeg(subject.frame, settings.pixel_rounds)}
    if processor.image_fit != 'squash':
        pictures[bars.PREPROCESS] = pixels.measure_preprocess(
            processor, subject.frame, settings.pixel_rounds
        )
    return pictures
