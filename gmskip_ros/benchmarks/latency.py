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
from gmskip_ros.benchmarks.architecture import (
    Cost,
    decode_costs,
    prefill_cost,
    vision_cost,
)
from gmskip_ros.benchmarks.conditions import (
    Conditions,
    forget_peak,
    peak_bytes,
    resident_bytes,
)
from gmskip_ros.benchmarks.contenders import (
    AGREEING,
    DISAGREEING,
    DYNAMIC,
    OWN,
    PHASES,
    STATIC,
    Contender,
    Sample,
    make_contenders,
)
from gmskip_ros.benchmarks.floors import MatrixProbe, PhaseProbe, Rates
from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.benchmarks.rivals import RivalProcess
from gmskip_ros.benchmarks.subject import (
    FREE_GIB,
    GIB,
    HALF_OF_32,
    TWO_THIRDS_OF_32,
    Subject,
    Wanted,
    load_subject,
    skip_sets,
    spread,
    what_to_measure,
)
from gmskip_ros.benchmarks.whole_frame import measure_frames, measure_paced
from gmskip_ros.machine import machine, software
from gmskip_ros.tasks import TASK_NAMES, make_task
from gmskip_ros.vlm.release import release_memory

FORMAT = 'gmskip/benchmark-latency/1'
COMPILED = 'Hugging Face, static cache, compiled'
NOT_COMPILED = 'compiling takes longer than the measurement; Hugging Face compiles on GPUs only'
CONFIRMATIONS = 5  # of a floor that a figure seems to be below
LEAST_WEIGHTS_BYTES = 256 << 20  # below, what libraries allocate would count as weights


@dataclass(frozen=True)
class LatencySettings:
    """What to measure; `model` None: demo and random:llava-cpu."""

    model: str | None = None
    device: str = 'auto'
    dtype: str = 'auto'
    load_options: Mapping[str, Any] = field(default_factory=dict)  # further ones of load_vlm
    threads: int | None = None
    rounds: int = 10
    length: int = 9  # tokens of an answer in the rounds
    frames: int = 3  # whole frames per skip set
    paced: int = 5  # frames at 1 Hz
    pixel_rounds: int = 20
    rivals: bool = True
    seed: int = 0
    command: str = ''


