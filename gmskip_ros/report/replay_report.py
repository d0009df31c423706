"""The report of `gmskip replay` and `gmskip demo`: tables for the terminal and a page.

A run is the content of replay.json: what was run on which frames, with which skip sets, on which
machine. Every figure comes from the rows (replay_figures.py). Each table or picture with times is
for a single machine, and names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from gmskip_ros.pipeline.rows import SHARED, FrameRow
from gmskip_ros.report import columns as col
from gmskip_ros.report import formatting as fmt
from gmskip_ros.report.columns import Column, Row
from gmskip_ros.report.headlines import replay_headlines
from gmskip_ros.report.plotting import Picture, data_uri
from gmskip_ros.report.replay_figures import PHASES, point_name, replay_figures, series_of
from gmskip_ros.report.replay_pictures import (
    SHARED_MARK,
    draw_agreement,
    draw_agreement_over_speedup,
    draw_latency,
    draw_speedup,
    rolling_window,
)
from gmskip_ros.report.writing import render_html, write_files

GALLERY_FRAMES = 40
NO_SPEEDUP = (
    'No speed-up with timing: shared: the times leave out what the answers share, and full starts '
    "from skip's answers."
)

FIGURES_FORMAT = 'gmskip/replay-figures/1'
MAX_ANSWER_CHARS = 4000  # of one answer in the gallery
MAX_OPEN_PROBLEMS = 20  # a longer list is folded
DEFINITIONS = (  # {captions}: see _definitions
    (
        'Operating point',
        'How many blocks of its skip list the skip branch skips: high_performance, high_sparsity '
        'or a number.',
    ),
    (
        'Median, p95',
        'Median and 95th percentile of the frames, interpolated linearly.',
    ),
    (
        'Time, ms',
        'Time of one answer, from the image to the last token. Preprocessing and vision run once '
        'per frame and are counted in every answer, as if it had been made alone. With timing: '
        'shared, prefill and decode are its part of the passes that it goes through with others, '
        "and leave out the image's.",
    ),
    (
        'Speed-up',
        "Full's total time divided by skip's on the same frame; median over the frames, with its "
        '95 % interval (a bootstrap over the frames). Not with '
        'timing: shared, where the answers share work that no time of an answer counts.',
    ),
    (
        'Agree, %',
        'Share of the frames on which skip and full agree: single_object on the label, '
        'multi_object on the set, captioning on {captions}.',
    ),
    (
        'Alike x100',
        'Similarity of the two answers, mean over all frames: multi_object by the Jaccard index of '
        'the sets, captioning by ROUGE-L of skip against full.',
    ),
    ('Sparsity, %', 'Skipped blocks / all blocks of the language decoder.'),
)


@dataclass(frozen=True)
class GalleryFrame:
    """A frame to show: its image with the answers drawn on it."""

    frame: int
    stamp_ns: int
    jpeg: bytes


def write_replay_report(
    run: Mapping[str, Any],
    rows: Sequence[FrameRow],
    gallery: Sequence[GalleryFrame],
    folder: Path,
) -> list[Path]:
    """Write report.html, which needs no other file and no network, and latency.png.

    Return their paths. Without rows there is no latency.png; one left by an earlier run is
    removed. Raises OSError.
    """
    latency = draw_latency(series_of(rows))
    contents = {} if latency is None else {'latency.png': latency.png}
    if latency is None:
        (folder / 'latency.png').unlink(missing_ok=True)
    contents['report.html'] = _page(run, rows, gallery, latency)
    return write_files(folder, contents)


def replay_tables(run: Mapping[str, Any], rows: Sequence[FrameRow]) -> list[Table]:
    """Return the summary for the terminal: a table per machine and timing.

    ASCII but for the answers.
    """
    figures = replay_figures(rows)
    tables = []
    for where, summary in _by_place(figures['summary']).items():
        notes = replay_headlines(summary)
        frames = max(row['frames'] for row in summary)
        notes += [f'Frames: {frames}. ms: median of the total time, on {fmt.one_line(where)}']
        notes += _shared_notes(summary)
        least = run.get('caption_agreement', 1.0)
        if least < 1 and any(row['task'] == 'captioning' for row in summary):
            notes.append(f'Captions agree if their ROUGE-L is at least {least:g}')
        if any(row['answers_got_shorter'] for row in summary):
            notes.append(col.SHORTER_NOTE)
        notes += fmt.demo_alert(run)
        title = f'Skip against full: {fmt.short_name(run["model"])}'
        tables.append(col.rich_table(title, _TERMINAL, summary, '\n'.join(notes)))
    return tables


def _by_place(entries: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the entries by where and how their times were measured, in words."""
    found: dict[str, list[Row]] = {}
    for entry in entries:
        mark = SHARED_MARK if entry['timing'] == SHARED else ''
        found.setdefault(f'{entry["machine"]}{mark}', []).append(entry)
    return found


