"""Which weights `train.init_from` names: a run's by its result, a file's by its bytes. Needs no torch."""

import hashlib
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, ConfigError, ResourceError, VggexpError
from vggexp.runs.directory import RESULT, read_config, read_result, require_run


def pin_init_weights(config: Config) -> Config:
    """With `train.init_sha256` as the source has it, so that the run's name follows from the weights and not the path.

    Where the source has gone, a run that was begun from it still tells. Raises ConfigError for a path that does not
    exist, CheckpointError for other weights than the given ones and for a run that has not finished.
    """
    path = config.train.init_from
    given = config.train.init_sha256
    if path is None:
        return config
    found = (
        source_sha256(Path(path))
        if os.path.exists(path)
        else given or _sha_from_started_runs(config)
    )
    if found is None:
        raise ConfigError(f"train.init_from={path}: no such run directory or file of weights")
    if given not in (None, found):
        raise CheckpointError(
            f"train.init_from={path}: its SHA-256 is {found}, not train.init_sha256={given}"
        )
    return replace(config, train=replace(config.train, init_sha256=found))


def source_sha256(path: Path) -> str:
    """Of a finished run's weights, as its result.json has it, or of a file's bytes."""
    if path.is_file():
        there = path.stat()
        return _of_file(path, there.st_size, there.st_mtime_ns)
    if not path.is_dir():
        raise ConfigError(f"train.init_from={path}: neither a run directory nor a file of weights")
    require_run(path)
    result = read_result(path)
    if result.get("state") != "finished" or not isinstance(result.get("weights_sha256"), str):
        raise CheckpointError(
            f"train.init_from={path}: this run has not finished ({RESULT}: {result.get('state')})"
        )
    return result["weights_sha256"]


@cache
def _of_file(path: Path, size: int, changed: int) -> str:
    """size, changed: the file's, so that it is read once for each of its contents."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResourceError(f"train.init_from={path}: cannot be read: {error.strerror}") from error


def _sha_from_started_runs(config: Config) -> str | None:
    """What the runs of this root that were begun from the same path have recorded, where they agree."""
    recorded = set()
    for file in Path(config.run.root).glob(f"{config.run.name or '*'}/config.yaml"):
        try:
            train = read_config(file.parent)["train"]
            if train["init_from"] == config.train.init_from:
                recorded.add(train["init_sha256"])
        except (VggexpError, KeyError, TypeError):  # no run of this version
            continue
    return recorded.pop() if len(recorded) == 1 else None
