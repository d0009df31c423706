"""What the doctor examines, and what a finding is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gmskip_ros.doctor.processes import Trial, run_trial
from gmskip_ros.pipeline.settings import Settings

OK, WARN, FAIL = LEVELS = ('OK', 'WARN', 'FAIL')  # from good to bad
# Nothing is downloaded and no server is asked: a vehicle may have no network.
OFFLINE = {'HF_HUB_OFFLINE': '1'}
TOO_SLOW = 'stop other heavy processes, or allow more time with --timeout-sec'


@dataclass(frozen=True)
class Finding:
    """The result of a check: level, one line, and the remedy for WARN and FAIL."""

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
    """Return the FAIL of a failed trial; a timeout has its own remedy."""
    return fail(message, TOO_SLOW if trial.timed_out else remedy)


def worst_level(levels: Sequence[str]) -> str:
    """Return the worst of these levels, OK if there are none."""
    return max(levels, key=LEVELS.index, default=OK)


def joined(findings: Sequence[Finding]) -> Finding:
    """Return findings as one line: only the bad ones if there are any, each remedy once."""
    level = worst_level([finding.level for finding in findings])
    shown = [finding for finding in findings if finding.level != OK] or list(findings)
    remedies = dict.fromkeys(finding.remedy for finding in shown if finding.remedy)
    return Finding(level, '; '.join(f.message for f in shown), '; '.join(remedies))


@dataclass(frozen=True)
class Setup:
    """The node's settings and the camera to check; each trial runs once, on first access."""

    settings: Settings
    width: int  # of the camera's frames, pixels
    height: int
    with_ros: bool = True
    timeout_s: float = 60.0  # per trial

    @property
    def is_demo(self) -> bool:
        """Whether the model is the embedded one, small enough for any machine."""
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
        arguments = {
            'model': settings.model,
            'device': settings.device,
            'dtype': settings.dtype,
            'prompts': [settings.prompt[task] for task in settings.tasks],
            'max_new_tokens': max(settings.max_new_tokens[task] for task in settings.tasks),
            'options': settings.model_options,
            'frame_size': [self.width, self.height],
            'sharing': settings.sharing,
        }
        return run_trial('model', arguments, self.timeout_s, OFFLINE)
