"""Command `vggexp.bench`: measures the speed of a configuration on this machine."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp import cli
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.errors import ConfigError
from vggexp.formatting import aligned_table, plural
from vggexp.runs.data_source import count_data
from vggexp.sweep import expand
from vggexp.system.files import check_output_file

if TYPE_CHECKING:
    from vggexp.bench.layers import LayerSpeed
    from vggexp.bench.measure import BenchResult

DESCRIPTION = """\
python -m vggexp.bench [overrides] [--layers] [--json]
python -m vggexp.bench [overrides] --trace FILE:
the speed of a configuration here, part by part.

Every part is timed in turn, several rounds, in one process. A machine whose speed drifts then slows
all parts alike. The figures are medians. The limit is the machine's own matrix product in the same
number format.

--layers times each layer alone, with the batch norm, ReLU and pooling that follow it. --trace
writes a few steps as a file for chrome://tracing or ui.perfetto.dev.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _bench(sys.argv[1:] if argv is None else argv))


def _bench(argv: Sequence[str]) -> str:
    command = compose.parse_command(argv, "--json", "--layers", options=["--trace"])
    if command.arguments.help:
        return DESCRIPTION
    config = expand.compose_run(command)
    config = count_data(config, config.data.download)
    cli.note_replaced_files()
    cli.require_one_process(config, "timed")
    if command.arguments.trace is not None:
        if command.arguments.layers or command.arguments.json:
            raise ConfigError("--trace: prints no figures; leave out --layers and --json")
        check_output_file("--trace", Path(command.arguments.trace))
    # Read when torch is imported. Below 6 its profiler prints an ERROR on machines without a GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    # This imports torch, so it comes after the check of the command.
    from vggexp.system import memory

    with memory.oom_as_resource_error("in timing; a smaller data.batch_size needs less"):
        return _measure(config, command.arguments)


def _measure(config: Config, arguments: argparse.Namespace) -> str:
    """Returns the text of the measurement that the flags ask for."""
    from vggexp.bench import layers
    from vggexp.bench.measure import benchmark

    if arguments.trace is not None:
        layers.write_trace(config, Path(arguments.trace))
        return f"trace {arguments.trace}"
    if arguments.layers:
        speeds = layers.time_layers(config)
        if arguments.json:
            return json.dumps({"layers": [asdict(speed) for speed in speeds]})
        return format_layers(speeds)
    result = benchmark(config)
    return json.dumps(asdict(result)) if arguments.json else format_result(result)


def format_layers(speeds: Sequence["LayerSpeed"]) -> str:
    """Returns a table with a row for each layer, and their sums."""
    header = (
        "layer",
        "MMAC an image",
        "forward ms",
        "of the product",
        "backward ms",
        "of the product",
    )
    rows = [header]
    for speed in speeds:
        rows.append(
            (
                speed.layer,
                f"{speed.macs / 1e6:,.2f}",
                f"{speed.forward_ms:,.2f}",
                f"{speed.forward_of_product:.2f}",
                f"{speed.backward_ms:,.2f}",
                f"{speed.backward_of_product:.2f}",
            )
        )
    macs = sum(speed.macs for speed in speeds)
    forward_ms = sum(speed.forward_ms for speed in speeds)
    backward_ms = sum(speed.backward_ms for speed in speeds)
    total = ("total", f"{macs / 1e6:,.2f}", f"{forward_ms:,.2f}", "", f"{backward_ms:,.2f}", "")
    return "\n".join(aligned_table([*rows, total], left_columns=1))


def format_result(result: "BenchResult") -> str:
    threads = f"{plural(result.threads, 'thread')}, batch {result.batch_size}"
    lines = [f"{result.device} {result.precision}, {threads}"]
    for name, rate in result.images_per_second.items():
        lines.append(f"{name:<18}{rate:>12,.1f} images/s")
    size = f"{result.product_side} x {result.product_side}"
    product = f"{result.product_gflops:>12,.0f} GFLOP/s (best of {size})"
    step = f"{result.step_gflops:>12,.0f} GFLOP/s, {result.step_over_product:.2f} of the product"
    runner = f"{result.runner_over_step:>12.3f} x the bare step, with data, loop and logging"
    lines.append(f"{'matrix product':<18}{product}")
    lines.append(f"{'step':<18}{step}")
    lines.append(f"{'runner':<18}{runner}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
