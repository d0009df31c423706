"""Whether a score can guide a search: judged before it, from the full model's answers.

A search compares skip sets by their score. Where every answer scores alike, or the score of the
full model is the lowest that there is, it compares rounding noise and still ends with a list.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gmskip_ros.calibration.errors import UnguidedError
from gmskip_ros.calibration.likelihood import reference_texts
from gmskip_ros.calibration.objective import above_zero
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.tasks.normalisation import normalise
from gmskip_ros.tasks.scoring import Absent, Score

if TYPE_CHECKING:
    from gmskip_ros.calibration.scoring import Scorer

LEAST_SPREAD = 1e-6  # of the range of the metric
MOST_ANSWER_CHARS = 80  # of a constant answer in a line
MOST_TIMES_LONGER = 4.0  # references than answers, in words
_TEXT_TASKS = ('captioning', 'generic')  # their scores compare word for word


@dataclass(frozen=True)
class ScoredText:
    """The full model's answer to a question: its score, and the least and the most possible."""

    text: str
    score: Score
    least: Score
    most: Score


@dataclass(frozen=True)
class Guidance:
    """What is known about one task's score before a search.

    answers: how many are scored; distinct_answers: how many of them differ, after normalisation.
    answer_words, reference_words: mean length; of several right texts the mean counts.
    reasons: why the score cannot guide a search, with the remedy; empty if it can.
    """

    task: str
    target: str | None
    metric: str
    full_score: float
    answers: int
    distinct_answers: int
    answer_words: float
    reference_words: float | None
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), 'reasons': list(self.reasons)}


def judge(
    questions: Questions, metric: str, answers: Sequence[ScoredText], full_score: float
) -> Guidance:
    """Return what the full model's answers to the scored questions, in their order, show."""
    answer_words = statistics.fmean(len(answer.text.split()) for answer in answers)
    reference_words = _reference_words(questions, len(answers))
    reasons = [*_reasons_of_scores(questions, metric, answers, full_score)]
    is_longer = (reference_words or 0) > MOST_TIMES_LONGER * answer_words
    if questions.name in _TEXT_TASKS and is_longer:
        reasons.append(
            f'the references have {reference_words:.1f} words on average, the answers '
            f'{answer_words:.1f}, less than a quarter: use references of the length that the '
            'prompt asks for, or ask for longer answers (--prompt, --max-new-tokens)'
        )
    return Guidance(
        task=questions.name,
        target=questions.target,
        metric=metric,
        full_score=full_score,
        answers=len(answers),
        distinct_answers=len({normalise(answer.text) for answer in answers}),
        answer_words=answer_words,
        reference_words=reference_words,
        reasons=tuple(f'{questions.name}: {reason}' for reason in reasons),
    )


def _reasons_of_scores(
    questions: Questions, metric: str, answers: Sequence[ScoredText], full_score: float
) -> Iterable[str]:
    """Yield at most one reason: the first that applies explains the others."""
    most = max(float(answer.most) for answer in answers)
    least = min(float(answer.least) for answer in answers)
    tolerance = LEAST_SPREAD * (most - least)
    scores = [float(answer.score) for answer in answers]
    bounds = [(float(answer.least), float(answer.most)) for answer in answers]
    other = 'or use a different --metric'
    if metric == 'cider' and len(questions.references) == 1:
        yield (
            'CIDEr of a single image is 0 whatever the answer, since it weighs words by how few '
            'images have them: use more images, whatever the --metric'
        )
    elif most <= least:
        yield (
            f'no answer can score above {least:g} in {metric} with these references: check them '
            f'and the label set (--labels), {other}'
        )
    elif all(score <= low + tolerance for score, (low, _) in zip(scores, bounds, strict=True)):
        yield (
            f'every answer of the full model has the lowest {metric} there is '
            f'({_hundredths(full_score)}): check the task, the label set, --match and the '
            f'references, {other}'
        )
    elif full_score <= 0:
        yield (
            f'the {metric} of the full model is {_hundredths(full_score)}, and a share of that '
            f'rules out nothing: check the task and the dataset, {other}'
        )
    elif all(score >= high - tolerance for score, (_, high) in zip(scores, bounds, strict=True)):
        return
    elif len(scores) == 1:
        yield (
            f'only one answer is scored ({metric} {_hundredths(full_score)}), so nothing shows '
            'that the score depends on the image: use more images, whatever the --metric'
        )
    elif max(scores) - min(scores) < tolerance:
        yield (
            f'all {len(scores)} answers of the full model score the same {metric} '
            f'({_hundredths(full_score)}): use more images, {other}'
        )


