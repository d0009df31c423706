"""Methods that search by likelihood or divergence, and the two whose sets need no data.

On tiny models: the measures against Hugging Face's own logits, the searches where the right sets
are known by construction or by trying all.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from calibration_helpers import as_dataset, make_all_questions, results_of_two_ranks
from PIL import Image
from references import HfReference
from tiny_models import make_tiny_model
from weight_edits import edit_weights, make_identity

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.likelihood import own_answers, reference_answers, reference_text
from gmskip_ros.calibration.methods import measured_rounds
from gmskip_ros.calibration.methods.fixed_interval import fixed_interval
from gmskip_ros.calibration.methods.registry import check_settings, get_method, search_settings
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.run import calibrate
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import GIB, CalibrationSettings, Listener, RoundDone
from gmskip_ros.datasets import Sample
from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm import Stopped, load_vlm

NUM_BLOCKS = 6
NUM_TOKENS = 5
NUM_IMAGES = 10  # more than a batch
CHECKPOINTS = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
LETTERS = 'abcdefghijklmnopqrstuvwxyz'
METRICS = {'captioning': 'rouge_l', 'multi_object': 'set_f1', 'single_object': 'accuracy'}
SIZE_2 = (2 / NUM_BLOCKS,)


@pytest.fixture(scope='module')
def samples(tmp_path_factory) -> list[Sample]:
    folder = tmp_path_factory.mktemp('images')
    samples = []
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (28 + number, 40, 3), np.uint8)
        path = folder / f'{number}.png'
        Image.fromarray(pixels).save(path)
        captions = ('a car on the road'[: 5 + number], 'another caption')
        labels = ('dog', 'traffic_light')[number % 2 :]
        sample = Sample(f'{number}', path, labels=labels, main_object=labels[0], captions=captions)
        samples.append(sample)
    return samples


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def checkpoint(request, tmp_path_factory) -> Path:
    """A random checkpoint of each decoder."""
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), *request.param, NUM_BLOCKS)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), num_blocks=NUM_BLOCKS)


@pytest.fixture
def own_folder(tmp_path) -> Path:
    """A checkpoint that the test may change."""
    return make_tiny_model(tmp_path / 'model', num_blocks=NUM_BLOCKS)


@pytest.fixture
def vlm(folder):
    """A model that the test may change."""
    return load_vlm(str(folder), device='cpu')


def make_scorer(
    vlm,
    samples: list[Sample],
    method: str,
    *,
    task: str = 'captioning',
    metric: str | None = None,
    max_new_tokens: int = NUM_TOKENS,
    ranks: Ranks | None = None,
    batch_size: int = 256,
    should_stop=None,
    remembered: dict[str, Any] | None = None,
    on_progress=lambda progress: None,
    on_save=lambda state, is_round: None,
    task_options: dict[str, Any] | None = None,
    **values: Any,
) -> Scorer:
    """Return a scorer whose full score is known."""
    ranks = ranks or Ranks()
    images = EncodedImages(vlm, [sample.image_path for sample in samples], GIB, ranks)
    assert images.encode_all() == {}
    options = {'labels': ('dog', 'traffic_light'), **(task_options or {})}
    questions = make_all_questions(samples, task, max_new_tokens=max_new_tokens, **options)
    objective = make_objective(questions, [metric or METRICS[task]], images.index_of)
    answerer = Answerer(vlm, images, ranks, batch_size=batch_size, should_stop=should_stop)
    scorer = Scorer(
        objective,
        answerer,
        search_settings(method, **values),
        on_progress=on_progress,
        on_save=on_save,
        remembered=remembered,
    )
    scorer.score_full()
    return scorer


def choose(vlm, samples: list[Sample], method: str, **values: Any):
    """Return what the method chose; greedy ones go on whatever the score, to two blocks."""
    limits = {'sparsities': SIZE_2} if method == 'evopress' else {'rounds': 2, 'min_score_ratio': 0}
    return get_method(method).choose(make_scorer(vlm, samples, method, **{**limits, **values}))


def blocks_of(chosen) -> list[tuple[int, ...]]:
    return [scored.blocks for scored in chosen.sets]


def values_of(chosen) -> list[float]:
    """Return what a greedy search compared, of the block that it removed in each round."""
    return [
        next(cell['value'] for cell in each['candidates'] if cell['block'] == each['best'])
        for each in chosen.objective['rounds']
    ]


def answering_in_letters(folder: Path):
    """Return a model that answers in letters only, of the checkpoint, which is changed to that."""

    def edit(weights) -> None:
        [head] = [weights[name] for name in weights if name.endswith('lm_head.weight')]
        kept = [tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
        head[[i for i in range(len(head)) if i not in kept]] = 0.0

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return load_vlm(edit_weights(folder, edit), device='cpu')


def answering_itself(vlm, samples: list[Sample]) -> list[Sample]:
    """Return samples with what a model that answers in letters says as references."""
    prompt = make_all_questions(samples, 'captioning')[0].common_prompt
    references = []
    for sample in samples:
        image = np.asarray(Image.open(sample.image_path))
        text = vlm.answer(image, prompt, max_new_tokens=NUM_TOKENS).text
        assert len(text) == NUM_TOKENS and set(text) <= set(LETTERS)
        references.append(Sample(sample.key, sample.image_path, captions=(text,)))
    return references


# ---- the measures, against Hugging Face --------------------------------------------------------


def log_softmax_of(reference: HfReference, sample: Sample, prompt, ids, removed) -> np.ndarray:
    """Return log-probabilities (tokens + 1, V), float64, before each token and after the last."""
    image = np.asarray(Image.open(sample.image_path))
    inputs, length = reference.whole_sequence(image, prompt, ids)
    with reference.blocks_removed(removed), torch.inference_mode():
        logits = reference.model(**inputs, use_cache=False).logits[0, length - 1 :]
    return logits.double().log_softmax(dim=-1).numpy()


@pytest.mark.parametrize('removed', [(), (1,), (0, 3, 4)], ids=str)
def test_the_likelihood_of_references_is_hugging_faces(checkpoint, samples, removed) -> None:
    vlm, reference = load_vlm(str(checkpoint), device='cpu'), HfReference(checkpoint)
    scorer = make_scorer(vlm, samples, 'sleb')
    prompt = scorer.objective.parts[0].questions.common_prompt
    texts = [sample.captions[0].strip() for sample in samples]
    capitals = [text.capitalize() for text in texts]
    ways = [texts, capitals, [f' {text}' for text in texts], [f' {text}' for text in capitals]]

    def mean_of(way: list[str], blocks) -> float:
        values = []
        for sample, text in zip(samples, way, strict=True):
            ids = reference.tokenizer(text, add_special_tokens=False)['input_ids']
            logs = log_softmax_of(reference, sample, prompt, ids, blocks)
            values.append(-sum(logs[i, token] for i, token in enumerate(ids)))
        return float(np.mean(values))

    likeliest = min(ways, key=lambda way: mean_of(way, ()))
    found = reference_answers(scorer).negative_log_likelihood(SkipSet.of(removed))
    assert found == pytest.approx(mean_of(likeliest, removed), rel=1e-5)


def test_the_divergence_is_hugging_faces(checkpoint, samples) -> None:
    vlm, reference = load_vlm(str(checkpoint), device='cpu'), HfReference(checkpoint)
    scorer = make_scorer(vlm, samples, 'evopress', sparsities=SIZE_2)
    prompt = scorer.objective.parts[0].questions.common_prompt
    sets, chosen = [(1,), (0, 3, 4), ()], [0, 3, 9]
    found = own_answers(scorer).divergences([SkipSet.of(blocks) for blocks in sets], chosen)
    for blocks, value in zip(sets, found, strict=True):
        divergences = []
        for index in chosen:
            image = np.asarray(Image.open(samples[index].image_path))
            ids = vlm.answer(image, prompt, max_new_tokens=NUM_TOKENS).token_ids
            assert len(ids) == NUM_TOKENS
            full, other = (
                log_softmax_of(reference, samples[index], prompt, ids, removed)[:-1]
                for removed in ((), blocks)
            )
            divergences += list((np.exp(full) * (full - other)).sum(axis=1))
        assert value == pytest.approx(np.mean(divergences), rel=1e-4, abs=1e-6)


def test_a_phase_that_is_not_skipped_runs_every_block(vlm, samples) -> None:
    """One token needs no decode pass, so a decode set changes only what follows it."""
    answers = reference_answers(make_scorer(vlm, samples, 'sleb', task='single_object'))
    full = answers.negative_log_likelihood(SkipSet())
    assert answers.negative_log_likelihood(SkipSet(decode=[1, 2])) != full
    own = own_answers(make_scorer(vlm, samples, 'self-nll', max_new_tokens=1))
    assert {len(one.token_ids) for one in own.answers} == {1}
    full = own.negative_log_likelihood(SkipSet())
    assert own.negative_log_likelihood(SkipSet(decode=[1, 2])) == full
    assert own.negative_log_likelihood(SkipSet(prefill=[1, 2])) > full
    assert own.divergences([SkipSet(decode=[1, 2])]) == [0.0]


def test_the_end_of_an_answer_is_compared_as_well(tmp_path, samples) -> None:
    """A model that ends at once has a distribution to compare, before any token."""
    folder = make_tiny_model(tmp_path, num_blocks=NUM_BLOCKS, eos_token_id=list(range(261)))
    scorer = make_scorer(load_vlm(str(folder), device='cpu'), samples, 'self-nll')
    own = own_answers(scorer)
    assert {one.token_ids for one in own.answers} == {()}
    assert own.negative_log_likelihood(SkipSet.of([1])) == 0.0
    assert own.divergences([SkipSet.of([1])])[0] > 1e-3


@pytest.mark.parametrize(
    'task, texts',
    [
        ('single_object', ['dog', 'traffic light']),
        ('multi_object', ['dog, traffic light', 'traffic light']),
        ('captioning', ['a car', 'a car ']),
    ],
)
def test_references_as_answers(samples, task, texts) -> None:
    [questions] = make_all_questions(samples, task)
    assert [reference_text(questions, i) for i in (0, 1)] == [text.strip() for text in texts]


def test_absent_targets_have_no_reference_and_empty_ones_are_one_line(vlm, samples) -> None:
    values = {'task': 'single_object', 'task_options': {'target': 'dog'}}
    scorer = make_scorer(vlm, samples, 'sleb', metric='balanced_accuracy', **values)
    assert len(scorer.objective.items) == NUM_IMAGES
    assert len(reference_answers(scorer).answers) == NUM_IMAGES / 2
    assert len(own_answers(scorer).answers) == NUM_IMAGES
    nothing = [*samples[:2], Sample('x', samples[2].image_path, captions=(' ', 'a car'))]
    with pytest.raises(CalibrationError, match=r'2\.png: its reference .* is empty: .*self-nll'):
        choose(vlm, nothing, 'sleb')


# ---- sets that are known by construction -------------------------------------------------------


@pytest.mark.parametrize('phases', [('prefill', 'decode'), ('decode',)], ids='+'.join)
def test_of_identities_sleb_removes_the_shallowest_first(own_folder, samples, phases) -> None:
    make_identity(own_folder, 0, 2, 4, 5)  # 0 and 5 are protected by default
    vlm = answering_in_letters(own_folder)
    references = answering_itself(vlm, samples)
    for method in ('sleb', 'self-nll'):
        chosen = choose(vlm, references, method, phases=phases, rounds=3)
        assert chosen.nested
        assert blocks_of(chosen)[:3] == [(), (2,), (2, 4)]
        assert len(chosen.sets) == 4
        values = values_of(chosen)
        assert values[0] == values[1] == chosen.objective['full'] < values[2]
        rounds = chosen.objective['rounds']
        assert [one['best'] for one in rounds] == list(chosen.sets[-1].blocks)
        assert [[cell['block'] for cell in one['candidates']] for one in rounds[:2]] == [
            [1, 2, 3, 4],
            [1, 3, 4],
        ]
    everything = choose(vlm, references, 'sleb', phases=phases, rounds=4, protect=(0, 0))
    assert everything.sets[-1].blocks == (0, 2, 4, 5)


def test_the_tasks_score_ends_the_search(own_folder, samples) -> None:
    make_identity(own_folder, 2, 4)
    vlm = answering_in_letters(own_folder)
    references = answering_itself(vlm, samples)
    chosen = choose(vlm, references, 'sleb', min_score_ratio=1.0, rounds=None)
    assert blocks_of(chosen) == [(), (2,), (2, 4)]
    assert [scored.score for scored in chosen.sets] == [1.0, 1.0, 1.0]
    assert 'scores below 1 x the full score' in chosen.stopped_by
    assert len(chosen.objective['rounds']) == 3  # the last one removed nothing
    limits = {'rounds': None, 'min_score_ratio': 2.0, 'stops_at_ratio': False}
    assert choose(vlm, references, 'sleb', **limits).stopped_by == 'only protected blocks are left'
    every = choose(vlm, references, 'sleb', rounds=None)
    assert len(every.sets[-1].blocks) == NUM_BLOCKS - 2
    assert every.stopped_by == 'only protected blocks are left'
    assert 'max_sparsity' in choose(vlm, samples, 'sleb', rounds=None, max_sparsity=0.4).stopped_by


def test_a_round_in_which_all_candidates_tie_is_a_warning(vlm, samples) -> None:
    """Answers of one token do not depend on what decode skips."""
    chosen = choose(vlm, samples, 'self-nll', phases=('decode',), max_new_tokens=1)
    assert blocks_of(chosen) == [(), (1,), (1, 2)]
    assert [line.split(':')[0] for line in chosen.warnings] == ['rounds 1, 2']
    assert choose(vlm, samples, 'self-nll').warnings == ()


@pytest.mark.parametrize('fitness', ['kl', 'score'])
def test_evopress_finds_the_identities(own_folder, samples, fitness) -> None:
    make_identity(own_folder, 1, 4)
    vlm = answering_in_letters(own_folder)
    references = answering_itself(vlm, samples)
    chosen = choose(vlm, references, 'evopress', fitness=fitness, sparsities=(1 / 3, 1 / 2, 0.1))
    assert not chosen.nested and chosen.ranking is None
    assert blocks_of(chosen)[:2] == [(), (1, 4)]
    assert [len(scored.blocks) for scored in chosen.sets] == [0, 2, 3]
    best = chosen.objective['sets'][0]
    assert best['blocks'] == [1, 4]
    assert best['value'] == pytest.approx(0.0 if fitness == 'kl' else 1.0, abs=1e-6)
    protected = choose(vlm, references, 'evopress', fitness=fitness, protect=(2, 1))
    assert set(protected.sets[1].blocks) <= {2, 3, 4}


# ---- evopress against trying every set ---------------------------------------------------------


@pytest.mark.parametrize('seed', range(2))
def test_evopress_finds_the_best_of_all_sets(tmp_path, samples, seed) -> None:
    folder = make_tiny_model(tmp_path, num_blocks=NUM_BLOCKS, seed=seed)
    vlm = load_vlm(str(folder), device='cpu')
    values = {'generations': 60, 'offspring': 2, 'seed': seed, 'sparsities': (1 / 3, 1 / 2)}
    chosen = choose(vlm, samples, 'evopress', **values)
    own = own_answers(make_scorer(vlm, samples, 'evopress', sparsities=SIZE_2))
    for size, scored, record in zip((2, 3), chosen.sets[1:], chosen.objective['sets'], strict=True):
        every = list(itertools.combinations(range(NUM_BLOCKS), size))
        divergences = own.divergences([SkipSet.of(blocks) for blocks in every])
        assert scored.blocks == every[int(np.argmin(divergences))]
        assert record['value'] == min(divergences)
        # The best never gets worse, and it took more than the first random sets to find it.
        assert record['generations'] == sorted(record['generations'], reverse=True)


def test_evopress_by_score_finds_the_best_score_of_all_sets(own_folder, samples) -> None:
    vlm = answering_in_letters(own_folder)
    references = answering_itself(vlm, samples)
    chosen = choose(vlm, references, 'evopress', fitness='score', generations=30, offspring=4)
    scorer = make_scorer(vlm, references, 'evopress', sparsities=SIZE_2)
    scores = {
        blocks: float(scorer.score_of(blocks))
        for blocks in itertools.combinations(range(NUM_BLOCKS), 2)
    }
    assert chosen.sets[1].score == max(scores.values()) == scores[chosen.sets[1].blocks]
    assert chosen.objective['sets'][0]['value'] == chosen.sets[1].score


def test_evopress_ends_where_no_other_set_is_left(vlm, samples) -> None:
    chosen = choose(vlm, samples[:2], 'evopress', protect=(2, 2))
    assert blocks_of(chosen) == [(), (2, 3)]
    assert len(chosen.objective['sets'][0]['generations']) == 1


# ---- resuming, processes, stopping -------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    'sleb': {'rounds': 3},
    'self-nll': {'rounds': 3},
    'evopress': {'generations': 6, 'offspring': 4, 'sparsities': (1 / 3, 1 / 2)},
}


@pytest.mark.parametrize('method', METHODS)
def test_a_killed_run_resumes_to_the_same_list(vlm, samples, method) -> None:
    expected = choose(vlm, samples, method, **METHODS[method])
    rng = random.Random(method)
    file, work = b'{}', 0
    usual = vlm.continuation_logits
    left = 0

    def counted(*arguments, **options):
        nonlocal left, work
        if left == 0:
            raise KeyboardInterrupt
        left, work = left - 1, work + 1
        return usual(*arguments, **options)

    vlm.continuation_logits = counted
    found, kills = None, 0
    while found is None:
        left, remembered = rng.randint(9, 13), json.loads(file)

        def save(state, is_round, remembered=remembered) -> None:
            nonlocal file
            file = json.dumps(remembered).encode()

        try:
            found = choose(
                vlm, samples, method, remembered=remembered, on_save=save, **METHODS[method]
            )
        except KeyboardInterrupt:
            kills += 1
            assert kills < 100
    assert found == expected
    assert kills
    left, work = 1000, 0
    assert choose(vlm, samples, method, remembered=json.loads(file), **METHODS[method]) == expected
    assert work == 0


def test_seeds_search_differently_and_batches_do_not_matter(vlm, samples) -> None:
    found = []
    for seed in (0, 1):
        values = {'seed': seed, **METHODS['evopress'], 'generations': 1}
        one, again = (choose(vlm, samples, 'evopress', **values) for _ in range(2))
        assert one == again
        found.append([record['generations'] for record in one.objective['sets']])
    assert found[0] != found[1]
    one, other = (choose(vlm, samples, 'sleb', batch_size=size) for size in (1, 256))
    assert blocks_of(one) == blocks_of(other)
    np.testing.assert_allclose(values_of(one), values_of(other), 1e-5)


def run_rank(folder: Path, samples: list[Sample], environment: dict[str, str], path: Path) -> None:
    """Choose with every method as one of several processes, and write what it found."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks = Ranks()
    ranks.connect('cpu')
    vlm = load_vlm(str(folder), device='cpu')
    found = [choose(vlm, samples, name, ranks=ranks, **METHODS[name]) for name in METHODS]
    path.write_bytes(pickle.dumps(found))
    ranks.disconnect()


