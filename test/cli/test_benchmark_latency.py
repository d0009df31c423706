"""`gmskip benchmark latency`: its files, the arithmetic of its figures, its exit status."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny_models import make_tiny_model

from gmskip_ros.benchmarks import bars, figures, floors, latency
from gmskip_ros.benchmarks.floors import Rates
from gmskip_ros.benchmarks.ratios import paired_ratio, percentiles
from gmskip_ros.benchmarks.rivals import RivalProcess
from gmskip_ros.benchmarks.subject import Wanted
from gmskip_ros.cli import main
from gmskip_ros.cli.benchmark_latency import QUICK, print_result
from gmskip_ros.errors import UserError
from gmskip_ros.report.latency_report import latency_tables
from gmskip_ros.vlm import Vlm
from gmskip_ros.vlm.shared_frame import VlmSharedFrame

RIGHT, WRONG = 'own, verifying a right draft', 'own, verifying a wrong draft'
DRAFTS = [(1.0, None), (0.5, None), (0.0, None), (1.0, 1.0), (1.0, 0.0)]  # of shared frames
SUFFIXES = (
    '',
    ', 50 % agreement',
    ', 0 % agreement',
    ', 100 % agreement, previous skip answers 100 % right',
    ', 100 % agreement, previous skip answers 0 % right',
)
DYNAMIC, STATIC = 'Hugging Face, dynamic cache', 'Hugging Face, static cache'
COMPILED = 'Hugging Face, static cache, compiled'


@pytest.fixture
def benchmark(capsys, monkeypatch):
    """Run `gmskip benchmark latency --quick`; return its exit status, output and errors."""
    monkeypatch.setenv('COLUMNS', '200')

    def run(*arguments):
        status = main.main(['benchmark', 'latency', '--quick', *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp('latency') / 'model'))


@pytest.fixture
def high_rates(monkeypatch) -> None:
    """Floors far below any figure, however busy the machine is."""
    monkeypatch.setattr(Rates, 'floor_ms', lambda self, cost: 1e-9)


def test_figures_and_their_arithmetic(benchmark, model, tmp_path, high_rates) -> None:
    status, output, errors = benchmark('--model', model, '--out', tmp_path, '--threads', 1)
    assert (status, errors) == (0, '')
    result = json.loads((tmp_path / 'latency.json').read_text())
    assert (tmp_path / 'latency.png').read_bytes().startswith(b'\x89PNG')
    assert (result['format'], result['threads']) == ('gmskip/benchmark-latency/1', 1)
    assert '--quick' in result['command']
    [figures] = result['models']
    check_rows(figures)
    check_ratios(figures)
    check_frames(figures)
    assert [row['task'] for row in figures['natural']] == [
        'single_object',
        'multi_object',
        'captioning',
    ]
    assert all(row['differing'] == 0 and row['ratio']['pairs'] == 2 for row in figures['natural'])
    assert {floor['phase'] for floor in figures['floors']} == {'vision', 'prefill', 'decode'}
    assert figures['conditions']['seconds'] > 0
    assert figures['memory']['rival_peak_bytes'] > figures['memory']['weights_bytes']
    assert figures['not_run'] == [{'name': COMPILED, 'reason': '--quick'}]
    # No bar is about this model.
    assert {row['holds'] for row in result['bars']} == {None}
    for said in ('not measured', 'PROJECTION', 'RTX 3090', DYNAMIC, STATIC, 'not run'):
        assert said in output
    check_pixels(figures)
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in latency_tables(result):
        console.print(table)
    narrow = console.export_text()  # nothing is cut off
    for said in ('Answer,', 'Own /', 'Whole,', 'RTX 3090', 'not run:'):
        assert said in narrow


# Ends the process that compiles, as a compiler that crashes does.
FATAL_COMPILER = f"""#!{sys.executable}
import os, psutil
for parent in psutil.Process().parents():
    if 'gmskip_ros.benchmarks.hugging_face' in parent.cmdline():
        parent.kill()
        os._exit(1)
