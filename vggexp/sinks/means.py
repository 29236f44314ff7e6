"""A sweep with repeats as one run of TensorBoard: mean and spread over the seeds, as bands under Custom Scalars."""

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar.layout_pb2 import Chart, MarginChartContent
from tensorboard.summary.writer.record_writer import RecordWriter

from vggexp.scores import spread
from vggexp.sinks.tensorboard import PREFIX, layout, stamp

TAGS = ("val/accuracy", "val/loss", "train/accuracy", "train/loss")

Rows = Sequence[Mapping[str, Any]]  # of a run, one for each epoch


def write_means(folder: Path, sets: Mapping[str, Sequence[Rows]]) -> None:
    """sets: for each setting the histories of its repeats. The folder's earlier events are replaced."""
    earlier = [path for path in folder.iterdir() if path.name.startswith(PREFIX)]
    path = folder / f"{PREFIX}{stamp(earlier):010d}.{socket.gethostname()}.{os.getpid()}"
    now = time.time()
    with open(path, "xb") as file:
        writer = RecordWriter(file)
        writer.write(Event(file_version="brain.Event:2", wall_time=now).SerializeToString())
        for step, values in [(0, [layout("repeats", charts(sets))]), *_scalars(sets)]:
            writer.write(Event(summary=Summary(value=values), step=step, wall_time=now).SerializeToString())
    for old in earlier:
        old.unlink()


def charts(sets: Iterable[str]) -> list[Any]:
    """A chart for each metric, with a line in its band for each setting."""
    names = [(tag, [_names(label, tag) for label in sets]) for tag in TAGS]
    return [
        Chart(title=tag, margin=MarginChartContent(series=[
            MarginChartContent.Series(value=middle, lower=low, upper=high) for middle, low, high in rows
        ]))
        for tag, rows in names
    ]  # fmt: skip


def _names(label: str, tag: str) -> tuple[str, str, str]:
    return f"{tag}/{label}", f"{tag}/{label}/mean-sd", f"{tag}/{label}/mean+sd"


def _scalars(sets: Mapping[str, Sequence[Rows]]) -> Iterable[tuple[int, list[Any]]]:
    for label, histories in sets.items():
        for epoch in sorted({row["epoch"] for rows in histories for row in rows}):
            there = [row for rows in histories for row in rows if row["epoch"] == epoch]
            yield epoch, [value for tag in TAGS for value in _band(label, tag, there)]


def _band(label: str, tag: str, rows: Rows) -> list[Any]:
    values = [row[tag] for row in rows if row.get(tag) is not None]
    if not values:
        return []
    middle, deviation = spread(values)
    half = deviation or 0.0
    numbers = zip(_names(label, tag), (middle, middle - half, middle + half), strict=True)
    return [Summary.Value(tag=name, simple_value=number) for name, number in numbers]
