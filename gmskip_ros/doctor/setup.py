"""What the doctor examines, and what a finding is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gmskip_ros.doctor.processes import Trial, run_trial
from gmskip_ros.pipeline.settings import Settings

OK, WARN, FAIL = LEVELS = ('OK', 'WARN', 'FAIL')  # from good to bad
# Nothing is fetched, not even asked for: a drive may have no network.
OFFLINE = {'HF_HUB_OFFLINE': '1'}
TOO_SLOW = 'end what else loads this machine, or allow more time: --timeout-sec'


@dataclass(frozen=True)
class Finding:
    """What a check found: level, one line, and for WARN and FAIL what to do about it."""

    level: str
    message: str
    remedy: str = ''


def ok(message: str) -> Finding:
    return Finding(OK, message)


def warn(message: str, remedy: str) -> Finding:
    return Finding(WARN, message, remedy)


def fail(message: str, remedy: str) -> Finding:
    return Finding(FAIL, message, remedy)


def failed(trial: Trial, message: str, remedy: str) -> Finding:
    """Return what a trial's failure means; one that was too slow has a remedy of its own."""
    return fail(message, TOO_SLOW if trial.timed_out else remedy)


def worst_level(levels: Sequence[str]) -> str:
    """Return the worst of these levels, OK of none."""
    return max(levels, key=LEVELS.index, default=OK)


def joined(findings: Sequence[Finding]) -> Finding:
    """Return findings as one line: of the bad ones if there are any, each remedy once."""
    level = worst_level([finding.level for finding in findings])
    told = [finding for finding in findings if finding.level != OK] or list(findings)
    remedies = dict.fromkeys(finding.remedy for finding in told if finding.remedy)
    return Finding(level, '; '.join(f.message for f in told), '; '.join(remedies))


@dataclass(frozen=True)
class Setup:
    """What is to run here: the node's settings and the camera. Each trial runs once, when asked."""

    settings: Settings
    width: int
    height: int
    with_ros: bool = True
    timeout_s: float = 60.0

    @property
    def is_demo(self) -> bool:
        """Whether it is the embedded model, small enough for any machine."""
        return self.settings.model == 'demo'

    @cached_property
    def rclpy(self) -> Trial:
        return run_trial('rclpy', {}, self.timeout_s)

    @cached_property
    def cv_bridge(self) -> Trial:
        return run_trial('cv_bridge', {}, self.timeout_s)

    @cached_property
    def dds(self) -> Trial:
        camera = {
            'width': self.width,
            'height': self.height,
            'transport': self.settings.image_transport,
            'reliability': self.settings.input_reliability,
            'connect_within_s': min(15.0, self.timeout_s / 3),
        }
        return run_trial('dds', camera, self.timeout_s)

    @cached_property
    def torch(self) -> Trial:
        return run_trial('torch', {'device': self.settings.device}, self.timeout_s, OFFLINE)

    @cached_property
    def model(self) -> Trial:
        settings = self.settings
        question = {
            'model': settings.model,
            'device': settings.device,
            'dtype': settings.dtype,
            'prompts': [settings.prompt[task] for task in settings.tasks],
            'max_new_tokens': max(settings.max_new_tokens[task] for task in settings.tasks),
        }
        return run_trial('model', question, self.timeout_s, OFFLINE)
