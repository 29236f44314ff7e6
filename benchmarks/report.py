"""python -m benchmarks.report [--rounds N]: the cost of a report by runs, and of a plan by layers.

Reports are of generated run directories of 5 epochs. Each command is a process of its own. Prints
and writes benchmarks/report.md. About a minute on two cores.
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

COUNTS = (10, 100, 1_000)  # runs
BLOCKS = (1, 3, 6, 12)  # of 16 convolutions; 12 poolings reduce the image to one pixel
EPOCHS = 5
NETWORKS = ("vgg11", "vgg13", "vgg16", "vgg19")
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
CLASSES = 10
TEST_IMAGES = 1000
TARGET = Path(__file__).parent / "report.md"


class Seconds(NamedTuple):
    """Medians. Other processes on the machine have little effect on `cpu`."""

    wall: float
    cpu: float


class ReportCost(NamedTuple):
    seconds: Seconds  # of the whole command
    page_megabytes: float


class PlanCost(NamedTuple):
    weight_layers: int
    seconds: Seconds  # of the whole command


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="*", default=COUNTS)
    parser.add_argument("--blocks", type=int, nargs="*", default=BLOCKS)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    reports = {count: measure_report(count, arguments.rounds) for count in arguments.counts}
    plans = {blocks: measure_plan(blocks, arguments.rounds) for blocks in arguments.blocks}
    page = format_page(reports, plans, arguments.rounds)
    print(page)
    arguments.out.write_text(page)


def make_runs(root: Path, count: int) -> None:
    """Writes run directories as a sweep over networks, learning rates and seeds leaves them.

    One run in fifty has failed.
    """
    jobs = [(network, lr) for network in NETWORKS for lr in LEARNING_RATES]
    configs = {}
    for network in NETWORKS:
        configs[network] = expand.compose_run(compose.parse_command([f"arch={network}"]))
    draws = random.Random(0)
    for index in range(count):
        seed, job = divmod(index, len(jobs))
        network, lr = jobs[job]
        config = configs[network]
        config = replace(config, seed=seed, optimizer=replace(config.optimizer, lr=lr))
        folder = root / f"{network}-fashion_mnist-96px-lr{lr:g}-seed{seed}-{index:08x}"
        folder.mkdir(parents=True)
        write_metadata(folder, to_plain(config), [], _environment())
        failed = index % 50 == 49
        _write_metrics(folder, config, NETWORKS.index(network), failed, draws)


def _environment() -> dict[str, object]:
    versions = {"python": "3.11.7", "vggexp": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"}
    return {
        "versions": versions,
        "host": "bench",
        "processor": cpu.cpu_model(),
        "device": "cpu",
        "threads": 2,
    }


def _write_metrics(
    folder: Path, config: Config, depth: int, failed: bool, draws: random.Random
) -> None:
    """Lets the accuracy rise to a limit that depends on network, learning rate and a draw."""
    lr = config.optimizer.lr
    distance = abs(math.log10(lr / 0.03) + 0.2 * depth)
    limit = 0.93 - 0.05 * distance + draws.gauss(0, 0.006)
    epochs = EPOCHS - 1 if failed else EPOCHS
    rows = []
    for epoch in range(1, epochs + 1):
        accuracy = limit * (1 - math.exp(-0.9 * epoch - draws.random() / 5))
        rows.append(
            {
                "epoch": epoch,
                "step": 422 * epoch,
                "lr": lr,
                "train/loss": 2.3 - 2 * accuracy,
                "train/accuracy": min(1, 1.03 * accuracy),
                "val/loss": 2.35 - 2 * accuracy,
                "val/accuracy": accuracy,
                "time/epoch_seconds": 60 * (1 + depth) * draws.uniform(0.9, 1.2),
            }
        )
    jsonl.rewrite(folder / METRICS, rows)
    if failed:
        write_result(folder, "failed", error="epoch 5: the loss is not finite", exit_code=5)
        return
    last = rows[-1]
    metrics = {key: value for key, value in last.items() if key.startswith(("train/", "val/"))}
    test_accuracy = last["val/accuracy"] - 0.01
    metrics |= {
        "epoch": EPOCHS,
        "test/accuracy": test_accuracy,
        "seconds": sum(row["time/epoch_seconds"] for row in rows),
        "parameters": shapes.parameters(layers(config)),
    }
    write_result(folder, "finished", **metrics)
    _write_predictions(folder, test_accuracy)


def _write_predictions(folder: Path, accuracy: float) -> None:
    draws = numpy.random.default_rng(0)
    labels = draws.integers(CLASSES, size=TEST_IMAGES)
    is_correct = draws.random(TEST_IMAGES) < accuracy
    predicted = numpy.where(is_correct, labels, draws.integers(CLASSES, size=TEST_IMAGES))
    noise = draws.normal(size=(TEST_IMAGES, CLASSES))
    probs = numpy.exp(noise + 6 * numpy.eye(CLASSES)[predicted])
    probs = (probs / probs.sum(1, keepdims=True)).astype("float32")
    numpy.savez_compressed(folder / "predictions.npz", scores=probs, labels=labels)


def time_command(rounds: int, *words: str) -> Seconds:
    wall_seconds = []
    cpu_seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        cpu_start = _children_cpu_seconds()
        subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
        cpu_seconds.append(_children_cpu_seconds() - cpu_start)
        wall_seconds.append(time.perf_counter() - start)
    return Seconds(statistics.median(wall_seconds), statistics.median(cpu_seconds))


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure_report(count: int, rounds: int) -> ReportCost:
    with TemporaryDirectory() as root:
        make_runs(Path(root), count)
        seconds = time_command(rounds, "vggexp.report", root)
        print(f"{count:,} runs", file=sys.stderr, flush=True)
        page = Path(root) / "report.html"
        return ReportCost(seconds, page.stat().st_size / 1e6)


def measure_plan(blocks: int, rounds: int) -> PlanCost:
    rows = json.dumps([[16, 16]] * blocks).replace(" ", "")
    seconds = time_command(
        rounds,
        "vggexp.plan",
        f"arch.blocks={rows}",
        "arch.hidden=[]",
        f"data.resize={2 ** max(BLOCKS)}",
        "data.batch_size=1",
    )
    print(f"{blocks} blocks", file=sys.stderr, flush=True)
    return PlanCost(16 * blocks + 1, seconds)


def format_page(reports: dict[int, ReportCost], plans: dict[int, PlanCost], rounds: int) -> str:
    report_rows = []
    for count, report in reports.items():
        wall, cpu_time = report.seconds
        report_rows.append(
            f"| {count:,} | {wall:.2f} | {cpu_time:.2f} | {report.page_megabytes:.2f} |"
        )
    plan_rows = []
    for blocks, plan in plans.items():
        wall, cpu_time = plan.seconds
        plan_rows.append(f"| {blocks} | {plan.weight_layers} | {wall:.2f} | {cpu_time:.2f} |")
    report_table = "\n".join(report_rows)
    plan_table = "\n".join(plan_rows)
    return f"""# The cost of a report and a plan

Whole commands, from the shell and back to it; medians of {rounds}. Other processes were running on
the machine. A command that runs alone takes about its CPU seconds.

A report reads generated run directories of {EPOCHS} epochs: a sweep over {len(NETWORKS)} networks,
{len(LEARNING_RATES)} learning rates and as many seeds as needed.

| runs | s | CPU s | MB of report.html |
|---:|---:|---:|---:|
{report_table}

A plan of blocks of 16 convolutions:

| blocks | weight layers | s | CPU s |
|---:|---:|---:|---:|
{plan_table}

`python -m benchmarks.report --rounds {rounds}` ({date.today()}), {os.cpu_count()} virtual cores of
{cpu.cpu_model()}; Python {platform.python_version()}.
"""


if __name__ == "__main__":
    main()
