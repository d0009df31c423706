"""What a vehicle pays for a frame: preprocess, vision, and both branches' answers to all tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmskip_ros.benchmarks import bars
from gmskip_ros.benchmarks.conditions import wake_cores
from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.benchmarks.subject import FRAME_LENGTHS, Subject
from gmskip_ros.errors import UserError
from gmskip_ros.pipeline.timing import ISOLATED, SHARED

if TYPE_CHECKING:
    from gmskip_ros.vlm import Answer, ImageFeatures

FULL = 'full'  # the branch that skips nothing
ALONE = 'answers alone'  # of a shared frame: near ties
DIFFERING = 'differing'  # answers of a frame that are not those given alone
PERIOD_S = 1.0
PACED_LENGTH = FRAME_LENGTHS['single_object']
Blocks = Mapping[str, Sequence[int]]  # skipped, by task
TokenIds = Sequence[int]
Parts = Mapping[str, float]  # milliseconds, of PARTS and others; and ALONE, DIFFERING
PARTS = ('preprocess', 'vision', 'shared', 'skip', 'full')  # of a whole frame


@dataclass(frozen=True)
class Drafts:
    """How good the drafts of a shared frame are: shares of their tokens, from the first, are right.

    agreement: of the skip branch's answers, as drafts of the full branch's. previous: of its
    previous answers, as drafts of its own; None: it has no drafts.
    """

    agreement: float
    previous: float | None = None

    def __str__(self) -> str:
        words = f'{100 * self.agreement:.0f} % agreement'
        if self.previous is not None:
            words += f', previous skip answers {100 * self.previous:.0f} % right'
        return words


AGREEING = Drafts(1.0)
DRAFTS = (AGREEING, Drafts(0.5), Drafts(0.0), Drafts(1.0, 1.0), Drafts(1.0, 0.0))


@dataclass(frozen=True)
class FrameFigures:
    """JSON values: a row per skip sets and way of answering; ratios of times in turn."""

    rows: list[dict[str, Any]]
    ratios: list[dict[str, Any]]


def measure_frames(
    subject: Subject,
    sets: Mapping[str, Blocks],
    rounds: int,
    pairs: int,
    on_step: Callable[[], None] = lambda: None,
) -> FrameFigures:
    """Return percentiles of the parts and of whole frames, and shared against isolated.

    Answers have FRAME_LENGTHS. In every round a frame is encoded; then these take turns, in an
    order that is reversed from round to round: both branches with every answer on its own (the full
    branch, which is the same for every set, once); shared frames of both with each set and each of
    DRAFTS. Parts sum to the whole; 'shared' is what several answers have in common. `pairs` of
    times, in turns, compare a shared frame of the full branch alone with the prefills of its
    answers. Answers that sharing changes are counted; raises UserError for them if the subject is
    exact.
    """
    branches: dict[str, Blocks] = {**sets, FULL: {}}
    own = {  # answers, to compare with and for drafts; this is the warm-up
        name: [answer.token_ids for answer in _answers_alone(subject, subject.features, blocks)]
        for name, blocks in branches.items()
    }
    ways: list[tuple[str, Drafts | None]] = [(name, None) for name in branches]
    ways += [(name, drafts) for name in sets for drafts in DRAFTS]
    taken: dict[tuple[str, Drafts | None], list[Parts]] = {way: [] for way in ways}
    for number in range(rounds):
        features = subject.vlm.encode(subject.frame)
        encoded = {'preprocess': features.preprocess_ms, 'vision': features.vision_ms}
        for name, drafts in ways if number % 2 == 0 else reversed(ways):
            if drafts is None:
                parts = _time_alone(subject, features, branches[name])
            else:
                asked = [(branches[each], own[each]) for each in (name, FULL)]
                parts = _time_shared(subject, features, asked, drafts)
            taken[name, drafts].append({**encoded, **parts})
            on_step()
    return _figures(sets, taken, _compare_with_prefills(subject, own[FULL], pairs, on_step))


def _compare_with_prefills(
    subject: Subject, own: Sequence[TokenIds], pairs: int, on_step: Callable[[], None]
) -> dict[str, Any]:
    """Return the ratio of a shared frame of the full branch, verified, to its tasks' prefills."""
    verified: list[float] = []
    prefills: list[float] = []

    def share() -> None:
        parts = _time_shared(subject, subject.features, [({}, own)], AGREEING)
        verified.append(parts['shared'] + parts['full'])

    def prefill() -> None:
        timings = [
            subject.vlm.answer(subject.features, prompt, forced_length=1).timing
            for prompt in subject.prompts.values()
        ]
        prefills.append(sum(timing.prefill_ms for timing in timings))

    for number in range(pairs):
        for run in (share, prefill) if number % 2 == 0 else (prefill, share):
            wake_cores()
            run()
        on_step()
    return _ratio(bars.THREE_TASKS, verified, prefills)