"""


WITH_COMPILER = pytest.mark.skipif(shutil.which('g++') is None, reason='there is no C++ compiler')


@pytest.mark.parametrize('compiler', [pytest.param('working', marks=WITH_COMPILER), 'fatal'])
def test_hugging_face_is_compiled_where_that_works(
    model, tmp_path, monkeypatch, high_rates, compiler
) -> None:
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR', raising=False)
    if compiler == 'fatal':
        fatal = tmp_path / 'compiler'
        fatal.write_text(FATAL_COMPILER)
        fatal.chmod(0o755)
        monkeypatch.setenv('CXX', str(fatal))
    counts = {'rounds': 1, 'length': 3, 'frames': 1, 'paced': 1, 'pixel_rounds': 1}
    result = latency.measure(latency.LatencySettings(model, 'cpu', **counts))
    [figures] = result['models']
    assert figures['notes'] == result['errors'] == []  # all tokens are the same
    rows = {(row['name'], row['blocks']) for row in figures['rows']}
    assert {(DYNAMIC, 4), (STATIC, 4), (DYNAMIC, 2)} <= rows
    assert ((COMPILED, 4) in rows) == (compiler == 'working')
    if compiler == 'working':
        assert figures['not_run'] == []
        assert f'against {COMPILED}: decode' in {ratio['name'] for ratio in figures['ratios']}
    else:
        [entry] = figures['not_run']
        assert entry['name'] == COMPILED
        assert entry['reason'].startswith("Hugging Face's process ended (")


def check_rows(figures) -> None:
    """Check percentiles, numbers of tokens, and that phases sum to the answer."""
    rows = {(row['name'], row['blocks']): row for row in figures['rows']}
    assert list(rows) == [
        ('own', 4),
        (STATIC, 4),
        (DYNAMIC, 4),
        (RIGHT, 4),
        (WRONG, 4),
        ('own', 3),
        ('own', 2),
        (DYNAMIC, 2),
        ('own', 1),
    ]
    for row in rows.values():
        assert (row['tokens'], len(row['samples'])) == (3, 2)
        prefill, decode = zip(*row['samples'], strict=True)
        assert row['prefill_ms'] == percentiles(prefill)
        assert row['decode_ms'] == percentiles(decode)
        if row['name'] in (RIGHT, WRONG):
            assert row['decode_ms_per_token'] is None
        else:
            assert row['decode_ms_per_token'] == percentiles([time / 2 for time in decode])
        assert row['answer_ms'] == percentiles([sum(sample) for sample in row['samples']])


def check_ratios(figures) -> None:
    """Check a ratio of each kind against the samples."""
    rows = {(row['name'], row['blocks']): row['samples'] for row in figures['rows']}
    ratios = {ratio.pop('name'): ratio for ratio in map(dict, figures['ratios'])}
    for name, numerator, denominator, phase in (
        (bars.HF_PREFILL, ('own', 4), (DYNAMIC, 4), 0),
        (bars.HF_DECODE, ('own', 4), (DYNAMIC, 4), 1),
        ('against Hugging Face, static cache: decode', ('own', 4), (STATIC, 4), 1),
        (
            'against Hugging Face, dynamic cache, 2 of 4 blocks: prefill',
            ('own', 2),
            (DYNAMIC, 2),
            0,
        ),
    ):
        above, below = ([s[phase] for s in rows[key]] for key in (numerator, denominator))
        assert ratios[name].pop('phase') == ('prefill', 'decode')[phase]
        assert ratios[name] == paired_ratio(above, below)
        if 'dynamic cache: ' in name:
            [floor_ms] = [
                floor['floor_ms']
                for floor in figures['floors']
                if (floor['phase'], floor['blocks']) == (('prefill', 'decode')[phase], 4)
            ]
            at_floor = floor_ms / ratios[name]['denominator_ms']
            assert figures['values'][name] == {
                **ratios[name],
                'name': name,
                'phase': ('prefill', 'decode')[phase],
                'at_floor': at_floor,
            }
    whole = [[sum(sample) for sample in rows['own', blocks]] for blocks in (2, 4)]
    half = ratios['2 of 4 blocks against own full']
    assert half.pop('phase') == 'answer'
    assert half == paired_ratio(*whole)
    whole = {name: [sum(sample) for sample in rows[name, 4]] for name in ('own', RIGHT, WRONG)}
    for name in (bars.VERIFY_RIGHT, bars.VERIFY_WRONG):
        assert ratios[name].pop('phase') == 'answer'
    assert ratios[bars.VERIFY_WRONG] == paired_ratio(whole[WRONG], whole['own'])
    prompt = figures['prompt_tokens']  # and 2 of 3 tokens of the draft
    prefill = [sample[0] * (prompt + 2) / prompt for sample in rows['own', 4]]
    assert ratios[bars.VERIFY_RIGHT]['value'] == pytest.approx(
        paired_ratio(whole[RIGHT], prefill)['value']
    )
    assert figures['values'][bars.HALF]['value'] == half['value']


def check_pixels(figures) -> None:
    """Check that what happens before the model is a ratio as well, with its samples."""
    ratios = {ratio['name']: ratio for ratio in figures['ratios']}
    assert ratios.keys() >= {bars.PREPROCESS, bars.JPEG}
    for name in (bars.PREPROCESS, bars.JPEG):
        own, plain = zip(*ratios[name]['samples'], strict=True)
        assert percentiles(own) == figures['pixels'][name]['own_ms']
        assert percentiles(plain) == figures['pixels'][name]['plain_ms']
        assert figures['values'][name] == ratios[name]


def check_frames(figures) -> None:
    """Check that a frame's parts sum to the whole, and shared against isolated frames."""
    isolated, *shared = figures['frames']
    assert isolated['name'] == 'one joint list of 2, isolated'
    ways = [(row['timing'], row['agreement'], row['previous_agreement']) for row in shared]
    assert ways == [('shared', *drafts) for drafts in DRAFTS]
    assert {row['answered_alone'] for row in shared} == {row['differing'] for row in shared} == {0}
    ratios = {ratio['name']: ratio for ratio in figures['ratios']}
    name = bars.FRAME.format(skip_sets='one joint list of 2')
    wholes = []
    for row, suffix in zip((isolated, *shared), (None, *SUFFIXES), strict=True):
        parts = {part: times['p50'] for part, times in row['parts_ms'].items()}
        wholes.append(parts.pop('whole'))
        shares = [] if suffix is None else ['shared']
        assert list(parts) == ['preprocess', 'vision', *shares, 'skip', 'full']
        assert wholes[-1] == pytest.approx(sum(parts.values()))  # there is one of each
        assert row['samples'] == [parts]
        if suffix is not None:
            ratio = ratios[name + suffix]
            assert (ratio['numerator_ms'], ratio['denominator_ms']) == (wholes[-1], wholes[0])
            assert ratio['value'] == pytest.approx(wholes[-1] / wholes[0])
    assert figures['values'][bars.THREE_TASKS] == ratios[bars.THREE_TASKS]
    assert ratios[bars.THREE_TASKS]['pairs'] == figures['rounds']
    assert figures['paced']['ms'] == percentiles(figures['paced']['samples'])


