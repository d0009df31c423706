"""What the samples of all rounds say: percentiles, ratios, floors, and what must not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmskip_ros.benchmarks import bars
from gmskip_ros.benchmarks.architecture import Cost, decode_costs, prefill_cost, vision_cost
from gmskip_ros.benchmarks.contenders import (
    AGREEING,
    DISAGREEING,
    DYNAMIC,
    OWN,
    PHASES,
    Contender,
    Sample,
)
from gmskip_ros.benchmarks.floors import PhaseProbe, Rates
from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.benchmarks.subject import HALF_OF_32, TWO_THIRDS_OF_32, Subject

CONFIRMATIONS = 5  # of a floor that a figure seems to be below


@dataclass(frozen=True)
class Rounds:
    """One sample of every contender and one measurement of the rates per round.

    length: tokens of an answer. samples: by a contender's label. rates: by phase.
    """

    subject: Subject
    length: int
    contenders: Sequence[Contender]
    samples: Mapping[str, Sequence[Sample]]
    rates: Mapping[str, Sequence[Rates]]

    @property
    def count(self) -> int:
        """Return how many rounds there were, without the warm-up."""
        return len(self.rates[PHASES[0]])

    def rows(self) -> list[dict[str, Any]]:
        """Return the percentiles of every contender; prefill and decode sum to the answer."""
        return [self._row(contender) for contender in self.contenders]

    def _row(self, contender: Contender) -> dict[str, Any]:
        samples = self.samples[contender.label]
        per_token = [sample.decode_ms / (self.length - 1) for sample in samples]
        return {
            'name': contender.name,
            'blocks': contender.blocks,
            'tokens': self.length,
            **{
                f'{phase}_ms': percentiles(self._times(contender.label, phase))
                for phase in (*PHASES, 'answer')
            },
            'decode_ms_per_token': percentiles(per_token) if contender.has_phases else None,
            'samples': [[sample.prefill_ms, sample.decode_ms] for sample in samples],
        }

    def ratios(self) -> list[dict[str, Any]]:
        """Return all ratios, of the two times of each round, as JSON values."""
        ratios = []
        for contender in self.contenders:
            if contender.is_rival:
                ratios += [self._to_rival(contender, phase) for phase in (*PHASES, 'answer')]
            elif contender.name == OWN and contender.blocks < self._num_blocks:
                ratios.append(self._to_full(contender))
        return [*ratios, *self._of_drafts(), *map(self._to_floor, PHASES)]

    def _to_rival(self, rival: Contender, phase: str) -> dict[str, Any]:
        """Return own / Hugging Face's, both with as many blocks."""
        is_whole = rival.blocks == self._num_blocks
        of = '' if is_whole else f', {rival.blocks} of {self._num_blocks} blocks'
        own, theirs = self._times(_own(rival.blocks), phase), self._times(rival.label, phase)
        return _ratio(f'against {rival.name}{of}: {phase}', phase, own, theirs)

    def _to_full(self, contender: Contender) -> dict[str, Any]:
        """Return own with some blocks / own with all."""
        name = f'{contender.blocks} of {self._num_blocks} blocks against own full'
        part, full = self._times(contender.label, 'answer'), self._times(self._full, 'answer')
        return _ratio(name, 'answer', part, full)

    def _of_drafts(self) -> list[dict[str, Any]]:
        """Return what verifying costs: a right draft against prefill, a wrong one against all.

        A right draft adds its rows to the prompt's: the prefill that it is held to is scaled to as
        many. The last token of a draft is never run.
        """
        right, wrong = (
            self._times(f'{name}, {self._num_blocks} blocks', 'answer')
            for name in (AGREEING, DISAGREEING)
        )
        growth = (self.subject.rows + self.length - 1) / self.subject.rows
        prefill_ms = [growth * time_ms for time_ms in self._times(self._full, 'prefill')]
        return [
            _ratio(bars.VERIFY_RIGHT, 'answer', right, prefill_ms),
            _ratio(bars.VERIFY_WRONG, 'answer', wrong, self._times(self._full, 'answer')),
        ]

    def _to_floor(self, phase: str) -> dict[str, Any]:
        """Return own full / floor, the floor from the rates of the same round."""
        cost = self._costs(self._num_blocks)[phase]
        floors_ms = [rates.floor_ms(cost) for rates in self.rates[phase]]
        name = f'measured / floor: {phase}'
        return _ratio(name, phase, self._times(self._full, phase), floors_ms)

    def floors(
        self, probes: Mapping[str, PhaseProbe], vision_ms: float
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return a row per phase and number of blocks, and an error per figure below its floor.

        The floor is that of the best rates of the whole run; figures are medians. vision_ms: the
        median of the vision phase. A floor that seems too high is measured again first.
        """
        tiles = self.subject.features.num_tiles
        rows: list[tuple[str, int | None, Cost, dict[str, float]]] = [
            ('vision', None, vision_cost(self.subject.vision, tiles), {OWN: vision_ms})
        ]
        for count in dict.fromkeys(contender.blocks for contender in self.contenders):
            for phase, cost in self._costs(count).items():
                figures = {
                    contender.label: percentiles(self._times(contender.label, phase))['p50']
                    for contender in self.contenders
                    if contender.blocks == count and contender.has_phases
                }
                rows.append((phase, count, cost, figures))
        described, errors = [], []
        for phase, blocks, cost, figures in rows:
            probe = probes[phase]
            for _ in range(CONFIRMATIONS):
                if not undercut(phase, probe.best.floor_ms(cost), figures):
                    break
                probe.choose_again()
            floor_ms = probe.best.floor_ms(cost)
            errors += undercut(phase, floor_ms, figures)
            described.append(
                {
                    'phase': phase,
                    'blocks': blocks,
                    'flops': cost.flops,
                    'bytes': cost.bytes,
                    'floor_ms': floor_ms,
                    'measured_ms': next(iter(figures.values())),
                    **probe.describe(),
                }
            )
        return described, errors

    def differences(self) -> tuple[list[str], list[str]]:
        """Return a note for each rival whose tokens differ from the own, an error for each draft.

        A rival's may differ by near ties in the last bits; a draft must not change an answer of an
        exact subject.
        """
        notes: list[str] = []
        errors: list[str] = []
        for contender in self.contenders:
            own = self.samples[_own(contender.blocks)][0].token_ids
            differing = (s.token_ids for s in self.samples[contender.label] if s.token_ids != own)
            found = next(differing, None)
            if found is not None:
                line = f'{contender.label}: tokens {list(found)} differ from the own {list(own)}'
                is_error = self.subject.is_exact and not contender.is_rival
                (errors if is_error else notes).append(line)
        return notes, errors

    def impossible_floors(self) -> list[str]:
        """Return the names of ratios to a floor that are below 1, which no engine can be.

        Other load must have slowed the measurements of the rates; the best of them, which the rows
        of `floors` rest on, do not show it.
        """
        ratios = map(self._to_floor, PHASES)
        return [ratio['name'] for ratio in ratios if ratio['value'] < 1]

    def values(self, vision_ms: float, floors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what bars may be about, by name: ratios, and times on a GPU.

        Ratios to Hugging Face's full answer have an 'at_floor', what an engine as fast as the
        floor would have. floors: the rows of `floors`.
        """
        values: dict[str, Any] = {str(ratio['name']): ratio for ratio in self.ratios()}
        for floor in floors:
            ratio = values.get(f'against {DYNAMIC}: {floor["phase"]}')
            if ratio is not None and floor['blocks'] == self._num_blocks:
                ratio['at_floor'] = floor['floor_ms'] / ratio['denominator_ms']
        for bar, of_32 in ((bars.HALF, HALF_OF_32), (bars.TWO_THIRDS, TWO_THIRDS_OF_32)):
            name = f'{self.subject.retained(of_32)} of {self._num_blocks} blocks against own full'
            if name in values:
                values[bar] = values[name]
        if self.subject.vlm.device.startswith('cuda'):
            half = self.subject.retained(HALF_OF_32) / self._num_blocks
            prefill, decode = (
                percentiles(self._times(self._full, phase))['p50'] for phase in PHASES
            )
            values[bars.GPU_VISION] = {'value': vision_ms}
            values[bars.GPU_PREFILL] = {'value': prefill}
            values[bars.GPU_DECODE] = {'value': decode / (self.length - 1)}
            values[bars.GPU_SAVING] = {'value': (1 - values[bars.HALF]['value']) / (1 - half)}
        return values

    @property
    def _num_blocks(self) -> int:
        return self.subject.vlm.num_blocks

    @property
    def _full(self) -> str:
        return _own(self._num_blocks)

    def _times(self, label: str, phase: str) -> list[float]:
        return [sample.phase_ms(phase) for sample in self.samples[label]]

    def _costs(self, blocks: int) -> dict[str, Cost]:
        """Return what an answer of the rounds cannot do without, per phase."""
        decoder, rows = self.subject.decoder, self.subject.rows
        return {
            'prefill': prefill_cost(decoder, rows, blocks),
            'decode': decode_costs(decoder, rows, self.length, blocks),
        }


def undercut(phase: str, floor_ms: float, figures: Mapping[str, float]) -> list[str]:
    """Return a line for each figure (milliseconds) that is below the floor of its phase."""
    return [
        f'{phase} of {name}: {measured:.3f} ms is below the floor of {floor_ms:.3f} ms: either '
        'the clock or the floor is wrong'
        for name, measured in figures.items()
        if measured < floor_ms
    ]


def _own(blocks: int) -> str:
    """Return the label of the own answer with this many blocks."""
    return f'{OWN}, {blocks} blocks'


def _ratio(
    name: str, phase: str, numerators: Sequence[float], denominators: Sequence[float]
) -> dict[str, Any]:
    return {'name': name, 'phase': phase, **paired_ratio(numerators, denominators)}