def measure(
    settings: LatencySettings, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Return all figures as plain JSON values; `on_step` receives what is done next.

    Raises UserError and what loading a model raises. A figure below its floor is in 'errors'.
    """
    import torch

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    on_step('starting the libraries')
    _start_libraries()
    models = []
    for wanted in what_to_measure(settings.model):
        on_step(f'{wanted.model}: loading')
        models.append(_measure_model(settings, wanted, on_step))
    return {
        'format': FORMAT,
        'command': settings.command,
        'created': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'machine': machine(models[0]['device']),
        'software': software(),
        'threads': torch.get_num_threads(),
        'seed': settings.seed,
        'models': models,
        'bars': bars.judge(models),
        'projections': cards.project(),
        'errors': [error for model in models for error in model['errors']],
    }


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
    name = f'{wanted.model}, {subject.features.num_tokens} image tokens'
    weights, reasons = _weights_in_memory(subject, before)
    peak = peak_bytes()  # before the probes of floors take theirs
    not_run = [{'name': COMPILED, 'reason': NOT_COMPILED}]
    with ExitStack() as stack:
        rival = None
        reason = _why_no_rivals(settings, subject)
        if not reason:
            on_step(f"{name}: loading Hugging Face's copy")
            rival = stack.enter_context(RivalProcess())
            _load_rival(settings, subject, rival)
        else:
            not_run += [{'name': rival_name, 'reason': reason} for rival_name in (DYNAMIC, STATIC)]
            reasons.update(dict.fromkeys((bars.HF_PREFILL, bars.HF_DECODE), reason))
        on_step(f'{name}: rates of this machine')
        probes = _make_probes(subject)
        contenders = make_contenders(subject, rival)
        samples, rates = _rounds(settings, contenders, probes, lambda s: on_step(f'{name}: {s}'))
        notes, errors = _differences(subject, contenders, samples)
        on_step(f'{name}: answers of natural length')
        natural = [] if wanted.image_size is not None else _natural(settings, subject, rival)
        rival_peak = rival.peak_bytes if rival is not None else None
        measured = conditions.end([rival.pid] if rival is not None else [])
    sets = skip_sets(vlm.num_blocks)
    frames = measure_frames(
        subject, sets, settings.frames, lambda: on_step(f'{name}: whole frames')
    )
    paced = measure_paced(subject, settings.paced, lambda: on_step(f'{name}: paced at 1 Hz'))
    on_step(f'{name}: pixels')
    pictures = _measure_pixels(settings, subject)

    rows = [_row(contender, samples[contender.label]) for contender in contenders]
    floors, undercuts = _floors(settings, subject, contenders, samples, probes, frames)
    ratios = _ratios(subject, contenders, samples)
    ratios += _ratios_of_drafts(settings, subject, samples)
    ratios += _ratios_to_floors(settings, subject, samples, rates)
    values = _values(settings, subject, ratios, samples, frames)
    values.update({known: picture['ratio'] for known, picture in pictures.items()})
    if weights is not None:
        values[bars.WEIGHTS] = weights
    return {
        'model': wanted.model,
        'image_tokens': subject.features.num_tokens,
        'prompt_tokens': subject.rows,
        'device': vlm.device,
        'dtype': vlm.dtype,
        'num_blocks': vlm.num_blocks,
        'num_parameters': vlm.num_parameters,
        'image_fit': vlm.image_fit,
        'answer_tokens': settings.length,
        'rounds': settings.rounds,
        'load_s': subject.load_s,
        'first_frame_ms': subject.first_ms,
        'conditions': measured,
        'memory': {
            'weights_bytes': subject.weights_bytes,
            'peak_bytes': peak,
            'rival_peak_bytes': rival_peak,
            'gpu_bytes': vlm.device_memory_bytes(),
        },
        'rows': rows,
        'ratios': ratios,
        'floors': floors,
        'natural': natural,
        'frames': frames,
        'paced': paced,
        'pixels': pictures,
        'not_run': not_run,
        'notes': notes,
        'values': values,
        'reasons': reasons,
        'errors': [f'{name}: {error}' for error in (*errors, *undercuts)],
    }


def _why_no_rivals(settings: LatencySettings, subject: Subject) -> str:
    """Return why no second copy of the weights is loaded; '' if it is."""
    from gmskip_ros.vlm.memory import free_bytes

    if not settings.rivals:
        return '--no-rivals'
    free = free_bytes(subject.vlm.device)
    needed = subject.weights_bytes + FREE_GIB * GIB
    if free is not None and free < needed:
        return (
            f'a second copy of the weights needs {needed / GIB:.1f} GiB, and '
            f'{free / GIB:.1f} are free'
        )
    return ''


def _load_rival(settings: LatencySettings, subject: Subject, rival: RivalProcess) -> None:
    import torch

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


def _make_probes(subject: Subject) -> dict[str, PhaseProbe]:
    """Return the probes of the phases, each over weights of the part that does it."""
    vlm, decoder, vision = subject.vlm, subject.decoder, subject.vision

    def probe(shape: Any, rows: int, num_blocks: int) -> MatrixProbe:
        layouts = [shape.linear_layers(fused) for fused in (True, False)]
        return MatrixProbe(layouts, rows, num_blocks, vlm.device, vlm.dtype)

    tile_rows = vision.tokens * subject.features.num_tiles
    return {
        'vision': PhaseProbe(
            lambda: (probe(vision, tile_rows, vision.layers), probe(vision, 1, vision.layers))
        ),
        'prefill': PhaseProbe(
            lambda: (
                probe(decoder, subject.rows, decoder.num_blocks),
                probe(decoder, 1, decoder.num_blocks),
            )
        ),
        'decode': PhaseProbe(lambda: (probe(decoder, 1, decoder.num_blocks),) * 2),
    }


Samples = dict[str, list[Sample]]
RatesByPhase = dict[str, list[Rates]]


def _rounds(
    settings: LatencySettings,
    contenders: Sequence[Contender],
    probes: Mapping[str, PhaseProbe],
    on_step: Callable[[str], None],
) -> tuple[Samples, RatesByPhase]:
    """Let all take turns; return each one's samples and the rates, one of each per round."""
    samples: Samples = {contender.label: [] for contender in contenders}
    rates: RatesByPhase = {phase: [] for phase in PHASES}
    for number in range(settings.rounds + 1):  # the first is the warm-up
        on_step(f'round {number} of {settings.rounds}' if number else 'warming up')
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            sample = contender.answer(settings.length)
            if number:
                samples[contender.label].append(sample)
        for phase in PHASES:
            found = probes[phase].measure()
            if number:
                rates[phase].append(found)
    return samples, rates


def _row(contender: Contender, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the percentiles of a contender; prefill and decode sum to the answer."""
    steps = len(samples[0].token_ids) - 1
    return {
        'name': contender.name,
        'blocks': contender.blocks,
        'tokens': steps + 1,
        **{
            f'{phase}_ms': percentiles([sample.phase_ms(phase) for sample in samples])
            for phase in (*PHASES, 'answer')
        },
        'decode_ms_per_token': percentiles([sample.decode_ms / steps for sample in samples])
        if contender.has_phases
        else None,
        'samples': [[sample.prefill_ms, sample.decode_ms] for sample in samples],
    }


def _times(samples: Sequence[Sample], phase: str) -> list[float]:
    return [sample.phase_ms(phase) for sample in samples]


def _ratios(
    subject: Subject, contenders: Sequence[Contender], samples: Samples
) -> list[dict[str, Any]]:
    """Return own against every rival with as many blocks, and own retained against own full."""
    num_blocks = subject.vlm.num_blocks
    ratios = []

    def add(name: str, numerator: str, denominator: str, phase: str) -> None:
        pair = paired_ratio(_times(samples[numerator], phase), _times(samples[denominator], phase))
        ratios.append({'name': name, 'phase': phase, **pair})

    for contender in contenders:
        own = f'{OWN}, {contender.blocks} blocks'
        for phase in (*PHASES, 'answer'):
            if contender.is_rival:
                is_whole = contender.blocks == num_blocks
                cache = contender.name.removeprefix('Hugging Face, ')
                of = '' if is_whole else f', {contender.blocks} of {num_blocks} blocks'
                add(f'against Hugging Face, {cache}{of}: {phase}', own, contender.label, phase)
            elif contender.name == OWN and contender.blocks < num_blocks and phase == 'answer':
                name = f'{contender.blocks} of {num_blocks} blocks against own full'
                add(name, own, f'{OWN}, {num_blocks} blocks', phase)
    return ratios


def _ratios_of_drafts(
    settings: LatencySettings, subject: Subject, samples: Samples
) -> list[dict[str, Any]]:
    """Return what verifying costs: a right draft against prefill, a wrong one against the answer.

    A right draft adds its rows to the prompt's: the prefill that it is held to is scaled to as
    many. The last token of a draft is never run.
    """
    full, right, wrong = (
        samples[f'{name}, {subject.vlm.num_blocks} blocks'] for name in (OWN, AGREEING, DISAGREEING)
    )
    growth = (subject.rows + settings.length - 1) / subject.rows
    prefill_ms = [growth * time_ms for time_ms in _times(full, 'prefill')]
    return [
        {
            'name': bars.VERIFY_RIGHT,
            'phase': 'answer',
            **paired_ratio(_times(right, 'answer'), prefill_ms),
        },
        {
            'name': bars.VERIFY_WRONG,
            'phase': 'answer',
            **paired_ratio(_times(wrong, 'answer'), _times(full, 'answer')),
        },
    ]


def _costs(settings: LatencySettings, subject: Subject, blocks: int) -> dict[str, Cost]:
    """Return what an answer of the rounds cannot do without, per phase."""
    return {
        'prefill': prefill_cost(subject.decoder, subject.rows, blocks),
        'decode': decode_costs(subject.decoder, subject.rows, settings.length, blocks),
    }


def _ratios_to_floors(
    settings: LatencySettings, subject: Subject, samples: Samples, rates: RatesByPhase
) -> list[dict[str, Any]]:
    """Return own full / floor per phase, the floor from the rates of the same round."""
    num_blocks = subject.vlm.num_blocks
    costs = _costs(settings, subject, num_blocks)
    return [
        {
            'name': f'measured / floor: {phase}',
            'phase': phase,
            **paired_ratio(
                _times(samples[f'{OWN}, {num_blocks} blocks'], phase),
                [found.floor_ms(costs[phase]) for found in rates[phase]],
            ),
        }
        for phase in PHASES
    ]


def _floors(
    settings: LatencySettings,
    subject: Subject,
    contenders: Sequence[Contender],
    samples: Samples,
    probes: Mapping[str, PhaseProbe],
    frames: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row per phase and number of blocks, and an error per figure below its floor.

    The floor is that of the best rates of the whole run, the figure is the median.
    """
    costs = {
        ('vision', 0): vision_cost(subject.vision, subject.features.num_tiles),
        **{
            (phase, count): cost
            for count in dict.fromkeys(contender.blocks for contender in contenders)
            for phase, cost in _costs(settings, subject, count).items()
        },
    }
    rows, errors = [], []
    for (phase, count), cost in costs.items():
        if phase == 'vision':
            figures = {'own': frames[0]['parts_ms']['vision']['p50']}
        else:
            figures = {
                contender.label: percentiles(_times(samples[contender.label], phase))['p50']
                for contender in contenders
                if contender.blocks == count and contender.has_phases
            }
        for _ in range(CONFIRMATIONS):
            if not undercut(phase, probes[phase].best.floor_ms(cost), figures):
                break
            probes[phase].choose_again()
        floor_ms = probes[phase].best.floor_ms(cost)
        rows.append(
            {
                'phase': phase,
                'blocks': count if phase != 'vision' else None,
                'flops': cost.flops,
                'bytes': cost.bytes,
                'floor_ms': floor_ms,
                'measured_ms': next(iter(figures.values())),
                **probes[phase].describe(),
            }
        )
        errors += undercut(phase, floor_ms, figures)
    return rows, errors


def undercut(phase: str, floor_ms: float, figures: Mapping[str, float]) -> list[str]:
    """Return a line for each figure (milliseconds) that is below the floor of its phase."""
    return [
        f'{phase} of {name}: {measured:.3f} ms is below the floor of {floor_ms:.3f} ms: either '
        'the clock or the floor is wrong'
        for name, measured in figures.items()
        if measured < floor_ms
    ]


def _differences(
    subject: Subject, contenders: Sequence[Contender], samples: Samples
) -> tuple[list[str], list[str]]:
    """Return a note for each rival whose tokens differ from the own ones, an error for each draft.

    A rival's may differ by near ties in the last bits; a draft must not change an answer.
    """
    notes: list[str] = []
    errors: list[str] = []
    for contender in contenders:
        own = samples[f'{OWN}, {contender.blocks} blocks'][0].token_ids
        found = samples[contender.label][0].token_ids
        if found != own:
            line = f'{contender.label}: tokens {list(found)} differ from the own {list(own)}'
            (notes if contender.is_rival else errors).append(line)
    return notes, errors


def _natural(
    settings: LatencySettings, subject: Subject, rival: RivalProcess | None
) -> list[dict[str, Any]]:
    """Return, per task, own and Hugging Face's answers that end where the model ends them."""
    vlm, rows = subject.vlm, []
    for task in TASK_NAMES:
        limit = make_task(task).max_new_tokens
        own: list[float] = []
        theirs: list[float] = []
        tokens, differing = 0, 0

        def ask_own(task: str = task, limit: int = limit) -> tuple[float, tuple[int, ...]]:
            found = vlm.answer(subject.features, subject.prompts[task], (), limit)
            return found.timing.prefill_ms + found.timing.decode_ms, found.token_ids

        def ask_rival(task: str = task, limit: int = limit) -> tuple[float, tuple[int, ...]]:
            assert rival is not None
            found = rival.answer(
                subject.input_ids[task], limit, cache='dynamic', end_ids=sorted(vlm.end_ids)
            )
            ids = [token for token in found['token_ids'] if token not in vlm.end_ids]
            return found['prefill_ms'] + found['decode_ms'], tuple(ids)

        for number in range(settings.rounds):
            found = {}
            ways = {'own': ask_own, **({'rival': ask_rival} if rival is not None else {})}
            for way in list(ways) if number % 2 == 0 else reversed(list(ways)):
                found[way] = ways[way]()
            tokens = len(found['own'][1])
            if 'rival' in found and found['rival'][1] != found['own'][1]:
                differing += 1  # answers of different lengths are not compared
                continue
            own.append(found['own'][0])
            if 'rival' in found:
                theirs.append(found['rival'][0])
        rows.append(
            {
                'task': task,
                'tokens': tokens,
                'differing': differing,
                'own_ms': percentiles(own) if own else None,
                'rival_ms': percentiles(theirs) if theirs else None,
                'ratio': paired_ratio(own, theirs) if theirs else None,
            }
        )
    return rows


def _weights_in_memory(
    subject: Subject, before: int
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Return memory held for both branches / one copy of the weights, or why it is not known."""
    vlm = subject.vlm
    half = spread(vlm.num_blocks, vlm.num_blocks // 2)
    for skipped in ((), half, ()):
        vlm.answer(subject.features, subject.prompt, skipped, forced_length=2)
    vlm.free_memory()
    if vlm.device.startswith('cuda'):
        import torch

        held = torch.cuda.memory_allocated(vlm.device)
    elif subject.weights_bytes < LEAST_WEIGHTS_BYTES:
        return None, {bars.WEIGHTS: 'the weights are smaller than what libraries allocate'}
    else:
        held = resident_bytes() - before
    value = held / subject.weights_bytes
    return {'value': value, 'held_bytes': held, 'weights_bytes': subject.weights_bytes}, {}


def _measure_pixels(settings: LatencySettings, subject: Subject) -> dict[str, Any]:
    """Return how long a 1080p frame takes to the model's square, and a JPEG to RGB."""
    processor = subject.processor
    pictures = {bars.JPEG: pixels.measure_jpeg(subject.frame, settings.pixel_rounds)}
    if processor.image_fit != 'squash':
        pictures[bars.PREPROCESS] = pixels.measure_preprocess(
            processor, subject.frame, settings.pixel_rounds
        )
    return pictures


def _values(
    settings: LatencySettings,
    subject: Subject,
    ratios: Sequence[Mapping[str, Any]],
    samples: Samples,
    frames: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the measured values that bars may be about, by name."""
    values: dict[str, Any] = {str(ratio['name']): dict(ratio) for ratio in ratios}
    num_blocks = subject.vlm.num_blocks
    for bar, of_32 in ((bars.HALF, HALF_OF_32), (bars.TWO_THIRDS, TWO_THIRDS_OF_32)):
        name = f'{subject.retained(of_32)} of {num_blocks} blocks against own full'
        if name in values:
            values[bar] = values[name]
    if subject.vlm.device.startswith('cuda'):
        full = samples[f'{OWN}, {num_blocks} blocks']
        count = subject.retained(HALF_OF_32)
        share = values[f'{count} of {num_blocks} blocks against own full']['value']
        values[bars.GPU_VISION] = {'value': frames[0]['parts_ms']['vision']['p50']}
        values[bars.GPU_PREFILL] = {'value': percentiles(_times(full, 'prefill'))['p50']}
        decode_ms = percentiles(_times(full, 'decode'))['p50']
        values[bars.GPU_DECODE] = {'value': decode_ms / (settings.length - 1)}
        values[bars.GPU_SAVING] = {'value': (1 - share) / (1 - count / num_blocks)}
    return values