def test_a_figure_below_its_floor_fails_the_run(benchmark, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Rates, 'floor_ms', lambda self, cost: 1e9)
    monkeypatch.setattr(figures, 'CONFIRMATIONS', 1)
    status, _, errors = benchmark('--model', model, '--no-rivals', '--out', tmp_path)
    assert status == 1
    result = json.loads((tmp_path / 'latency.json').read_text())
    lines = errors.splitlines()
    assert lines == [f'gmskip: wrong: {line}' for line in result['errors']]
    assert len(lines) == 1 + 2 * 4  # vision, and both phases of each number of blocks
    assert all('is below the floor of' in line for line in lines)
    [model_figures] = result['models']
    for name in (
        bars.FLOOR_PREFILL,
        bars.FLOOR_DECODE,
    ):
        assert name not in model_figures['values']
        assert model_figures['reasons'][name] == latency.IMPOSSIBLE
        assert f'{name}: {latency.IMPOSSIBLE}' in model_figures['notes']


def test_a_missed_bar_is_a_result(model, tmp_path, monkeypatch, high_rates, capsys) -> None:
    bar = bars.Bar(bars.HALF, model, 1e-9)
    monkeypatch.setattr(bars.judge, '__defaults__', ((bar,),))
    result = latency.measure(latency.LatencySettings(model, 'cpu', rivals=False, **QUICK))
    [row] = result['bars']
    assert (row['holds'], row['pairs'], result['errors']) == (False, 2, [])
    assert row['value'] > row['bar']
    print_result(result, tmp_path)
    assert 'missed' in capsys.readouterr().out


def test_a_quick_run_decides_no_bar(benchmark, model, tmp_path, monkeypatch, high_rates) -> None:
    bar = bars.Bar(bars.HALF, model, 1e-9)
    monkeypatch.setattr(bars.judge, '__defaults__', ((bar,),))
    status, output, errors = benchmark('--model', model, '--no-rivals', '--out', tmp_path)
    assert (status, errors) == (0, '')
    [row] = json.loads((tmp_path / 'latency.json').read_text())['bars']
    assert row['holds'] is None and row['value'] > row['bar']
    assert row['reason'] == 'few and short answers (--quick)'
    assert 'missed' not in output
    [figures] = json.loads((tmp_path / 'latency.json').read_text())['models']
    assert not [name for name in figures['values'] if name.startswith(bars.ON_GPU)]
    assert {row['name'] for row in figures['rows']} == {'own', RIGHT, WRONG}
    assert figures['not_run'] == [
        {'name': name, 'reason': '--no-rivals'} for name in (DYNAMIC, STATIC, COMPILED)
    ]


