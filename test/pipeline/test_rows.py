"""Rows of frames.csv and frames.jsonl: made from what the node publishes, written, read back."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import pytest

from gmskip_ros.pipeline import records
from gmskip_ros.pipeline.pipeline import BranchResult, Comparison, TaskComparison, TaskResult
from gmskip_ros.pipeline.rows import (
    COLUMNS,
    FrameRow,
    ReportError,
    csv_bytes,
    json_line,
    read_json_lines,
    row_from_values,
)
from gmskip_ros.tasks import Agreement, make_task
from gmskip_ros.vlm import Confidence

# The texts that the node publishes.
VALUES = {
    'format': 'gmskip/result/1',
    'answer': 'traffic light, bus',
    'raw_text': 'a bus,\n"lights"\r',
    'tokens': '7',
    'preprocess_ms': '1.250',
    'vision_ms': '20.000',
    'prefill_ms': '30.125',
    'decode_ms': '40.000',
    'total_ms': '91.375',
    'vision_shared': 'true',
    'sparsity': '0.094',
    'skipped_blocks': '29,16,27',
    'operating_point': 'high_sparsity',
    'full_branch': 'isolated',
    'schedule': 'skip_then_full',
}
COMPARISON = {'format': 'gmskip/comparison/1', 'agree': 'false', 'jaccard': '0.500'}
STAMP_NS = 1_763_640_000_123_456_789


def skip_row(**changes: str) -> FrameRow:
    return row_from_values(
        3,
        STAMP_NS,
        'multi_object/skip',
        True,
        {**VALUES, **changes},
        COMPARISON,
        model='demo',
        machine='CPU X (cpu, float32)',
    )


def full_row() -> FrameRow:
    values = {**VALUES, 'skipped_blocks': '', 'operating_point': '0', 'sparsity': '0.000'}
    return row_from_values(
        3, STAMP_NS, 'multi_object/full', False, values, None, model='demo', machine='CPU X'
    )


def test_a_row_holds_what_was_published():
    row = skip_row()
    assert (row.frame, row.stamp_ns, row.task, row.branch) == (3, STAMP_NS, 'multi_object', 'skip')
    assert (row.tokens, row.decode_ms, row.total_ms) == (7, 40.0, 91.375)
    assert row.skipped_blocks == (29, 16, 27)
    assert (row.agree, row.jaccard, row.rouge_l) == (False, 0.5, None)
    assert (row.vision_shared, row.in_vocabulary) == (True, True)
    full = full_row()
    assert (full.agree, full.jaccard, full.rouge_l) == (None, None, None)
    assert full.skipped_blocks == ()
    assert full.in_vocabulary is False


def test_the_node_writes_what_a_row_is_made_of():
    """From the node's own statuses, as `gmskip replay` and the demo receive them."""
    task = make_task('captioning')
    times = dict.fromkeys(('preprocess_ms', 'vision_ms', 'prefill_ms', 'decode_ms'), 1.5)
    answer = SimpleNamespace(
        text='A bus.',
        token_ids=(4, 5),
        vision_shared=True,
        timing=SimpleNamespace(**times, total_ms=6.0),
        confidence=Confidence(0.75, 0.5),
    )
    skip, full = (
        TaskResult(
            'captioning',
            branch,
            task.parse('A bus.'),
            answer,
            blocks,
            point,
            32,
            'pad',
            576,
            task.match,
        )
        for branch, blocks, point in (('skip', (4, 2), 'high_sparsity'), ('full', (), '0'))
    )
    compared = TaskComparison(skip, full, Agreement(True, {'rouge_l': 1.0}))
    [result] = records.result_statuses(BranchResult('skip', 'x', (skip,), 1.0), 'x')
    [comparison] = records.comparison_statuses(Comparison((compared,)), 'x')
    row = row_from_values(
        1, 5, result.name, True, result.values, comparison.values, model='demo', machine='CPU'
    )
    assert (row.skipped_blocks, row.sparsity) == ((4, 2), 0.062)
    assert (row.agree, row.rouge_l, row.jaccard) == (True, 1.0, None)
    assert (row.tokens, row.total_ms, row.vision_shared) == (2, 6.0, True)
    assert result.values['match'] == row.match == 'forms'


def test_values_that_are_not_the_nodes_are_refused():
    with pytest.raises(ValueError, match='abc'):
        skip_row(tokens='abc')
    with pytest.raises(KeyError, match='answer'):
        row_from_values(
            1,
            1,
            'captioning/full',
            True,
            {'tokens': '1', 'operating_point': '0'},
            None,
            model='',
            machine='',
        )


def test_csv_has_every_column_in_order_and_every_character():
    reader = csv.DictReader(io.StringIO(csv_bytes([skip_row(), full_row()]).decode(), newline=''))
    skip, full = reader
    assert tuple(reader.fieldnames or ()) == COLUMNS
    assert skip['raw_text'] == VALUES['raw_text']
    assert skip['answer'] == 'traffic light, bus'
    assert skip['stamp_ns'] == str(STAMP_NS)
    assert skip['skipped_blocks'] == '29 16 27'
    assert (skip['agree'], skip['jaccard'], skip['rouge_l']) == ('false', '0.5', '')
    assert (skip['vision_shared'], full['in_vocabulary']) == ('true', 'false')
    assert (full['agree'], full['skipped_blocks']) == ('', '')
    assert csv_bytes([]) == (','.join(COLUMNS) + '\n').encode()