def test_two_processes_find_the_same_as_one(tmp_path, folder, vlm, samples) -> None:
    alone = [choose(vlm, samples, name, **METHODS[name]) for name in METHODS]
    assert results_of_two_ranks(run_rank, folder, samples, tmp_path) == [alone, alone]


def test_progress_and_stopping(vlm, samples) -> None:
    for method in METHODS:
        seen: list[Any] = []
        choose(vlm, samples, method, on_progress=seen.append, **METHODS[method])
        rounds = [progress for progress in seen if progress.round > 0]
        assert all(0 <= one.done <= one.total for one in rounds)
        assert max(one.round for one in rounds) <= rounds[-1].most_rounds
        assert any(one.done == one.total for one in rounds)
        stop: list[bool] = []
        scorer = make_scorer(
            vlm,
            samples[:2],
            method,
            should_stop=lambda stop=stop: bool(stop),
            **({'sparsities': SIZE_2} if method == 'evopress' else {}),
        )
        _ = scorer.full_answers
        stop.append(True)
        with pytest.raises(Stopped):
            get_method(method).choose(scorer)


class Rounds(Listener):
    """Keeps what a run reports of its rounds; raises KeyboardInterrupt after `most` new ones."""

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.resumed_at: list[tuple[int, int]] = []
        self.done: list[RoundDone] = []

    def resumed(self, number: int, most_rounds: int) -> None:
        self.resumed_at.append((number, most_rounds))

    def round_done(self, done: RoundDone) -> None:
        self.done.append(done)
        if sum(each.is_new for each in self.done) == self.most:
            raise KeyboardInterrupt


