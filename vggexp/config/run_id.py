"""Names runs and sweeps after their configuration: the same command gives the same name."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vggexp.config.keys import flatten, to_plain
from vggexp.config.labels import PATH_KEYS, ArchFile, network_label, run_label
from vggexp.config.schema import Config
from vggexp.data.catalog import DEFAULT_TEST_FRACTION
from vggexp.data.torchvision_sets import FILE_SETS
from vggexp.formatting import HASH_CHARS, format_value

if TYPE_CHECKING:  # the module imports Hydra
    from vggexp.config.overrides import Override

# Keys that do not change a result. A key that is null is left out as well, so that names survive
# a new option. An image folder, and the weights that `train.init_from` names, enter by their
# hashes, `data.sha256` and `train.init_sha256`, and not by their paths.
NON_IDENTITY_KEYS = (
    "run.",
    "sweep.",
    "resume",
    "data.root",
    "data.download",
    "data.workers",
    "train.checkpoint_minutes",
    "train.rest_minutes",
    "train.keep",
    "train.init_from",
    "train.probe_steps",
    "train.stop_if_dead",
    "train.log_steps",
    "device.timeout_minutes",
)
MEANINGS_OF_NULL = {  # such a value is the same run as null
    "device.processes": 1,
    "device.sync_batch_norm": True,
    "train.test_flip": False,
    "data.test_fraction": DEFAULT_TEST_FRACTION,
}
ADDED_KEYS = ("data.sha256", "data.cache")  # that version 0.1.0 did not count
# Schedules that do not depend on the number of epochs.
OPEN_ENDED_SCHEDULES = ("constant", "step", "plateau")
MAX_SWEPT_CHARS = 80  # of the swept keys in the name of a sweep


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a plain configuration that determine the result of a run."""
    keys = flatten(values)
    keys["data.cache"] = _cache_kind(keys)
    result = {}
    for key, value in sorted(keys.items()):
        is_set = value is not None and not _means_null(key, value)
        if is_set and not key.startswith(NON_IDENTITY_KEYS):
            result[key] = _canonical(value)
    return result


def _means_null(key: str, value: Any) -> bool:
    return key in MEANINGS_OF_NULL and value == MEANINGS_OF_NULL[key]


def can_change_result(key: str) -> bool:
    """Returns whether another value of a key, or another file of a group, can make another run."""
    return key in PATH_KEYS or not key.startswith((*NON_IDENTITY_KEYS, "hydra"))


def _cache_kind(keys: Mapping[str, Any]) -> str | None:
    """Returns "ram" for image files that are decoded once, into any memory; else None.

    Images that stay in memory have the size of the network's input, and are augmented from it.
    Images that are decoded in each epoch are augmented from their own size: other bits.
    """
    if keys.get("data.name") not in ("image_folder", *FILE_SETS):
        return None
    if keys.get("data.cache") in ("none", "auto"):
        return None
    return "ram"


def _canonical(value: Any) -> Any:
    """Returns one form of each value: whole numbers as integers, lists for tuples."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def differences(
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
) -> list[str]:
    """Describes each key that prevents a run from being continued.

    More epochs do not, if nothing else depends on their number.

    Args:
        recorded: the `identity` of the run.
        current: the `identity` of the command.
    """
    lines = []
    recorded = {key: value for key, value in recorded.items() if not _means_null(key, value)}
    more_epochs = only_more_epochs(recorded, current)
    for key in sorted({*recorded, *current}):
        before = recorded.get(key)
        now = current.get(key)
        if before == now or (key == "train.epochs" and more_epochs):
            continue
        if key in ADDED_KEYS and before is None:
            continue  # resuming compares at least the names and sizes of the files
        lines.append(f"{key}: run has {_shown(key, before)}, command says {_shown(key, now)}")
    return lines


def _shown(key: str, value: Any) -> str:
    text = format_value(value)
    return text[:HASH_CHARS] if key.endswith("sha256") else text


def only_more_epochs(
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
) -> bool:
    """Returns whether the command raises train.epochs and nothing else depends on them."""
    if current["scheduler.name"] not in OPEN_ENDED_SCHEDULES:
        return False
    if "augment.flip_only_fraction" in current:  # a share of all epochs
        return False
    epochs = recorded.get("train.epochs", 0)
    return isinstance(epochs, int) and current["train.epochs"] > epochs


def short_hash(content: object) -> str:
    """Returns 8 hexadecimal digits of the SHA-256 of the content as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def run_name(config: Config) -> str:
    """Returns run.name, or the label and the hash of the run."""
    return config.run.name or f"{_label(config)}-{run_hash(config)}"


def run_hash(config: Config) -> str:
    """Returns the 8 hexadecimal digits that decide which run a configuration is."""
    return short_hash(identity(to_plain(config)))


def network_name(config: Config) -> str:
    """Returns run.network, or a description of the network; see `network_label`."""
    return config.run.network or network_label(config.arch)


def _label(config: Config) -> str:
    return config.run.label or run_label(config, network_name(config))


def with_labels(
    config: Config, file: ArchFile | None = None, overrides: Sequence["Override"] = ()
) -> Config:
    """Sets `run.network` and `run.label`, unless they have been given.

    Args:
        file: the file of the group `arch` that was chosen, if it is known.
        overrides: the overrides of the run as typed.
    """
    chosen = []
    for override in {override.key: override for override in overrides}.values():
        if can_change_result(override.key):
            chosen.append(override)
    network = config.run.network or network_label(config.arch, file)
    label = config.run.label or run_label(config, network, chosen)
    return replace(config, run=replace(config.run, network=network, label=label))


def sweep_name(
    jobs: Sequence[Sequence[str]], configs: Iterable[Config], hashes: Iterable[str]
) -> str:
    """Returns the swept keys and a hash of the set of runs.

    The order of the jobs, how they are run and how their values are typed do not change the hash.

    Args:
        jobs: the overrides of each job.
        configs: the configuration of each job.
        hashes: the `run_hash` of each job.
    """
    from vggexp.config.overrides import parse_override  # imports Hydra, which only a sweep needs

    values: dict[str, set[str]] = {}
    for overrides in jobs:
        for override in map(parse_override, overrides):
            if not override.key.startswith("sweep.") and override.key != "run.until":
                values.setdefault(override.key, set()).add(override.typed_value)
    swept = [key.replace("/", ".") for key, chosen in values.items() if len(chosen) > 1]
    readable = "-".join(swept)[:MAX_SWEPT_CHARS] or "sweep"
    runs = []
    for config, own_hash in zip(configs, hashes, strict=True):
        is_new_each_time = config.resume == "never"  # not the sweep that continues its runs
        runs.append([own_hash, config.run.name or "", is_new_each_time])
    return f"{readable}-{short_hash(sorted(runs))}"
