"""From the arguments of a sweep to its jobs: one pure function for the check beforehand and for the sweeper."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from vggexp.errors import ConfigError


def jobs(config_loader: Any, arguments: Sequence[str], params: Mapping[str, Any]) -> list[list[str]]:
    """The overrides of every job, the last axis turning fastest.

    params: axes from a sweep file (hydra.sweeper.params); an argument of the same key takes their place. Raises
    ConfigError for an axis without discrete values (interval and the like, which need a search sweeper).
    """
    written = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=config_loader).parse_overrides(written):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [override.input_line or ""]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(f"{override.input_line}: a grid needs single values; use a search sweeper for intervals")
    return [list(combination) for combination in product(*axes.values())]
