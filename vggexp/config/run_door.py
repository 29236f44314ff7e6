"""The command line of a door that takes a run directory."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vggexp.errors import CheckpointError, ConfigError


def parse(description: str, argv: Sequence[str]) -> argparse.Namespace:
    """`run`: Path of a run directory, and `json`. Raises ConfigError, CheckpointError."""
    first, _, rest = description.partition("\n")
    usage = first.removeprefix("python -m ").partition(":")[0]
    parser = argparse.ArgumentParser(prog=usage.split()[0], description=first + rest)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run}: no such directory; give the folder of a run, as outputs/NAME")
    if not (arguments.run / "config.yaml").is_file():
        raise CheckpointError(f"{arguments.run}: not the folder of a run, it has no config.yaml")
    return arguments


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see --help")
