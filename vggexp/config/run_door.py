"""The command line of a door that takes run directories."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vggexp.errors import CheckpointError, ConfigError


def parse(description: str, argv: Sequence[str]) -> argparse.Namespace:
    """`run`: Path of a run directory, and `json`. Raises ConfigError, CheckpointError."""
    made = parser(description)
    made.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    arguments = made.parse_intermixed_args(argv)
    check(arguments.run)
    return arguments


def parser(description: str) -> argparse.ArgumentParser:
    """With --help and --json; a wrong command raises ConfigError. description: opens with `python -m DOOR ...: `."""
    first, _, rest = description.partition("\n")
    usage = first.removeprefix("python -m ").partition(":")[0]
    raw = argparse.RawDescriptionHelpFormatter  # keeps paragraphs
    made = argparse.ArgumentParser(prog=usage.split()[0], description=first + "\n" + rest, formatter_class=raw)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.error = _refuse  # type: ignore[method-assign, assignment]
    return made


def check(*folders: Path) -> None:
    """Raises ConfigError where a folder does not exist, CheckpointError where it is not a run's."""
    if missing := [folder for folder in folders if not os.path.isdir(folder)]:
        raise ConfigError(
            f"{', '.join(map(str, missing))}: no such directory; give the folder of a run, as outputs/NAME"
        )
    if foreign := [folder for folder in folders if not os.path.isfile(folder / "config.yaml")]:
        raise CheckpointError(f"{', '.join(map(str, foreign))}: not the folder of a run, it has no config.yaml")


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --help")
