"""Groups runs by their data: scores on different images are not ranked against each other.

The data of two runs is the same if they recorded the same SHA-256s of the training and test files.
`data.resize`, `data.limit`, `data.val_fraction` and the augmentation are settings: they choose how
a run uses the images. The validation images differ between seeds as well.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from vggexp.data.fingerprint import combined_sha256
from vggexp.data.torchvision_sets import TORCHVISION_SETS
from vggexp.formatting import HASH_CHARS, format_value, printable
from vggexp.runs.records import RunRecord, fingerprint

SYNTHETIC_KEYS = ("images", "size")  # in the description of generated images


class DataSet(NamedTuple):
    """Runs of the same data."""

    name: str  # fashion_mnist, or `image_folder flowers`; with a hash if another one has the name
    runs: list[RunRecord]


def group_by_data(runs: Sequence[RunRecord]) -> list[DataSet]:
    """Returns the runs of each data set, the data set with the most runs first.

    A run that failed before it read its data has recorded no SHA-256. It joins the first data set
    of the same description.
    """
    known: dict[str, str] = {}
    for run in runs:
        if fingerprint(run):
            known.setdefault(describe_data(run.config), _data_sha256(run))
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        description = describe_data(run.config)
        sha256 = _data_sha256(run) if fingerprint(run) else known.get(description, description)
        groups.setdefault(sha256, []).append(run)
    descriptions = [describe_data(members[0].config) for members in groups.values()]
    counts = Counter(descriptions)
    data_sets = []
    for (sha256, members), name in zip(groups.items(), descriptions, strict=True):
        if counts[name] > 1:
            name += f" {sha256[:HASH_CHARS]}"
        data_sets.append(DataSet(name, members))
    return sorted(data_sets, key=lambda data_set: -len(data_set.runs))


def describe_data(config: Mapping[str, Any]) -> str:
    """Returns `fashion_mnist`, `image_folder flowers`, `EMNIST split=letters` or the like.

    Args:
        config: The run's configuration with flat keys.
    """
    name = format_value(config.get("data.name"))
    if name == "image_folder":
        folder = PurePath(format_value(config.get("data.root"))).name
        return f"{name} {folder}"
    keys: Iterable[str] = SYNTHETIC_KEYS if name == "synthetic" else ()
    if name in TORCHVISION_SETS:
        keys = [key for key in TORCHVISION_SETS[name].arguments if f"data.{key}" in config]
    words = [f"{key}={format_value(config.get(f'data.{key}'))}" for key in keys]
    return " ".join([name, *words])


def _data_sha256(run: RunRecord) -> str:
    """Returns one SHA-256 of the run's data, `data.sha256` of an image folder."""
    # A damaged env.json may have characters that UTF-8 cannot encode; `printable` escapes them.
    return combined_sha256({key: printable(str(value)) for key, value in fingerprint(run).items()})
