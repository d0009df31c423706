"""The folder that a run of both branches leaves, offline (`gmskip replay`) or live (`gmskip demo`).

`frames.jsonl` is written frame by frame; WRITTEN_AT_THE_END follow.
"""

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
WRITTEN_AT_THE_END = ('frames.csv', 'replay.json', 'report.html', 'latency.png')


def check_output(
    folder: Path, names: Sequence[str], overwrite: bool, sources: Sequence[Path]
) -> None:
    """Create the folder if results of these names may be written there; remove nothing.

    sources: the run's inputs, which the results must not replace. Raises UserError.
    """
    for name in names:
        result = (folder / name).resolve()
        for source in sources:
            if result == source.resolve() or result in source.resolve().parents:
                raise UserError(
                    f'--out {folder}: the results would replace {source}: choose a different folder'
                )
        if (folder / name).exists() and not overwrite:
            raise UserError(
                f'{folder / name} already exists: choose a different --out, or add --overwrite'
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: choose a different folder') from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'--out {folder}: not writable: choose a different folder')


def clear_output(folder: Path, names: Sequence[str]) -> None:
    """Remove an earlier run's results and the temporary files of a killed one; raises UserError."""
    remove_results(folder, [*names, *(path.name for path in folder.glob('.bag.*'))])
    remove_leftovers(folder)


def remove_results(folder: Path, names: Sequence[str]) -> None:
    """Remove these files and folders; raises UserError."""
    try:
        for path in (folder / name for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'--out {folder}: {error.strerror}: choose a different folder') from error


def describe_questions(
    settings: Settings, skip_sets: Sequence[tuple[str, str, Sequence[int], str]]
) -> dict[str, Any]:
    """Return, as JSON, the tasks, when captions agree, and each skip set.

    skip_sets: (task, operating point, blocks, SkipSet.manner).
    """
    from gmskip_ros.pipeline.settings import skip_list_names

    files = skip_list_names(settings)
    return {
        'tasks': {
            task.name: {
                'prompt': task.prompt,
                'max_new_tokens': task.max_new_tokens,
                'labels': list(task.labels),
                'match': task.match,
            }
            for task in settings.make_tasks()
        },
        'caption_agreement': settings.caption_agreement,
        'skip_sets': [
            {
                'task': task,
                'operating_point': point,
                'blocks': list(blocks),
                'skipped_in': manner,
                'skip_list': files.get(task, ''),
            }
            for task, point, blocks, manner in skip_sets
        ],
    }


def write_run(
    folder: Path,
    description: Mapping[str, Any],
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
        **description,
        'load': os.getloadavg()[0],  # processes to run, the mean of the last minute
        'frames': dict(frames),
        'problems': list(problems),
        'gallery': {'disagreeing': gallery.seen, 'shown': len(gallery.frames)},
    }
    write_atomically(folder / 'frames.csv', csv_bytes(rows))
    content = json.dumps(run, indent=1, ensure_ascii=False) + '\n'
    write_atomically(folder / 'replay.json', content.encode('utf-8', 'backslashreplace'))
    write_replay_report(run, rows, gallery.frames, folder)
    return run
