"""Shows the repeats of a sweep in TensorBoard: mean and spread over the seeds.

The sweep is one more run, and its means are bands in the Custom Scalars tab.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.loggers import event_files
from vggexp.loggers.event_files import BandTags
from vggexp.runs.repeats import mean_and_std

TAGS = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")

History = Sequence[Mapping[str, Any]]  # of a run, one object of metrics.jsonl for each epoch


class ConfidenceBand(NamedTuple):
    """Mean of an epoch, and one sample standard deviation below and above the mean."""

    mean: float
    lower: float
    upper: float


Bands = dict[str, dict[int, ConfidenceBand]]  # label of a setting -> epoch -> band


def write_means(folder: Path, histories: Mapping[str, Sequence[History]]) -> None:
    """Writes the means of a sweep; replaces the folder's earlier events.

    Args:
        histories: for each setting the histories of its repeats.
    """
    bands = {}
    for tag in TAGS:
        bands_of_tag = _bands_of_tag(histories, tag)
        if bands_of_tag:
            bands[tag] = bands_of_tag
    now = time.time()
    # The title is unique, because the server loses charts if several sweeps share one.
    title = f"repeats: {folder.name}"
    layout = event_files.chart_layout(title, [_chart(tag, bands[tag]) for tag in bands])
    events = event_files.session_start_events(now)
    events.append(event_files.summary_event([layout], 0, now))
    for tag, bands_of_tag in bands.items():
        for epoch, values in _scalars(tag, bands_of_tag):
            events.append(event_files.summary_event(values, epoch, now))
    with event_files.replace_event_files(folder) as file, file:
        event_files.write_events(file, events)


def _bands_of_tag(histories: Mapping[str, Sequence[History]], tag: str) -> Bands:
    """Returns the bands of the settings that have any value."""
    bands = {}
    for label, repeats in histories.items():
        band = bands_by_epoch(repeats, tag)
        if band:
            bands[label] = band
    return bands


def bands_by_epoch(repeats: Iterable[History], tag: str) -> dict[int, ConfidenceBand]:
    """Computes the bands over the repeats that reached an epoch and have a finite value there.

    The band of a single value has no width.
    """
    values: dict[int, list[float]] = {}
    for rows in repeats:
        for row in rows:
            value = row.get(tag)
            if value is not None and isfinite(value):
                values.setdefault(row["epoch"], []).append(value)
    bands = {}
    for epoch in sorted(values):
        mean, std = mean_and_std(values[epoch])
        margin = std or 0.0
        bands[epoch] = ConfidenceBand(mean, mean - margin, mean + margin)
    return bands


def _chart(tag: str, labels: Iterable[str]) -> Any:
    """Returns a chart with a line and its band for each setting."""
    return event_files.band_chart(tag, [_band_tags(label, tag) for label in labels])


def _band_tags(label: str, tag: str) -> BandTags:
    """Returns the tags of a setting.

    They have a heading of their own, so that they neither crowd out the charts of the runs nor
    appear in them. The setting stands last, because the server shortens a long name before its
    last slash.
    """
    name = f"repeats/{tag}/{label}"
    return BandTags(name, f"{name} mean-sd", f"{name} mean+sd")


def _scalars(tag: str, bands: Bands) -> Iterator[tuple[int, list[Any]]]:
    """Yields the epoch and the three scalars of each band."""
    for label, band_by_epoch in bands.items():
        tags = _band_tags(label, tag)
        for epoch, band in band_by_epoch.items():
            yield (
                epoch,
                [
                    event_files.scalar(tags.value, band.mean),
                    event_files.scalar(tags.lower, band.lower),
                    event_files.scalar(tags.upper, band.upper),
                ],
            )
