"""From the arguments of a sweep to its jobs: one pure function for the check beforehand and for the sweeper."""

from collections.abc import Mapping, Sequence
from itertools import islice, product
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from vggexp.errors import ConfigError


def jobs(
    config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any], at_most: int | None = None
) -> list[list[str]]:
    """The overrides of every job, the last axis turning fastest.

    params: axes from a sweep file (hydra.sweeper.params); an argument of the same key takes their place. Raises
    ConfigError for an axis without discrete values, for one without any, and for more than `at_most` jobs.
    """
    written = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    parser = OverridesParser.create(config_loader=config_loader)
    try:
        parsed = parser.parse_overrides(written)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    axes = {override.get_key_element(): _axis(override, at_most) for override in parsed}
    if at_most is not None and prod(map(len, axes.values())) > at_most:
        raise ConfigError(f"sweep: more than sweep.max_jobs={at_most} jobs; take fewer values or raise that number")
    return [list(combination) for combination in product(*axes.values())]


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
