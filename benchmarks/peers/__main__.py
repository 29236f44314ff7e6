"""python -m benchmarks.peers [--rounds N] [--images N] [--out FILE]: the same work through vggexp and its peers.

Every contender is a process of its own, started in turn, so that a machine whose speed drifts slows all of them alike.
Prints and writes benchmarks/peers.md. Needs `pip install timm lightning torchvision`, and Debian's
dataset-fashion-mnist. A full run takes about a quarter of an hour on two cores.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.contender import Result, contenders, measured
from vggexp.system import cpu

TARGET = Path(__file__).parents[1] / "peers.md"
FORMATS = {
    True: "This CPU has bf16 instructions. vggexp and the peers with their best flags use bf16; "
    "the others use fp32.",
    False: "This CPU has no bf16 instructions. All use fp32; the best flags of the peers add "
    "channels_last.",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=2, help="the fastest counts")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--best", action="store_true", help="only those with their best flags")
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    known = contenders(cpu.supports_bf16())
    names = [name for name, words in known.items() if not asked.best or "--best" in words]
    words = [f"--images={asked.images}", f"--epochs={asked.epochs}", f"--size={asked.size}"]
    results: dict[str, list[Result]] = {name: [] for name in names}
    begin = time.monotonic()
    for turn in range(asked.rounds):
        for place, name in enumerate(names):
            results[name].append(measured(*known[name], *words))
            done = turn * len(names) + place + 1
            left = (time.monotonic() - begin) / done * (asked.rounds * len(names) - done) / 60
            told = f"round {turn + 1}/{asked.rounds}  {name}  {results[name][-1].images_per_second:.1f} img/s"
            print(f"{told}  {left:.0f} min left", file=sys.stderr, flush=True)
    if len({result.work for many in results.values() for result in many}) != 1:
        print(
            {name: many[0].work for name, many in results.items()},
            "not the same work",
            file=sys.stderr,
        )
        return 1
    page = record(results, asked)
    print(page)
    asked.out.write_text(page)
    return 0


def record(results: dict[str, list[Result]], asked: argparse.Namespace) -> str:
    ours = results["vggexp"]
    lines = []
    for name, many in results.items():
        rates = [result.images_per_second for result in many]
        ratios = [own.images_per_second / other for own, other in zip(ours, rates, strict=True)]
        cells = [
            name,
            f"{statistics.median(rates):.1f}",
            f"{min(rates):.1f}-{max(rates):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{statistics.median(result.first_step_seconds for result in many):.1f}",
            f"{statistics.median(result.total_seconds for result in many):.1f}",
            f"{statistics.median(result.peak_bytes for result in many) / 1e9:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("vggexp", "torch", "lightning", "timm", "torchvision")
    )
    table = "\n".join(lines)
    instructions = "with bf16 instructions" if cpu.supports_bf16() else "without bf16 instructions"
    return f"""# Comparison with peers

The source run's network (VGG-11, 44.9 million parameters), Fashion-MNIST at {asked.size} px, batch 128, plain SGD:
{asked.images:,} images, {asked.epochs} epochs of which the faster counts, {asked.rounds} rounds in turn, medians with
their range. Every contender does the same number of steps. The ratio is computed within each round.
{FORMATS[cpu.supports_bf16()]}

| contender | images/s | range | vggexp is faster by | s to the first step | s in all | GB at most |
|---|---:|---:|---:|---:|---:|---:|
{table}

`python -m benchmarks.peers --rounds {asked.rounds} --images {asked.images}{" --best" * asked.best}` ({date.today()}),
{os.cpu_count()} virtual cores of {cpu.cpu_model()}, {instructions}; Python {platform.python_version()}, {versions}.
The total seconds of vggexp include its checkpoints and TensorBoard events. timm's training script
is not in its package. "timm's parts" are its loader, optimizer factory and meters in the loop of
its documentation. The memory is that of the main process; the peers' loaders also have two worker
processes.
"""


if __name__ == "__main__":
    sys.exit(main())
