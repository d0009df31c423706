"""How fast skip sets answer, each beside all the others: the sets take turns, image by image."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmskip_ros.datasets import read_image
from gmskip_ros.skipping import SkipSet
from gmskip_ros.tasks.statistics import paired_bootstrap_interval
from gmskip_ros.vlm import Answer, Stopped
from gmskip_ros.vlm.engine import Engine


@dataclass(frozen=True)
class TimedQuestion:
    """A question to time: a prompt about an image file."""

    path: Path
    prompt: str
    max_new_tokens: int


Sample = list[float]  # of one answer: the values of FIELDS
FIELDS = ('vision_ms', 'prefill_ms', 'decode_ms', 'total_ms', 'tokens', 'passes')


def time_round(
    vlm: Engine,
    questions: Sequence[TimedQuestion],
    skip_sets: Sequence[SkipSet],
    number: int,
    on_answer: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[Sample]]:
    """Return the samples of every set, a sample per question (the values of FIELDS).

    Every question is answered once under every set, one answer at a time, before the next question:
    other load on the machine affects all sets alike. The order of the sets is shuffled for every
    question and round, always the same for the same `number` and question: no set is early more
    often than others, nor always follows the same one. An image is encoded once for all sets, so
    its time is the same for all. Raises Stopped and what reading an image and answering raise.
    """
    samples: list[list[Sample]] = [[] for _ in skip_sets]
    for place, question in enumerate(questions):
        if should_stop():
            raise Stopped('stopped while timing answers')
        features = vlm.encode(read_image(question.path))
        order = list(range(len(skip_sets)))
        random.Random(f'{number} {place}').shuffle(order)
        for index in order:
            answer = vlm.answer(
                features,
                question.prompt,
                skip_sets[index],
                question.max_new_tokens,
                should_stop=should_stop,
            )
            samples[index].append(_sample(answer, question.max_new_tokens))
            on_answer()
    return samples


def _sample(answer: Answer, max_new_tokens: int) -> Sample:
    timing, tokens = answer.timing, len(answer.token_ids)
    return [
        timing.preprocess_ms + timing.vision_ms,
        timing.prefill_ms,
        timing.decode_ms,
        timing.total_ms,
        tokens,
        # Prefill gives the first token; token_ids do not include one that ends the answer.
        min(tokens, max_new_tokens - 1),
    ]


def speed_figures(
    samples: Sequence[Sample], full: Sequence[Sample], num_questions: int
) -> dict[str, Any]:
    """Return what the samples of a set say, as JSON values; `full` are the full model's.

    Both hold a sample per question, round after round; `num_questions` are those of a round.

    - questions, rounds; answers: their product, how many were timed.
    - prefill_ms, decode_ms, vision_ms, latency_ms (the whole answer): medians. vision includes
      preparing the image and the prompt.
    - decode_ms_per_token: the median, over answers with decode passes, of decode / passes; a pass
      gives one token after the first, the end-of-sequence token included.
      decode_ms_per_token_of_sums: all decode times / all passes. None without any pass.
    - prefill_total_ms, decode_total_ms, vision_total_ms; tokens: sums. tokens_per_answer: the mean,
      without end-of-sequence tokens.
    - tokens_per_s, answers_per_s: sum / sum of prefill and decode times; ..._mean_of_ratios: the
      mean over the answers of each one's own ratio, in which short answers weigh as much as long
      ones; ..._with_vision: of the whole answers' times.
    - speed_up, speed_up_with_vision: the full model's summed time / this set's, same questions.
      speed_up_interval: [low, high], the 95 % paired bootstrap interval of speed_up over the
      questions, each drawn with all its rounds; None with one question.
    """
    by_name = {name: [sample[i] for sample in samples] for i, name in enumerate(FIELDS)}
    tokens, passes = by_name['tokens'], by_name['passes']
    language = [p + d for p, d in zip(by_name['prefill_ms'], by_name['decode_ms'], strict=True)]
    per_token = [d / n for d, n in zip(by_name['decode_ms'], passes, strict=True) if n]
    decode_ms = sum(d for d, n in zip(by_name['decode_ms'], passes, strict=True) if n)
    figures: dict[str, Any] = {
        'questions': num_questions,
        'rounds': len(samples) // num_questions,
        'answers': len(samples),
        'prefill_ms': statistics.median(by_name['prefill_ms']),
        'decode_ms': statistics.median(by_name['decode_ms']),
        'vision_ms': statistics.median(by_name['vision_ms']),
        'latency_ms': statistics.median(by_name['total_ms']),
        'decode_ms_per_token': statistics.median(per_token) if per_token else None,
        'decode_ms_per_token_of_sums': decode_ms / sum(passes) if per_token else None,
        'prefill_total_ms': sum(by_name['prefill_ms']),
        'decode_total_ms': sum(by_name['decode_ms']),
        'vision_total_ms': sum(by_name['vision_ms']),
        'tokens': int(sum(tokens)),
        'tokens_per_answer': statistics.fmean(tokens),
    }
    for suffix, times in (('', language), ('_with_vision', by_name['total_ms'])):
        for name, counts in (('tokens_per_s', tokens), ('answers_per_s', [1] * len(samples))):
            ratios = [1000 * n / ms for n, ms in zip(counts, times, strict=True)]
            figures[name + suffix] = 1000 * sum(counts) / sum(times)
            figures[f'{name}{suffix}_mean_of_ratios'] = statistics.fmean(ratios)
    full_language = [sample[1] + sample[2] for sample in full]
    figures['speed_up'] = sum(full_language) / sum(language)
    figures['speed_up_interval'] = ratio_interval(full_language, language, num_questions)
    figures['speed_up_with_vision'] = sum(sample[3] for sample in full) / sum(by_name['total_ms'])
    return figures


def ratio_interval(
    full: Sequence[float], times: Sequence[float], num_questions: int
) -> list[float] | None:
    """Return the 95 % paired bootstrap interval of sum(full) / sum(times) over the questions.

    Both hold a time per question, round after round; a question is drawn with all its rounds. None
    with one question.
    """
    if num_questions < 2:
        return None
    of_full, of_set = (
        [sum(each[question::num_questions]) for question in range(num_questions)]
        for each in (full, times)
    )
    # The ratio of sums is the mean of the questions' own ratios, weighted with this set's times.
    ratios = [whole / part for whole, part in zip(of_full, of_set, strict=True)]
    return list(paired_bootstrap_interval(ratios, of_set))
