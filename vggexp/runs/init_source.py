"""Finds the SHA-256 of the weights that `train.init_from` names. Needs no torch."""

import hashlib
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, ConfigError, ResourceError, VggexpError
from vggexp.runs.continuation import check_states
from vggexp.runs.directory import (
    CLOSED,
    CONFIG,
    RESULT,
    is_searchable,
    read_config,
    read_result,
    require_run,
)
from vggexp.runs.records import read_run
from vggexp.runs.schema import damaged
from vggexp.system.files import open_regular, os_error_as_resource_error


def pin_init_weights(config: Config) -> Config:
    """Sets `train.init_sha256` from the source of the initial weights.

    The name of the run then follows from the weights and not from their path. If the source no
    longer exists, the hash comes from a run that was started from the same path.

    Raises:
        ConfigError: the path does not exist.
        CheckpointError: the source has other weights than `train.init_sha256`, or is a run that
            has not finished.
        ResourceError: a permission is missing.
    """
    path = config.train.init_from
    expected = config.train.init_sha256
    if path is None:
        return config
    if not is_searchable(Path(path)):
        raise ResourceError(f"train.init_from={path}: {CLOSED}")
    actual: str | None
    if os.path.exists(path):
        actual = source_sha256(Path(path))
    else:
        actual = expected or _sha_from_started_runs(config)
    if actual is None:
        raise ConfigError(f"train.init_from={path}: no such run directory or file of weights")
    if expected not in (None, actual):
        digests = f"its SHA-256 is {actual}, not train.init_sha256={expected}"
        raise CheckpointError(f"train.init_from={path}: {digests}")
    return replace(config, train=replace(config.train, init_sha256=actual))


def source_sha256(path: Path) -> str:
    """Returns `weights_sha256` of a finished run, or the SHA-256 of a file's bytes."""
    if path.is_file():
        status = path.stat()
        return _file_sha256(path, status.st_size, status.st_mtime_ns)
    if not path.is_dir():
        raise ConfigError(f"train.init_from={path}: neither a run directory nor a file of weights")
    require_run(path)
    result = read_result(path)
    if result.get("state") != "finished":
        run = read_run(path)
        check_states([run], "taken for train.init_from")
        result = run.result
    digest = result.get("weights_sha256")
    if not isinstance(digest, str):
        raise damaged(path / RESULT, "has no weights_sha256")
    return digest


@cache
def _file_sha256(
    path: Path,
    size: int,
    modified_ns: int,
) -> str:
    """Hashes a file; its size and time make the cache hold one entry for each content."""
    with (
        os_error_as_resource_error(f"train.init_from={path}", "read"),
        open(path, "rb", opener=open_regular) as file,
    ):
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha_from_started_runs(config: Config) -> str | None:
    """Returns the hash that the runs started from the same path have recorded, if they agree."""
    recorded = set()
    for path in Path(config.run.root).glob(f"{config.run.name or '*'}/{CONFIG}"):
        try:
            train = read_config(path.parent)["train"]
            if train["init_from"] == config.train.init_from:
                recorded.add(train["init_sha256"])
        except (VggexpError, KeyError, TypeError):  # not a run of this version
            continue
    return recorded.pop() if len(recorded) == 1 else None
