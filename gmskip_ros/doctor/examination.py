"""The checks and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmskip_ros.doctor.setup import Finding, Setup


@dataclass(frozen=True)
class Check:
    """A finding and the name of its check."""

    name: str
    level: str
    message: str
    remedy: str


def examine(
    setup: Setup, problems: list[str], on_check: Callable[[str], None] = lambda name: None
) -> Iterator[Check]:
    """Yield each check's result as soon as it is known.

    `problems` are those of the parameters, a line each. `on_check` is called with a check's name
    before it runs and with '' after it.
    """
    from gmskip_ros.doctor.setup import Finding, ok

    if problems:
        remedy = 'correct them; the checks below use their defaults'
        yield Check('parameters', 'FAIL', '; '.join(problems), remedy)
    else:
        yield Check('parameters', **asdict(ok(_describe(setup))))
    for name, check in checks_of(setup):
        on_check(name)
        try:
            finding = check(setup)
        except Exception as error:  # a bug in one check must not stop the others
            problem = ' '.join(f'{type(error).__name__}: {error}'.split())
            finding = Finding('FAIL', f'the check itself failed: {problem}', 'please report this')
        on_check('')
        yield Check(name, **asdict(finding))


def checks_of(setup: Setup) -> list[tuple[str, Callable[[Setup], Finding]]]:
    """Return (name, check) in the order in which problems are best fixed."""
    from gmskip_ros.doctor import model_checks, ros_checks

    python = [('python', ros_checks.check_python)]
    ros = [
        ('rclpy', ros_checks.check_rclpy),
        ('cv_bridge', ros_checks.check_cv_bridge),
        ('dds', ros_checks.check_dds),
        ('executables', ros_checks.check_executables),
    ]
    model = [
        ('engine', model_checks.check_engine),
        ('gpu', model_checks.check_gpu),
        ('model', model_checks.check_model),
        ('view', model_checks.check_view),
        ('memory', model_checks.check_memory),
        ('skip_lists', model_checks.check_skip_lists),
    ]
    return [*python, *(ros if setup.with_ros else ()), *model]


def _describe(setup: Setup) -> str:
    settings = setup.settings
    text = f'model {settings.model}, device {settings.device}, dtype {settings.dtype}'
    if settings.quantization != 'none':
        text += f', quantization {settings.quantization}'
    if setup.with_ros:
        text += (
            f', {settings.image_transport} images of {setup.width}x{setup.height}, '
            f'{settings.input_reliability}'
        )
    return text
