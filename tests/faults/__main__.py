"""python -m tests.faults [--small] [CATALOGUE...]: runs the catalogues and prints how many cases were survived."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.catalogues import CATALOGUES, Catalogue

WORKERS = 2


def main() -> int:
    """Exit code 0 only if every case was survived."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("catalogues", nargs="*", choices=[*CATALOGUES, []], metavar="CATALOGUE")
    parser.add_argument("--small", action="store_true", help="the part that runs with the tests")
    arguments = parser.parse_args()
    rows, lost = [], 0
    for name in arguments.catalogues or CATALOGUES:
        begin = time.monotonic()
        cases, problems = results(CATALOGUES[name], arguments.small)
        for problem in problems:
            print(f"{name}: {problem}", file=sys.stderr)
        lost += len(problems)
        rows.append(f"| {CATALOGUES[name].title} | {cases} | {cases - len(problems)} |")
        print(f"{name}: {cases - len(problems)} of {cases} in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    print("\n".join(["| catalogue | cases | survived |", "|---|---|---|", *rows]))
    return min(lost, 1)


def results(catalogue: Catalogue, small: bool) -> tuple[int, list[str]]:
    """How many cases there were, and a line for each that was not survived."""
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    tempfile.tempdir = str(scratch)
    try:
        cases = list(catalogue.cases(small))
        pids = [worker(catalogue, cases, number, scratch) for number in range(WORKERS)]
        for pid in pids:
            os.waitpid(pid, 0)
        told = [line for number in range(WORKERS) for line in (scratch / f"told{number}").read_text().splitlines()]
    finally:
        tempfile.tempdir = None
        shutil.rmtree(scratch, ignore_errors=True)
    missing = [f"{len(cases) - len(told)} cases were not run"] * (len(cases) - len(told))
    return len(cases), [line for line in told if line != "survived"] + missing


def worker(catalogue: Catalogue, cases: list, number: int, scratch: Path) -> int:
    """Forks a process that takes every WORKERS-th case, each in a folder of its own, and writes a line for each."""
    pid = os.fork()
    if pid:
        return pid
    with open(scratch / f"told{number}", "w", buffering=1) as told:
        for case in cases[number::WORKERS]:
            folder = Path(tempfile.mkdtemp())
            try:
                problem = catalogue.problem(case, folder)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            told.write(f"{case}: {' '.join(problem.split())}\n" if problem else "survived\n")
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
