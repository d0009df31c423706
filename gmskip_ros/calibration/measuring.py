"""How a skip set does on given images, against the full model on the same images."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gmskip_ros.calibration.answer_log import AnswerLog, plain_reference
from gmskip_ros.calibration.answering import Answerer, ImageQuestion
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.guidance import Guidance, ScoredText, judge, left_out_warnings
from gmskip_ros.calibration.objective import (
    BALANCED_ACCURACY,
    VISUAL_GAIN,
    Objective,
    above_zero,
    base_metric,
    make_objective,
    shuffled_images,
)
from gmskip_ros.calibration.questions import Questions, reread
from gmskip_ros.calibration.repetition import repeats
from gmskip_ros.calibration.speed import ratio_interval
from gmskip_ros.skipping import SkipSet
from gmskip_ros.tasks import PRESENCE, TaskError
from gmskip_ros.tasks.metrics import yes_no_figures
from gmskip_ros.tasks.normalisation import normalise
from gmskip_ros.tasks.scoring import METRICS, Score
from gmskip_ros.tasks.statistics import auroc, clustered_mcnemar_p, paired_bootstrap_interval
from gmskip_ros.vlm import Answer, CandidateAnswer

# Metrics whose answers are right or wrong, which McNemar's test compares, image by image.
RIGHT_OR_WRONG = ('accuracy', 'exact', 'contains', 'relaxed', 'set_exact_match')
# The version of an evaluation's figures: what an older one has measured is measured again.
# 2: McNemar's test by image.
FIGURES = 2
LATENCY_FIGURES = (
    'latency_ms',
    'ms_per_token',
    'language_ms',
    'latency_cut',
    'speed_up',
    'speed_up_interval',
    'speed_up_with_vision',
    'speed_up_with_vision_interval',
    'threads',
    'load',
    'answers_got_shorter',
)
# (part, question) -> per round: the times of the set's answer and of full's.
_Times = dict[tuple[int, int], list[dict[str, dict[str, float]]]]
STRICTER = ('strict', 'forms')  # also shown, however answers are read
LATENCY_ROUNDS = 2  # of each image under each set; their difference is the noise


class Evaluator:
    """Measures skip sets on one list of questions, against the full model on the same images.

    Several `questions` are a joint evaluation, whose score is the least of score / full score.
    `image_of`: the index of an image by its path; `seed` shuffles the images; `latency_images`
    questions are also answered alone and timed, none with 0. With several processes, each one
    makes the same calls and gets the same figures; rank 0 is timed. `on_answers` receives each
    part's questions and the answers to them, of every skip set that is evaluated. Raises
    CalibrationError and TaskError for questions that `metrics` cannot score.

    Attribute log: where every answer is kept, if anywhere; in the first process.
    """

    def __init__(
        self,
        questions: Sequence[Questions],
        metrics: Sequence[str],
        answerer: Answerer,
        image_of: Mapping[Path, int],
        seed: int = 0,
        latency_images: int = 8,
        on_answers: Callable[[Questions, list[str]], None] | None = None,
    ) -> None:
        self._answerer = answerer
        self._on_answers = on_answers
        self.log: AnswerLog | None = None
        self._latency_images = latency_images
        self._parts = [
            _Part(of_task, metric, image_of, seed)
            for of_task, metric in zip(questions, metrics, strict=True)
        ]
        self._is_joint = len(self._parts) > 1
        self._drafts: dict[int, list[tuple[int, ...]]] = {}  # per part: the last known answers

    def evaluate(self, skip: SkipSet | Iterable[int]) -> dict[str, Any]:
        """Return the figures of the model with `skip` skipped, as plain JSON values.

        What does not apply is None. Shares are in 0..1, times in milliseconds. "All answers" are
        those to every question about its own image, including images without the target.

        - images: number of different images in the score. answers: number of all answers.
        - score: in the given metric; joint: the least of score / full score over the tasks whose
          full score is above 0, None without any. scores: every metric of the task that these
          references allow, else None; joint: 'single_object.accuracy' and so on; presence: the
          means of `yes_no_figures` over the splits, and 'random.accuracy' and so on.
          match_scores: the score if the same answers were read as STRICTER (for visual_gain: of
          the metric it is computed from); empty for tasks without labels and joint evaluations.
        - shuffled_score: the same score (for visual_gain: the metric it is computed from) with each
          question paired with a different question's image; all images are shuffled, with the
          target or not. visual_gain = score - shuffled_score. None for a single image, and for a
          joint evaluation where a task's metric is visual_gain.
        - auroc: of the target's probability as an answer, over images with and without it;
          score_without_target: the share of the latter answered with something else.
        - most_frequent_answer (normalised; among several the first in alphabetical order) and
          most_frequent_share, over all answers; None for a joint evaluation.
        - in_vocabulary_share of all answers, as the tasks read them; None for generic questions.
          tokens_per_answer: mean over all answers, without the end-of-sequence token.
          repeating_share: the share of all answers in which tokens repeat (see `repeats`).
          token_agreement: the share of all answers with exactly the full model's tokens.
        - difference to the full score (joint: to 1); interval: its paired bootstrap interval
          (95 %) over the images; mcnemar_p: see RIGHT_OR_WRONG. For the full model itself 0,
          [0, 0] and 1.
        - parameters_run, and the figures of `_timed`.
        - score_warnings, of the full model only: why its score may mean nothing (guidance.judge).

        Raises what Answerer.answers raises.
        """
        skip_set = SkipSet.of(skip)
        full = self._full
        found = self._ask(skip_set) if skip_set else full
        if self._on_answers is not None:
            for part, of_part in zip(self._parts, found, strict=True):
                self._on_answers(part.questions, [answer.text for answer in of_part.real])
        score, shuffled_score, visual_gain = self._overall(found)
        full_score = self._overall(full)[0]
        answers = [answer for part_answers in found for answer in part_answers.real]
        full_answers = [answer for part_answers in full for answer in part_answers.real]
        timed, times = self._timed(skip_set)
        target_logs: dict[int, float] = {}
        figures = {
            'images': len(
                {
                    part.images[item.question]
                    for part in self._parts
                    for item in part.objective.items
                }
            ),
            'answers': len(answers),
            'score': score,
            'scores': self._scores(found),
            'match_scores': self._match_scores(found),
            'shuffled_score': shuffled_score,
            'visual_gain': visual_gain,
            'auroc': None,
            'score_without_target': None,
            'most_frequent_answer': None,
            'most_frequent_share': None,
            'in_vocabulary_share': self._in_vocabulary_share(found),
            'tokens_per_answer': statistics.fmean(len(answer.token_ids) for answer in answers),
            'repeating_share': statistics.fmean(repeats(answer.token_ids) for answer in answers),
            'difference': _difference(score, full_score),
            'interval': None,
            'mcnemar_p': None,
            **timed,
            'parameters_run': self._answerer.vlm.num_parameters_run(skip_set),
            'token_agreement': statistics.fmean(
                answer.token_ids == full_answer.token_ids
                for answer, full_answer in zip(answers, full_answers, strict=True)
            ),
        }
        if not skip_set:
            figures['score_warnings'] = [
                reason
                for part, answers in zip(self._parts, full, strict=True)
                for reason in part.judge(answers).reasons
            ] + left_out_warnings(
                [part.questions.name for part in self._parts],
                [part.metric for part in self._parts],
                [part.score(answers) for part, answers in zip(self._parts, full, strict=True)],
            )
        if not self._is_joint:
            part = self._parts[0]
            figures.update(_most_frequent(answers))
            figures.update(_against_full(part, found[0], full[0]))
            if part.without_target:
                target_logs = self._target_log_probabilities(part, skip_set)
                without = part.without_target
                figures['auroc'] = auroc(
                    [value for i, value in target_logs.items() if i not in without],
                    [value for i, value in target_logs.items() if i in without],
                )
                figures['score_without_target'] = statistics.fmean(
                    float(part.objective.parts[0].scorer.score(i, found[0].real[i].text))
                    for i in part.without_target
                )
        if self.log is not None:
            self.log.add(skip_set, self._records(found, target_logs, times))
        return figures

    def _records(
        self, found: Sequence[_Answers], target_logs: Mapping[int, float], times: _Times
    ) -> Iterator[dict[str, Any]]:
        """Yield what answers.jsonl holds of each answer.

        target_logs: of the questions about their own image, of a single part.
        """
        for index, (part, answers) in enumerate(zip(self._parts, found, strict=True)):
            questions = part.questions
            path_of = dict(zip(part.images, (s.image_path for s in questions.samples), strict=True))
            asked = [(i, part.images[i], answer) for i, answer in enumerate(answers.real)]
            other = [(i, part.shuffled[i], answer) for i, answer in answers.shuffled.items()]
            for number, (i, image, answer) in enumerate(asked + other):
                record = {
                    'task': questions.name,
                    'question': i,
                    'key': questions.samples[i].key,
                    'image': str(path_of[image]),
                    'is_shuffled': number >= len(asked),
                    'is_scored': i < questions.num_scored,
                    'prompt': questions.prompts[i],
                    'references': plain_reference(questions.references[i]),
                    'answer': answer.text,
                    'token_ids': list(answer.token_ids),
                }
                if questions.splits:
                    record['splits'] = list(questions.splits[i])
                if number < len(asked) and i in target_logs:
                    log = target_logs[i]
                    record['target_log_probability'] = log if math.isfinite(log) else None
                if number < len(asked) and (index, i) in times:
                    record['times'] = times[index, i]
                yield record

    @cached_property
    def _full(self) -> list[_Answers]:
        return self._ask(SkipSet())

    def _ask(self, skip_set: SkipSet) -> list[_Answers]:
        """Return every answer with the set skipped, per part."""
        results = []
        for index, part in enumerate(self._parts):
            questions = part.questions
            pairs = [*enumerate(part.images), *part.shuffled.items()]
            drafts = self._drafts.get(index, [()] * len(pairs))
            answered = self._answerer.answers(
                [
                    ImageQuestion(image, questions.prompts[question], draft)
                    for (question, image), draft in zip(pairs, drafts, strict=True)
                ],
                skip_set,
                (None,),
                questions.max_new_tokens,
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
            if part.questions.name == PRESENCE:
                figures = _presence_figures(part.questions, answers)
                figures.pop('accuracy')  # known already, without rounding
                scores.update({prefix + name: value for name, value in figures.items()})
        return scores

    def _match_scores(self, found: Sequence[_Answers]) -> dict[str, float]:
        if self._is_joint:
            return {}
        return {
            match: float(_score(objective, found[0].texts))
            for match, objective in self._parts[0].stricter.items()
        }

    def _in_vocabulary_share(self, found: Sequence[_Answers]) -> float | None:
        inside = [
            part.questions.task.parse(answer.text).in_vocabulary
            for part, answers in zip(self._parts, found, strict=True)
            if part.questions.task is not None
            for answer in answers.real
        ]
        return statistics.fmean(inside) if inside else None

    def _target_log_probabilities(self, part: _Part, skip_set: SkipSet) -> dict[int, float]:
        """Return how likely the target is as the answer to each question, ascending: log(p).

        It is the summed probability of the target's spellings at the start of the answer: with a
        capital letter or not, after a space or not. One image is scored at a time, so that neither
        settings of speed nor the number of processes change a figure.
        """
        questions, vlm, images = part.questions, self._answerer.vlm, self._answerer.images
        assert questions.target is not None
        words = (questions.target, questions.target[:1].upper() + questions.target[1:])
        spellings = [space + word for word in words for space in ('', ' ')]
        # Some tokenizers add the space themselves: spellings with the same tokens count once.
        distinct = list({vlm.token_ids(spelling): spelling for spelling in spellings}.values())
        mine: dict[int, float] = {}
        for i, image in enumerate(part.images):
            if images.is_mine(image):
                logs = vlm.log_probabilities(
                    [images[image]] * len(distinct),
                    [questions.prompts[i]] * len(distinct),
                    distinct,
                    skip_set,
                )
                mine[i] = _log_sum(logs)
        found: dict[int, float] = {}
        for of_rank in self._answerer.ranks.gather(mine):
            found.update(of_rank)
        return dict(sorted(found.items()))

    def _timed(self, skip_set: SkipSet) -> tuple[dict[str, Any], _Times]:
        """Return the times of single answers (batch 1, from cached image features), and each one.

        The first scored questions (alternating between several tasks) are answered twice by full
        and by the skip set, in turn, now one first and now the other, so that other load on the
        machine affects both. Times of other sets were measured at another time, under another load:
        only the ratios compare sets.

        - latency_ms: the whole answer, preparing and encoding its image included; the median.
        - language_ms: prefill and decode; the median.
        - ms_per_token: the median of decode divided by its passes: one for each token after the
          first, the end-of-sequence token included. Answers without a pass are ignored; if there
          are no others, it is language_ms, which was for a single token.
        - speed_up: full's prefill and decode times / this set's, summed over the same questions.
          speed_up_interval: [low, high], the 95 % paired bootstrap interval over the questions,
          each drawn with both its rounds; None with one question. speed_up_with_vision and its
          interval: of whole answers. 1 and [1, 1] for the full model itself.
        - latency_cut: 1 - 1 / speed_up.
        - threads: of PyTorch on the CPU. load: processes that the machine had to run, this one
          included (the mean of the minute before the end).
        - answers_got_shorter: these answers had fewer tokens than full's, and latency_cut exceeds
          the share of skipped blocks by more than noise. That share is at least the skipped share
          of the language model's time; noise is the difference of the two rounds' median
          language_ms, relative to the larger one, in the noisier of the two sets.
        """
        result, times = dict.fromkeys(LATENCY_FIGURES), _Times()
        if self._latency_images and self._answerer.ranks.rank == 0:
            figures, times = self._measure(skip_set)
            result.update(figures)
        return self._answerer.ranks.of_first((result, times))

    def _measure(self, skip_set: SkipSet) -> tuple[dict[str, Any], _Times]:
        import torch  # here: `gmskip --help` loads this file

        vlm = self._answerer.vlm
        chosen = self._timed_questions()
        timed = [
            (
                self._answerer.images[self._parts[part].images[i]],
                self._parts[part].questions.prompts[i],
                self._parts[part].questions,
            )
            for part, i in chosen
        ]
        full = SkipSet()
        sets = [full, skip_set] if skip_set else [full]
        found: dict[SkipSet, list[_Timed]] = {removed: [] for removed in sets}
        for number, (features, prompt, questions) in enumerate([timed[0], *timed * LATENCY_ROUNDS]):
            for removed in sets[:: -1 if number % 2 else 1]:
                answer = vlm.answer(features, prompt, removed, questions.max_new_tokens)
                found[removed].append(_Timed(answer, questions.max_new_tokens))
        # The first answer of each set was a warm-up.
        times, full_times = found[skip_set][1:], found[full][1:]
        language_ms = statistics.median(answer.language_ms for answer in times)
        per_token = [answer.decode_ms / answer.passes for answer in times if answer.passes]
        speed_up, interval = _speed_up('language_ms', times, full_times)
        with_vision, interval_with_vision = _speed_up('total_ms', times, full_times)
        cut = 1 - 1 / speed_up
        noise = max(_noise(times), _noise(full_times))
        num_tokens, num_full_tokens = (
            sum(answer.tokens for answer in answers) for answers in (times, full_times)
        )
        figures = {
            'latency_ms': statistics.median(answer.total_ms for answer in times),
            'ms_per_token': statistics.median(per_token) if per_token else language_ms,
            'language_ms': language_ms,
            'latency_cut': cut,
            'speed_up': speed_up,
            'speed_up_interval': interval,
            'speed_up_with_vision': with_vision,
            'speed_up_with_vision_interval': interval_with_vision,
            'threads': torch.get_num_threads(),
            'load': os.getloadavg()[0],
            'answers_got_shorter': num_tokens < num_full_tokens
            and cut > len(skip_set.blocks) / vlm.num_blocks + noise,
        }
        of_question: _Times = {}
        for place, timed_answer, full_answer in zip(
            chosen * LATENCY_ROUNDS, times, full_times, strict=True
        ):
            records = {'set': timed_answer.record(), 'full': full_answer.record()}
            of_question.setdefault(place, []).append(records)
        return figures, of_question

    def _timed_questions(self) -> list[tuple[int, int]]:
        """Return the part and the question of each, by their numbers."""
        counts = [part.questions.num_scored for part in self._parts]
        alternating = [
            (part, i) for i in range(max(counts)) for part, count in enumerate(counts) if i < count
        ]
        return alternating[: self._latency_images]


@dataclass(frozen=True)
class _Answers:
    """One skip set's answers to a part's questions, about their own and about other images."""

    real: Sequence[CandidateAnswer]  # per question
    shuffled: Mapping[int, CandidateAnswer]  # by question; only those that the score needs

    @property
    def texts(self) -> dict[int, str]:
        return {i: answer.text for i, answer in enumerate(self.real)}

    @property
    def shuffled_texts(self) -> dict[int, str]:
        return {i: answer.text for i, answer in self.shuffled.items()}


class _Part:
    """One task's questions, its metrics, and the images that they are asked about."""

    def __init__(
        self, questions: Questions, metric: str, image_of: Mapping[Path, int], seed: int
    ) -> None:
        self.questions = questions
        self.metric = metric
        self.images = [image_of[sample.image_path] for sample in questions.samples]
        self.without_target = range(questions.num_scored, len(questions.samples))
        plain = metric if metric == BALANCED_ACCURACY else base_metric(questions.name, metric)
        # The score of one answer to each question, as in the search.
        self.objective = make_objective([questions], [plain], image_of, seed)
        self.stricter = {
            match: make_objective([other], [plain], image_of, seed)
            for match in STRICTER
            if (other := reread(questions, match)) is not None
        }
        names = METRICS[questions.name]
        if questions.name == 'single_object':
            names = (*names, BALANCED_ACCURACY)
        self.objectives: dict[str, Objective | None] = {}
        for name in names:
            try:
                self.objectives[name] = make_objective([questions], [name], image_of, seed)
            except (CalibrationError, TaskError):  # such as balanced accuracy for a single class
                self.objectives[name] = None
        self.shuffled: dict[int, int] = {}  # question -> the other image
        if len(set(self.images)) > 1 or metric == VISUAL_GAIN:
            others = shuffled_images(self.images, seed)
            self.shuffled = {item.question: others[item.question] for item in self.objective.items}

    def shuffled_score(self, answers: _Answers) -> Score | None:
        """Return the score with the images shuffled; None for a single image."""
        return _score(self.objective, answers.shuffled_texts) if answers.shuffled else None

    def score(self, answers: _Answers) -> Score:
        """Return the score in the given metric."""
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

    def judge(self, full: _Answers) -> Guidance:
        """Return what the full model's answers show about the score."""
        answers = []
        for number, (item, added) in enumerate(
            zip(self.objective.items, self.per_answer(full), strict=True)
        ):
            least, most = (bound / item.weight for bound in self.objective.bounds(number))
            if self.metric == VISUAL_GAIN:
                least = -most
            text = full.texts[item.question]
            answers.append(ScoredText(text, added / item.weight, least, most))
        return judge(self.questions, self.metric, answers, float(self.score(full)))


