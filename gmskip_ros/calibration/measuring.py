"""What one skip set does on given pictures, against the full model on the same ones."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.answering import Answerer, Ask
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.objective import (
    BALANCED_ACCURACY,
    VISUAL_GAIN,
    Objective,
    base_metric,
    make_objective,
    shuffled_images,
)
from gmskip_ros.calibration.questions import Questions
from gmskip_ros.tasks import TaskError
from gmskip_ros.tasks.normalisation import normalise
from gmskip_ros.tasks.scoring import METRICS, Score
from gmskip_ros.tasks.statistics import auroc, mcnemar_p, paired_bootstrap_interval
from gmskip_ros.vlm import Answer, CandidateAnswer

# An answer is right or wrong, which is what McNemar's test is about.
RIGHT_OR_WRONG = ('accuracy', 'exact', 'contains', 'relaxed', 'set_exact_match')
LATENCY_ROUNDS = 2  # of each picture under each set: how far apart they are is the noise


class Evaluator:
    """Measures skip sets on one list of questions, against the full model on the same pictures.

    Several `questions` are a joint evaluation, whose score is the least of score / full score.
    `image_of`: the index of a picture by its path; `seed` shuffles the pictures; `latency_images`
    questions are also answered alone and timed, none with 0. With several processes, every one
    makes the same calls and gets the same figures; rank 0 is timed. Raises CalibrationError and
    TaskError for questions that `metrics` cannot score.
    """

    def __init__(
        self,
        questions: Sequence[Questions],
        metrics: Sequence[str],
        answerer: Answerer,
        image_of: Mapping[Path, int],
        seed: int = 0,
        latency_images: int = 8,
    ) -> None:
        self._answerer = answerer
        self._seed = seed
        self._latency_images = latency_images
        self._parts = [
            _Part(asked, metric, image_of, seed)
            for asked, metric in zip(questions, metrics, strict=True)
        ]
        self._is_joint = len(self._parts) > 1
        self._drafts: dict[int, list[tuple[int, ...]]] = {}  # per part: the last known answers

    def evaluate(self, blocks: Sequence[int]) -> dict[str, Any]:
        """Return the figures of the model without `blocks`, as plain JSON values.

        What does not apply is None. Shares are in 0..1, times milliseconds; "all answers" are
        those to every question about its own picture, the ones without the target included.

        - images: different pictures that the score is made of.
        - score: in the metric given; joint: the least of score / full score over the tasks, None
          where a full score is not above 0. scores: every metric of the task that these
          references allow, else None; joint: 'single_object.accuracy' and so on.
        - shuffled_score: the same score (of visual_gain: of the metric it is made of) when every
          question is asked about another one's picture; all pictures take part in the shuffle,
          with the target or not. visual_gain = score - shuffled_score. None for one picture, and
          joint where a task's metric is visual_gain.
        - auroc: of the target's probability as an answer, over pictures with and without it;
          score_without_target: the share of the latter answered with something else.
        - most_frequent_answer (normalised; the first in the alphabet of several) and
          most_frequent_share, in all answers; not of a joint evaluation.
        - in_vocabulary_share of all answers, as the tasks read them; None for generic questions.
          tokens_per_answer: mean over all answers, without the end-of-sequence token.
          token_agreement: the share of all answers with the very tokens of full.
        - difference to the full score (joint: to 1); interval: its paired bootstrap interval
          (95 %) over the answers; mcnemar_p: see RIGHT_OR_WRONG. Of the full model itself, 0,
          [0, 0] and 1.
        - parameters_run, and the figures of `_timed`.

        Raises what Answerer.answers raises.
        """
        blocks = sorted(blocks)
        full = self._full
        found = self._ask(blocks) if blocks else full
        score, shuffled_score, visual_gain = self._overall(found)
        full_score = self._overall(full)[0]
        answers = [answer for of_part in found for answer in of_part.real]
        full_answers = [answer for of_part in full for answer in of_part.real]
        figures = {
            'images': len(
                {
                    part.images[item.question]
                    for part in self._parts
                    for item in part.objective.items
                }
            ),
            'score': score,
            'scores': self._scores(found),
            'shuffled_score': shuffled_score,
            'visual_gain': visual_gain,
            'auroc': None,
            'score_without_target': None,
            'most_frequent_answer': None,
            'most_frequent_share': None,
            'in_vocabulary_share': self._in_vocabulary_share(found),
            'tokens_per_answer': statistics.fmean(len(answer.token_ids) for answer in answers),
            'difference': _difference(score, full_score),
            'interval': None,
            'mcnemar_p': None,
            **self._timed(blocks),
            'parameters_run': self._answerer.vlm.num_parameters_run(blocks),
            'token_agreement': statistics.fmean(
                answer.token_ids == of_full.token_ids
                for answer, of_full in zip(answers, full_answers, strict=True)
            ),
        }
        if not self._is_joint:
            part = self._parts[0]
            figures.update(_most_frequent(answers))
            figures.update(_against_full(part, found[0], full[0]))
            if part.without_target:
                figures['auroc'] = self._auroc(part, blocks)
                figures['score_without_target'] = statistics.fmean(
                    float(part.objective.parts[0].scorer.score(i, found[0].real[i].text))
                    for i in part.without_target
                )
        return figures

    @cached_property
    def _full(self) -> list[_Answers]:
        return self._ask([])

    def _ask(self, blocks: Sequence[int]) -> list[_Answers]:
        """Return every answer without `blocks`, per part."""
        results = []
        for index, part in enumerate(self._parts):
            asked = part.questions
            pairs = [*enumerate(part.images), *part.shuffled.items()]
            drafts = self._drafts.get(index, [()] * len(pairs))
            answered = self._answerer.answers(
                [
                    Ask(image, asked.prompts[question], draft)
                    for (question, image), draft in zip(pairs, drafts, strict=True)
                ],
                blocks,
                (None,),
                asked.max_new_tokens,
            )
            answers = [of_question[0] for of_question in answered]
            self._drafts[index] = [answer.token_ids for answer in answers]
            real, other = answers[: len(part.images)], answers[len(part.images) :]
            results.append(_Answers(real, dict(zip(part.shuffled, other, strict=True))))
        return results

    def _overall(
        self, found: Sequence[_Answers]
    ) -> tuple[float | None, float | None, float | None]:
        """Return the score, the shuffled score and the visual gain."""
        pairs = list(zip(self._parts, found, strict=True))
        scores = [part.score(answers) for part, answers in pairs]
        shuffled = [part.shuffled_score(answers) for part, answers in pairs]
        if not self._is_joint:
            score, shuffled_score = float(scores[0]), _number(shuffled[0])
            is_gain = self._parts[0].metric == VISUAL_GAIN
            return score, shuffled_score, score if is_gain else _difference(score, shuffled_score)
        full = [part.score(answers) for part, answers in zip(self._parts, self._full, strict=True)]
        ratio = _least_ratio(scores, full)
        if any(part.metric == VISUAL_GAIN for part in self._parts):
            return ratio, None, None
        shuffled_ratio = _least_ratio(shuffled, full)
        return ratio, shuffled_ratio, _difference(ratio, shuffled_ratio)

    def _scores(self, found: Sequence[_Answers]) -> dict[str, float | None]:
        scores = {}
        for part, answers in zip(self._parts, found, strict=True):
            prefix = f'{part.questions.name}.' if self._is_joint else ''
            for metric, objective in part.objectives.items():
                scores[prefix + metric] = (
                    None if objective is None else float(_score(objective, answers.texts))
                )
        return scores

    def _in_vocabulary_share(self, found: Sequence[_Answers]) -> float | None:
        inside = [
            part.questions.task.parse(answer.text).in_vocabulary
            for part, answers in zip(self._parts, found, strict=True)
            if part.questions.task is not None
            for answer in answers.real
        ]
        return statistics.fmean(inside) if inside else None

    def _auroc(self, part: _Part, blocks: Sequence[int]) -> float:
        """Return how well the target's probability tells pictures with it from those without.

        It is the summed probability of the target's spellings at the start of the answer: with a
        capital letter or not, after a space or not. One picture at a time, so that no setting of
        speed and no number of processes changes a figure.
        """
        asked, vlm, pictures = part.questions, self._answerer.vlm, self._answerer.pictures
        assert asked.target is not None
        words = (asked.target, asked.target[:1].upper() + asked.target[1:])
        spellings = [space + word for word in words for space in ('', ' ')]
        # Some tokenizers put the space there themselves: what has the same tokens counts once.
        distinct = list({vlm.token_ids(spelling): spelling for spelling in spellings}.values())
        mine: dict[int, float] = {}
        for i, image in enumerate(part.images):
            if pictures.is_mine(image):
                logs = vlm.log_probabilities(
                    [pictures[image]] * len(distinct),
                    [asked.prompts[i]] * len(distinct),
                    distinct,
                    blocks,
                )
                mine[i] = _log_sum(logs)
        found: dict[int, float] = {}
        for part_of_rank in self._answerer.ranks.gather(mine):
            found.update(part_of_rank)
        without = set(part.without_target)
        return auroc(
            [value for i, value in sorted(found.items()) if i not in without],
            [value for i, value in sorted(found.items()) if i in without],
        )

    def _timed(self, blocks: Sequence[int]) -> dict[str, Any]:
        """Return the times of single answers (batch 1, from cached picture features).

        The first scored questions (of several tasks in turn) are answered twice by full and by the
        skip set, one after the other, so that what else the machine does meets both. All figures
        are medians over these answers:

        - latency_ms: the whole answer, preparing and encoding its picture included.
        - language_ms: prefill and decode.
        - ms_per_token: decode, by its passes: one for each token after the first, the
          end-of-sequence token included. Answers without any are left out; where there is no
          other, it is language_ms, which was for a single token.
        - latency_cut: 1 - language_ms / full's language_ms; 0 for the full model.
        - answers_got_shorter: these answers had fewer tokens than full's, and latency_cut is larger
          than the share of blocks left out by more than noise. That share is at least the skipped
          share of the language model's time; noise is how far the median language_ms of the two
          rounds are apart, by the larger one, in the worse of both sets.
        """
        result = dict.fromkeys(
            (
                'latency_ms',
                'ms_per_token',
                'language_ms',
                'latency_cut',
                'answers_got_shorter',
            )
        )
        if self._latency_images and self._answerer.ranks.rank == 0:
            result.update(self._measure(blocks))
        return self._answerer.ranks.of_first(result)

    def _measure(self, blocks: Sequence[int]) -> dict[str, Any]:
        vlm = self._answerer.vlm
        asked = [
            (self._answerer.pictures[part.images[i]], part.questions.prompts[i], part.questions)
            for part, i in self._timed_questions()
        ]
        sets = [(), tuple(blocks)] if blocks else [()]
        found: dict[tuple[int, ...], list[_Timed]] = {removed: [] for removed in sets}
        for features, prompt, questions in [asked[0], *asked * LATENCY_ROUNDS]:
            for removed in sets:
                answer = vlm.answer(features, prompt, removed, questions.max_new_tokens)
                found[removed].append(_Timed(answer, questions.max_new_tokens))
        # The first answer of each set was a warm-up.
        times, full_times = found[tuple(blocks)][1:], found[()][1:]
        language_ms = statistics.median(one.language_ms for one in times)
        per_token = [one.decode_ms / one.passes for one in times if one.passes]
        cut = 1 - language_ms / statistics.median(one.language_ms for one in full_times)
        noise = max(_noise(times), _noise(full_times))
        is_shorter = sum(one.tokens for one in times) < sum(one.tokens for one in full_times)
        return {
            'latency_ms': statistics.median(one.total_ms for one in times),
            'ms_per_token': statistics.median(per_token) if per_token else language_ms,
            'language_ms': language_ms,
            'latency_cut': cut,
            'answers_got_shorter': is_shorter and cut > len(blocks) / vlm.num_blocks + noise,
        }

    def _timed_questions(self) -> list[tuple[_Part, int]]:
        longest = max(part.questions.num_scored for part in self._parts)
        in_turn = [
            (part, i)
            for i in range(longest)
            for part in self._parts
            if i < part.questions.num_scored
        ]
        return in_turn[: self._latency_images]


@dataclass(frozen=True)
class _Answers:
    """One skip set's answers to a part's questions, about their own and about other pictures."""

    real: Sequence[CandidateAnswer]  # per question
    shuffled: Mapping[int, CandidateAnswer]  # by question; only those that the score needs

    @property
    def texts(self) -> dict[int, str]:
        return {i: answer.text for i, answer in enumerate(self.real)}

    @property
    def shuffled_texts(self) -> dict[int, str]:
        return {i: answer.text for i, answer in self.shuffled.items()}


class _Part:
    """One task's questions, its metrics, and which pictures they are asked about."""

    def __init__(
        self, questions: Questions, metric: str, image_of: Mapping[Path, int], seed: int
    ) -> None:
        self.questions = questions
        self.metric = metric
        self.images = [image_of[sample.image_path] for sample in questions.samples]
        self.without_target = range(questions.num_scored, len(questions.samples))
        plain = metric if metric == BALANCED_ACCURACY else base_metric(questions.name, metric)
        # The score of one answer to each question, as the search has it.
        self.objective = make_objective([questions], [plain], image_of, seed)
        names = METRICS[questions.name]
        if questions.name == 'single_object':
            names = (*names, BALANCED_ACCURACY)
        self.objectives: dict[str, Objective | None] = {}
        for name in names:
            try:
                self.objectives[name] = make_objective([questions], [name], image_of, seed)
            except (CalibrationError, TaskError):  # as balanced accuracy for a single class
                self.objectives[name] = None
        self.shuffled: dict[int, int] = {}  # question -> the other picture
        if len(set(self.images)) > 1 or metric == VISUAL_GAIN:
            others = shuffled_images(self.images, seed)
            self.shuffled = {item.question: others[item.question] for item in self.objective.items}

    def shuffled_score(self, answers: _Answers) -> Score | None:
        """Return the score with the pictures shuffled; None for a single picture."""
        return _score(self.objective, answers.shuffled_texts) if answers.shuffled else None

    def score(self, answers: _Answers) -> Score:
        """Return the score in the metric given."""
        score = _score(self.objective, answers.texts)
        if self.metric == VISUAL_GAIN:
            score -= _score(self.objective, answers.shuffled_texts)
        return score

    def per_answer(self, answers: _Answers) -> list[Score]:
        """Return what each answer adds to the score, in the order of the objective's items."""
        values = _contributions(self.objective, answers.texts)
        if self.metric == VISUAL_GAIN:
            shuffled = _contributions(self.objective, answers.shuffled_texts)
            values = [real - other for real, other in zip(values, shuffled, strict=True)]
        return values


