"""Shows the repeats of a sweep in TensorBoard.

Each setting that is repeated is one more run, below the folder of the sweep. So each setting has a
color of its own. Its mean over the seeds and the limits of the spread are three lines of this
color in the Custom Scalars tab. The chart with filled bands would report every run without such
tags as an error.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.run_id import short_hash
from vggexp.loggers import event_files
from vggexp.loggers.tensorboard import scalar_tag
from vggexp.runs.repeats import mean_and_std
from vggexp.runs.sweeps import MEANS
from vggexp.system.files import make_inner_dir

KEYS = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")
MAX_NAME_CHARS = 200  # of a folder; file systems allow 255 bytes
# The charts are the same for all sweeps, because the server merges their sections.
CHARTS = {
    "mean over the seeds": {key: f"{MEANS}/{scalar_tag(key)}$" for key in KEYS},
    "mean and one sd below and above": {key: f"{MEANS}/{scalar_tag(key)}" for key in KEYS},
}

History = Sequence[Mapping[str, Any]]  # of a run, one object of metrics.jsonl for each epoch


class ConfidenceBand(NamedTuple):
    """Mean of an epoch, and one sample standard deviation below and above the mean."""

    mean: float
    lower: float
    upper: float


def write_means(folder: Path, histories: Mapping[str, Sequence[History]]) -> None:
    """Writes the means of a sweep; replaces the earlier events of each setting.

    Args:
        folder: the folder of the sweep.
        histories: for each setting the histories of its repeats.

    Raises:
        ResourceError: a folder inside that of the sweep is a link.
    """
    for label, repeats in histories.items():
        now = time.time()
        events = event_files.session_start_events(now)
        events.append(event_files.summary_event([event_files.chart_layout(CHARTS)], 0, now))
        for key in KEYS:
            for epoch, band in bands_by_epoch(repeats, key).items():
                events.append(event_files.summary_event(_scalars(key, band), epoch, now))
        setting = folder / MEANS / folder_name(label)
        make_inner_dir(setting.parent)  # a link would lead to the event files of someone else
        make_inner_dir(setting)
        with event_files.replace_event_files(setting) as file, file:
            event_files.write_events(file, events)


def folder_name(label: str) -> str:
    """Returns the label of a setting as the name of a folder, which TensorBoard shows."""
    name = label.replace("/", "_")[:MAX_NAME_CHARS]
    return name if name == label else f"{name}-{short_hash(label)}"


def bands_by_epoch(repeats: Iterable[History], key: str) -> dict[int, ConfidenceBand]:
    """Computes the bands over the repeats that reached an epoch and have a finite value there.

    The band of a single value has no width.
    """
    values: dict[int, list[float]] = {}
    for rows in repeats:
        for row in rows:
            value = row.get(key)
            if value is not None and isfinite(value):
                values.setdefault(row["epoch"], []).append(value)
    bands = {}
    for epoch in sorted(values):
        mean, std = mean_and_std(values[epoch])
        margin = std or 0.0
        bands[epoch] = ConfidenceBand(mean, mean - margin, mean + margin)
    return bands


def _scalars(key: str, band: ConfidenceBand) -> list[Any]:
    """Returns the three scalars of a band.

    Their tags have a heading of their own, so that they stay out of the charts of the runs.
    """
    tag = f"{MEANS}/{scalar_tag(key)}"
    return [
        event_files.scalar(tag, band.mean),
        event_files.scalar(f"{tag} mean-sd", band.lower),
        event_files.scalar(f"{tag} mean+sd", band.upper),
    ]
