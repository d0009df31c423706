"""Methods that rank blocks by what they do to the calibration samples.

Where the right order is known by construction, and against the definitions written out on Hugging
Face's own hidden states and attention.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from calibration_helpers import as_dataset, make_all_questions, results_of_two_ranks
from PIL import Image
from references import HfReference
from tiny_models import HIDDEN_SIZE, make_tiny_model
from weight_edits import edit_weights, make_identity, of_decoder

from gmskip_ros.calibration.answering import Answerer
from gmskip_ros.calibration.distributed import Ranks
from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.images import EncodedImages
from gmskip_ros.calibration.methods.registry import check_settings, get_method, search_settings
from gmskip_ros.calibration.objective import make_objective
from gmskip_ros.calibration.probing import values_per_sample
from gmskip_ros.calibration.run import calibrate
from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import GIB, CalibrationSettings
from gmskip_ros.datasets import Sample
from gmskip_ros.skipping import SkipSet
from gmskip_ros.vlm import Stopped, load_vlm

NUM_BLOCKS = 5
NUM_IMAGES = 10  # more than a first chunk
NUM_TOKENS = 6
CHECKPOINTS = [('llava', 'llama'), ('llava_next', 'mistral'), ('llava_onevision', 'qwen2')]
LAST = NUM_BLOCKS - 1


@pytest.fixture(scope='module')
def samples(tmp_path_factory) -> list[Sample]:
    """Questions about images, whose right answers no random model gives."""
    folder = tmp_path_factory.mktemp('images')
    samples = []
    for number in range(NUM_IMAGES):
        size = (28 + 4 * number, 40)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = folder / f'{number}.png'
        Image.fromarray(pixels).save(path)
        samples.append(Sample(f'{number}', path, labels=('car',), captions=('a car',)))
    return samples


@pytest.fixture(scope='module', params=CHECKPOINTS, ids='-'.join)
def folder(request, tmp_path_factory):
    """A random checkpoint of each decoder."""
    return make_tiny_model(tmp_path_factory.mktemp('tiny'), *request.param, NUM_BLOCKS)


@pytest.fixture(scope='module')
def vlm(folder):
    return load_vlm(str(folder), device='cpu')


@pytest.fixture
def own_folder(tmp_path) -> Path:
    """A checkpoint that the test may change."""
    return make_tiny_model(tmp_path, num_blocks=NUM_BLOCKS)


@pytest.fixture
def own_vlm(own_folder):
    """A model that the test may change."""
    return load_vlm(str(own_folder), device='cpu')


def make_scorer(
    vlm,
    samples,
    method: str,
    *,
    task: str = 'captioning',
    max_new_tokens: int = NUM_TOKENS,
    ranks: Ranks | None = None,
    should_stop=None,
    remembered: dict[str, Any] | None = None,
    on_progress=lambda progress: None,
    **values: Any,
) -> Scorer:
    """Return a scorer whose full score is known; its answers are of random words."""
    ranks = ranks or Ranks()
    images = EncodedImages(vlm, [sample.image_path for sample in samples], GIB, ranks)
    assert images.encode_all() == {}
    questions = make_all_questions(samples, task, max_new_tokens=max_new_tokens)
    metrics = {'captioning': ['rouge_l'], 'multi_object': ['set_f1']}[task]
    objective = make_objective(questions, metrics, images.index_of)
    answerer = Answerer(vlm, images, ranks, should_stop=should_stop)
    settings = search_settings(method, **values)
    scorer = Scorer(objective, answerer, settings, on_progress=on_progress, remembered=remembered)
    scorer.score_full()
    return scorer


def choose(vlm, samples, method: str, **values: Any):
    """Return what the method chose, with one block removed unless `values` say otherwise."""
    values = {'sparsities': (1 / NUM_BLOCKS,), **values}
    return get_method(method).choose(make_scorer(vlm, samples, method, **values))


# ---- orders that are known by construction -----------------------------------------------------


@pytest.mark.parametrize('phases', [('prefill',), ('decode',), ('prefill', 'decode')], ids='+'.join)
@pytest.mark.parametrize('method', ['shortgpt', 'l2-norm'])
def test_identities_go_first_and_the_deepest_of_them_before(
    own_folder, samples, method, phases
) -> None:
    own_vlm = load_vlm(make_identity(own_folder, 1, 3), device='cpu')
    chosen = choose(own_vlm, samples, method, phases=phases, sparsities=(0.4,))
    assert chosen.nested
    assert [scored.blocks for scored in chosen.sets] == [(), (3,), (3, 1)]
    assert sorted(block for block, _ in chosen.ranking) == list(range(NUM_BLOCKS))
    values = [value for _, value in chosen.ranking]
    assert values[:2] == [0.0, 0.0] and values == sorted(values)
    assert values[2] > 1e-3
    protected = choose(own_vlm, samples[:2], method, phases=phases, protect=(0, 2))
    assert protected.sets[1].blocks == (1,)


def test_a_run_of_identities_is_the_closest(own_folder, samples) -> None:
    own_vlm = load_vlm(make_identity(own_folder, 0, 2, 3), device='cpu')
    chosen = choose(own_vlm, samples, 'uidl', sparsities=(0.2, 0.4))
    assert not chosen.nested and chosen.ranking is None
    assert [scored.blocks for scored in chosen.sets] == [(), (0,), (2, 3)]  # of equals, the first
    protected = choose(own_vlm, samples, 'uidl', sparsities=(0.2, 0.4), protect=(1, 0))
    assert [scored.blocks for scored in protected.sets] == [(), (2,), (2, 3)]
    other = choose(own_vlm, samples, 'uidl', sparsities=(0.2, 0.6), protect=(1, 1))
    assert [scored.blocks for scored in other.sets] == [(), (2,), (1, 2, 3)]
    every_size = choose(own_vlm, samples[:2], 'uidl', sparsities=(), rounds=3)
    assert [len(scored.blocks) for scored in every_size.sets] == [0, 1, 2, 3]


def test_windows_that_end_before_the_image_make_a_block_blind(tmp_path, samples) -> None:
    """Of Qwen2's blocks, every second one has a window that is shorter than the question."""
    folder = make_tiny_model(tmp_path, 'llava_onevision', 'qwen2', NUM_BLOCKS)
    chosen = choose(load_vlm(str(folder), device='cpu'), samples, 'visual-attention')
    assert chosen.ranking[:2] == ((3, 0.0), (1, 0.0))
    assert chosen.ranking[2][1] > 1e-3


