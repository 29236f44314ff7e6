"""Sweeps: a job that dies takes no other job along, and a controller that dies loses nothing."""

import itertools
import json
import os
import random
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.faults.catalog import SMALLEST, Catalog, kill_after, seeds
from tools.faults.hooks import sitecustomize
from tools.faults.server import (
    compare_with_reference,
    finish,
    reference_run,
    run_command,
    start_command,
    wait_for,
)

SWEEP = ["-m", *(word for word in SMALLEST if word != "run.name=a")]
HALVING = [
    *SWEEP,
    "train.epochs=4",
    "optimizer.lr=0.01,0.02,0.03,0.05",
    "sweep.halving=2",
    "hydra.launcher.jobs=2",
]
FIVE_JOBS = [*SWEEP, "seed=range(5)", "hydra.launcher.jobs=2"]
LAUNCHERS = {
    "local": ["hydra.launcher.jobs=2"],
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}
HOOKS = Path(__file__).parent / "hooks"
FAULTY_SEED = 3


def job_cases(small: bool) -> Iterable[tuple[str, str, int, str]]:
    """Returns each launcher with each fault, the number of jobs, and the launcher that repeats.

    In the small part the basic launcher repeats, because it starts no new Python.
    """
    cases = list(itertools.product(LAUNCHERS, sitecustomize.FAULTS))
    if small:
        return [(launcher, fault, 5, "basic") for launcher, fault in cases[1::13]]
    return [(launcher, fault, 12, launcher) for launcher, fault in cases]


def check_dying_job(case: tuple[str, str, int, str], folder: Path) -> str:
    """Checks that the other jobs finish and that the sweep exits with 7, without a traceback."""
    launcher, fault, jobs, launcher_again = case
    seed_range = f"seed=range({jobs})"
    argv = [*SWEEP, seed_range, *LAUNCHERS[launcher]]

    def install_fault() -> None:
        paths = [str(HOOKS)]
        if os.environ.get("PYTHONPATH"):
            paths.append(os.environ["PYTHONPATH"])
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["VGGEXP_FAULT"] = fault
        os.environ["VGGEXP_FAULT_SEED"] = str(FAULTY_SEED)
        sitecustomize.install()

    result = run_command(folder, argv, install_fault)
    states = []
    for path in folder.glob("outputs/*/result.json"):
        states.append(json.loads(path.read_text())["state"])
    if result.code != 7 or states.count("finished") != jobs - 1:
        return f"exit {result.code}, {states}: {result.err[-300:]}"
    if "Traceback" in result.err and fault != "raises":  # only a bug is shown with its traceback
        return f"a traceback: {result.err[-300:]}"
    argv = [*SWEEP, seed_range, *LAUNCHERS[launcher_again]]
    repeated = run_command(folder, [*argv, "sweep.retry_failed=true"])
    if repeated.code:
        return f"again: exit {repeated.code} {repeated.err[-300:]}"
    return check_trained_once(folder)


def check_killed_controller(seed: int, folder: Path) -> str:
    """Kills the sweep at up to three random times, then repeats the command."""
    _kill_three_times(seed, folder, FIVE_JOBS)
    return finish(folder, FIVE_JOBS) or check_trained_once(folder)


def check_killed_halving(seed: int, folder: Path) -> str:
    """Does the same with a sweep in rungs: each run pauses or finishes where it did undisturbed."""
    _kill_three_times(seed, folder, HALVING)
    return finish(folder, HALVING)


def _kill_three_times(seed: int, folder: Path, argv: Sequence[str]) -> None:
    draws = random.Random(seed)
    _, seconds = reference_run(tuple(argv))
    for _ in range(3):
        kill = kill_after(draws.uniform(0, seconds), signal.SIGKILL)
        if run_command(folder, argv, meanwhile=kill).code == 0:
            break


def check_two_controllers(seed: int, folder: Path) -> str:
    """Starts the same sweep twice at once: both exit with 0, and each job is trained by one."""
    pids = [start_command(folder, FIVE_JOBS, suffix=f"-{index}") for index in range(2)]
    codes = [wait_for(pid) for pid in pids]
    if codes != [0, 0]:
        errors = [(folder / f"err-{index}").read_text()[-200:] for index in range(2)]
        return f"codes {codes}: {' '.join(errors)}"
    return compare_with_reference(folder, FIVE_JOBS) or check_trained_once(folder)


def check_trained_once(folder: Path) -> str:
    """Checks that every run was trained to its end once."""
    ends = {}
    for path in folder.glob("outputs/*/run.log"):
        ends[path.parent.name] = path.read_text().count("\ntest accuracy ")
    if set(ends.values()) != {1}:
        return f"ended more than once or never: {ends}"
    return ""


CATALOGS = {
    "jobs": Catalog(
        "one job of twelve raises, exits, is killed, segfaults, runs out of memory",
        job_cases,
        check_dying_job,
    ),
    "controllers": Catalog(
        "a sweep's controller killed at up to three random times",
        seeds(1, 30),
        check_killed_controller,
    ),
    "halving": Catalog(
        "the controller of a sweep in rungs killed at up to three random times",
        seeds(1, 30),
        check_killed_halving,
    ),
    "pairs": Catalog("two controllers of one sweep at once", seeds(1, 10), check_two_controllers),
}
