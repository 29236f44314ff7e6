"""A sweep with repeats as one run of TensorBoard: mean and spread over the seeds, as bands under Custom Scalars."""

import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, MarginChartContent
from tensorboard.summary.writer.record_writer import RecordWriter

from vggexp.loggers.tensorboard import layout, replace_event_files, session_start_events
from vggexp.runs.repeats import mean_and_std

TAGS = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")

Rows = Sequence[Mapping[str, Any]]  # of a run, one for each epoch
ConfidenceBand = tuple[
    float, float, float
]  # the mean, and a standard deviation of the sample below and above it


def write_means(folder: Path, sets: Mapping[str, Sequence[Rows]]) -> None:
    """sets: for each setting the histories of its repeats. The folder's earlier events are replaced."""
    bands = {
        tag: {label: bands_by_tag(histories, tag) for label, histories in sets.items()}
        for tag in TAGS
    }
    lines = {
        tag: {label: epochs for label, epochs in found.items() if epochs}
        for tag, found in bands.items()
    }
    now = time.time()
    # a title of its own: the server loses charts where several sweeps share one
    charts = layout(
        f"repeats: {folder.name}", [chart(tag, found) for tag, found in lines.items() if found]
    )
    with replace_event_files(folder) as file, file:
        writer = RecordWriter(file)
        scalars = [
            Event(summary=Summary(value=values), step=step, wall_time=now)
            for step, values in _scalars(lines)
        ]
        for event in [
            *session_start_events(now),
            Event(summary=Summary(value=[charts]), wall_time=now),
            *scalars,
        ]:
            writer.write(event.SerializeToString())


def bands_by_tag(histories: Iterable[Rows], tag: str) -> dict[int, ConfidenceBand]:
    """By epoch, over the repeats that got there and whose number is finite; of one alone the band has no width."""
    values: dict[int, list[float]] = {}
    for row in (row for rows in histories for row in rows):
        number = row.get(tag)
        if number is not None and isfinite(number):
            values.setdefault(row["epoch"], []).append(number)
    return {epoch: _band(values[epoch]) for epoch in sorted(values)}


def chart(tag: str, labels: Iterable[str]) -> Any:
    """A line in its band for each setting."""
    names = [_names(label, tag) for label in labels]
    series = [
        MarginChartContent.Series(value=middle, lower=low, upper=high)
        for middle, low, high in names
    ]
    return Chart(title=tag, margin=MarginChartContent(series=series))


def _band(values: Sequence[float]) -> ConfidenceBand:
    middle, deviation = mean_and_std(values)
    return middle, middle - (deviation or 0.0), middle + (deviation or 0.0)


def _names(label: str, tag: str) -> tuple[str, str, str]:
    """Under a heading of their own: they do not crowd out, nor get into, the charts of the runs.

    The setting stands last, as the server shortens a long name before its last slash.
    """
    name = f"repeats/{tag}/{label}"
    return name, f"{name} mean-sd", f"{name} mean+sd"


def _scalars(
    lines: Mapping[str, Mapping[str, Mapping[int, ConfidenceBand]]],
) -> Iterable[tuple[int, list[Any]]]:
    for tag, found in lines.items():
        for label, epochs in found.items():
            for epoch, band in epochs.items():
                numbers = zip(_names(label, tag), band, strict=True)
                yield (
                    epoch,
                    [Summary.Value(tag=name, simple_value=number) for name, number in numbers],
                )
