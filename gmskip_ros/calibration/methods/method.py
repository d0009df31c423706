"""What a method of choosing blocks has to provide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gmskip_ros.calibration.scoring import Scorer
from gmskip_ros.calibration.settings import SearchSettings
from gmskip_ros.calibration.trajectory import ChosenSets
from gmskip_ros.skipping import PHASES

ALL_PHASES = (PHASES, ('prefill',), ('decode',))


@dataclass(frozen=True)
class Option:
    """An option of `gmskip calibrate` that only some methods have.

    name: its key in SearchSettings.options and in calibration.json. A default of True makes the
    flag a switch that sets it to False. `parse` turns the command line's text into the value and
    raises CalibrationError. is_extent: it says how far the method goes; a run that goes further
    begins with what one that goes less far has done.
    """

    name: str
    flag: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[str], Any] = str
    is_extent: bool = False


@dataclass(frozen=True)
class Method:
    """One method of choosing the blocks to skip.

    choose: returns the sets that it chose, with their scores. It resumes from `scorer.state` and
    the sets that the scorer remembers. The scorer has found the full model's score.
    summary: a few words for --help. title: its name in tables.
    phases: the combinations of phases that it can choose blocks for, the usual one first.
    protect: how many of the first and the last blocks stay unless the user says otherwise.
    has_limits: whether max_sparsity and rounds limit it. takes_sparsity: whether it can be asked
    for sparsities, as methods without a search can. uses_seed: whether the result depends on
    the seed.
    num_candidates: returns how many of so many retained blocks a round tries, most of the time.
    list_name: returns the name that a skip list records, from the options in use.
    check: raises CalibrationError for settings that do not suit a model of so many blocks.
    """

    name: str
    choose: Callable[[Scorer], ChosenSets]
    summary: str
    title: str = ''
    options: tuple[Option, ...] = ()
    phases: tuple[tuple[str, ...], ...] = ALL_PHASES
    protect: tuple[int, int] = (0, 0)
    has_limits: bool = True
    takes_sparsity: bool = False
    uses_seed: bool = False
    num_candidates: Callable[[int], int] = lambda num_retained: 1
    list_name: Callable[[SearchSettings], str] = lambda settings: settings.method
    check: Callable[[SearchSettings, int], None] = lambda settings, num_blocks: None

    def options_of(self, settings: SearchSettings) -> dict[str, Any]:
        """Return the method's options by name, with defaults for those not given."""
        return {
            option.name: settings.options.get(option.name, option.default)
            for option in self.options
        }
