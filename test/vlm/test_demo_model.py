"""The embedded model as shipped: what it is made of, and that it knows its scenes."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gmskip_ros.datasets.scenes import CLASSES, Scene, render_scene
from gmskip_ros.skipping import load_skip_list
from gmskip_ros.tasks import TASK_NAMES, make_scorer, make_task, set_f1
from gmskip_ros.vlm import Vlm, load_vlm

FOLDER = Path(str(importlib.resources.files('gmskip_ros') / 'assets' / 'demo'))
# Seeds that neither training nor calibration has seen (see tools/demo_model/training_scenes.py).
HELD_OUT_SEED = 50_000_000
NUM_SCENES = 40
Answers = Callable[..., list[str]]


@pytest.fixture(scope='module')
def demo() -> Vlm:
    return load_vlm('demo', device='cpu')


@pytest.fixture(scope='module')
def scenes() -> list[Scene]:
    return [render_scene(HELD_OUT_SEED + i) for i in range(NUM_SCENES)]


@pytest.fixture(scope='module')
def answers(demo: Vlm, scenes: list[Scene]) -> Answers:
    """Give a function that returns the texts for all scenes, by task and skipped blocks."""
    features = [demo.encode(scene.image) for scene in scenes]

    @functools.cache
    def answer(task_name: str, blocks: tuple[int, ...] = ()) -> list[str]:
        task = make_task(task_name)
        prompts = [task.prompt] * len(scenes)
        batch = demo.answer_batch(features, prompts, blocks, task.max_new_tokens)
        return [answer.text for answer in batch]

    return answer


def test_it_has_32_blocks_and_100_image_tokens_in_20_mb(demo: Vlm, scenes: list[Scene]) -> None:
    assert demo.num_blocks == 32
    assert demo.text_model_type == 'llama'
    assert len(demo.encode(scenes[0].image).tokens) == 100
    assert sum(path.stat().st_size for path in FOLDER.glob('*.safetensors')) <= 20e6


def test_every_label_takes_two_or_more_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for name in CLASSES:
        assert len(tokenizer.tokenize(' ' + name.replace('_', ' '))) >= 2


def test_it_tells_the_main_object(answers: Answers, scenes: list[Scene]) -> None:
    task = make_task('single_object', labels=['scenes'])
    texts = answers('single_object')
    right = [
        task.parse(text).text == scene.main_object
        for text, scene in zip(texts, scenes, strict=True)
    ]
    assert sum(right) >= 0.85 * NUM_SCENES


def test_it_lists_the_objects(answers: Answers, scenes: list[Scene]) -> None:
    task = make_task('multi_object', labels=['scenes'])
    texts = answers('multi_object')
    scores = [
        set_f1(task.parse(text).labels, frozenset(scene.labels))
        for text, scene in zip(texts, scenes, strict=True)
    ]
    assert sum(scores) >= 0.85 * NUM_SCENES


def test_its_captions_name_the_objects(answers: Answers, scenes: list[Scene]) -> None:
    task = make_task('captioning', labels=['scenes'])
    texts = answers('captioning')
    right = [
        task.parse(text).labels == frozenset(scene.labels)
        for text, scene in zip(texts, scenes, strict=True)
    ]
    assert sum(right) >= 0.7 * NUM_SCENES


@pytest.mark.parametrize('prompt', ['Is the road wet?', 'Ist die Straße nass? 道路 🛣', '?'])
def test_a_prompt_it_never_saw_is_answered_all_the_same(
    demo: Vlm, scenes: list[Scene], prompt: str
) -> None:
    answer = demo.answer(scenes[0].image, prompt, max_new_tokens=4)
    assert len(answer.token_ids) <= 4


@pytest.mark.parametrize('task_name', TASK_NAMES)
def test_its_skip_lists_fit_it_and_still_answer(
    demo: Vlm, scenes: list[Scene], answers: Answers, task_name: str
) -> None:
    """No warning, and at both operating points the share of full's score is near the list's."""
    skip_list = load_skip_list(f'demo_{task_name}')
    task = make_task(task_name)
    warnings = skip_list.warnings_for(
        num_blocks=demo.num_blocks,
        text_model_type=demo.text_model_type,
        prompt=task.prompt,
        template_sha256=demo.template_sha256,
        dtype=demo.dtype,
        max_new_tokens=task.max_new_tokens,
        task=task_name,
        model=demo.name,
    )
    assert warnings == []
    scene_task = make_task(task_name, labels=['scenes'])
    truth = {'single_object': 'main_object', 'multi_object': 'labels', 'captioning': 'caption'}
    references = [getattr(scene, truth[task_name]) for scene in scenes]
    assert skip_list.metric is not None and skip_list.full_score is not None
    scorer = make_scorer(skip_list.metric, references, scene_task)

    def total(blocks: tuple[int, ...]) -> float:
        texts = answers(task_name, blocks)
        return float(sum(scorer.score(i, text) for i, text in enumerate(texts)))

    full = total(())
    for point in ('high_performance', 'high_sparsity'):
        blocks = skip_list.blocks_at(point)
        assert blocks
        stated = skip_list.removed[len(blocks) - 1].score
        assert stated is not None
        # Against full on the same scenes: CIDEr on other ones is another scale.
        assert total(tuple(blocks)) / full >= stated / skip_list.full_score - 0.12
