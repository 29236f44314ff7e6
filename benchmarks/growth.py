"""python -m benchmarks.growth [--rounds N]: what grows with the number of images.

Trains a small network on Fashion-MNIST at 28 px, so that data and loop have the largest share of
the time. Prints and writes benchmarks/growth.md. About three minutes on two cores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from vggexp.system import cpu

COUNTS = (1_000, 5_000, 20_000, 60_000)  # images
OVERRIDES = [
    "data.resize=28",
    "arch.blocks=[[1,8],[1,16]]",
    "arch.hidden=[32]",
    "data.val_fraction=0",
    "train.epochs=2",
]
TARGET = Path(__file__).parent / "growth.md"


class Result(NamedTuple):
    image_microseconds: float  # of training, in the faster epoch
    other_seconds: float  # start, test and end
    peak_megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    results: dict[int, list[Result]] = {count: [] for count in arguments.counts}
    for turn in range(rounds):
        for count in arguments.counts:
            results[count].append(measure(count))
            print(f"round {turn + 1}/{rounds}  {count:,} images", file=sys.stderr, flush=True)
    page = format_page(results, rounds)
    print(page)
    arguments.out.write_text(page)


def measure(count: int) -> Result:
    """Trains with this many images in a process of its own."""
    root = Path(mkdtemp())
    folder = root / "a"
    overrides = [*OVERRIDES, f"data.limit={count}", f"run.root={root}", "run.name=a"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "vggexp", *overrides], check=True, stdout=subprocess.DEVNULL
    )
    total = time.perf_counter() - start
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    epoch_seconds = sum(epoch["time/epoch_seconds"] for epoch in epochs)
    best_rate = max(epoch["images_per_second"] for epoch in epochs)
    return Result(1e6 / best_rate, total - epoch_seconds, result["peak_memory_bytes"] / 1e6)


def format_page(results: dict[int, list[Result]], rounds: int) -> str:
    lines = []
    for count, count_results in results.items():
        medians = Result(*map(statistics.median, zip(*count_results, strict=True)))
        cells = [
            f"{count:,}",
            f"{medians.image_microseconds:.0f}",
            f"{medians.other_seconds:.1f}",
            f"{medians.peak_megabytes:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    return f"""# What grows with the data

Training images of Fashion-MNIST at 28 px, all 10,000 of the test set; two small convolutions.
Medians of {rounds}.

| images | µs an image | s outside the epochs | MB at most |
|---:|---:|---:|---:|
{table}

`python -m benchmarks.growth --rounds {rounds}` ({date.today()}), {os.cpu_count()} virtual cores of
{cpu.cpu_model()}; Python {platform.python_version()}, torch {version("torch")}. All four files are
read and hashed with any `data.limit`, so only the training grows.
"""


if __name__ == "__main__":
    main()