def _shared_notes(summary: Sequence[Row]) -> list[str]:
    """Return why frames have no speed-up; nothing if all have one."""
    return [NO_SPEEDUP] if any(row['timing'] == SHARED for row in summary) else []


def _speedup(row: Row, with_interval: bool = False) -> str:
    mark = col.SHORTER_MARK if row['answers_got_shorter'] else ''
    text = fmt.number(row['speedup']['median'], 2)
    if with_interval and (ends := row['speedup']['interval']):
        text += f' {fmt.ratio_interval(ends)}'
    return text + mark


def _quantile(title: str, key: str, quantile: str, digits: int = 1) -> Column:
    return Column(title, lambda row: fmt.number(row[key][quantile], digits))


_POINT = col.words('Operating point', 'operating_point')
_FRAMES = col.field('Frames', 'frames')
_AGREE = col.field('Agree, %', 'agreement', fmt.hundredths)
_SPEEDUP = Column('Speed-up', _speedup)
_TERMINAL = (  # fits 80 columns
    col.TASK,
    _POINT,
    _SPEEDUP,
    Column('Skipped', lambda row: str(len(row['skipped_blocks']))),
    _AGREE,
    col.SIMILARITY,
    _quantile('Skip ms', 'skip_total_ms', 'median'),
    _quantile('Full ms', 'full_total_ms', 'median'),
)
_SUMMARY = (
    col.TASK,
    _POINT,
    Column('Speed-up', lambda row: _speedup(row, with_interval=True)),
    col.SPARSITY,
    _FRAMES,
    _AGREE,
    Column('Differ', lambda row: str(row['compared'] - row['agreeing'])),
    col.SIMILARITY,
    _quantile('Skip, median ms', 'skip_total_ms', 'median'),
    _quantile('Skip, p95 ms', 'skip_total_ms', 'p95'),
    _quantile('Full, median ms', 'full_total_ms', 'median'),
    _quantile('Full, p95 ms', 'full_total_ms', 'p95'),
)
_LATENCY = (
    col.TASK,
    col.BRANCH,
    Column(
        'Operating point',
        lambda row: fmt.DASH if row['branch'] == 'full' else _POINT.text(row),
        is_words=True,
    ),
    _FRAMES,
    *(
        _quantile(f'{phase.capitalize()}, {quantile}', f'{phase}_ms', quantile)
        for phase in PHASES
        for quantile in ('median', 'p95')
    ),
    col.field('Tokens', 'tokens', fmt.number),
)
_SPEEDUPS = (
    col.TASK,
    _POINT,
    Column('Frames with both', lambda row: str(row['speedup']['frames'])),
    _quantile('Min', 'speedup', 'min', 2),
    _quantile('5 %', 'speedup', 'p5', 2),
    _quantile('Median', 'speedup', 'median', 2),
    _quantile('95 %', 'speedup', 'p95', 2),
    _quantile('Max', 'speedup', 'max', 2),
    Column('Skip slower, %', lambda row: fmt.hundredths(row['speedup']['slower_share'])),
)


