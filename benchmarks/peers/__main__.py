"""python -m benchmarks.peers [--network source|fast] [--rounds N] [--images N] [--out FILE]

Compares vggexp with its peers on the source run's network, or on that of fashion_mnist_fast.

All do the same work. Every contender is a process of its own, and the contenders take turns, so
that a machine whose speed drifts slows all of them equally. Prints the table with its text; --out
also writes them to a file. The pages benchmarks/peers.md and peers_fast.md have further parts, so
copy the table there. Needs `pip install timm lightning torchvision`, and Debian's
dataset-fashion-mnist. A full run takes about a quarter of an hour on two cores.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.contender import Result, contenders, measure
from benchmarks.peers.networks import NETWORKS
from vggexp.system import cpu

PACKAGES = ("vggexp", "torch", "lightning", "timm", "torchvision")
FORMATS = {
    True: "This CPU has bf16 instructions. vggexp and the peers with their best flags use bf16; "
    "the others use fp32.",
    False: "This CPU has no bf16 instructions. All use fp32; the best flags of the peers add "
    "channels_last.",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="source")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="default: the network's")
    parser.add_argument("--epochs", type=int, default=2, help="the faster epoch counts")
    parser.add_argument("--size", type=int, help="default: the network's")
    parser.add_argument("--best", action="store_true", help="only those with their best flags")
    parser.add_argument("--out", type=Path, help="file for the table and its text")
    arguments = parser.parse_args()
    network = NETWORKS[arguments.network]
    arguments.images = arguments.images or network.images
    arguments.size = arguments.size or network.size
    results = measure_all(arguments)
    works = {name: many[0].work for name, many in results.items()}
    if len({result.work for many in results.values() for result in many}) != 1:
        print(works, "not the same work", file=sys.stderr)
        return 1
    page = format_page(results, arguments)
    print(page)
    if arguments.out is not None:
        arguments.out.write_text(page)
    return 0


def measure_all(arguments: argparse.Namespace) -> dict[str, list[Result]]:
    """Returns the results of each contender. The contenders take turns in each round."""
    commands = contenders(cpu.supports_bf16())
    if arguments.best:
        commands = {name: command for name, command in commands.items() if "--best" in command}
    argv = [
        f"--network={arguments.network}",
        f"--images={arguments.images}",
        f"--epochs={arguments.epochs}",
        f"--size={arguments.size}",
    ]
    results: dict[str, list[Result]] = {name: [] for name in commands}
    total = arguments.rounds * len(commands)
    done = 0
    start = time.monotonic()
    for turn in range(arguments.rounds):
        for name, command in commands.items():
            result = measure(*command, *argv)
            results[name].append(result)
            done += 1
            seconds_each = (time.monotonic() - start) / done
            minutes = seconds_each * (total - done) / 60
            print(
                f"round {turn + 1}/{arguments.rounds}  {name}  "
                f"{result.images_per_second:.1f} img/s  {minutes:.0f} min left",
                file=sys.stderr,
                flush=True,
            )
    return results


def format_row(name: str, results: Sequence[Result], vggexp_results: Sequence[Result]) -> str:
    rates = [result.images_per_second for result in results]
    ratios = []
    for result, vggexp_result in zip(results, vggexp_results, strict=True):
        ratios.append(vggexp_result.images_per_second / result.images_per_second)
    first_step = statistics.median(result.first_step_seconds for result in results)
    total = statistics.median(result.total_seconds for result in results)
    peak = statistics.median(result.peak_bytes for result in results)
    cells = [
        name,
        f"{statistics.median(rates):.1f}",
        f"{min(rates):.1f}-{max(rates):.1f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        f"{first_step:.1f}",
        f"{total:.1f}",
        f"{peak / 1e9:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def format_page(results: dict[str, list[Result]], arguments: argparse.Namespace) -> str:
    rows = [format_row(name, many, results["vggexp"]) for name, many in results.items()]
    table = "\n".join(rows)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    instructions = "with bf16 instructions" if cpu.supports_bf16() else "without bf16 instructions"
    options = f"--rounds {arguments.rounds} --images {arguments.images}"
    if arguments.network != "source":
        options = f"--network {arguments.network} {options}"
    if arguments.best:
        options += " --best"
    network = NETWORKS[arguments.network]
    return f"""# {network.heading}

{network.summary}, Fashion-MNIST at {arguments.size} px,
batch 128, {network.training}: {arguments.images:,} images,
{arguments.epochs} epochs of which the faster counts, {arguments.rounds} rounds in turn,
medians with their range. Every contender does the same number of steps. The ratio is computed
within each round.
{FORMATS[cpu.supports_bf16()]}

| contender | images/s | range | vggexp is faster by | s to the first step | s in all | GB at most |
|---|---:|---:|---:|---:|---:|---:|
{table}

`python -m benchmarks.peers {options}` ({date.today()}),
{os.cpu_count()} virtual cores of {cpu.cpu_model()}, {instructions};
Python {platform.python_version()}, {versions}.
The total seconds of vggexp include its checkpoints and TensorBoard events. timm's training script
is not in its package. "timm's parts" are its loader, optimizer factory and meters in the loop of
its documentation. The memory is that of the main process; the peers' loaders also have two worker
processes.
"""


if __name__ == "__main__":
    sys.exit(main())
