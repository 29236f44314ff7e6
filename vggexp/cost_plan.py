"""Computes what a configuration costs, and prints it as a table. Needs no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from vggexp.config.derived import (
    command_epochs,
    disk_bytes,
    disk_limit,
    ends_with_test,
    expected_precision,
    input_spec,
    layers,
    memory_bytes,
)
from vggexp.config.hints import Hint, hints
from vggexp.config.schema import Config
from vggexp.formatting import aligned_table, format_bytes, plural
from vggexp.models import shapes
from vggexp.models.shapes import Layer
from vggexp.runs import forecast
from vggexp.runs.data_source import count_data

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
    epochs: int  # up to run.until
    ends_with_test: bool  # False if run.until pauses the run
    seconds: float | None  # expected, of the epochs and the test
    seconds_from_runs: int  # how many finished runs the seconds are from
    hints: list[Hint]

    def __str__(self) -> str:
        return cost_table(self)


def plan_costs(config: Config) -> CostPlan:
    """Counts the images of a data set of torchvision, and no other files.

    Raises:
        ConfigError: the number of classes is unknown because an image folder is missing.
        DataError: the files of a data set of torchvision are missing or damaged.
    """
    config = count_data(config)
    spec = input_spec(config)
    rows = layers(config)
    disk = disk_bytes(config)
    time = forecast.expected_run(config)
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
        epochs=command_epochs(config),
        ends_with_test=ends_with_test(config),
        seconds=time.seconds,
        seconds_from_runs=len(time.sources),
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
    """Formats millions with two decimals; a number that this would round to 0, with two digits."""
    millions = macs / 1e6
    return f"{millions:,.2f}" if millions >= 0.01 else f"{millions:.2g}"


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
    batch = plural(plan.batch_size, "image")
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
        *_image_rows(plan, batch),
        ("time", _expected_time(plan)),
        ("memory", f"{memory}: {', '.join(parts)}"),
        ("disk", f"{bound}{plan.disk_limit}: {parts_of_disk}"),
    ]
    for hint in plan.hints:
        rows.append(("hint", str(hint)))
    return rows


def _image_rows(plan: CostPlan, batch: str) -> list[Row]:
    """Returns the rows of the images and of an epoch; plan counts no files of a folder."""
    if plan.steps_per_epoch is None:
        counts = ", ".join(f"unknown {split}" for split in plan.images)
        reason = "plan lists no image files, a run counts them"
        return [
            ("images", f"{plan.data}: {counts} ({reason})"),
            ("epoch", f"unknown steps of {batch}"),
        ]
    counts = ", ".join(f"{count:,} {split}" for split, count in plan.images.items())
    return [
        ("images", f"{plan.data}: {counts}"),
        ("epoch", f"{plural(plan.steps_per_epoch, 'step')} of {batch}"),
    ]


def _expected_time(plan: CostPlan) -> str:
    if plan.steps_per_epoch is None:
        return "unknown, as is the number of images (sweep.dry_run=true counts those of a sweep)"
    if plan.seconds is None:
        return f"unknown, {forecast.NO_RUNS}"
    time = forecast.time_text(plan.seconds, plan.seconds_from_runs)
    test = " and the test" if plan.ends_with_test else ""
    return f"{plural(plan.epochs, 'epoch')}{test} {time}"


def _format_size(size: int | None) -> str:
    return "unknown" if size is None else format_bytes(size, "B")
