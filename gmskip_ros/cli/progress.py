"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gmskip_ros.calibration.settings import Listener, RoundDone
from gmskip_ros.calibration.settings import Progress as SearchProgress

SEARCH_BARS = {'rounds', 'answers'}
# Without a terminal: how long after the start, and then how often, a step of many is a line.
FIRST_LINE_S, LINE_EVERY_S = 60.0, 600.0


class Bars:
    """Named bars with the time left; a context manager. None if stderr is not a terminal."""

    def __init__(self, is_shown: bool) -> None:
        self._console = Console(stderr=True)
        self._is_shown = is_shown and self._console.is_terminal
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is a terminal."""
        return self._console.is_terminal

    def stop(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def print(self, line: str) -> None:
        """Print a line on stderr, above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def status(self, step: str) -> None:
        """Show a step that has nothing to count."""
        self.show('status', 0, None, description=step)

    def show(
        self,
        name: str,
        done: float,
        total: float | None,
        *,
        description: str = '',
        info: str = '',
        beside: Collection[str] = (),
    ) -> None:
        """Show a bar, `done` of `total`; hide all others but those named in `beside`.

        description: the text before it, its name by default. info: the text behind it.
        """
        if not self._is_shown:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn('{task.description}'),
                BarColumn(bar_width=20),  # what stands behind it fits 80 columns
                TimeRemainingColumn(),
                TextColumn('{task.fields[info]}'),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        for other, task in self._tasks.items():
            self._progress.update(task, visible=other == name or other in beside)
        text, info = escape(description or name), escape(info)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(text, total=total, info=info)
        self._progress.update(
            self._tasks[name], completed=done, total=total, description=text, info=info
        )

    def restart(self, name: str) -> None:
        """Measure a bar's speed from now on."""
        if self._progress is not None and name in self._tasks:
            self._progress.reset(self._tasks[name])


class ProgressBars(Bars, Listener):
    """The bars of a calibration or an evaluation: images, rounds and answers, skip sets.

    A round that is done stays as a line. Without a terminal there are no bars, but a line now and
    then. `others` hear of the searches and rounds as well.
    """

    def __init__(self, is_shown: bool, others: Sequence[Listener] = ()) -> None:
        super().__init__(is_shown)
        self._has_lines = is_shown
        self._others = others
        self._next_line_s = monotonic() + FIRST_LINE_S
        self._step, self._step_start_s, self._step_done = '', 0.0, 0
        self._title = ''
        self._round = -1
        self._noted: set[str] = set()

    def __enter__(self) -> ProgressBars:
        return self

    def begin(self, target: str | None, seed: int | None) -> None:
        """Start a target and a seed; None where there is only one."""
        self.stop()
        self._round = -1
        parts = [*filter(None, [target]), *([] if seed is None else [f'seed {seed}'])]
        self._title = f' ({", ".join(parts)})' if parts else ''
        for other in self._others:
            other.begin(target, seed)

    def note(self, line: str) -> None:
        """Print a line once, however often it is noted."""
        if line not in self._noted:
            self._noted.add(line)
            self.print(f'gmskip: {line}')

    def pictures(self, done: int, total: int) -> None:
        """Show how many images are encoded."""
        self._count('encoding images', done, total)

    def search(self, progress: SearchProgress) -> None:
        """Show the rounds and, below, the answers of this round."""
        best = ''
        if progress.best_score is not None:
            best = f'best so far {float(progress.best_score):.4f} without {progress.best_block}'
        left = about(progress.seconds_left)
        self._count('rounds', max(0, progress.round - 1), progress.most_rounds, left)
        name = f'{progress.candidates} candidates' if progress.round else 'full model'
        if self._round != progress.round:
            self.restart('answers')
        self._round = progress.round
        self._count('answers', progress.done, progress.total, f'{name}; {best}'.rstrip('; '))

    def resumed(self, number: int, most_rounds: int) -> None:
        """Print where the search goes on."""
        if self._has_lines:
            self.print(f'gmskip: resumed at round {number} of at most {most_rounds}{self._title}')

    def round_done(self, done: RoundDone) -> None:
        """Print a line about a round that is new."""
        if done.is_new and self._has_lines:
            what = 'nothing removed' if done.removed is None else f'block {done.removed} removed'
            score = '' if done.score is None else f'score {done.score:.4f}'
            parts = [
                f'gmskip: round {done.number} of at most {done.most_rounds}{self._title}: '
                f'{done.what or what}',
                score and f'{score} (full {done.full_score:.4f})',
                f'sparsity {100 * done.sparsity:.1f} %',
                about(done.seconds_left),
            ]
            self.print(', '.join(filter(None, parts)))
        for other in self._others:
            other.round_done(done)

    def full_score(self, score: float) -> None:
        """Tell the others."""
        for other in self._others:
            other.full_score(score)

    def evaluations(self, done: int, total: int) -> None:
        """Show how many skip sets are measured on the test images."""
        self._count('testing skip sets', done, total)

    def timings(self, done: int, total: int) -> None:
        """Show how many answers are timed."""
        self._count('timing answers', done, total)

    def _count(self, name: str, done: int, total: int, details: str = '') -> None:
        counted = f'{done}/{total}'
        info = f'{counted}  {details}' if details else counted
        beside = SEARCH_BARS if name in SEARCH_BARS else ()
        self.show(name, done, total, description=name + self._title, info=info, beside=beside)
        now_s = monotonic()
        if name != self._step or done < self._step_done:
            self._step, self._step_start_s, self._step_done = name, now_s, done
        if self._has_lines and not self.is_terminal and now_s >= self._next_line_s:
            self._next_line_s = now_s + LINE_EVERY_S
            left = ''
            if not details and done > self._step_done:
                each_s = (now_s - self._step_start_s) / (done - self._step_done)
                left = f', about {duration(each_s * (total - done))} left'
            self.print(f'gmskip: {name}{self._title}: {info}{left}')


def about(seconds: float | None) -> str:
    """Return 'at most about 1:02:00 left'; '' if it is not known."""
    if seconds is None:
        return ''
    return f'at most about {duration(seconds)} left'


def duration(seconds: float) -> str:
    """Return '1:02:00': to the minute where there are hours, since it is an estimate."""
    step = 60 if seconds > 3600 else 1
    return str(timedelta(seconds=round(seconds / step) * step))