_SHARED = (
    col.BRANCH,
    _FRAMES,
    _quantile('Shared, median', 'shared_ms', 'median'),
    _quantile('Shared, p95', 'shared_ms', 'p95'),
    _quantile('Branch, median', 'branch_ms', 'median'),
    _quantile('Branch, p95', 'branch_ms', 'p95'),
)
_SKIP_SETS = (
    col.TASK,
    _POINT,
    col.words('Skip list', 'skip_list'),
    col.NUM_SKIPPED,
    col.SPARSITY,
    Column('In the order of removal', col.BLOCKS.text, is_words=True),
)


def _page(
    run: Mapping[str, Any],
    rows: Sequence[FrameRow],
    gallery: Sequence[GalleryFrame],
    latency: Picture | None,
) -> bytes:
    series = series_of(rows)
    figures = replay_figures(rows)
    speedup, agreement = draw_speedup(series), draw_agreement(series)
    trade_off = draw_agreement_over_speedup(figures['summary'])
    summary = _by_place(figures['summary'])
    compared = [entry['compared'] for entry in figures['summary']]
    shorter = any(entry['answers_got_shorter'] for entry in figures['summary'])
    source_name, source = _source(run)
    embedded = {'format': FIGURES_FORMAT, **figures, 'frames': run['frames']}
    return render_html(
        'replay.html',
        title=f'Skip against full: {fmt.short_name(source)}',
        run=run,
        what=_what(run, rows, source_name, source),
        headlines=replay_headlines(figures['summary']),
        alerts=_alerts(run, figures['summary']),
        summary=[(where, col.html_table(_SUMMARY, group)) for where, group in summary.items()],
        latencies=[
            (where, col.html_table(_LATENCY, group))
            for where, group in _by_place(figures['latency']).items()
        ],
        shared=[
            (where, col.html_table(_SHARED, group))
            for where, group in _by_place(figures['shared']).items()
        ],
        speedups=[
            (where, col.html_table(_SPEEDUPS, group))
            for where, group in summary.items()
            if group[0]['timing'] != SHARED
        ],
        latency_picture=latency and latency.element,
        speedup_picture=speedup and speedup.element,
        trade_off_picture=trade_off and trade_off.element,
        agreement_picture=agreement and agreement.element,
        window=rolling_window(max(compared, default=0)),
        shorter_note=col.SHORTER_NOTE if shorter else '',
        definitions=_definitions(run),
        **_gallery(rows, gallery),
        gallery_note=_gallery_note(run, gallery),
        skip_sets=_skip_set_table(run),
        block_map=_block_map(run),
        block_numbers=_block_numbers(run['num_blocks']),
        frame_counts=col.flat_facts(run['frames']),
        problems=[fmt.one_line(problem) for problem in run['problems']],
        problems_open=len(run['problems']) <= MAX_OPEN_PROBLEMS,
        facts=_facts(run),
        figures=json.dumps(embedded, allow_nan=False),
    )


