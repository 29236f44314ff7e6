"""Tells before it spends: shapes, parameters, multiply-adds, memory and disk of a configuration, without torch.

    python -m vggexp.plan [overrides] [--json]

Takes the overrides of a run, builds and writes nothing, and looks at no picture; of the
hardware only the processor and its memory count. Memory is that of the
tensors of one training step on one device; the libraries' own, and the workspaces of convolutions, come on top.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import ceil

from vggexp.cli import run_command
from vggexp.config import compose
from vggexp.config.derived import disk_bytes, expected_precision, input_spec, layers, memory_bytes
from vggexp.config.hints import Hint, hints
from vggexp.config.schema import Config
from vggexp.formatting import format_bytes
from vggexp.models import shapes
from vggexp.models.shapes import Layer
from vggexp.sweep import expand


@dataclass(frozen=True)
class CostPlan:
    network: str
    data: str
    input: tuple[int, int, int]  # channels, height, width
    classes: int
    images: dict[str, int | None]  # training, validation, test
    batch_size: int
    accumulate: int
    steps_per_epoch: int | None
    precision: str
    parameters: int
    macs: int  # of one image's forward pass
    weight_layers: int
    layers: list[Layer]
    memory_bytes: dict[str, int | None]
    disk_bytes: dict[str, int]
    hints: list[Hint]


def plan_costs(config: Config) -> CostPlan:
    """Raises ConfigError where only a folder that is not there would tell the classes."""
    data = config.data
    train = config.train
    given = input_spec(config)
    rows = layers(config)
    return CostPlan(
        network=config.arch.name,
        data=data.name,
        input=(given.channels, given.size, given.size),
        classes=given.classes,
        images={
            "training": given.train_images,
            "validation": given.val_images,
            "test": given.test_images,
        },
        batch_size=data.batch_size,
        accumulate=train.accumulate,
        steps_per_epoch=None
        if given.train_images is None
        else ceil(given.train_images / data.batch_size),
        precision=expected_precision(config.device),
        parameters=shapes.parameters(rows),
        macs=shapes.macs(rows),
        weight_layers=shapes.weight_layers(rows),
        layers=rows,
        memory_bytes=memory_bytes(config),
        disk_bytes=disk_bytes(config),
        hints=hints(config),
    )


def cost_table(plan: CostPlan) -> str:
    """For a terminal: the blocks, their sums, the images, memory and disk."""
    shape = "x".join(map(str, plan.input))
    head = (
        f"{plan.network}, {plan.weight_layers} weight layers, {shape} -> {plan.classes} classes: "
    )
    head += f"{plan.parameters:,} parameters, {format_bytes(plan.macs, 'MAC')} an image"
    rows = [("", "layers", "in -> out", "parameters", "MMAC an image"), *_rows(plan)]
    rows.append(("total", "", "", f"{plan.parameters:,}", _mega(plan.macs)))
    return "\n".join([head, "", *_aligned(rows), "", *_aligned(_resources(plan))])


def _rows(plan: CostPlan) -> Iterator[tuple[str, ...]]:
    """One for each block and each layer of the classifier."""
    shape = plan.input
    for block, group in groupby(plan.layers, lambda layer: layer.block or layer.name):
        rows = list(group)
        before = shape
        shape = rows[-1].output
        path = f"{_shape(before)} -> {_shape(shape)}"
        name = block if isinstance(block, str) else f"block{block}"
        yield name, _described(rows), path, f"{shapes.parameters(rows):,}", _mega(shapes.macs(rows))


def _shape(output: tuple[int, int, int]) -> str:
    return str(output[0]) if output[1:] == (1, 1) else "x".join(map(str, output))


def _mega(macs: int) -> str:
    return f"{macs / 1e6:,.2f}"


def _described(rows: Sequence[Layer]) -> str:
    """`2 conv 3x3, 1 conv 1x1, batch norm, pool 2x2`."""
    words = {"batch": "batch norm", "lrn": "response norm", "linear": "linear"}
    parts = []
    for kernel, group in groupby(
        (row for row in rows if row.kind == "conv"), lambda row: row.kernel
    ):
        parts.append(f"{len(list(group))} conv {kernel}x{kernel}")
    parts += dict.fromkeys(words[row.kind] for row in rows if row.kind in words)
    parts += [f"pool {row.kernel}x{row.kernel}" for row in rows if row.kind == "pool"]
    return ", ".join(parts)


def _resources(plan: CostPlan) -> list[tuple[str, ...]]:
    counts = ", ".join(f"{_count(number)} {part}" for part, number in plan.images.items())
    batch = f"{plan.batch_size} images" + (
        f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    )
    parts = [
        f"{name} {_bytes(size)}"
        for name, size in plan.memory_bytes.items()
        if size != 0 and name != "total"
    ]
    bound = "at least " if plan.memory_bytes["optimizer"] is None else ""
    total = plan.memory_bytes["total"]
    disk = {name: _bytes(size) for name, size in plan.disk_bytes.items()}
    return [
        ("images", f"{plan.data}: {counts}"),
        ("epoch", f"{_count(plan.steps_per_epoch)} steps of {batch}"),
        ("memory", f"{bound}{_bytes(total)} in {plan.precision}: {', '.join(parts)}"),
        (
            "disk",
            f"{bound}{disk['run']} at most: {disk['checkpoint']} a checkpoint, {disk['weights']} the weights",
        ),
        *(("hint", str(hint)) for hint in plan.hints),
    ]


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else format_bytes(size, "B")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Three columns of text to the left, then numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if index < 3 else ">" for index in range(len(widths))]
    lines = (
        "  ".join(f"{cell:{s}{w}}" for cell, s, w in zip(row, sides, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; an expected end prints one line on stderr."""
    return run_command(lambda: _answer(sys.argv[1:] if argv is None else argv))


def _answer(argv: Sequence[str]) -> str:
    command = compose.parse_command(argv, "--json")
    if command.arguments.help:
        return __doc__
    made = plan_costs(expand.compose_run(command))
    return json.dumps(asdict(made)) if command.arguments.json else cost_table(made)


if __name__ == "__main__":
    sys.exit(main())