class _Timed:
    """How long one answer took."""

    def __init__(self, answer: Answer, max_new_tokens: int) -> None:
        timing = answer.timing
        self.total_ms = timing.total_ms
        self.decode_ms = timing.decode_ms
        self.language_ms = timing.prefill_ms + timing.decode_ms
        self.tokens = len(answer.token_ids)
        # Prefill gives the first token; token_ids do not include one that ends the answer.
        self.passes = min(self.tokens, max_new_tokens - 1)

    def record(self) -> dict[str, float]:
        """Return what the figures are computed from, as JSON values."""
        return dict(vars(self))


def _presence_figures(questions: Questions, answers: _Answers) -> dict[str, float | None]:
    """Return the means of yes_no_figures over the splits, then those of each split."""
    assert questions.task is not None
    read = [questions.task.parse(answer.text).text for answer in answers.real]
    if not questions.splits:
        return yes_no_figures(read, questions.references)
    places: dict[str, list[int]] = {}
    for i, splits in enumerate(questions.splits):
        for split in splits:
            places.setdefault(split, []).append(i)
    of_splits = {
        split: yes_no_figures(
            [read[i] for i in of_split], [questions.references[i] for i in of_split]
        )
        for split, of_split in places.items()
    }
    figures: dict[str, float | None] = {}
    for name in next(iter(of_splits.values())):
        values = [value for each in of_splits.values() if (value := each[name]) is not None]
        figures[name] = statistics.fmean(values) if len(values) == len(of_splits) else None
    if len(of_splits) > 1:
        for split, each in of_splits.items():
            figures.update({f'{split}.{name}': value for name, value in each.items()})
    return figures


