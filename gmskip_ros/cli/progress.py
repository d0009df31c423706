"""What a person sees of a calibration while it runs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from gmskip_ros.calibration.settings import Listener
from gmskip_ros.calibration.settings import Progress as SearchProgress
from gmskip_ros.report import formatting as fmt
from gmskip_ros.runs.soak import Sample, Watcher

SEARCH_BARS = {'rounds', 'answers'}


class ProgressBars(Listener):
    """Bars on stderr for rounds and answers; silent where nobody looks."""

    def __init__(self, is_shown: bool) -> None:
        self._console = Console(stderr=True)
        self._is_shown = is_shown and self._console.is_terminal
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._title = ''
        self._round = -1

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self, target: str | None, seed: int | None) -> None:
        """Begin with one target and one seed, if there are several."""
        self.stop()
        parts = [*filter(None, [target]), *([] if seed is None else [f'seed {seed}'])]
        self._title = f' ({", ".join(parts)})' if parts else ''

    def stop(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks, self._round = None, {}, -1

    def print(self, line: str) -> None:
        """Print a line for people, above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def status(self, step: str) -> None:
        """Tell what is being done before there is anything to count."""
        if self._is_shown:
            self._update(step, 0, None, '')

    def pictures(self, done: int, total: int) -> None:
        """Show how many pictures are encoded."""
        self._update('encoding pictures', done, total, '')

    def search(self, progress: SearchProgress) -> None:
        """Show the rounds and, below, the answers of this round."""
        best = ''
        if progress.best_score is not None:
            best = f'best so far {float(progress.best_score):.4f} without {progress.best_block}'
        self._update('rounds', max(0, progress.round - 1), progress.most_rounds, '')
        name = f'{progress.candidates} candidates' if progress.round else 'full model'
        if self._round != progress.round and 'answers' in self._tasks and self._bars:
            self._bars.reset(self._tasks['answers'])  # its speed is this round's
        self._round = progress.round
        self._update('answers', progress.done, progress.total, f'{name}; {best}'.rstrip('; '))

    def full_score(self, score: float) -> None:
        """Warn of a score that no search can go by, before hours are spent on it."""
        if score <= 0:
            self.print(
                f'gmskip: warning: the full model scores {score:g}{self._title}: any blocks may go '
                'by this score. Is this the right task, label set or dataset for the model?'
            )

    def evaluations(self, done: int, total: int) -> None:
        """Show how many skip sets are measured on the test pictures."""
        self._update('testing skip sets', done, total, '')

    def _update(self, name: str, done: int, total: int | None, info: str) -> None:
        if not self._is_shown:
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn('{task.description}'),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn('{task.fields[info]}'),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        if name not in self._tasks:
            stage = SEARCH_BARS if name in SEARCH_BARS else {name}
            for other, bar in self._tasks.items():
                self._bars.update(bar, visible=other in stage)
            description = escape(name + self._title)
            self._tasks[name] = self._bars.add_task(description, total=total, info='')
        self._bars.update(self._tasks[name], completed=done, total=total, info=escape(info))


class ReplayBar:
    """The progress on stderr, with the time left; silent where nobody looks."""

    def __init__(self, console: Console, is_shown: bool) -> None:
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._progress.add_task('starting', total=None)

    def __enter__(self) -> ReplayBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def status(self, step: str) -> None:
        """Tell what is being done before there is anything to count."""
        self._progress.update(self._task, description=escape(step))

    def update(self, done: float, answered: int) -> None:
        """Show the share that is done."""
        self._progress.update(
            self._task, total=1.0, completed=done, description=f'{answered} answered'
        )


class ProgressBar(Watcher):
    """A bar on stderr, of use in a `with`; silent where nobody looks."""

    def __init__(self, is_shown: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[left]}'),
            console=console,
            transient=True,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._bar.add_task('starting', total=None, left='')

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def status(self, text: str) -> None:
        self._bar.update(self._task, description=escape(fmt.one_line(text, 60)), left='')

    def measured(self, elapsed_s: float, total_s: float, sample: Sample) -> None:
        values = sample.report.values
        self._bar.update(
            self._task,
            completed=elapsed_s,
            total=total_s,
            description=(
                f'{escape(sample.report.state)}, {values["frames_answered"]} answered, '
                f'{sample.use.own_mib:.0f} MiB'
            ),
            left=f'{clock(total_s - elapsed_s)} left',
        )


def clock(seconds: float) -> str:
    """Return '29:07' of seconds."""
    whole = max(0, round(seconds))
    return f'{whole // 60}:{whole % 60:02d}'