def test_a_block_that_does_not_look_at_the_image_goes_first(own_folder, own_vlm, samples) -> None:
    """Keys of image tokens point away from every query of a text token, in block 0.

    Image features have a large first component and text embeddings a large second one. Block 0
    reads these as key and query in a pair of components that barely rotates.
    """
    before = dict(choose(own_vlm, samples, 'visual-attention').ranking)
    assert before[0] > 1e-3

    def edit(weights) -> None:
        embedding = of_decoder(weights, 'embed_tokens')
        embedding[:, 0], embedding[:, 1] = 0.0, 8.0
        weights['multi_modal_projector.linear_2.weight'][:2] = 0.0
        bias = weights['multi_modal_projector.linear_2.bias']
        bias[0], bias[1] = 8.0, 0.0
        for name, component, sign in [('q_proj', 1, 4.0), ('k_proj', 0, -4.0)]:
            projection = of_decoder(weights, f'layers.0.self_attn.{name}')
            by_head = projection.view(-1, own_vlm.decoder.blocks[0].head_size, HIDDEN_SIZE)
            by_head[:, [3, 7]] = 0.0
            by_head[:, 3, component] = sign

    edited = load_vlm(edit_weights(own_folder, edit), device='cpu')
    after = choose(edited, samples, 'visual-attention').ranking
    assert after[0][0] == 0
    assert after[0][1] < 1e-6 and after[1][1] > 1e-3


def test_the_simple_rule_removes_the_deepest_and_keeps_the_last(own_vlm, samples) -> None:
    chosen = choose(own_vlm, samples[:2], 'uidl-simple', sparsities=(0.4,))
    assert chosen.sets[-1].blocks == (3, 2)
    protected = choose(own_vlm, samples[:2], 'uidl-simple', sparsities=(0.4,), protect=(0, 2))
    assert protected.sets[-1].blocks == (2, 1)
    with pytest.raises(CalibrationError, match='uidl-simple keeps the last block: protect 0,1'):
        check_settings(search_settings('uidl-simple', protect=(0, 0)), NUM_BLOCKS)


@pytest.mark.parametrize(
    ('method', 'values'),
    [
        ('uidl', {'sparsities': (0.1,)}),
        ('evopress', {'sparsities': (0.1,)}),
        ('positional', {'sparsities': (0.0, 0.1)}),
        ('uidl', {'max_sparsity': 0.1}),
    ],
)
def test_less_than_one_block_is_refused(method, values) -> None:
    with pytest.raises(CalibrationError, match=r'^sparsity 0\.1 of 5 blocks is less than one'):
        check_settings(search_settings(method, **values), 5)


