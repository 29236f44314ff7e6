"""Composes the HParams table of TensorBoard: the row of a run, and the columns of the table.

TensorBoard takes the columns from one of the runs that it reads, and shows the first five
hyperparameters. It sorts the marked columns before the others, and both by name.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vggexp.config.keys import to_plain
from vggexp.config.parse import schema_keys
from vggexp.config.run_id import NON_IDENTITY_KEYS, identity, network_name
from vggexp.config.schema import Config
from vggexp.formatting import format_value

HParam = bool | int | float | str

# The columns that a run outside a sweep shows first. Five of them are as many as TensorBoard shows.
MAIN_COLUMNS = ("data.name", "network", "optimizer.lr", "overrides", "seed")
GROUPS = ("arch", "augment", "data", "experiment", "optimizer", "scheduler")
NO_COLUMN = ("hydra", "sweep", *NON_IDENTITY_KEYS)


class HParamsTable(NamedTuple):
    """The row of a run, and the table that its columns belong to."""

    values: Mapping[str, HParam]
    columns: Sequence[str]  # all columns of the table
    main_columns: Sequence[str]  # those that the table shows first


def hparams_table(
    config: Config, overrides: Sequence[str] = (), swept: Sequence[str] = ()
) -> HParamsTable:
    """Returns the row of a run and the columns of its table.

    Args:
        config: the configuration.
        overrides: as typed; flags before them are left out.
        swept: the keys with several values in the sweep that the run belongs to. They are all
            columns of the table. A run outside a sweep has every key as a column, so that runs of
            any kind differ in a column.
    """
    values = hyperparameters(config, overrides)
    own_columns = [key for key in swept if key in values]
    if own_columns:
        return HParamsTable(values, own_columns, own_columns)
    columns = {*values, *GROUPS}
    for key in schema_keys():
        if not key.startswith(NO_COLUMN):
            columns.add(key)
    return HParamsTable(values, sorted(columns), MAIN_COLUMNS)


def hyperparameters(config: Config, overrides: Sequence[str] = ()) -> dict[str, HParam]:
    """Returns the network, what was typed, and each key of the run's identity.

    What was typed is `overrides`, and the chosen file of each group. So runs that differ show it,
    whether a command or a file set the key.
    """
    values: dict[str, HParam] = {"network": network_name(config)}
    typed = typed_settings(overrides)
    values["overrides"] = " ".join(f"{key}={value}" for key, value in typed.items())
    groups = {key: value for key, value in typed.items() if is_group(key)}
    values |= groups
    values["optimizer.arguments"] = format_value(config.optimizer.arguments)
    for key, value in identity(to_plain(config)).items():
        values[key] = value if isinstance(value, bool | int | float) else format_value(value)
    return values


def typed_settings(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the typed values of the keys and groups that can make another run."""
    from vggexp.config.overrides import parse_overrides, typed_values  # imports Hydra

    words = [word for word in overrides if not word.startswith("-")]  # without flags
    parsed, _ = parse_overrides(words)
    settings = {}
    for key, value in typed_values(parsed).items():
        if not key.startswith(NO_COLUMN):
            settings[key] = value
    return settings


def is_group(key: str) -> bool:
    return "." not in key and key not in schema_keys()
