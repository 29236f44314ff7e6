"""Names the keys that would shorten a run, from where its time went."""

from collections.abc import Mapping
from typing import Any

from vggexp.config.derived import decodes_each_epoch, tested_views
from vggexp.config.schema import Config, ImageFiles
from vggexp.runs.times import added_seconds, part_seconds
from vggexp.system.cpu import default_threads

MIN_SECONDS = 60  # a shorter run is mostly start and end, and needs no advice
# The share of the time above which a part is out of proportion. All other parts are the work.
MAX_SHARES = {
    "data": 0.1,
    "evaluation": 0.4,
    "test": 0.4,
    "checkpoint": 0.05,
    "start-up": 0.5,
    "rest": 0.5,
}


def time_advice(config: Config, result: Mapping[str, Any]) -> list[str]:
    """Returns a line for each part that is out of proportion, if a key makes the part smaller.

    Args:
        config: the configuration.
        result: the content of result.json. Its `seconds` are those of the epochs and the test;
            the start and the pauses come in addition.
    """
    added = added_seconds(result)
    whole = result["seconds"] + sum(added.values())
    if whole <= MIN_SECONDS:
        return []
    remedies = {
        "data": _data_remedy(config),
        "evaluation": "train.test_each_epoch=false" if config.train.test_each_epoch else "",
        "test": _test_remedy(config, result),
        "checkpoint": _checkpoint_remedy(config, result),
        "start-up": _startup_remedy(config),
        "rest": f"train.rest_minutes below {config.train.rest_minutes:g}",
    }
    shares = {part: seconds / whole for part, seconds in added.items()}
    for part, seconds in part_seconds(result).items():
        shares[part] = seconds / result["seconds"]
    lines = []
    for part, remedy in remedies.items():
        if shares[part] > MAX_SHARES[part] and remedy:
            percent = 100 * shares[part]
            lines.append(f"advice   {percent:.0f} % of the time is {part}; try {remedy}")
    return lines


def _data_remedy(config: Config) -> str:
    """Returns the keys that make batches ready sooner.

    Images in memory have only their resizing and augmentation left, which no key makes faster. On
    CUDA these run on the device, if the images are there.
    """
    data = config.data
    if decodes_each_epoch(data):
        remedies = [_more_workers(config)]
        if config.train.epochs > 1:  # with one epoch, each image is decoded once anyway
            remedies.insert(0, "data.cache=ram")
        return " or ".join(filter(None, remedies))
    if config.device.name == "cuda" and data.cache == "ram":
        return "data.cache=device"
    return ""


def _test_remedy(config: Config, result: Mapping[str, Any]) -> str:
    remedies = [f"{key}=null" for key in tested_views(config).keys]
    return " or ".join([*remedies, f"data.test_limit below {result['test_images']}"])


def _startup_remedy(config: Config) -> str:
    """Returns a key only for images that are decoded at the start."""
    is_decoded = isinstance(config.data, ImageFiles) and not decodes_each_epoch(config.data)
    return _more_workers(config) if is_decoded else ""


def _more_workers(config: Config) -> str:
    """Returns "" if each core has a worker already."""
    workers = config.data.workers
    return f"data.workers above {workers}" if workers < default_threads() else ""


def _checkpoint_remedy(config: Config, result: Mapping[str, Any]) -> str:
    """Returns a key only if there are checkpoints within epochs: those after an epoch stay."""
    minutes = config.train.checkpoint_minutes
    epoch_seconds = (result["seconds"] - result["time/test_seconds"]) / result["epoch"]
    if epoch_seconds <= 60 * minutes:
        return ""
    return f"train.checkpoint_minutes above {minutes:g}"
