"""python -m benchmarks.report [--rounds N]: what a report costs by the number of runs, and a plan by the network.

Reports are of made run directories of 5 epochs, each in a process of its own. Prints and writes benchmarks/report.md.
About a minute on two cores.
"""

import argparse
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy

from vggexp.config import compose
from vggexp.config.derived import layers
from vggexp.config.keys import to_plain
from vggexp.config.schema import Config
from vggexp.models import shapes
from vggexp.runs import jsonl
from vggexp.runs.directory import METRICS, write_metadata, write_result
from vggexp.sweep import expand
from vggexp.system import cpu

COUNTS = (10, 100, 1_000)
BLOCKS = (1, 3, 6, 12)  # of 16 convolutions, on images that 12 poolings leave a pixel of
EPOCHS = 5
NETWORKS = ("vgg11", "vgg13", "vgg16", "vgg19")
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
CLASSES = 10
TARGET = Path(__file__).parent / "report.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--blocks", type=int, nargs="*", default=BLOCKS)
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    reports = {count: _report(count, asked.rounds) for count in asked.counts}
    plans = {blocks: _plan(blocks, asked.rounds) for blocks in asked.blocks}
    page = record(reports, plans, asked.rounds)
    print(page)
    asked.out.write_text(page)


def made_runs(root: Path, count: int) -> None:
    """Run directories as a sweep over networks, learning rates and seeds leaves them; one in fifty has failed."""
    sweep = [(network, rate) for network in NETWORKS for rate in RATES]
    configs = {
        network: expand.compose_run(compose.parse_command([f"arch={network}"]))
        for network in NETWORKS
    }
    draws = random.Random(0)
    for number in range(count):
        seed, job = divmod(number, len(sweep))
        network, rate = sweep[job]
        config = configs[network]
        config = replace(config, seed=seed, optimizer=replace(config.optimizer, lr=rate))
        folder = root / f"{network}-fashion_mnist-96px-lr{rate:g}-seed{seed}-{number:08x}"
        folder.mkdir(parents=True)
        write_metadata(folder, to_plain(config), [], _environment())
        _train(folder, config, NETWORKS.index(network), failed=number % 50 == 49, draws=draws)


def _environment() -> dict[str, object]:
    versions = {"python": "3.11.7", "vggexp": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"}
    return {
        "versions": versions,
        "host": "bench",
        "processor": cpu.cpu_model(),
        "device": "cpu",
        "threads": 2,
    }


def _train(folder: Path, config: Config, depth: int, failed: bool, draws: random.Random) -> None:
    """Accuracy rises towards a height that network and learning rate set, and a draw."""
    rate = config.optimizer.lr
    height = 0.93 - 0.05 * abs(math.log10(rate / 0.03) + 0.2 * depth) + draws.gauss(0, 0.006)
    rows = []
    for epoch in range(1, EPOCHS + 1 - failed):
        accuracy = height * (1 - math.exp(-0.9 * epoch - draws.random() / 5))
        scores = {"train/loss": 2.3 - 2 * accuracy, "train/accuracy": min(1, 1.03 * accuracy)}
        scores |= {"val/loss": 2.35 - 2 * accuracy, "val/accuracy": accuracy}
        seconds = 60 * (1 + depth) * draws.uniform(0.9, 1.2)
        rows.append(
            {
                "epoch": epoch,
                "step": 422 * epoch,
                "lr": rate,
                **scores,
                "time/epoch_seconds": seconds,
            }
        )
    jsonl.rewrite(folder / METRICS, rows)
    if failed:
        write_result(folder, "failed", error="epoch 5: the loss is not finite", exit_code=5)
        return
    scores = {key: value for key, value in rows[-1].items() if key.startswith(("train/", "val/"))}
    seconds = sum(row["time/epoch_seconds"] for row in rows)
    test = accuracy - 0.01
    facts = {"epoch": EPOCHS, "test/accuracy": test, "seconds": seconds}
    write_result(
        folder, "finished", **scores, **facts, parameters=shapes.parameters(layers(config))
    )
    _predict(folder, test)


def _predict(folder: Path, accuracy: float) -> None:
    draws = numpy.random.default_rng(0)
    labels = draws.integers(CLASSES, size=1000)
    aimed = numpy.where(draws.random(1000) < accuracy, labels, draws.integers(CLASSES, size=1000))
    scores = numpy.exp(draws.normal(size=(1000, CLASSES)) + 6 * numpy.eye(CLASSES)[aimed])
    scores = (scores / scores.sum(1, keepdims=True)).astype("float32")
    numpy.savez_compressed(folder / "predictions.npz", scores=scores, labels=labels)


class Seconds(NamedTuple):
    """Medians. Of the processor: what no other process on the machine adds much to."""

    whole: float
    processor: float


def _seconds(rounds: int, *words: str) -> Seconds:
    spent = []
    for _ in range(rounds):
        begin = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent.append((time.perf_counter() - begin, used))
    return Seconds(*map(statistics.median, zip(*spent, strict=True)))


def _report(count: int, rounds: int) -> tuple[Seconds, float]:
    """Of the whole command, and MB of its page."""
    with TemporaryDirectory() as root:
        made_runs(Path(root), count)
        seconds = _seconds(rounds, "vggexp.report", root)
        print(f"{count:,} runs", file=sys.stderr, flush=True)
        return seconds, (Path(root) / "report.html").stat().st_size / 1e6


def _plan(blocks: int, rounds: int) -> tuple[int, Seconds]:
    """Weight layers, and what the whole command takes."""
    rows = json.dumps([[16, 16]] * blocks).replace(" ", "")
    words = (
        "vggexp.plan",
        f"arch.blocks={rows}",
        "arch.hidden=[]",
        f"data.resize={2 ** max(BLOCKS)}",
        "data.batch_size=1",
    )
    seconds = _seconds(rounds, *words)
    print(f"{blocks} blocks", file=sys.stderr, flush=True)
    return 16 * blocks + 1, seconds


def record(
    reports: dict[int, tuple[Seconds, float]], plans: dict[int, tuple[int, Seconds]], rounds: int
) -> str:
    first = "\n".join(
        f"| {count:,} | {seconds.full_images:.2f} | {seconds.processor:.2f} | {size:.2f} |"
        for count, (seconds, size) in reports.items()
    )
    second = "\n".join(
        f"| {blocks} | {depth} | {seconds.full_images:.2f} | {seconds.processor:.2f} |"
        for blocks, (depth, seconds) in plans.items()
    )
    return f"""# The cost of a report and a plan

Whole commands, from the shell and back to it; medians of {rounds}. Other processes were running on
the machine. A command that runs alone takes about its CPU seconds.

A report reads generated run directories of {EPOCHS} epochs: a sweep over {len(NETWORKS)} networks,
{len(RATES)} learning rates and as many seeds as needed.

| runs | s | CPU s | MB of report.html |
|---:|---:|---:|---:|
{first}

A plan of blocks of 16 convolutions:

| blocks | weight layers | s | CPU s |
|---:|---:|---:|---:|
{second}

`python -m benchmarks.report --rounds {rounds}` ({date.today()}), {os.cpu_count()} virtual cores of
{cpu.cpu_model()}; Python {platform.python_version()}.
"""


if __name__ == "__main__":
    main()
