"""Ways to answer the same question in the same number of tokens, each timed by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gmskip_ros.benchmarks.conditions import wake_cores
from gmskip_ros.benchmarks.rivals import RivalProcess
from gmskip_ros.benchmarks.subject import HALF_OF_32, SWEEP_OF_32, Subject, spread
from gmskip_ros.benchmarks.whole_frame import check_count

PHASES = ('prefill', 'decode')
OWN = 'own'
AGREEING, DISAGREEING = 'own, verifying a right draft', 'own, verifying a wrong draft'
DYNAMIC, STATIC = 'Hugging Face, dynamic cache', 'Hugging Face, static cache'
COMPILED = f'{STATIC}, compiled'
RIVALS = (DYNAMIC, STATIC, COMPILED)


@dataclass(frozen=True)
class Sample:
    """The times of one answer, in milliseconds, and its tokens."""

    prefill_ms: float
    decode_ms: float
    token_ids: tuple[int, ...]

    def phase_ms(self, phase: str) -> float:
        """Return prefill, decode, or both as 'answer'."""
        phases = {'prefill': self.prefill_ms, 'decode': self.decode_ms}
        return sum(phases.values()) if phase == 'answer' else phases[phase]


@dataclass(frozen=True)
class Contender:
    """One way to answer: its name, how many blocks it runs, and the answer of a length."""

    name: str
    blocks: int
    answer: Callable[[int], Sample]

    @property
    def label(self) -> str:
        """Name and blocks."""
        return f'{self.name}, {self.blocks} blocks'

    @property
    def is_rival(self) -> bool:
        """Return whether it is Hugging Face's."""
        return self.name in RIVALS

    @property
    def has_phases(self) -> bool:
        """Return whether it decodes token by token after prefill; verifying does both at once."""
        return self.name not in (AGREEING, DISAGREEING)


def make_contenders(
    subject: Subject, rival: RivalProcess | None, is_compiled: bool
) -> list[Contender]:
    """Return all ways to answer; each stands next to the own one that it is held to.

    is_compiled: whether the rival also answers in compiled form.
    """
    num_blocks = subject.vlm.num_blocks
    retained = sorted({subject.retained(of_32) for of_32 in SWEEP_OF_32}, reverse=True)
    contenders = [Contender(OWN, count, _own(subject, count)) for count in retained]
    drafts = [
        Contender(AGREEING, num_blocks, _verifying(subject, changes_first=False)),
        Contender(DISAGREEING, num_blocks, _verifying(subject, changes_first=True)),
    ]
    contenders[1:1] = drafts
    if rival is not None:
        half = subject.retained(HALF_OF_32)
        for name, count, cache in (
            (DYNAMIC, num_blocks, 'dynamic'),
            (STATIC, num_blocks, 'static'),
            *([(COMPILED, num_blocks, 'compiled')] if is_compiled else []),
            (DYNAMIC, half, 'dynamic'),
        ):
            after = next(i for i, c in enumerate(contenders) if (c.name, c.blocks) == (OWN, count))
            contenders.insert(
                after + 1, Contender(name, count, _hugging_face(subject, rival, name, count, cache))
            )
    return contenders


def _own(subject: Subject, blocks: int) -> Callable[[int], Sample]:
    num_blocks = subject.vlm.num_blocks
    skipped = spread(num_blocks, num_blocks - blocks)
    return lambda length: _timed(subject, length, skipped)


def _verifying(subject: Subject, *, changes_first: bool) -> Callable[[int], Sample]:
    """Answer with the model's own answer as the draft; with its first token changed, if wanted."""
    drafts: dict[int, list[int]] = {}

    def answer(length: int) -> Sample:
        if length not in drafts:
            draft = list(_timed(subject, length).token_ids)
            if changes_first:
                draft[0] = (draft[0] + 1) % subject.decoder.vocabulary
            drafts[length] = draft
        return _timed(subject, length, draft=drafts[length])

    return answer


def _timed(
    subject: Subject, length: int, skipped: Sequence[int] = (), draft: Sequence[int] = ()
) -> Sample:
    wake_cores()
    found = subject.vlm.answer(
        subject.features, subject.prompt, skipped, forced_length=length, draft=draft
    )
    check_count(len(found.token_ids), length, f'own without {len(skipped)} blocks')
    return Sample(found.timing.prefill_ms, found.timing.decode_ms, found.token_ids)


def _hugging_face(
    subject: Subject, rival: RivalProcess, name: str, blocks: int, cache: str
) -> Callable[[int], Sample]:
    num_blocks = subject.vlm.num_blocks
    removed = spread(num_blocks, num_blocks - blocks)

    def answer(length: int) -> Sample:
        found = rival.answer(subject.prompt_ids, length, cache=cache, removed=removed)
        ids = found['token_ids']
        check_count(len(ids), length, f'{name}, {blocks} blocks')
        return Sample(found['prefill_ms'], found['decode_ms'], tuple(ids))

    return answer
