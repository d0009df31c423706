"""The bars that the engine is held to, and which of them a run decides.

A bar that does not hold is a result like any other; one that the run cannot decide says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CPU, SEVEN_B, DEMO = 'random:llava-cpu', 'random:llava-1.5-7b', 'demo'
# Names of what `latency.py` measures.
HF_PREFILL, HF_DECODE = (
    f'against Hugging Face, dynamic cache: {phase}' for phase in ('prefill', 'decode')
)
FLOOR_PREFILL, FLOOR_DECODE = 'measured / floor: prefill', 'measured / floor: decode'
HALF, TWO_THIRDS = '16 of 32 blocks against own full', '21 of 32 blocks against own full'
VERIFY_RIGHT = 'verify, agreeing, against its own prefill of as many rows'
VERIFY_WRONG = 'verify, disagreeing, against a full answer'
THREE_TASKS = 'three tasks shared and verified against three isolated prefills'
FRAME = 'whole frame, shared against isolated, {skip_sets}'
PUBLISHED, JOINT = 'published lists', 'one joint list of 16'
PREPROCESS = 'preprocess 1080p to the model, bit-identical'
JPEG = 'JPEG to RGB'
WEIGHTS = 'weights in memory, two branches'
ON_GPU = 'on a GPU: '
GPU_VISION, GPU_PREFILL = f'{ON_GPU}vision, ms', f'{ON_GPU}prefill of 600 tokens, ms'
GPU_DECODE = f'{ON_GPU}decode, ms a token'
GPU_SAVING = f'{ON_GPU}share of its part that a removed block saves'
GPU_ONE_WORD, GPU_FRAME = f'{ON_GPU}one word at 1 Hz, ms', f'{ON_GPU}whole frame, shared, ms'
H200, RTX_3090 = 'H200', 'RTX 3090'


@dataclass(frozen=True)
class Bar:
    """A bound on one measured value of one model."""

    name: str
    model: str
    limit: float
    is_least: bool = False  # the value has to be at least the limit, not at most
    gpu: str = ''  # in the name of the only card that the bar is for
    image_tokens: int | None = None  # any

    def holds(self, value: float) -> bool:
        """Return whether a value meets the bar."""
        return value >= self.limit if self.is_least else value <= self.limit


BARS = (
    Bar(HF_PREFILL, CPU, 0.48),
    Bar(HF_DECODE, CPU, 0.52),
    Bar(HF_PREFILL, DEMO, 0.55),
    Bar(HF_DECODE, DEMO, 0.58),
    Bar(FLOOR_PREFILL, CPU, 1.35),
    Bar(FLOOR_DECODE, CPU, 1.35),
    Bar(HALF, CPU, 0.53),
    Bar(TWO_THIRDS, CPU, 0.69),
    Bar(VERIFY_RIGHT, CPU, 1.05),
    Bar(VERIFY_WRONG, CPU, 1.10),
    Bar(THREE_TASKS, CPU, 0.52, image_tokens=100),
    Bar(THREE_TASKS, CPU, 0.42, image_tokens=576),
    Bar(FRAME.format(skip_sets=PUBLISHED), CPU, 0.65),
    Bar(FRAME.format(skip_sets=JOINT), CPU, 0.55),
    Bar(PREPROCESS, CPU, 0.65, image_tokens=576),
    Bar(JPEG, CPU, 0.5, image_tokens=576),
    Bar(WEIGHTS, CPU, 1.05),
    Bar(GPU_VISION, SEVEN_B, 2.0, gpu=H200),
    Bar(GPU_PREFILL, SEVEN_B, 14.0, gpu=H200),
    Bar(GPU_DECODE, SEVEN_B, 4.5, gpu=H200),
    Bar(GPU_SAVING, SEVEN_B, 0.95, is_least=True, gpu=H200),
    Bar(ON_GPU + FRAME.format(skip_sets=PUBLISHED), SEVEN_B, 0.50, gpu=H200),
    Bar(ON_GPU + FRAME.format(skip_sets=JOINT), SEVEN_B, 0.35, gpu=H200),
    Bar(GPU_ONE_WORD, SEVEN_B, 190.0, gpu=RTX_3090),
    Bar(GPU_FRAME, SEVEN_B, 900.0, gpu=RTX_3090),
)
# 'at_floor': the value of an engine that is as fast as the floor, where that is known.
FIGURES = ('value', 'numerator_ms', 'denominator_ms', 'pairs', 'interval', 'at_floor')


def judge(measured: Sequence[Mapping[str, Any]], bars: Sequence[Bar] = BARS) -> list[dict]:
    """Return a row per bar and measured model that it is about, as JSON values.

    `measured`: one per model, with 'model', 'image_tokens', 'gpu' (its name, None on a CPU) and
    'values', which maps names to mappings with FIGURES. Where there are 'dtype', 'quantization' and
    'undecided' (why the run decides no bar), they matter, too. Bars about a model that was not
    measured, or about another GPU, are rows without a value.
    """
    rows = []
    for bar in bars:
        subjects = [subject for subject in measured if _is_about(bar, subject)]
        if not subjects:
            on_gpu = f' on an {bar.gpu}' if bar.gpu else ''
            rows.append(_row(bar, bar.image_tokens, {}, f'needs --model {bar.model}{on_gpu}'))
        for subject in subjects:
            found = subject['values'].get(bar.name)
            reason = subject['reasons'].get(bar.name, 'not measured in this run')
            if found:
                reason = _why_undecided(bar, subject)
            rows.append(_row(bar, subject['image_tokens'], found or {}, reason))
    return rows


def _why_undecided(bar: Bar, subject: Mapping[str, Any]) -> str:
    """Return why what was measured is not what the bar is about; '' if it is."""
    if undecided := subject.get('undecided', ''):
        return undecided
    if (quantization := subject.get('quantization', 'none')) != 'none':
        return f'is about weights that are not quantised, not {quantization}'
    if not bar.gpu and (dtype := subject.get('dtype', 'float32')) != 'float32':
        return f'is about float32, not {dtype}'
    return ''


def _is_about(bar: Bar, subject: Mapping[str, Any]) -> bool:
    return (
        subject['model'] == bar.model
        and bar.image_tokens in (None, subject['image_tokens'])
        and bar.gpu in (subject['gpu'] or '')
    )


def _row(
    bar: Bar, image_tokens: int | None, found: Mapping[str, Any], reason: str
) -> dict[str, Any]:
    return {
        'name': bar.name,
        'model': bar.model,
        'image_tokens': image_tokens,
        'bar': bar.limit,
        'is_least': bar.is_least,
        'holds': None if reason else bar.holds(found['value']),
        **{figure: found.get(figure) for figure in FIGURES},
        'reason': reason,
    }
