"""What a run of both branches leaves behind, offline (`gmskip replay`) or live (`gmskip demo`)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmskip_ros.errors import UserError
from gmskip_ros.files import remove_leftovers, write_atomically
from gmskip_ros.pipeline.rows import FrameRow, csv_bytes
from gmskip_ros.report.replay_report import Gallery, write_replay_report

if TYPE_CHECKING:
    from gmskip_ros.pipeline.settings import Settings

FORMAT = 'gmskip/replay/1'
# Beside the rows in frames.jsonl, which are written as they come.
WRITTEN_AT_THE_END = ('frames.csv', 'replay.json', 'report.html', 'latency.png')


def check_room(
    folder: Path, names: Sequence[str], overwrite: bool, sources: Sequence[Path]
) -> None:
    """
    Make the folder if results of these names can go there, or raise UserError; remove nothing.

    `sources`: what the results are made of, which they must not replace.
    """
    for name in names:
        result = (folder / name).resolve()
        for source in sources:
            if result == source.resolve() or result in source.resolve().parents:
                raise UserError(
                    f'--out {folder}: the results would replace {source} there: give another folder'
                )
        if (folder / name).exists() and not overwrite:
            raise UserError(
                f'{folder / name} is there already: give another folder with --out, or --overwrite'
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: give another folder') from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'--out {folder}: nothing can be written there: give another folder')


def clear_room(folder: Path, names: Sequence[str]) -> None:
    """Remove the results of an earlier run and what a killed one left; raises UserError."""
    try:
        for path in (*(folder / name for name in names), *folder.glob('.bag.*')):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: give another folder') from error
    remove_leftovers(folder)


def describe_questions(
    settings: Settings, skip_sets: Sequence[tuple[str, str, Sequence[int]]]
) -> dict[str, Any]:
    """Return what was asked and, by (task, operating point, blocks), what was left out."""
    from gmskip_ros.pipeline.settings import skip_list_names

    files = skip_list_names(settings)
    return {
        'tasks': {
            task.name: {
                'prompt': task.prompt,
                'max_new_tokens': task.max_new_tokens,
                'labels': list(task.labels),
            }
            for task in settings.make_tasks()
        },
        'skip_sets': [
            {
                'task': task,
                'operating_point': point,
                'blocks': list(blocks),
                'skip_list': files.get(task, ''),
            }
            for task, point, blocks in skip_sets
        ],
    }


def write_run(
    folder: Path,
    about: Mapping[str, Any],
    rows: Sequence[FrameRow],
    gallery: Gallery,
    *,
    command: str,
    frames: Mapping[str, int],
    problems: Sequence[str] = (),
    stopped_by: str = '',
) -> dict[str, Any]:
    """Write WRITTEN_AT_THE_END, and return the content of replay.json. Raises OSError."""
    run = {
        'format': FORMAT,
        'complete': not stopped_by,
        'stopped_by': stopped_by,
        'created': datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ'),
        'command': command,
        **about,
        'frames': dict(frames),
        'problems': list(problems),
        'gallery': {'disagreeing': gallery.seen, 'shown': len(gallery.frames)},
    }
    write_atomically(folder / 'frames.csv', csv_bytes(rows))
    content = json.dumps(run, indent=1, ensure_ascii=False) + '\n'
    write_atomically(folder / 'replay.json', content.encode('utf-8', 'backslashreplace'))
    write_replay_report(run, rows, gallery.frames, folder)
    return run