def _figures(
    sets: Mapping[str, Blocks],
    taken: Mapping[tuple[str, Drafts | None], Sequence[Parts]],
    of_prefills: dict[str, Any],
) -> FrameFigures:
    full_alone = taken[FULL, None]
    ratios = [of_prefills]
    rows = []
    for name, blocks in sets.items():
        isolated = [
            {**skip, 'skip': skip['answers'], 'full': full['answers']}
            for skip, full in zip(taken[name, None], full_alone, strict=True)
        ]
        rows.append(_row(name, blocks, ISOLATED, None, isolated))
        for drafts in DRAFTS:
            shared = taken[name, drafts]
            rows.append(_row(name, blocks, SHARED, drafts, shared))
            ratio = bars.FRAME.format(skip_sets=name)
            if drafts != AGREEING:
                ratio += f', {drafts}'
            ratios.append(
                _ratio(ratio, *([_whole(p) for p in each] for each in (shared, isolated)))
            )
    return FrameFigures(rows, ratios)


def _whole(parts: Parts) -> float:
    return sum(parts.get(part, 0.0) for part in PARTS)


def _row(
    name: str, blocks: Blocks, timing: str, drafts: Drafts | None, frames: Sequence[Parts]
) -> dict[str, Any]:
    parts_ms = {
        part: percentiles([frame[part] for frame in frames]) for part in PARTS if part in frames[0]
    }
    parts_ms['whole'] = percentiles([_whole(frame) for frame in frames])
    return {
        'name': f'{name}, {timing}' if drafts is None else f'{name}, {timing}, {drafts}',
        'skip_sets': name,
        'timing': timing,
        'agreement': None if drafts is None else drafts.agreement,
        'previous_agreement': None if drafts is None else drafts.previous,
        'skipped': {task: list(skipped) for task, skipped in blocks.items()},
        'answered_alone': None if drafts is None else sum(frame[ALONE] for frame in frames),
        'differing': None if drafts is None else sum(frame[DIFFERING] for frame in frames),
        'parts_ms': parts_ms,
        'samples': [{part: frame[part] for part in PARTS if part in frame} for frame in frames],
    }


def _ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    return {'name': name, 'phase': 'whole', **paired_ratio(above, below)}


def _answers_alone(subject: Subject, features: ImageFeatures, skipped: Blocks) -> list[Answer]:
    """Return the answers to all tasks of one branch, each on its own."""
    answers = []
    for task, length in FRAME_LENGTHS.items():
        blocks = skipped.get(task, ())
        answer = subject.vlm.answer(features, subject.prompts[task], blocks, forced_length=length)
        check_count(len(answer.token_ids), length, f'own, {task}')
        answers.append(answer)
    return answers


def _time_alone(subject: Subject, features: ImageFeatures, skipped: Blocks) -> Parts:
    """Return the time of all answers without that of the image."""
    timings = [answer.timing for answer in _answers_alone(subject, features, skipped)]
    of_image_ms = features.preprocess_ms + features.vision_ms
    return {'answers': sum(timing.total_ms - of_image_ms for timing in timings)}