@pytest.mark.parametrize('method', ['sleb', 'evopress'])
def test_every_round_is_reported_and_an_interrupted_search_goes_on(tmp_path, vlm, samples, method):
    def run(folder: str, listener: Rounds, **limits: Any):
        values = {'sparsities': SIZE_2, 'offspring': 3} if method == 'evopress' else {}
        (tmp_path / folder).mkdir(exist_ok=True)
        search = search_settings(method, min_score_ratio=0, **values, **limits)
        settings = CalibrationSettings(
            'captioning',
            metric='rouge_l',
            images=NUM_IMAGES,
            test_images=0,
            max_new_tokens=NUM_TOKENS,
            search=search,
            force=True,
        )
        data = as_dataset(samples)
        found = calibrate(vlm, data, settings, tmp_path / folder, listener=listener)
        lines = (tmp_path / folder / 'rounds.jsonl').read_text().splitlines()
        return found.result['objective'], [json.loads(line) for line in lines]

    few, many = ({'rounds': 2}, {'rounds': 4})
    if method == 'evopress':
        few, many = ({'generations': 1}, {'generations': 3})
    whole_listener, listener = Rounds(), Rounds()
    whole = run('whole', whole_listener, **many)
    run('parts', Rounds(), **few)  # to its end: what it found is the beginning of the other
    with pytest.raises(KeyboardInterrupt):
        run('parts', Rounds(most=1), **many)
    parts = run('parts', listener, **many)
    assert parts[0] == whole[0]
    for done in (*parts[1], *whole[1]):
        assert done.pop('seconds') > 0 and done.pop('token_blocks') > 0
    assert parts[1] == whole[1]
    assert [done['round'] for done in whole[1]] == [1, 2, 3, 4]
    assert listener.resumed_at == [(4, 4)] and whole_listener.resumed_at == []
    assert [done.is_new for done in listener.done] == [False, False, False, True]
    assert all(done.seconds_left > 0 for done in listener.done[:3])
    assert listener.done[3].seconds_left is None
    last = whole[1][-1]
    if method == 'sleb':
        assert last['removed'] in [cell['block'] for cell in last['cells']]
        assert last['value'] == min(cell['value'] for cell in last['cells'])
        assert last['sparsity'] == 4 / NUM_BLOCKS
        assert f'block {last["removed"]} removed, {last["value"]:.4g} nats' in listener.done[3].what
    else:
        assert (last['size'], last['generation']) == (2, 3)
        assert [done['value'] for done in whole[1]] == whole[0]['sets'][0]['generations']
        assert 'generation 3 of 2 blocks, divergence ' in listener.done[3].what
    # A finished folder of a version that did not time rounds.
    path = tmp_path / 'whole' / 'checkpoint.json'
    content = json.loads(path.read_text())
    kept = content['evaluations']
    content['evaluations'] = {key: kept[key] for key in kept if not key.startswith('round ')}
    assert len(content['evaluations']) == len(kept) - 4
    path.write_text(json.dumps(content))
    old_listener = Rounds()
    old = run('whole', old_listener, **many)
    assert old[1] == [{**done, 'seconds': None, 'token_blocks': None} for done in whole[1]]
    for done in old_listener.done:
        assert not done.is_new and done.seconds_left is done.seconds is None


