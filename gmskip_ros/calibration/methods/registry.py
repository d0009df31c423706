"""The methods of choosing the blocks to skip: each file of this folder, and one line here."""

from __future__ import annotations

from typing import Any

from gmskip_ros.calibration.errors import CalibrationError
from gmskip_ros.calibration.methods import (
    fixed_interval,
    gm_skip,
    l2_norm,
    one_shot,
    positional,
    random_order,
    shortgpt,
    uidl,
    visual_attention,
)
from gmskip_ros.calibration.methods.method import Method, Option
from gmskip_ros.calibration.settings import SearchSettings

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        gm_skip.METHOD,
        one_shot.METHOD,
        positional.METHOD,
        random_order.METHOD,
        fixed_interval.METHOD,
        visual_attention.METHOD,
        shortgpt.METHOD,
        uidl.METHOD,
        uidl.SIMPLE_METHOD,
        l2_norm.METHOD,
    )
}


def get_method(name: str) -> Method:
    """Return a method by its name. Raises CalibrationError."""
    if name not in METHODS:
        raise CalibrationError(f'method {name!r} is unknown: use {", ".join(METHODS)}')
    return METHODS[name]


def all_options() -> dict[str, Option]:
    """Return every method's own options by name; methods may share one."""
    return {option.name: option for method in METHODS.values() for option in method.options}


def search_settings(method: str = 'gm-skip', **values: Any) -> SearchSettings:
    """Return checked settings; `values`: fields of SearchSettings, and the method's own options.

    Raises CalibrationError.
    """
    chosen = get_method(method)
    options = {}
    for option in chosen.options:
        value = options[option.name] = values.pop(option.name, option.default)
        if option.choices and value not in option.choices:
            name, known = option.name.replace('_', ' '), ', '.join(option.choices)
            raise CalibrationError(f'{name} {value!r} is unknown: use {known}')
    values.setdefault('phases', chosen.phases[0])
    values.setdefault('protect', chosen.protect)
    if values['phases'] not in chosen.phases:
        known = ', '.join(map('+'.join, chosen.phases))
        given = '+'.join(values['phases'])
        raise CalibrationError(
            f'phases {given}: {method} cannot choose blocks for them: use {known}'
        )
    return SearchSettings(method, options=options, **values)


def check_settings(settings: SearchSettings, num_blocks: int) -> None:
    """Raise CalibrationError for settings that do not suit a model of so many blocks."""
    settings.num_removals(num_blocks)
    get_method(settings.method).check(settings, num_blocks)
