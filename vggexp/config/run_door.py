"""The command line of a door that takes run directories."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vggexp.errors import CheckpointError, ConfigError


def parser(description: str) -> argparse.ArgumentParser:
    """With --json; raises ConfigError for a wrong command. description: `python -m vggexp.DOOR ...: what for`."""
    first, _, rest = description.partition("\n")
    usage = first.removeprefix("python -m ").partition(":")[0]
    made = argparse.ArgumentParser(prog=usage.split()[0], description=first + rest)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.error = _refuse  # type: ignore[method-assign, assignment]
    return made


def parse(description: str, argv: Sequence[str]) -> argparse.Namespace:
    """`run`: Path of a run directory, and `json`. Raises ConfigError, CheckpointError."""
    door = parser(description)
    door.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    arguments = door.parse_intermixed_args(argv)
    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run}: no such directory; give the folder of a run, as outputs/NAME")
    if not (arguments.run / "config.yaml").is_file():
        raise CheckpointError(f"{arguments.run}: not the folder of a run, it has no config.yaml")
    return arguments


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --help")