@pytest.mark.parametrize('method', METHODS)
def test_the_time_left_is_what_is_left(vlm, samples, method, monkeypatch) -> None:
    """Where a second is a token's way through a block, and answers are equally long."""
    monkeypatch.setattr(
        measured_rounds, 'time', SimpleNamespace(monotonic=lambda: float(vlm.token_blocks))
    )
    said: list[tuple[int, float | None, int]] = []
    ended: list[int] = []
    limits = {} if method == 'evopress' else {'min_score_ratio': 0}
    scorer = make_scorer(
        vlm,
        samples,
        method,
        on_progress=lambda now: said.append((now.round, now.seconds_left, vlm.token_blocks)),
        **{**METHODS[method], **limits},
    )
    scorer.on_round = lambda done, record: ended.append(vlm.token_blocks)
    said.clear()
    get_method(method).choose(scorer)
    known = [(left, ended[-1] - at) for _, left, at in said if left is not None]
    assert len(known) >= len(said) - 2  # unknown before the first answers
    slack = 0.02 * known[0][1]
    for left, really_left in known:
        assert 0.95 * really_left <= left <= 1.45 * really_left + slack
    later = [left for number, left, _ in said if number > 1]
    assert later == sorted(later, reverse=True)


def test_a_search_without_further_sets_is_over(vlm, samples) -> None:
    done: list[RoundDone] = []
    scorer = make_scorer(vlm, samples[:2], 'evopress', sparsities=(1 / 6, 1 / 3), offspring=4)
    scorer.on_round = lambda each, record: done.append(each)
    get_method('evopress').choose(scorer)
    assert [each.number for each in done] == list(range(1, len(done) + 1))
    assert done[0].most_rounds == 1 + 41 and done[-1].most_rounds == len(done) < 42
    assert done[0].seconds_left > 0 and done[-1].seconds_left is None


