"""python -m vggexp.bench [overrides] [--json]: how fast this machine runs a configuration, part by part.

Every part is timed in turn, several rounds, in one process, so that a machine whose speed drifts slows all of them
alike; the figures are medians. The limit is the machine's own matrix product in the same number format.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from vggexp.config import compose
from vggexp.errors import ConfigError, VggexpError
from vggexp.formatting import error_line
from vggexp.sweep import expand


def main(argv: Sequence[str] | None = None) -> int:
    try:
        command = compose.parse_command(sys.argv[1:] if argv is None else argv, "--json")
        if command.arguments.help:
            print(__doc__)
            return 0
        config = expand.compose_run(command)
        if config.device.processes not in (None, 1):
            raise ConfigError(
                f"device.processes={config.device.processes}: one process is timed; leave it out"
            )
        from vggexp.bench.measure import (
            benchmark,
        )  # imports torch, once the command is known to be right

        result = benchmark(config)
    except VggexpError as error:
        print(error_line(str(error)), file=sys.stderr)
        return error.exit_code
    print(json.dumps(result) if command.arguments.json else format_benchmark(result))
    return 0


def format_benchmark(result: dict[str, Any]) -> str:
    rates_ = [
        f"{name:<18}{rate:>12,.1f} images/s" for name, rate in result["images_per_second"].items()
    ]
    device = f"{result['device']} {result['precision']}, {result['threads']} threads, batch {result['batch_size']}"
    side = result["product_side"]
    return "\n".join(
        [
            device,
            *rates_,
            f"{'matrix product':<18}{result['product_gflops']:>12,.0f} GFLOP/s (best of {side} x {side})",
            f"{'step':<18}{result['step_gflops']:>12,.0f} GFLOP/s, {result['step_over_product']:.2f} of the product",
            f"{'runner':<18}{result['runner_over_step']:>12.3f} x the bare step, with data, loop and logging",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