def _definitions(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the columns' definitions, with what captions were compared by in this run."""
    least = run.get('caption_agreement', 1.0)  # of earlier versions' runs: by token ids
    captions = 'the token ids' if least == 1 else f'a ROUGE-L of at least {least:g}'
    return [(name, text.replace('{captions}', captions)) for name, text in DEFINITIONS]


def _source(run: Mapping[str, Any]) -> tuple[str, str]:
    """Return where the frames came from: the first entry of the run's source, ('bag', 'drive')."""
    for key, value in run['source'].items():
        return fmt.one_line(key), fmt.one_line(value)
    return 'source', fmt.DASH


def _what(run: Mapping[str, Any], rows: Sequence[FrameRow], source_name: str, source: str) -> str:
    """Return what was run, in words."""
    answered = run['frames'].get('answered', len({(row.frame, row.stamp_ns) for row in rows}))
    points = list(dict.fromkeys(point_name(each['operating_point']) for each in run['skip_sets']))
    topic = run['source'].get('topic')
    origin = f'{source_name} {source}' if source_name == 'bag' else source
    return fmt.one_line(
        f'{answered} frame{"" if answered == 1 else "s"} of {origin}'
        f'{f", topic {topic}" if topic else ""}; tasks: {", ".join(run["tasks"])}; '
        f'full model: {run["model"]}, {run["num_blocks"]} blocks; '
        f'skip at {", ".join(points) or "no operating point"}; on {fmt.machine_name(run)}.',
        max_chars=2000,
    )


def _alerts(run: Mapping[str, Any], summary: Sequence[Row]) -> list[str]:
    """Return what a reader must know before reading any figure, one line each."""
    alerts = fmt.demo_alert(run)
    frames = run['frames']
    if not run['complete']:
        reason = fmt.one_line(run['stopped_by'] or 'an unknown reason')
        alerts.append(
            f'Partial result: the run was stopped by {reason}. It holds the frames answered until '
            'then.'
        )
    if not summary:
        alerts.append('No frame was answered: there are no figures.')
    undecodable = frames.get('undecodable') or 0
    if undecodable:
        due = frames.get('due') or 0
        share = f' of {due} due frames ({100 * undecodable / due:.1f} %)' if due else ''
        alerts.append(
            f'Skipped frames that could not be decoded: {undecodable}{share}. They are among the '
            'problems below.'
        )
    if frames.get('resets'):
        alerts.append(f'Number of times that the time stamps jumped back: {frames["resets"]}.')
    for each in run['skip_sets']:
        name = f'{fmt.one_line(each["task"])} at {fmt.one_line(each["operating_point"])}'
        if not each.get('skip_list'):
            alerts.append(
                f'{fmt.one_line(each["task"])} has no skip list: its skip branch skips nothing, '
                'and its speed-up is noise.'
            )
        elif not each['blocks']:
            alerts.append(f'{name} skips no blocks: its speed-up is noise.')
    num_shared = sum(row['timing'] == SHARED for row in summary)
    if num_shared:
        alerts.append(NO_SPEEDUP)
    if 0 < num_shared < len(summary):
        alerts.append('The timing was changed during the run: no figure mixes the two.')
    machines = list(dict.fromkeys(fmt.one_line(row['machine']) for row in summary))
    if len(machines) > 1:
        alerts.append(f'The answers come from {"; ".join(machines)}: no figure mixes them.')
    shorter = [
        f'{fmt.one_line(row["task"])} at {fmt.one_line(row["operating_point"])}'
        for row in summary
        if row['answers_got_shorter']
    ]
    alerts += fmt.shorter_alert(list(dict.fromkeys(shorter)))
    return list(dict.fromkeys(alerts))


def _gallery_note(run: Mapping[str, Any], gallery: Sequence[GalleryFrame]) -> str:
    disagreeing = run.get('gallery', {}).get('disagreeing', len(gallery))
    if not disagreeing:
        return 'None: the branches agree on every frame that both answered.'
    frames = '1 frame' if disagreeing == 1 else f'{disagreeing} frames'
    if not gallery:
        return f'The branches disagree on {frames}; no images were kept.'
    shown = '' if disagreeing == len(gallery) else f' Shown: {len(gallery)} of them.'
    return f'The branches disagree on {frames}.{shown}'


def _gallery(rows: Sequence[FrameRow], gallery: Sequence[GalleryFrame]) -> dict[str, Any]:
    """Return 'gallery', the frames to show, and 'gallery_filters', the names to choose them by.

    A frame has its caption, image and answers by task and operating point; `filters`: of which of
    the names it is, by index, and the places of the frame before and after it there.
    """
    start_ns = min((row.stamp_ns for row in rows), default=0)
    rows_of: dict[tuple[int, int], list[FrameRow]] = {
        (each.frame, each.stamp_ns): [] for each in gallery
    }
    for row in rows:
        if (row.frame, row.stamp_ns) in rows_of:
            rows_of[row.frame, row.stamp_ns].append(row)
    frames: list[dict[str, Any]] = [
        {
            'frame': each.frame,
            'seconds': fmt.number((each.stamp_ns - start_ns) / 1e9),
            'utc': fmt.utc(each.stamp_ns),
            'picture': data_uri(each.jpeg, 'image/jpeg'),
            'answers': _answers(rows_of[each.frame, each.stamp_ns]),
            'filters': [],
        }
        for each in gallery
    ]
    places: dict[str, list[int]] = {'all': list(range(len(frames)))}
    for place, frame in enumerate(frames):
        for answer in frame['answers']:
            if answer['differs']:
                in_name = places.setdefault(f'{answer["task"]} at {answer["point"]}', [])
                if place not in in_name:
                    in_name.append(place)
    for index, of_name in enumerate(places.values()):
        for before, place, after in zip(
            [None, *of_name], of_name, [*of_name[1:], None], strict=False
        ):
            frames[place]['filters'].append({'index': index, 'before': before, 'after': after})
    names = [f'{name} ({len(of_name)})' for name, of_name in places.items()]
    return {'gallery': frames, 'gallery_filters': names}


def _answers(rows: Sequence[FrameRow]) -> list[dict[str, Any]]:
    """Return a frame's answers: each skip answer, full's, and whether they agree."""
    answers = []
    for each in series_of(rows):
        for row, full in zip(each.rows, each.full, strict=False):
            answers.append(
                {
                    'task': fmt.one_line(row.task),
                    'point': fmt.one_line(row.operating_point),
                    'verdict': {True: 'agrees', False: 'DIFFERS', None: fmt.DASH}[row.agree],
                    'differs': row.agree is False,
                    'skip': _answer_text(row),
                    'full': _answer_text(full) if full else fmt.DASH,
                }
            )
    return answers


def _answer_text(row: FrameRow) -> str:
    """Return an answer as text; outside the vocabulary, with the model's own words."""
    answer = fmt.one_line(row.answer, MAX_ANSWER_CHARS) or '(empty answer)'
    if row.in_vocabulary:
        return answer
    return f'{answer}, said: "{fmt.one_line(row.raw_text, MAX_ANSWER_CHARS)}"'


def _skip_set_table(run: Mapping[str, Any]) -> dict[str, Any]:
    rows = _skip_sets(run)
    has_phases = any(row['skipped_in'] for row in rows)
    phases = [col.words('Skipped in', 'skipped_in')] if has_phases else []
    return col.html_table([*_SKIP_SETS, *phases], rows)


def _skip_sets(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the skip sets with their sparsity; `skipped_in`: None where all tokens skip all."""
    num_blocks = run['num_blocks']
    return [
        {
            **each,
            'skip_list': each.get('skip_list') or None,
            'skipped_in': each.get('skipped_in') or None,  # older runs have none
            'sparsity': len(each['blocks']) / num_blocks if num_blocks else None,
        }
        for each in run['skip_sets']
    ]


def _block_map(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each skip set and block its place in the order of removal; 0: the block ran."""
    return [
        {
            'name': f'{fmt.one_line(each["task"])}, {fmt.one_line(each["operating_point"])}',
            'places': [
                each['blocks'].index(block) + 1 if block in each['blocks'] else 0
                for block in range(run['num_blocks'])
            ],
        }
        for each in run['skip_sets']
    ]


def _block_numbers(num_blocks: int) -> list[str]:
    """Return the column titles of the block map: every number, or every fifth of many."""
    return [str(i) if num_blocks <= 40 or i % 5 == 0 else '' for i in range(num_blocks)]


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was run and where, as (name, value) lines."""
    shown_elsewhere = (
        'format',
        'command',
        'complete',
        'stopped_by',
        'skip_sets',
        'frames',
        'problems',
        'gallery',
    )
    return col.flat_facts(run, shown_elsewhere)


@dataclass
class Gallery:
    """Frames spread evenly over all disagreements, at most GALLERY_FRAMES of them."""

    frames: list[GalleryFrame] = field(default_factory=list)
    seen: int = 0
    _every: int = 1

    def wants_next(self) -> bool:
        """Count one more disagreement; return whether its frame is to be added."""
        self.seen += 1
        return (self.seen - 1) % self._every == 0

    def add(self, frame: GalleryFrame) -> None:
        """Add a frame; if there are too many now, drop every other one."""
        self.frames.append(frame)
        if len(self.frames) > GALLERY_FRAMES:
            self.frames = self.frames[::2]
            self._every *= 2