def test_the_record_has_what_was_compared(tmp_path, vlm, samples) -> None:
    for method, limits in [('sleb', {'rounds': 2}), ('evopress', {'sparsities': SIZE_2})]:
        found = calibrate(
            vlm,
            as_dataset(samples),
            CalibrationSettings(
                'captioning',
                metric='rouge_l',
                images=NUM_IMAGES,
                test_images=0,
                max_new_tokens=NUM_TOKENS,
                latency_images=0,
                search=search_settings(method, min_score_ratio=0, **limits),
                force=True,  # a model with random weights is never right
            ),
            tmp_path,
        )
        result = json.loads(json.dumps(found.result))
        assert result['method'] == found.skip_list.method == method
        (tmp_path / 'checkpoint.json').unlink()
        if method == 'sleb':
            assert result['protect'] == [1, 1] and result['nested']
            assert 'negative log-likelihood of the reference answers' in result['objective']['name']
            first = result['objective']['rounds'][0]
            values = {cell['block']: cell['value'] for cell in first['candidates']}
            assert first['best'] == min(values, key=values.get)
            assert found.skip_list.blocks_at(1) == (first['best'],)
        else:
            assert not result['nested'] and result['options']['seed'] == 0
            assert result['objective']['sets'][0]['blocks'] == sorted(found.skip_list.blocks_at(2))


