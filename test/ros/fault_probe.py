"""A probe that sees what a fault did and did not do, for the tests of docs/faults.md."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from node_probe import Probe, keys
from std_msgs.msg import Header

ONE_TASK = {'tasks': ['single_object']}  # one short answer per frame


class FaultProbe(Probe):
    """A probe of a node that runs ONE_TASK and, without faults, answers picture() consistently."""

    def __init__(self, *args: Any) -> None:
        self.published: list[Header] = []  # of every answer and comparison
        self._frames = 0
        super().__init__(*args)
        self.answers: dict[str, str] = {}  # to picture(), by branch; they never change
        self._counts: dict[str, int] = {}  # the latest reported, or {} if frames came after them

    def read(self, topic: str, message_type: type) -> Any:
        messages = self.received.setdefault(topic, [])

        def note(message: Any) -> None:
            messages.append(message)
            if '/output/' in topic:
                self.published.append(message.header)

        return self.node.create_subscription(message_type, topic, note, 10)

    def spin(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.node.executor.spin_once(timeout_sec=0.05)

    def header(self, offset_s: float = 0.0) -> Header:
        """Return a header that no frame had before, although stamps repeat where clocks jump."""
        header = super().header(offset_s)
        self._frames += 1
        header.frame_id = f'camera {self._frames}'
        return header

    def next_header(self) -> Header:
        """Return the header of a frame that is due and not old."""
        self.second = max(self.second + 1, int(time.time()))
        return self.header()

    def reports(self, first: int = 0) -> list[dict[str, Any]]:
        """Return the keys of the health reports from the `first` on, and 'level'."""
        statuses = [report.status[0] for report in self.received['/diagnostics'][first:]]
        return [{**keys(status), 'level': status.level} for status in statuses]

    def counts(self) -> dict[str, int]:
        """Return the frame counters, without 'frames_', of a report made after this call."""
        self.health()
        return self._counts_of(self.reports())

    @staticmethod
    def _counts_of(reports: list[dict[str, Any]]) -> dict[str, int]:
        last = reports[-1] if reports else {}
        prefix = 'frames_'
        return {key.removeprefix(prefix): int(last[key]) for key in last if key.startswith(prefix)}

    def check_answered(self) -> Header:
        """Check that a good frame gets, from both branches, the answers that it always gets."""
        self.next_header()
        header = self.ask()
        self.wait(lambda: self.published.count(header) == 3, 'both answers and the comparison')
        for branch in ('skip', 'full'):
            (result,) = self.results_of(header, f'output/{branch}/result')
            (status,) = result.status
            expected = self.answers.setdefault(branch, status.message)
            assert status.message == expected, (branch, status, expected)
        self._counts = {}
        return header

    def check_ready(self) -> None:
        """Check that the next good frame is answered and that /diagnostics reports no problem."""
        self.check_answered()
        self.wait_for_state('ready')
        assert self.reports()[-1]['level'] == DiagnosticStatus.OK

    def check_lost(
        self, message: Any, counter: str, words: Sequence[str], *, published: int = 0
    ) -> None:
        """Check that a frame that cannot be answered is reported and the next one answered.

        It is counted once, and `published` messages are all that is published about it. One health
        report is enough for such a frame: the last one's counters are kept.
        """
        before = self._counts or self.counts()
        first, sent = len(self.received['/diagnostics']), len(self.published)
        logged = self.process.output().count('[ERROR]')
        self.publish(message)
        self.wait(lambda: self.process.output().count('[ERROR]') > logged, 'an error in the log')
        header = self.check_answered()
        self.wait(
            lambda: self._counts_of(self.reports(first)).get('answered') == before['answered'] + 1,
            'the report of the good frame',
        )
        about_it = [message.header] * published if published else []
        assert self.published[sent:] == about_it + [header] * 3
        (degraded, *_) = [r for r in self.reports(first) if r['state'] == 'degraded']
        assert degraded['level'] == DiagnosticStatus.WARN
        assert '\n' not in degraded['last_error']
        for word in words:
            assert word in degraded['last_error'], degraded['last_error']
        self._counts = self._counts_of(self.reports(first))
        assert self._counts[counter] == before[counter] + 1