def _time_shared(
    subject: Subject,
    features: ImageFeatures,
    branches: Sequence[tuple[Blocks, Sequence[TokenIds]]],
    drafts: Drafts,
) -> Parts:
    """Return the parts of one shared frame; of each branch: blocks, and answers (the full last)."""
    from gmskip_ros.vlm import FrameQuestion, SkipSet

    num_tasks = len(FRAME_LENGTHS)
    lengths = dict(enumerate([*FRAME_LENGTHS.values()] * len(branches)))
    started = time.perf_counter()
    frame = subject.vlm.share_frame(
        features,
        [
            FrameQuestion(subject.prompts[task], SkipSet.of(blocks.get(task, ())))
            for blocks, _ in branches
            for task in FRAME_LENGTHS
        ],
    )
    parts: dict[str, float] = {}
    shared_ms = 0.0
    num_differing = 0
    for number, (_, own) in enumerate(branches):
        is_full = number == len(branches) - 1
        right = drafts.agreement if is_full else drafts.previous
        indices = range(number * num_tasks, (number + 1) * num_tasks)
        guesses = {
            index: [_draft(token_ids, right, subject.decoder.vocabulary)]
            for index, token_ids in zip(indices, own, strict=True)
            if right is not None
        }
        answers = frame.answer(indices, drafts=guesses, forced_lengths=lengths)
        passed_ms = 1e3 * (time.perf_counter() - started)
        started = time.perf_counter()
        parts[FULL if is_full else 'skip'] = passed_ms - (frame.shared_ms - shared_ms)
        shared_ms = frame.shared_ms
        for answer, token_ids in zip(answers, own, strict=True):
            who = f'own, shared, {drafts}'
            num_differing += _differs(subject, answer.token_ids, token_ids, who)
    return {'shared': shared_ms, **parts, ALONE: frame.num_alone, DIFFERING: num_differing}


def _draft(own: TokenIds, right: float, vocabulary: int) -> list[int]:
    """Return the answer itself with the token after its right share changed, if there is one."""
    draft = list(own)
    at = round(right * len(own))
    if at < len(own):
        draft[at] = (draft[at] + 1) % vocabulary
    return draft


def measure_paced(
    subject: Subject, frames: int, on_step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the times of full one-word answers begun on every full second, as a vehicle asks.

    A pause lets caches and clocks cool down, which a hot loop hides. `late`: how many could not
    begin on the next second.
    """
    times_ms: list[float] = []
    late = 0
    due = time.perf_counter()
    for _ in range(frames):
        time.sleep(max(0.0, due - time.perf_counter()))
        answer = subject.vlm.answer(subject.frame, subject.prompt, forced_length=PACED_LENGTH)
        check_count(len(answer.token_ids), PACED_LENGTH, 'own, paced')
        times_ms.append(answer.timing.total_ms)
        due += PERIOD_S
        now = time.perf_counter()
        if now > due:
            late += 1
            due = now
        on_step()
    return {
        'period_s': PERIOD_S,
        'tokens': PACED_LENGTH,
        'late': late,
        'ms': percentiles(times_ms),
        'samples': times_ms,
    }


def check_count(found: int, wanted: int, who: str) -> None:
    """Raise UserError unless an answer has the tokens that it was asked for."""
    if found != wanted:
        raise UserError(
            f'{who}: an answer has {found} tokens, {wanted} were asked for: its times cannot be '
            'compared; report this as a fault'
        )


def _differs(subject: Subject, found: TokenIds, wanted: TokenIds, who: str) -> bool:
    """Return whether an answer is not the one that was given alone.

    Raises UserError if so and the subject is exact.
    """
    differs = tuple(found) != tuple(wanted)
    if differs and subject.is_exact:
        raise UserError(
            f'{who}: tokens {list(found)} differ from {list(wanted)}, which are answered alone: '
            'report this as a fault'
        )
    return differs