def _reference_words(questions: Questions, num_scored: int) -> float | None:
    """Return the mean length of the scored questions' right answers; None without any."""
    lengths = [
        statistics.fmean(len(text.split()) for text in reference_texts(questions, i))
        for i in range(num_scored)
        if not isinstance(questions.references[i], Absent)
    ]
    return statistics.fmean(lengths) if lengths else None


def guidance_of(scorer: Scorer) -> list[Guidance]:
    """Return what the full model's answers show about each part of the score.

    Call scorer.score_full first, and in every process. Raises what Answerer.answers raises.
    """
    objective = scorer.objective
    found, start = [], 0
    for part, full_score in zip(objective.parts, scorer.full_scores, strict=True):
        of_question: dict[int, ScoredText] = {}
        for offset, item in enumerate(part.items):
            index = start + offset
            weight = abs(item.weight)
            score = scorer.state.full[index].contribution / weight
            least, most = (bound / weight for bound in objective.bounds(index))
            known = of_question.get(item.question)
            # A visual gain has two items a question, the one about its own image first.
            of_question[item.question] = (
                ScoredText(scorer.full_texts[index], score, least, most)
                if known is None
                else ScoredText(
                    known.text, known.score + score, known.least + least, known.most + most
                )
            )
        start += len(part.items)
        answers = list(of_question.values())
        found.append(judge(part.questions, part.metric, answers, float(full_score)))
    return found


def guidance_lines(guidance: Sequence[Guidance], baselines: Mapping[str, Any] | None) -> list[str]:
    """Return a line for the terminal about each part. `baselines`: of baseline.baselines."""
    lines = []
    for part in guidance:
        of_part = _baselines_of(part, baselines)
        name = part.task if part.target is None else f'{part.task} ({part.target})'
        line = f'{name}: {part.metric} of the full model {_hundredths(part.full_score)}'
        if of_part is not None:
            constant = of_part['constant']
            line += (
                f', best constant answer {_quoted(constant["answer"])} '
                f'{_hundredths(constant["score"])}, empty answer {_hundredths(of_part["empty"])}'
            )
        line += f' (x100); answers: {part.distinct_answers} different of {part.answers}, '
        line += f'{part.answer_words:.1f} words'
        if part.reference_words is not None:
            line += f' (references: {part.reference_words:.1f})'
        lines.append(line)
    return lines


def constant_warnings(
    guidance: Sequence[Guidance], baselines: Mapping[str, Any] | None
) -> list[str]:
    """Return a line for each part in which the best constant answer is no worse than full."""
    lines = []
    for part in guidance:
        of_part = _baselines_of(part, baselines)
        if of_part is not None and of_part['constant']['score'] >= part.full_score:
            constant = of_part['constant']
            lines.append(
                f'{part.task}: the best constant answer {_quoted(constant["answer"])} scores '
                f'{_hundredths(constant["score"])}, no less than the full model '
                f'({_hundredths(part.full_score)}): this {part.metric} does not show that the '
                'model looks at the image'
            )
    return lines


def left_out_warnings(
    names: Sequence[str], metrics: Sequence[str], full_scores: Sequence[Score]
) -> list[str]:
    """Return a line for each task of a joint score that it leaves out; see Objective."""
    if len(names) == 1:
        return []
    counted = above_zero(full_scores)
    return [
        f'{name}: the {metric} of the full model is {_hundredths(float(score))}, so the joint '
        'score leaves this task out'
        for part, (name, metric, score) in enumerate(zip(names, metrics, full_scores, strict=True))
        if part not in counted
    ]


def refuse(guidance: Sequence[Guidance], force: bool) -> str | None:
    """Return what was overridden with `force`, on one line; None if every score can guide.

    Raises UnguidedError for a score that cannot guide a search, without `force`.
    """
    reasons = '; '.join(reason for part in guidance for reason in part.reasons)
    if reasons and not force:
        raise UnguidedError(
            f'this score cannot guide a search: {reasons}. --force searches all the same, and the '
            'skip list then says so'
        )
    return reasons or None


def _baselines_of(part: Guidance, baselines: Mapping[str, Any] | None) -> Any:
    """Return a part's own baselines, also of a joint score; None if they are unknown."""
    if baselines is None:
        return None
    return baselines.get('tasks', {}).get(part.task, baselines)


def _quoted(answer: str) -> str:
    """Return an answer in quotes on one line; the end of a long one is cut off."""
    is_long = len(answer) > MOST_ANSWER_CHARS
    return repr(f'{answer[: MOST_ANSWER_CHARS - 3]}...' if is_long else answer)


def _hundredths(score: float) -> str:
    """Return a score x100: 0.981 as '98.1'; one that would look like 0 as '1.2e-49'."""
    value = 100 * score
    return f'{value:.1e}' if 0 < abs(value) < 0.05 else f'{value:.1f}'