def _against_full(part: _Part, answers: _Answers, full: _Answers) -> dict[str, Any]:
    ours, theirs = part.per_answer(answers), part.per_answer(full)
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    of_image: dict[int, tuple[Any, int]] = {}  # image -> gain and weight of its questions
    for item, gain in zip(part.objective.items, gains, strict=True):
        total, weight = of_image.get(item.image, (0, 0))
        of_image[item.image] = total + gain, weight + item.weight
    interval = paired_bootstrap_interval(
        [gain / weight for gain, weight in of_image.values()],
        [weight for _, weight in of_image.values()],
    )
    p = None
    if part.metric in RIGHT_OR_WRONG:
        splits = part.questions.splits  # a question counts in each, as in the score
        won: Counter[int] = Counter()  # image -> questions gained minus lost
        for item, gain in zip(part.objective.items, gains, strict=True):
            count = len(splits[item.question]) if splits else 1
            won[item.image] += count * ((gain > 0) - (gain < 0))
        p = clustered_mcnemar_p(list(won.values()))
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
    """Return log(sum(exp(logs))) without underflow."""
    top = max(logs)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in logs))


def _speed_up(
    name: str, times: Sequence[_Timed], full: Sequence[_Timed]
) -> tuple[float, list[float] | None]:
    """Return full's time / this one's over the same questions, and its interval."""
    ours, theirs = ([getattr(answer, name) for answer in answers] for answers in (times, full))
    return sum(theirs) / sum(ours), ratio_interval(theirs, ours, len(times) // LATENCY_ROUNDS)


def _noise(times: Sequence[_Timed]) -> float:
    half = len(times) // LATENCY_ROUNDS
    first, second = (
        statistics.median(answer.language_ms for answer in round_times)
        for round_times in (times[:half], times[half:])
    )
    return abs(first - second) / max(first, second)


def _least_ratio(scores: Sequence[Score | None], full: Sequence[Score]) -> float | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(full):
        return None
    return min((float(known[part] / full[part]) for part in above_zero(full)), default=None)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _number(score: Score | None) -> float | None:
    return None if score is None else float(score)
