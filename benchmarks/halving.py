"""Whether sweep.halving finds the winner of the full grid, and what it saves.

    python -m benchmarks.halving --root FOLDER       the tables of benchmarks/halving.md

Trains the full grid of twelve (four depths, three learning rates) on real Fashion-MNIST at 32 px,
once for each schedule and seed. The same command continues where it was stopped. A run of a halving
sweep has the bits of the full grid's run at the same epoch (tests/sweep/test_halving.py), so the
rungs are computed from the metrics of the full grid, for several factors. --check also runs one
halving sweep by itself, and compares its winner and its epochs with the computed ones.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.errors import DivergedError
from vggexp.runs import jsonl
from vggexp.sweep.halving import choose_survivors, plan_rungs

OBJECTIVE = "val/accuracy"
# sweep.halving and sweep.halving_start
VARIANTS = ((2, None), (3, None), (4, None), (3, 3))
SCHEDULES = ("constant", "cosine")
GRID = [
    "-m",
    "arch=vgg11_bn,vgg13_bn,vgg16_bn,vgg19_bn",
    "optimizer.lr=0.01,0.03,0.1",
    "data.resize=32",
    "hydra.launcher.jobs=2",
    "device.threads=1",
]

SIZE = ["data.limit=6000", "arch.width=0.25", "arch.hidden=[256,256]"]

Rows = Sequence[Mapping[str, Any]]  # of a run, one object of metrics.jsonl for each epoch


class Outcome(NamedTuple):
    """What a halving sweep would have done, from the metrics of the full grid."""

    winner: str
    epochs: int  # of all runs
    seconds: float  # of these epochs, one run after another


def simulate(grid: Mapping[str, Rows], factor: int, start: int | None = None) -> Outcome:
    """Returns the outcome of a halving sweep over a grid of one seed, by the name of each run.

    Args:
        factor: sweep.halving.
        start: sweep.halving_start.
    """
    epochs = max(map(len, grid.values()))
    names = list(grid)
    trained = dict.fromkeys(grid, 0)
    rungs = plan_rungs(epochs, factor, len(grid), start)
    for rung, following in zip(rungs, [*rungs[1:], None], strict=True):
        scores: dict[str, float | None] = {}
        for name in names:
            rows = grid[name][: rung.epochs]
            trained[name] = len(rows)
            has_diverged = len(rows) < rung.epochs
            scores[name] = None if has_diverged else rows[-1][OBJECTIVE]
        names = choose_survivors(scores, following.settings if following else 1, OBJECTIVE)
    return Outcome(
        winner=names[0],
        epochs=sum(trained.values()),
        seconds=sum(_seconds(grid[name][: trained[name]]) for name in grid),
    )


def _seconds(rows: Rows) -> float:
    return sum(row["time/epoch_seconds"] for row in rows)


def run_sweep(argv: Sequence[str]) -> None:
    """Runs a sweep, and prints its lines on stderr: stdout has the table.

    A run may diverge: then the sweep's exit code is that of a failed job.
    """
    process = subprocess.run([sys.executable, "-m", "vggexp", *argv], stdout=sys.stderr)
    if process.returncode not in (0, DivergedError.exit_code):
        raise SystemExit(process.returncode)


def read_grid(folder: Path) -> dict[str, Rows]:
    """Returns the metrics of the runs of a sweep's folder by name."""
    with open(folder / "results.csv") as file:
        names = [row["run"] for row in csv.DictReader(file)]
    return {name: jsonl.read(folder.parent.parent / name / "metrics.jsonl") for name in names}


def print_rows(schedule: str, seed: int, root: Path, grid: Mapping[str, Rows]) -> None:
    """Prints a row for each variant: what is saved, and how much worse the winner is."""
    results = {}
    for name in grid:
        results[name] = json.loads((root / name / "result.json").read_text())
    scores = {}
    for name, result in results.items():
        scores[name] = result.get(OBJECTIVE) if result["state"] == "finished" else None
    (best,) = choose_survivors(scores, 1, OBJECTIVE)
    all_epochs = sum(map(len, grid.values()))
    all_seconds = sum(map(_seconds, grid.values()))
    for factor, start in VARIANTS:
        outcome = simulate(grid, factor, start)
        regrets = []
        for metric in (OBJECTIVE, "test/accuracy"):
            difference = results[best][metric] - results[outcome.winner][metric]
            regrets.append(f"{difference:.4f}")
        cells = [
            schedule,
            str(seed),
            str(factor),
            str(start or "default"),
            f"{outcome.epochs} of {all_epochs}",
            f"{outcome.seconds / 60:.1f} of {all_seconds / 60:.1f}",
            "yes" if outcome.winner == best else "no",
            *regrets,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def check(overrides: Sequence[str], folder: Path, expected: Outcome, grid_root: Path) -> None:
    """Runs a halving sweep by itself, and compares it with what was computed."""
    start = time.monotonic()
    sweep = folder / "sweeps" / "check"
    run_sweep([*overrides, "sweep.halving=3", f"run.root={folder}", f"hydra.sweep.dir={sweep}"])
    minutes = (time.monotonic() - start) / 60
    grid = read_grid(sweep)
    epochs = sum(map(len, grid.values()))
    hashes = []
    for root in (folder, grid_root):
        result = json.loads((root / expected.winner / "result.json").read_text())
        hashes.append(result.get("weights_sha256"))
    print(
        f"halved by itself: {epochs} epochs (computed {expected.epochs}), {minutes:.1f} min; "
        f"the winner has the weights of the full grid's: {hashes[0] == hashes[1]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="also run one halving sweep")
    parser.add_argument("overrides", nargs="*", default=SIZE, metavar="OVERRIDE")
    arguments = parser.parse_intermixed_args()
    columns = ["schedule", "seed", "K", "start", "epochs", "minutes", "winner found"]
    columns += [f"{OBJECTIVE} lost", "test/accuracy lost"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for schedule in SCHEDULES:
        for seed in range(arguments.seeds):
            overrides = [
                *GRID,
                *arguments.overrides,
                f"train.epochs={arguments.epochs}",
                f"scheduler={schedule}",
                f"seed={seed}",
            ]
            folder = arguments.root / "sweeps" / f"{schedule}-{seed}"
            run_sweep([*overrides, f"run.root={arguments.root}", f"hydra.sweep.dir={folder}"])
            grid = read_grid(folder)
            print_rows(schedule, seed, arguments.root, grid)
            if arguments.check and seed == 0:
                halved = arguments.root / f"halved-{schedule}"
                check(overrides, halved, simulate(grid, 3), arguments.root)


if __name__ == "__main__":
    main()
