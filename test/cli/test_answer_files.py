"""`gmskip evaluate --answers`: files that the judges of CODA-LM and LLaVA read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from redundant_pair import NUM_BLOCKS, PAIR, make_redundant_pair, write_questions

from gmskip_ros.cli import main
from gmskip_ros.skipping import Removal, load_skip_list, save_skip_list


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return make_redundant_pair(tmp_path_factory.mktemp('model') / 'pair')


@pytest.fixture
def evaluate(monkeypatch, capsys, model):
    """Run `gmskip evaluate` on the small model and return its exit status, output and errors."""
    monkeypatch.setattr(main, 'COMMANDS', ('evaluate',))

    def run(*arguments):
        options = ('--model', model, '--device', 'cpu', '--task', 'generic', '--no-progress')
        options += ('--max-new-tokens', 1, '--latency-images', 0)
        status = main.main(['evaluate', *map(str, (*options, *arguments))])
        return status, *capsys.readouterr()

    return run


def coda_lm(folder: Path, name: str, has_answers: bool) -> Path:
    """Write CODA-LM/Mini/vqa_anno/<name>.jsonl as convert2vqa.py does, with twelve questions."""
    made = write_questions(folder)
    records = [json.loads(line) for line in made.read_text().splitlines()]
    path = folder / 'CODA-LM' / 'Mini' / 'vqa_anno' / f'{name}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    boxes = folder / 'test' / 'images_w_boxes'
    boxes.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(12):
        record = records[number % len(records)]
        image = f'test/images_w_boxes/{number // 2:04d}_object_{number % 2 + 1}.jpg'
        (folder / image).write_bytes((made.parent / record['image']).read_bytes())
        line = {'question_id': number, 'image': image, 'question': record['question']}
        answer = {'answer': record['references'][0]} if has_answers else {}
        lines.append(json.dumps({**line, **answer}))
    path.write_text('\n'.join(lines))
    return path


def test_answers_of_every_row_as_coda_lm_s_scripts_read_them(evaluate, tmp_path):
    """stage1_eval_batch.py wants the answers 0, 1, 2, ..., and convert2eval.py an object id."""
    path = coda_lm(tmp_path, 'region_perception', has_answers=True)
    out = tmp_path / 'answers'
    made = replace(
        load_skip_list('demo_single_object'),
        num_blocks=NUM_BLOCKS,
        removed=tuple(Removal(block, 1.0) for block in PAIR),
        operating_points=None,
    )
    save_skip_list(made, tmp_path / 'pair.skip.yaml')
    options = ('--skip-list', tmp_path / 'pair.skip.yaml', '--operating-point', 2)
    status, output, errors = evaluate(
        '--dataset', path, '--answers', out, '--interval', 'none', *options
    )
    assert status == 0, errors
    found = sorted(file.relative_to(out).as_posix() for file in out.rglob('*') if file.is_file())
    name = 'region_perception_answer.jsonl'
    assert found == [f'full/{name}', f'gm_skip_2_blocks/{name}']
    assert f'answers: {out / "full" / name}' in output.replace('\n', '')
    rows = {}
    for row in ('full', 'gm_skip_2_blocks'):
        lines = [json.loads(line) for line in (out / row / name).read_text().splitlines()]
        assert [int(line['question_id']) for line in lines] == list(range(12))
        questions = [json.loads(line) for line in path.read_text().splitlines()]
        for line, question in zip(lines, questions, strict=True):
            assert (line['image'], line['question']) == (question['image'], question['question'])
            assert line['image'].split('/')[-1].split('_')[-1][:-4].isdigit()
            assert line['text'] == line['answer'] and line['prompt'] == line['question']
        rows[row] = [line['answer'] for line in lines]
    assert rows['full'] == [question['answer'] for question in questions]  # it is always right
    assert set(rows['gm_skip_2_blocks']) == {'d'}


def test_questions_without_answers_are_answered_and_not_scored(evaluate, tmp_path):
    """CODA-LM's Test, and LLaVA's question.jsonl."""
    path = coda_lm(tmp_path, 'driving_suggestion', has_answers=False)
    out = tmp_path / 'answers'
    options = ('--dataset', path, '--interval', 'none')
    status, output, errors = evaluate(*options, '--answers', out, '--images', 5)
    assert status == 0, errors
    assert '5 of 12 questions are answered: a judge of all of them needs --images 12' in errors
    lines = (out / 'full' / 'driving_suggestion_answer.jsonl').read_text().splitlines()
    assert len(lines) == 5 and all(json.loads(line)['answer'] for line in lines)
    assert 'exact' not in output.lower()
    status, _, errors = evaluate(*options)
    assert status == 2 and 'has no image for generic' in errors


def test_lists_with_one_file_name_and_long_names_are_told_apart(evaluate, tmp_path):
    """`calibrate` always writes <task>.skip.yaml; equal sets share a row, whose name is long."""
    path = coda_lm(tmp_path, 'general_perception', has_answers=True)
    made = replace(
        load_skip_list('demo_single_object'),
        num_blocks=NUM_BLOCKS,
        removed=tuple(Removal(block, 1.0) for block in PAIR),
        operating_points=None,
    )
    other = replace(made, removed=made.removed[::-1])
    lists = []
    for folder, skip_list in (('a', made), ('b', other), ('c', made), ('d', made)):
        (tmp_path / folder).mkdir()
        name = 'generic.skip.yaml' if folder < 'c' else f'{"a_long_name_" * 10}{folder}.skip.yaml'
        save_skip_list(skip_list, tmp_path / folder / name)
        lists += ['--skip-list', tmp_path / folder / name]
    out = tmp_path / 'answers'
    options = ('--answers', out, '--interval', 'none', '--operating-point', 1)
    status, output, errors = evaluate('--dataset', path, *options, *lists)
    assert status == 0, errors
    folders = sorted(folder.name for folder in out.iterdir())
    assert len(folders) == 3 and all(len(list((out / each).iterdir())) == 1 for each in folders)
    assert 'gm_skip_1_block_b_generic_skip_yaml' in folders
    assert len({line for line in output.splitlines() if line.startswith('answers: ')}) == 3
