"""From the arguments of a sweep to its jobs: one pure function for the check beforehand and for the sweeper."""

from collections.abc import Mapping, Sequence
from itertools import islice, product
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from vggexp.errors import ConfigError


def jobs(
    config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any], at_most: int | None = None
) -> list[list[str]]:
    """The overrides of every job, the last axis turning fastest.

    params: axes from a sweep file (hydra.sweeper.params); an argument of the same key takes their place. Raises
    ConfigError for an axis without discrete values, for one without any, and for more than `at_most` jobs.
    """
    axes = [_axis(override, at_most) for override in _parsed(config_loader, arguments, params)]
    if at_most is not None and prod(map(len, axes)) > at_most:
        raise ConfigError(f"sweep: more than sweep.max_jobs={at_most} jobs; take fewer values or raise that number")
    return [list(combination) for combination in product(*axes)]


def ends(config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any], at_most: int) -> list[list[str]]:
    """Jobs that a search may make: every choice, both ends of intervals and ranges, the other axes at their first."""
    axes = []
    for override in _parsed(config_loader, arguments, params):
        key, value = override.get_key_element(), override.value()
        if isinstance(value, IntervalSweep):
            axes.append([f"{key}={value.start}", f"{key}={value.end}"])
            continue
        values = _axis(override, at_most)
        axes.append([values[0], values[-1]] if override.is_range_sweep() and len(values) > 1 else values)
    first = [axis[0] for axis in axes]
    others = [[*first[:place], value, *first[place + 1 :]] for place, axis in enumerate(axes) for value in axis[1:]]
    return [first, *others]


def _parsed(config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any]) -> list[Override]:
    """The last one of each key is what counts."""
    written = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    try:
        parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(written)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return list({override.get_key_element(): override for override in parsed}.values())


def _axis(override: Override, at_most: int | None) -> list[str]:
    """One override for each value, of which one more than `at_most` are enough to refuse the sweep."""
    text, key = override.input_line or "", override.get_key_element()
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text}: a grid needs single values; use a search sweeper for intervals")
    enough = None if at_most is None else at_most + 1
    try:
        values = [f"{key}={value}" for value in islice(override.sweep_string_iterator(), enough)]
    except (HydraException, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{text}: {error}") from error
    if not values:
        raise ConfigError(f"{text}: no value; a sweep of it has no job")
    return values