@pytest.mark.parametrize('text', ['a\rb', 'a\nb', 'a\r\n', '"a", b', '\u2028\x85', ' '])
def test_csv_keeps_line_ends_of_every_kind(text):
    content = csv_bytes([skip_row(raw_text=text), full_row()]).decode()
    rows = list(csv.DictReader(io.StringIO(content, newline='')))
    assert [row['raw_text'] for row in rows][:1] == [text] and len(rows) == 2
    assert content.startswith(','.join(COLUMNS) + '\n')


@pytest.mark.parametrize('text', ['', '<b>&amp;', '\u2028\x00\t', '公交车 🚌', 'not-\udcffunicode'])
def test_json_lines_are_read_as_they_were_written(tmp_path, text):
    rows = [skip_row(raw_text=text, answer=text), full_row()]
    lines = [json_line(row) for row in rows]
    assert [line.count('\n') for line in lines] == [1, 1]
    assert list(json.loads(lines[0])) == list(COLUMNS)
    path = tmp_path / 'frames.jsonl'
    path.write_text(''.join(lines), encoding='ascii')
    assert read_json_lines(path) == rows
    csv_bytes(rows)  # any text can be written


def test_a_torn_last_line_is_skipped_but_one_in_the_middle_is_not(tmp_path):
    path, line = tmp_path / 'frames.jsonl', json_line(skip_row())
    for torn in (line[:40], line[:-2], '\x00' * 512, '{"frame": 1, "answer": "\xc3'):
        path.write_bytes((line + line).encode() + torn.encode('latin-1'))
        assert read_json_lines(path) == [skip_row()] * 2
    path.write_text(line + '\n' + line.rstrip())  # an empty line; no line end
    assert read_json_lines(path) == [skip_row()] * 2
    path.write_text('')
    assert read_json_lines(path) == []
    path.write_text(line + line[:40] + line)
    with pytest.raises(ReportError, match=r'frames.jsonl: line 2 is not JSON; give a frames.jsonl'):
        read_json_lines(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'total_ms': 'fast'}, "line 2 total_ms: 'fast' is not a number"),
        ({'total_ms': float('nan')}, "line 2 total_ms: 'nan' is not a number"),
        ({'total_ms': float('inf')}, "line 2 total_ms: 'inf' is not a number"),
        ({'stamp_ns': 2**63}, "line 2 stamp_ns: '9223372036854775808' is not a whole number"),
        ({'agree': 1}, "line 2 agree: '1' is not true, false or null"),
        ({'tokens': True}, "line 2 tokens: 'True' is not a whole number"),
        ({'skipped_blocks': '29 16'}, "line 2 skipped_blocks: '29 16' is not a list of whole"),
        ({'answer': None}, "line 2 answer: 'None' is not a string"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / 'frames.jsonl'
    record = {**json.loads(json_line(skip_row())), **change}
    path.write_text(json_line(skip_row()) + json.dumps(record) + '\n')
    with pytest.raises(ReportError) as caught:
        read_json_lines(path)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_other_files_are_refused_with_the_remedy(tmp_path):
    path = tmp_path / 'x.jsonl'
    for content, message in (
        ('[1, 2]\n', 'line 1 is not a JSON object'),
        ('{"frame": 1, "skip": {}}\n', "line 1 has no 'stamp_ns'"),
        ('hello\nyou\n', 'line 1 is not JSON'),
        ('\udcff\n', 'line 1 is not JSON'),
    ):
        path.write_bytes(content.encode('utf-8', 'surrogateescape'))
        with pytest.raises(ReportError, match=message):
            read_json_lines(path)
    for other in (tmp_path, tmp_path / 'missing.jsonl'):
        with pytest.raises(ReportError, match=r'(directory|file.*); give a frames.jsonl that'):
            read_json_lines(other)


def test_keys_of_later_versions_are_ignored(tmp_path):
    path = tmp_path / 'frames.jsonl'
    path.write_text(json.dumps({**json.loads(json_line(skip_row())), 'later': [1]}) + '\n')
    assert read_json_lines(path) == [skip_row()]


def test_confidence_is_read_where_it_was_written(tmp_path):
    numbers = {'confidence_mean': '0.900', 'confidence_min': '0.800', 'confidence_margin': ''}
    row = row_from_values(
        1, STAMP_NS, 'single_object/skip', True, {**VALUES, **numbers}, None, model='', machine=''
    )
    assert (row.confidence_mean, row.confidence_min, row.confidence_margin) == (0.9, 0.8, None)
    path = tmp_path / 'frames.jsonl'
    path.write_text(json_line(row))
    assert read_json_lines(path) == [row]
    record = {k: v for k, v in json.loads(json_line(row)).items() if k not in numbers}
    path.write_text(json.dumps(record) + '\n')  # as written before there were confidences
    (old,) = read_json_lines(path)
    assert old.confidence_mean is None and old.total_ms == row.total_ms