@pytest.mark.parametrize(
    'option, said',
    [
        ({'chat_template': '{{ messages }}'}, '--chat-template has no effect'),
        ({'max_image_tokens': 100}, 'the fewest that random:llava-cpu can make'),
    ],
)
def test_options_are_checked_before_anything_is_measured(monkeypatch, option, said) -> None:
    """Of all models: demo takes either of these, and random:llava-cpu's second image size none."""
    monkeypatch.setattr(latency, '_measure_model', lambda *_: pytest.fail('measured'))
    with pytest.raises(UserError, match=said):
        latency.measure(latency.LatencySettings(load_options=option))


def test_what_was_measured_before_an_error_is_kept(monkeypatch, model) -> None:
    wanted = [Wanted(model), Wanted('gone')]
    monkeypatch.setattr(latency, 'what_to_measure', lambda _: wanted)
    settings = latency.LatencySettings(device='cpu', rivals=False, **QUICK)
    result = latency.measure(settings)
    assert [figures['model'] for figures in result['models']] == [model]
    [error] = [error for error in result['errors'] if error.startswith('gone')]
    assert error.startswith('gone was not measured: ')


def test_the_own_figures_do_not_need_hugging_face(
    benchmark, model, tmp_path, monkeypatch, high_rates
) -> None:
    """Its process may be killed at any time, such as where memory runs out."""

    def killed_in_the_second_answer(rival, *arguments, **options):
        if rival.peak_bytes:
            os.killpg(rival._process.pid, signal.SIGKILL)
        return answer(rival, *arguments, **options)

    answer = RivalProcess.answer
    monkeypatch.setattr(RivalProcess, 'answer', killed_in_the_second_answer)
    status, output, errors = benchmark('--model', model, '--out', tmp_path)
    said = "Hugging Face's process ended (exit status -9)"
    assert (status, errors) == (0, '')
    [figures] = json.loads((tmp_path / 'latency.json').read_text())['models']
    assert figures['not_run'] == [
        {'name': name, 'reason': said} for name in (DYNAMIC, STATIC, COMPILED)
    ]
    assert f'not run: {DYNAMIC}: {said}' in output
    assert {row['name'] for row in figures['rows']} == {'own', RIGHT, WRONG}
    assert figures['reasons'][bars.HF_DECODE] == said


@pytest.mark.parametrize('at_floor, said', [(0.47, 'missed'), (0.583, 'floor itself has 0.583')])
def test_a_bar_that_the_floor_itself_misses_says_so(at_floor, said) -> None:
    [bar] = [bar for bar in bars.BARS if (bar.name, bar.model) == (bars.HF_PREFILL, bars.CPU)]
    values = {bar.name: {**paired_ratio([7.0], [10.0]), 'at_floor': at_floor}}
    measured = {'model': bars.CPU, 'image_tokens': 100, 'gpu': None, 'values': values}
    judged = bars.judge([{**measured, 'reasons': {}}], [bar])
    console = Console(width=200, file=io.StringIO(), record=True)
    for table in latency_tables({'models': [], 'bars': judged, 'projections': []}):
        console.print(table)
    text = console.export_text()
    assert said in text
    assert ('floor itself' in text) == (at_floor > 0.48)


@pytest.mark.parametrize(
    'round_s, rounds', [(0.1, 10), (15.0, 10), (20.0, 7), (30.0, 5), (4000.0, 5)]
)
def test_a_slow_machine_has_fewer_rounds(round_s, rounds) -> None:
    assert latency.rounds_that_fit(round_s) == rounds


def test_rounds_fit_unless_a_number_is_asked_for(model, monkeypatch, high_rates) -> None:
    monkeypatch.setattr(latency, 'rounds_that_fit', lambda round_s: 2)
    settings = latency.LatencySettings(
        model, 'cpu', rivals=False, length=2, frames=1, paced=1, pixel_rounds=1
    )
    for wanted, found in ((None, 2), (1, 1)):
        [figures] = latency.measure(replace(settings, rounds=wanted))['models']
        assert figures['rounds'] == found
        assert {row['answer_ms']['count'] for row in figures['rows']} == {found}
        assert {len(row['samples']) for row in figures['rows']} == {found}


