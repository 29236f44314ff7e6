"""Command `vggexp.bench`: measures the speed of a configuration on this machine."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from vggexp import cli
from vggexp.config import compose
from vggexp.errors import ConfigError
from vggexp.sweep import expand

if TYPE_CHECKING:
    from vggexp.bench.measure import BenchResult

DESCRIPTION = """\
python -m vggexp.bench [overrides] [--json]: the speed of a configuration here, part by part.

Every part is timed in turn, several rounds, in one process. A machine whose speed drifts then slows
all parts alike. The figures are medians. The limit is the machine's own matrix product in the same
number format.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _bench(sys.argv[1:] if argv is None else argv))


def _bench(argv: Sequence[str]) -> str:
    command = compose.parse_command(argv, "--json")
    if command.arguments.help:
        return DESCRIPTION
    config = expand.compose_run(command)
    cli.note_replaced_files()
    if config.device.processes not in (None, 1):
        raise ConfigError(
            f"device.processes={config.device.processes}: one process is timed; leave it out"
        )
    # This imports torch, so it comes after the check of the command.
    from vggexp.bench.measure import benchmark

    result = benchmark(config)
    return json.dumps(asdict(result)) if command.arguments.json else format_result(result)


def format_result(result: "BenchResult") -> str:
    threads = f"{result.threads} threads, batch {result.batch_size}"
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