# ---- the definitions, on Hugging Face's own states --------------------------------------------


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    dot = (one * other).sum(axis=-1)
    return dot / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


@pytest.fixture(scope='module')
def hugging_face(folder, samples):
    """Per sample: states (blocks + 1, T, H), attention, image tokens, prompt's length, answer."""
    vlm, reference = load_vlm(str(folder), device='cpu'), HfReference(folder)
    scorer = make_scorer(vlm, samples, 'shortgpt')
    found = []
    for i, sample in enumerate(samples):
        image = np.asarray(Image.open(sample.image_path))
        prompt = scorer.objective.parts[0].questions.prompts[i]
        answer = vlm.answer(image, prompt, max_new_tokens=NUM_TOKENS).token_ids
        assert len(answer) == NUM_TOKENS  # no random model ends
        states, attention, is_image, length = reference.states(image, prompt, answer)
        found.append(
            SimpleNamespace(
                states=torch.stack(states).double().numpy(),
                to_image=attention[..., is_image].sum(dim=-1).mean(dim=1).numpy(),  # (blocks, T)
                prompt=length,
                answer=answer,
            )
        )
    return found


def tokens_of(sample, phases) -> slice:
    """Return the tokens that the phases process; the answer's last one is never run."""
    first = 0 if 'prefill' in phases else sample.prompt
    return slice(first, sample.prompt + (NUM_TOKENS - 1 if 'decode' in phases else 0))


@pytest.mark.parametrize('phases', [('prefill',), ('decode',), ('prefill', 'decode')], ids='+'.join)
@pytest.mark.parametrize('method', ['shortgpt', 'l2-norm'])
def test_means_over_tokens_are_the_definitions(vlm, samples, hugging_face, method, phases) -> None:
    values = []
    for block in range(NUM_BLOCKS):
        of_tokens: list[float] = []
        for sample in hugging_face:
            entering, leaving = sample.states[block : block + 2, tokens_of(sample, phases)]
            if method == 'shortgpt':
                of_tokens += list(1 - cosine(entering, leaving))
            else:
                norms = np.linalg.norm(entering, axis=-1) - np.linalg.norm(leaving, axis=-1)
                of_tokens += list(abs(norms))
        values.append(np.mean(of_tokens))
    assert_ranking(choose(vlm, samples, method, phases=phases), values)


def assert_ranking(chosen, values) -> None:
    assert [block for block, _ in chosen.ranking] == list(np.argsort(values))
    assert chosen.sets[1].blocks == (np.argmin(values),)
    np.testing.assert_allclose([value for _, value in chosen.ranking], sorted(values), rtol=1e-4)


def test_visual_attention_is_the_definition_whatever_the_phases(vlm, samples, hugging_face) -> None:
    of_samples = []
    for sample in hugging_face:
        queries = slice(sample.prompt - 1, sample.prompt - 1 + NUM_TOKENS)
        of_samples.append(sample.to_image[:, queries].mean(axis=1))
    values = np.mean(of_samples, axis=0)
    order = sorted(range(NUM_BLOCKS), key=lambda block: (values[block], -block))
    for phases in [('decode',), ('prefill',)]:
        chosen = choose(vlm, samples, 'visual-attention', phases=phases)
        np.testing.assert_allclose(
            [value for _, value in chosen.ranking], sorted(values), rtol=1e-4, atol=1e-12
        )
        assert [block for block, _ in chosen.ranking] == order


def test_angular_distances_are_the_definition(vlm, samples, hugging_face) -> None:
    sparsities = tuple(n / NUM_BLOCKS for n in range(1, NUM_BLOCKS))
    chosen = choose(vlm, samples, 'uidl', sparsities=sparsities)
    for scored in chosen.sets[1:]:
        size = len(scored.blocks)
        distances = []
        for first in range(NUM_BLOCKS - size + 1):
            angles = [
                math.acos(np.clip(cosine(before, after), -1, 1)) / math.pi
                for sample in hugging_face
                for before, after in [sample.states[[first, first + size], sample.prompt - 1]]
            ]
            distances.append(np.mean(angles))
        first = int(np.argmin(distances))
        assert scored.blocks == tuple(range(first, first + size))
    assert [len(scored.blocks) for scored in chosen.sets] == list(range(NUM_BLOCKS))


