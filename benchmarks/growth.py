"""python -m benchmarks.growth [--rounds N]: what grows with the number of images, and what does not.

A small network on Fashion-MNIST at 28 px, so that data and loop weigh as much as they can. Prints and writes
benchmarks/growth.md. About three minutes on two cores.
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

COUNTS = (1_000, 5_000, 20_000, 60_000)
SETTING = [
    "data.resize=28",
    "arch.blocks=[[1,8],[1,16]]",
    "arch.hidden=[32]",
    "data.val_fraction=0",
    "train.epochs=2",
]
TARGET = Path(__file__).parent / "growth.md"


class Result(NamedTuple):
    image_microseconds: float  # of training, the faster epoch
    other_seconds: float  # start, test and end
    peak_megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    results: dict[int, list[Result]] = {count: [] for count in asked.counts}
    for turn in range(asked.rounds):
        for count in asked.counts:
            results[count].append(measured(count))
            print(f"round {turn + 1}/{asked.rounds}  {count:,} images", file=sys.stderr, flush=True)
    page = record(results, asked.rounds)
    print(page)
    asked.out.write_text(page)


def measured(count: int) -> Result:
    root = Path(mkdtemp())
    command = [
        sys.executable,
        "-m",
        "vggexp",
        *SETTING,
        f"data.limit={count}",
        f"run.root={root}",
        "run.name=a",
    ]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    total = time.perf_counter() - begin
    rows = [json.loads(line) for line in (root / "a" / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((root / "a" / "result.json").read_text())
    trained = sum(row["time/epoch_seconds"] for row in rows)
    fastest = max(row["images_per_second"] for row in rows)
    return Result(1e6 / fastest, total - trained, result["peak_memory_bytes"] / 1e6)


def record(results: dict[int, list[Result]], rounds: int) -> str:
    lines = []
    for count, many in results.items():
        middle = [statistics.median(column) for column in zip(*many, strict=True)]
        lines.append(f"| {count:,} | {middle[0]:.0f} | {middle[1]:.1f} | {middle[2]:,.0f} |")
    table = "\n".join(lines)
    return f"""# What grows with the data

Training images of Fashion-MNIST at 28 px, all 10,000 of the test set; two small convolutions. Medians of {rounds}.

| images | µs an image | s outside the epochs | MB at most |
|---:|---:|---:|---:|
{table}

`python -m benchmarks.growth --rounds {rounds}` ({date.today()}), {os.cpu_count()} virtual cores of
{cpu.cpu_model()}; Python {platform.python_version()}, torch {version("torch")}. All four files are read and hashed
with any `data.limit`, so only the training grows.
"""


if __name__ == "__main__":
    main()