class _Timed:
    """What one timed answer took."""

    def __init__(self, answer: Answer, max_new_tokens: int) -> None:
        timing = answer.timing
        self.total_ms = timing.total_ms
        self.decode_ms = timing.decode_ms
        self.language_ms = timing.prefill_ms + timing.decode_ms
        self.tokens = len(answer.token_ids)
        # The first token is prefill's; one that ends the answer is not among token_ids.
        self.passes = min(self.tokens, max_new_tokens - 1)


def _against_full(part: _Part, answers: _Answers, full: _Answers) -> dict[str, Any]:
    ours, theirs = part.per_answer(answers), part.per_answer(full)
    weights = [item.weight for item in part.objective.items]
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    interval = paired_bootstrap_interval(
        [gain / weight for gain, weight in zip(gains, weights, strict=True)], weights
    )
    p = None
    if part.metric in RIGHT_OR_WRONG:
        p = mcnemar_p(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))
    return {'interval': list(interval), 'mcnemar_p': p}


def _most_frequent(answers: Sequence[CandidateAnswer]) -> dict[str, Any]:
    counts = Counter(normalise(answer.text) for answer in answers)
    answer, count = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {'most_frequent_answer': answer, 'most_frequent_share': count / len(answers)}


def _contributions(objective: Objective, texts: Mapping[int, str]) -> list[Score]:
    return [
        objective.contribution(number, texts[item.question])
        for number, item in enumerate(objective.items)
    ]


def _score(objective: Objective, texts: Mapping[int, str]) -> Score:
    return objective.part_scores(_contributions(objective, texts))[0]


def _log_sum(logs: Sequence[float]) -> float:
    """Return log(sum(exp(logs))) without leaving the floats."""
    top = max(logs)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in logs))


def _noise(times: Sequence[_Timed]) -> float:
    half = len(times) // LATENCY_ROUNDS
    first, second = (
        statistics.median(one.language_ms for one in some) for some in (times[:half], times[half:])
    )
    return abs(first - second) / max(first, second)


def _least_ratio(scores: Sequence[Score | None], full: Sequence[Score]) -> float | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(full) or min(full) <= 0:
        return None
    return min(float(score / whole) for score, whole in zip(known, full, strict=True))


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _number(score: Score | None) -> float | None:
    return None if score is None else float(score)