# ---- samples, processes, resuming -------------------------------------------------------------


def test_blocks_are_skipped_in_the_methods_phases(vlm, samples) -> None:
    for method, skip in [
        ('shortgpt', SkipSet(prefill=[2])),
        ('l2-norm', SkipSet(decode=[2])),
        ('visual-attention', SkipSet(decode=[2])),
        ('uidl', SkipSet([2], [2])),
        ('uidl-simple', SkipSet([2], [2])),
    ]:
        scorer = make_scorer(vlm, samples[:1], method)
        assert scorer.skip_set([2]) == skip


METHODS = ('shortgpt', 'visual-attention', 'uidl')


def run_rank(folder: Path, samples: list[Sample], environment: dict[str, str], path: Path) -> None:
    """Choose with every method as one of several processes, and write what it found."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks = Ranks()
    ranks.connect('cpu')
    vlm = load_vlm(str(folder), device='cpu')
    path.write_bytes(pickle.dumps([choose(vlm, samples, name, ranks=ranks) for name in METHODS]))
    ranks.disconnect()


def test_two_processes_find_the_same_as_one(tmp_path, samples) -> None:
    folder = make_tiny_model(tmp_path / 'tiny', num_blocks=NUM_BLOCKS)
    vlm = load_vlm(str(folder), device='cpu')
    alone = [choose(vlm, samples, name) for name in METHODS]
    assert results_of_two_ranks(run_rank, folder, samples, tmp_path) == [alone, alone]


def test_a_stopped_run_resumes_with_what_it_measured(own_vlm, samples, monkeypatch) -> None:
    expected = choose(own_vlm, samples, 'shortgpt')
    run: list[str] = []
    usual = own_vlm.block_states

    def counted(features, prompt, *arguments, **options):
        run.append(prompt)
        if len(run) == 9:  # in the second chunk
            raise Stopped('asked to')
        return usual(features, prompt, *arguments, **options)

    monkeypatch.setattr(own_vlm, 'block_states', counted)
    remembered: dict[str, Any] = {}
    with pytest.raises(Stopped):
        choose(own_vlm, samples, 'shortgpt', remembered=remembered)
    assert len(run) == 9
    remembered = json.loads(json.dumps(remembered))  # as a checkpoint
    progress = []
    again = choose(own_vlm, samples, 'shortgpt', remembered=remembered, on_progress=progress.append)
    assert again == expected
    assert len(run) == 9 + 2  # the first chunk of 8 is known
    probed = [(p.done, p.total) for p in progress if p.round == 0 and p.total == NUM_IMAGES]
    assert probed[-2:] == [(9, 10), (10, 10)]


def test_it_stops_when_told_to_within_a_sample(own_vlm, samples) -> None:
    stop: list[bool] = []
    scorer = make_scorer(own_vlm, samples[:2], 'uidl', should_stop=lambda: bool(stop))
    stop.append(True)
    with pytest.raises(Stopped):
        get_method('uidl').choose(scorer)


def test_every_scored_question_is_run_with_its_whole_answer(vlm, samples) -> None:
    """A search may cut the full model's answers once their score is certain."""
    scorer = make_scorer(vlm, samples, 'l2-norm', task='multi_object', max_new_tokens=20)
    found = []

    def measure(sample) -> list[float]:
        found.append((sample.image, sample.prompt, sample.token_ids, sample.num_decoded))
        return [1.0]

    assert values_per_sample(scorer, 'ones', measure) == [[1.0]] * NUM_IMAGES
    questions = scorer.objective.parts[0].questions
    answers = [
        vlm.answer(scorer.answerer.images[i], prompt, max_new_tokens=20).token_ids
        for i, prompt in enumerate(questions.prompts)
    ]
    assert found == [
        (i, prompt, ids, min(len(ids), 19))
        for i, (prompt, ids) in enumerate(zip(questions.prompts, answers, strict=True))
    ]


def test_answers_without_decoded_tokens_are_refused_in_one_line(own_vlm, samples) -> None:
    for method in ['l2-norm', 'shortgpt']:
        with pytest.raises(CalibrationError, match=r'nothing to measure in decode: .*--phases'):
            choose(own_vlm, samples[:2], method, phases=('decode',), max_new_tokens=1)
    one_token = choose(own_vlm, samples[:2], 'visual-attention', max_new_tokens=1)
    assert one_token.ranking[0][1] > 0  # its query is the prompt's last token
    own_vlm.end_ids = frozenset(range(300))  # every answer is empty
    with pytest.raises(CalibrationError, match='every answer of the full model is empty'):
        choose(own_vlm, samples[:2], 'visual-attention')


