"""Computes what a configuration costs, and prints it as a table. Needs no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from vggexp.config.derived import (
    disk_bytes,
    disk_limit,
    expected_precision,
    input_spec,
    layers,
    memory_bytes,
)
from vggexp.config.hints import Hint, hints
from vggexp.config.schema import Config
from vggexp.formatting import aligned_table, format_bytes
from vggexp.models import shapes
from vggexp.models.shapes import Layer

Row = tuple[str, ...]  # the cells of a table
Shape = tuple[int, int, int]  # channels, height, width
Counts = dict[str, int | None]

# layers that the table names without a kernel
LAYER_NAMES = {"batch": "batch norm", "lrn": "response norm", "linear": "linear"}


@dataclass(frozen=True)
class CostPlan:
    """Cost of a configuration. A count is None if it depends on data that is not read."""

    network: str
    data: str
    input: Shape
    classes: int
    images: Counts  # training, validation, test
    batch_size: int
    accumulate: int
    steps_per_epoch: int | None
    precision: str
    parameters: int
    macs: int  # multiply-adds of one image's forward pass
    weight_layers: int
    layers: list[Layer]
    memory_bytes: Counts
    disk_bytes: dict[str, int]
    disk_limit: str  # the run's size as text, and what it leaves out
    hints: list[Hint]

    def __str__(self) -> str:
        return cost_table(self)


def plan_costs(config: Config) -> CostPlan:
    """Raises ConfigError if the number of classes is unknown because an image folder is missing."""
    spec = input_spec(config)
    rows = layers(config)
    disk = disk_bytes(config)
    batch_size = config.data.batch_size
    steps_per_epoch = None
    if spec.train_images is not None:
        steps_per_epoch = ceil(spec.train_images / batch_size)
    return CostPlan(
        network=config.arch.name,
        data=config.data.name,
        input=(spec.channels, spec.size, spec.size),
        classes=spec.classes,
        images={
            "training": spec.train_images,
            "validation": spec.val_images,
            "test": spec.test_images,
        },
        batch_size=batch_size,
        accumulate=config.train.accumulate,
        steps_per_epoch=steps_per_epoch,
        precision=expected_precision(config.device),
        parameters=shapes.parameters(rows),
        macs=shapes.macs(rows),
        weight_layers=shapes.weight_layers(rows),
        layers=rows,
        memory_bytes=memory_bytes(config),
        disk_bytes=disk,
        disk_limit=disk_limit(config, f"checkpoints of {_format_size(disk['run'])}"),
        hints=hints(config),
    )


def cost_table(plan: CostPlan) -> str:
    """Returns text for a terminal: the blocks, their sums, the images, memory and disk."""
    shape = "x".join(map(str, plan.input))
    heading = (
        f"{plan.network}, {plan.weight_layers} weight layers, {shape} -> {plan.classes} classes: "
        f"{plan.parameters:,} parameters, {format_bytes(plan.macs, 'MAC')} an image"
    )
    rows = [
        ("", "layers", "in -> out", "parameters", "MMAC an image"),
        *_block_rows(plan),
        ("total", "", "", f"{plan.parameters:,}", _format_mega(plan.macs)),
    ]
    lines = [
        heading,
        "",
        *aligned_table(rows, left_columns=3),
        "",
        *aligned_table(_resource_rows(plan), left_columns=3),
    ]
    return "\n".join(lines)


def _block_rows(plan: CostPlan) -> Iterator[Row]:
    """Yields a row for each block and for each layer of the classifier."""
    input_shape = plan.input
    for block, group in groupby(plan.layers, lambda layer: layer.block or layer.name):
        rows = list(group)
        output_shape = rows[-1].output
        yield (
            block if isinstance(block, str) else f"block{block}",
            _describe_layers(rows),
            f"{_format_shape(input_shape)} -> {_format_shape(output_shape)}",
            f"{shapes.parameters(rows):,}",
            _format_mega(shapes.macs(rows)),
        )
        input_shape = output_shape


def _format_shape(shape: Shape) -> str:
    channels, height, width = shape
    if (height, width) == (1, 1):
        return str(channels)
    return f"{channels}x{height}x{width}"


def _format_mega(macs: int) -> str:
    return f"{macs / 1e6:,.2f}"


def _describe_layers(rows: Sequence[Layer]) -> str:
    """Returns `2 conv 3x3, 1 conv 1x1, batch norm, pool 2x2`."""
    convs = [row for row in rows if row.kind == "conv"]
    parts = []
    for kernel, group in groupby(convs, lambda row: row.kernel):
        count = len(list(group))
        parts.append(f"{count} conv {kernel}x{kernel}")
    for row in rows:
        name = LAYER_NAMES.get(row.kind)
        if name and name not in parts:
            parts.append(name)
    for row in rows:
        if row.kind == "pool":
            parts.append(f"pool {row.kernel}x{row.kernel}")
    return ", ".join(parts)


def _resource_rows(plan: CostPlan) -> list[Row]:
    counts = []
    for split, count in plan.images.items():
        counts.append(f"{_format_count(count)} {split}")
    steps = _format_count(plan.steps_per_epoch)
    batch = f"{plan.batch_size} images"
    if plan.accumulate > 1:
        batch += f" in {plan.accumulate} parts"
    parts = []
    for name, size in plan.memory_bytes.items():
        if name != "total" and size != 0:
            parts.append(f"{name} {_format_size(size)}")
    bound = "at least " if plan.memory_bytes["optimizer"] is None else ""
    about = "at least" if None in plan.memory_bytes.values() else "about"
    total = _format_size(plan.memory_bytes["total"])
    memory = f"{about} {total} in {plan.precision}"
    disk = {}
    for name, size in plan.disk_bytes.items():
        disk[name] = _format_size(size)
    parts_of_disk = f"{disk['checkpoint']} each, {disk['weights']} the weights alone"
    rows: list[Row] = [
        ("images", f"{plan.data}: {', '.join(counts)}"),
        ("epoch", f"{steps} steps of {batch}"),
        ("memory", f"{memory}: {', '.join(parts)}"),
        ("disk", f"{bound}{plan.disk_limit}: {parts_of_disk}"),
    ]
    for hint in plan.hints:
        rows.append(("hint", str(hint)))
    return rows


def _format_count(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _format_size(size: int | None) -> str:
    return "unknown" if size is None else format_bytes(size, "B")