def test_no_memory_for_the_probes_of_floors_is_one_line(
    benchmark, model, tmp_path, monkeypatch
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setitem(floors.KERNELS, floors.DENSE, full)
    status, output, errors = benchmark('--model', model, '--no-rivals', '--out', tmp_path)
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert 'no memory is left on cpu to measure the rates of this machine' in errors


def test_a_missing_token_of_a_rival_is_noticed(benchmark, model, tmp_path, monkeypatch) -> None:
    honest = RivalProcess.answer

    def shorter(self, *arguments, **options):
        found = honest(self, *arguments, **options)
        return {**found, 'token_ids': found['token_ids'][:-1]}

    monkeypatch.setattr(RivalProcess, 'answer', shorter)
    status, output, errors = benchmark('--model', model, '--out', tmp_path)
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert 'Hugging Face, static cache, 4 blocks: an answer has 2 tokens, 3 were' in errors


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_draft_that_changes_an_answer_is_noticed(
    benchmark, model, tmp_path, monkeypatch, high_rates, dtype
) -> None:
    honest = Vlm.answer

    def dishonest(self, *arguments, draft=(), **options):
        found = honest(self, *arguments, **options)
        return replace(found, token_ids=(1, *found.token_ids[1:])) if draft else found

    monkeypatch.setattr(Vlm, 'answer', dishonest)
    options = ['--model', model, '--no-rivals', '--out', tmp_path, '--dtype', dtype]
    status, output, errors = benchmark(*options)
    assert (status, errors.count('\n')) == ((1, 2) if dtype == 'float32' else (0, 0))
    for name in (RIGHT, WRONG):
        assert f'{name}, 4 blocks: tokens [1, ' in (errors or output)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_frame_that_changes_an_answer_is_refused_or_in_half_precision_noted(
    benchmark, model, tmp_path, monkeypatch, high_rates, dtype
) -> None:
    honest = VlmSharedFrame.answer

    def dishonest(self, *arguments, **options):
        *found, last = honest(self, *arguments, **options)
        return [*found, replace(last, token_ids=(1, *last.token_ids[1:]))]

    monkeypatch.setattr(VlmSharedFrame, 'answer', dishonest)
    options = ['--model', model, '--no-rivals', '--out', tmp_path, '--dtype', dtype]
    status, output, errors = benchmark(*options)
    if dtype == 'float32':
        assert (status, output, errors.count('\n')) == (2, '', 1)
        assert 'which are answered alone' in errors
        return
    assert (status, errors) == (0, '')
    [figures] = json.loads((tmp_path / 'latency.json').read_text())['models']
    _, *shared = figures['frames']
    assert all(row['differing'] >= 2 for row in shared)  # one per branch
    assert 'answers differ from those given alone, by rounding in bfloat16' in output


@pytest.mark.parametrize(
    'arguments, said',
    [([], ''), (['--no-compile'], '--no-compile'), (['--quick', '--no-compile'], '--quick')],
)
def test_compiling_can_be_left_out(monkeypatch, tmp_path, arguments, said) -> None:
    def measure(settings, *_):
        assert settings.why_not_compiled == said
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, 'measure', measure)
    options = ['benchmark', 'latency', '--no-progress', '--out', str(tmp_path)]
    assert main.main([*options, *arguments]) == 130


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_one_line(benchmark, tmp_path, monkeypatch, number, code) -> None:
    def measure(*_):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(latency, 'measure', measure)
    status, output, errors = benchmark('--out', tmp_path)
    assert (status, output) == (code, '')
    assert errors == 'gmskip: stopped; nothing was written\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--seed', -1], '--seed -1'),
        (['--seed', 1 << 63], '--seed 9223372036854775808: give a whole number from 0 to'),
        (['--model', 'random:nothing'], "'random:nothing' is unknown"),
        (['--model', 'random:llava-cpu', '--chat-template', '{{ x }}'], '--chat-template'),
        (['--model', 'no/such/folder'], 'no/such/folder'),
    ],
)
def test_bad_input_is_one_line(benchmark, tmp_path, arguments, said) -> None:
    status, output, errors = benchmark(*arguments, '--out', tmp_path)
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert said in errors


def test_random_weights_that_do_not_fit_are_refused(benchmark, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr('gmskip_ros.vlm.memory.free_bytes', lambda device: 2 << 30)
    status, _, errors = benchmark(
        '--model', 'random:llava-1.5-7b', '--device', 'cpu', '--dtype', 'float32', '--out', tmp_path
    )
    assert (status, errors.count('\n')) == (2, 1)
    assert 'need 27.3 GiB in float32 on cpu, and 2.0 are free' in errors