# ---- methods without data, settings ------------------------------------------------------------


def test_early_exit_removes_the_deepest_first_in_decode(vlm, samples) -> None:
    scorer = make_scorer(vlm, samples[:2], 'early-exit', sparsities=(0.5,))
    chosen = get_method('early-exit').choose(scorer)
    assert chosen.sets[-1].blocks == (5, 4, 3) and chosen.nested
    assert scorer.skip_set([5]) == SkipSet(decode=[5])
    protected = choose(vlm, samples[:2], 'early-exit', protect=(0, 1))
    assert protected.sets[-1].blocks == (4, 3)


def test_uneven_intervals_are_random_sets_of_the_same_sizes(vlm, samples) -> None:
    values = {'intervals': (2, 3), 'rounds': None}
    found = set()
    for seed in range(5):
        settings = search_settings('uneven-interval', seed=seed, intervals=(2, 3))
        assert get_method('uneven-interval').list_name(settings) == f'uneven-interval-{seed}'
        chosen = choose(vlm, samples[:2], 'uneven-interval', seed=seed, **values)
        assert chosen == choose(vlm, samples[:2], 'uneven-interval', seed=seed, **values)
        sizes = [len(fixed_interval(NUM_BLOCKS, interval)) for interval in (3, 2)]
        assert [len(scored.blocks) for scored in chosen.sets] == [0, *sizes]
        assert {block for blocks in blocks_of(chosen) for block in blocks} <= {1, 2, 3, 4}
        assert not chosen.nested
        found.add(chosen.sets[1].blocks)
    assert len(found) > 1
    protected = choose(vlm, samples[:2], 'uneven-interval', protect=(3, 0), intervals=(2,))
    assert protected.sets[1].blocks == (3, 4)
    only = search_settings('uneven-interval', intervals=(2,), protect=(4, 0))
    with pytest.raises(CalibrationError, match='skips 2 blocks, and only 1 inner blocks may be'):
        check_settings(only, NUM_BLOCKS)


def test_what_evopress_cannot_do_is_one_line() -> None:
    evopress = get_method('evopress')
    for values, words in [
        ({}, 'evopress searches sets of given sizes: give --sparsity, such as 0.25,0.5'),
        ({'sparsities': (0.5,), 'generations': 0}, 'generations 0 must be a whole number'),
        ({'sparsities': (0.5,), 'offspring': True}, 'offspring True must be a whole number'),
        ({'sparsities': (0.5,), 'protect': (2, 2)}, 'is 3 of 6 blocks, and 2 may be removed'),
    ]:
        with pytest.raises(CalibrationError, match=words) as caught:
            check_settings(search_settings('evopress', **values), NUM_BLOCKS)
        assert '\n' not in str(caught.value)
    with pytest.raises(CalibrationError, match="fitness 'loss' is unknown: use kl, score"):
        search_settings('evopress', sparsities=(0.5,), fitness='loss')
    generations = next(one for one in evopress.options if one.name == 'generations')
    assert generations.parse('12') == 12
    with pytest.raises(CalibrationError, match="--generations '0': give a whole number"):
        generations.parse('0')
