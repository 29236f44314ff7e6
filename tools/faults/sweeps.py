"""Sweeps: a job that dies takes no other along, and a controller that dies loses nothing."""

import itertools
import json
import os
import random
import signal
from collections.abc import Iterable
from pathlib import Path

from tools.faults.catalogues import SMALLEST, Catalogue, after, seeds
from tools.faults.hooks import sitecustomize
from tools.faults.server import awaited, different, finished, reference, run, start

SWEEP = ["-m", *(word for word in SMALLEST if word != "run.name=a")]
FEW = [*SWEEP, "seed=range(5)", "hydra.launcher.jobs=2"]
LAUNCHERS = {
    "local": ["hydra.launcher.jobs=2"],
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}
HOOKS = Path(__file__).parent / "hooks"
FAULTY = 3  # the seed of the job


def faults(small: bool) -> Iterable[tuple[str, str, int]]:
    """Each launcher with each fault, and the number of jobs."""
    cases = list(itertools.product(LAUNCHERS, sitecustomize.KINDS, [5 if small else 12]))
    yield from cases[1::10] if small else cases


def one_dies(case: tuple[str, str, int], folder: Path) -> str:
    """One job ends badly: the others finish, the sweep says which and ends with 7, without a traceback."""
    launcher, kind, jobs = case
    argv = [*SWEEP, f"seed=range({jobs})", *LAUNCHERS[launcher]]
    variables = {"VGGEXP_FAULT": kind, "VGGEXP_FAULT_SEED": str(FAULTY)}

    def before() -> None:
        path = os.pathsep.join(filter(None, [str(HOOKS), os.environ.get("PYTHONPATH")]))
        os.environ.update({**variables, "PYTHONPATH": path})
        sitecustomize.install()

    end = run(folder, argv, before)
    states = [
        json.loads(path.read_text())["state"] for path in folder.glob("outputs/*/result.json")
    ]
    traced = "Traceback" in end.err and kind != "raises"  # a bug is shown with its traceback
    if end.code != 7 or states.count("finished") != jobs - 1 or traced:
        return f"exit {end.code}, {states}: {end.err[-300:]}"
    again = run(folder, [*argv, "sweep.retry_failed=true"])
    return f"again: exit {again.code} {again.err[-300:]}" if again.code else once(folder)


def controller_kills(seed: int, folder: Path) -> str:
    """Killed at up to three random moments, then given again: as an undisturbed sweep, and no job trained twice."""
    draw = random.Random(seed)
    seconds = reference(tuple(FEW))[1]
    for _ in range(3):
        end = run(folder, FEW, meanwhile=after(draw.uniform(0, seconds), signal.SIGKILL))
        if end.code == 0:
            break
    return finished(folder, FEW) or once(folder)


def two_controllers(seed: int, folder: Path) -> str:
    """Two of the same sweep at once: both end well, and each job was trained by one of them."""
    pids = [start(folder, FEW, lambda: None, f"-{number}") for number in range(2)]
    codes = [awaited(pid) for pid in pids]
    if codes != [0, 0]:
        return f"codes {codes}: {(folder / 'err-0').read_text()[-200:]} {(folder / 'err-1').read_text()[-200:]}"
    return different(folder, reference(tuple(FEW))[0]) or once(folder)


def once(folder: Path) -> str:
    """Every run came to its end once."""
    ends = {
        path.parent.name: path.read_text().count("\ntest accuracy ")
        for path in folder.glob("outputs/*/run.log")
    }
    return f"ended more than once or never: {ends}" if set(ends.values()) != {1} else ""


CATALOGUES = {
    "jobs": Catalogue(
        "one job of twelve raises, exits, is killed, segfaults, runs out of memory",
        faults,
        one_dies,
    ),
    "controllers": Catalogue(
        "a sweep's controller killed at up to three random times", seeds(2, 30), controller_kills
    ),
    "pairs": Catalogue("two controllers of one sweep at once", seeds(1, 10), two_controllers),
}