@pytest.mark.parametrize(
    ('method', 'values'),
    [
        ('visual-attention', {'sparsities': (0.2,)}),
        ('early-exit', {'sparsities': (0.2,)}),
        ('fixed-interval', {'intervals': (2,)}),
        ('evopress', {'sparsities': (0.2,), 'generations': 1, 'offspring': 2}),
        ('gm-skip', {'rounds': 1}),
    ],
)
def test_a_list_that_cannot_change_an_answer_says_so(
    tmp_path, own_vlm, samples, method, values
) -> None:
    def warnings(name: str, phases: tuple[str, ...], max_new_tokens: int) -> tuple[str, ...]:
        settings = CalibrationSettings(
            task='captioning',
            images=2,
            test_images=0,
            max_new_tokens=max_new_tokens,
            latency_images=0,
            search=search_settings(method, phases=phases, min_score_ratio=0, **values),
            force=True,  # a model with random weights is never right
        )
        (tmp_path / name).mkdir()
        found = calibrate(own_vlm, as_dataset(samples[:2]), settings, tmp_path / name)
        assert found.result['warnings'] == list(found.skip_list.cautions)
        return tuple(line for line in found.skip_list.warnings if line.startswith('phases'))

    (line,) = warnings('one token', ('decode',), 1)
    assert 'has a token that decode processes' in line and '\n' not in line
    assert warnings('two tokens', ('decode',), 2) == ()
    assert warnings('prefill', ('prefill',), 1) == ()
    own_vlm.end_ids = frozenset(range(300))
    if method != 'visual-attention':  # refuses empty answers
        assert warnings('empty answers', ('decode',), 8) == (line,)


def test_an_answer_that_ended_had_its_last_token_processed(own_vlm, samples) -> None:
    image = np.asarray(Image.open(samples[0].image_path))
    prompt = make_all_questions(samples[:1], 'captioning')[0].prompts[0]
    ids = own_vlm.answer(image, prompt, max_new_tokens=NUM_TOKENS).token_ids
    own_vlm.end_ids = frozenset([ids[3]])
    scorer = make_scorer(own_vlm, samples[:1], 'l2-norm')
    counts = values_per_sample(
        scorer, 'counts', lambda sample: [len(sample.token_ids), sample.num_decoded]
    )
    assert counts == [[ids.index(ids[3])] * 2]


@pytest.mark.parametrize(
    ('method', 'phases', 'nested', 'measured'),
    [
        ('shortgpt', ('prefill',), True, 'block influence in prefill, samples 0 to 7'),
        ('uidl', ('prefill', 'decode'), False, 'angular distances, samples 0 to 7'),
        ('visual-attention', ('decode',), True, 'visual attention, samples 0 to 7'),
    ],
)
def test_a_calibration_stops_resumes_and_writes_its_skip_list(
    tmp_path, own_vlm, samples, method, phases, nested, measured
) -> None:
    settings = CalibrationSettings(
        task='captioning',
        images=NUM_IMAGES,
        test_images=0,
        max_new_tokens=NUM_TOKENS,
        latency_images=0,
        search=search_settings(method, sparsities=(0.2, 0.4)),
        force=True,  # a model with random weights is never right
    )

    def run(folder: Path, should_stop=lambda: False):
        folder.mkdir(exist_ok=True)
        dataset = as_dataset(samples)
        return calibrate(own_vlm, dataset, settings, folder, should_stop=should_stop)

    expected = run(tmp_path / 'at once')
    checkpoint = tmp_path / 'twice' / 'checkpoint.json'

    def has_measured_a_chunk() -> bool:
        return checkpoint.exists() and measured in json.loads(checkpoint.read_text())['evaluations']

    with pytest.raises(Stopped):
        run(tmp_path / 'twice', should_stop=has_measured_a_chunk)
    resumed = run(tmp_path / 'twice')
    assert resumed.skip_list == replace(expected.skip_list, created=resumed.skip_list.created)
    assert resumed.result['ranking'] == expected.result['ranking']
    assert (resumed.skip_list.method, resumed.skip_list.phases) == (method, phases)
    assert resumed.skip_list.nested == nested
    assert (resumed.result['ranking'] is not None) == nested
    assert len(resumed.skip_list.blocks_at(2)) == 2
