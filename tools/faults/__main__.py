"""python -m tools.faults [--small] [CATALOGUE...]: runs the catalogues and prints how many cases were survived.

At full size each writes its row into benchmarks/faults.md.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tools.faults import catalogues, inputs, sweeps
from tools.faults.catalogues import Catalogue
from vggexp.system import cpu

CATALOGUES = catalogues.CATALOGUES | inputs.CATALOGUES | sweeps.CATALOGUES
WORKERS = 2
RECORD = Path(__file__).parents[2] / "benchmarks" / "faults.md"


class Row(NamedTuple):
    title: str
    cases: int
    survived: int
    seconds: float
    day: str


def main() -> int:
    """Exit code 0 only if every case was survived."""
    parser = argparse.ArgumentParser(prog="tools.faults", description=__doc__)
    parser.add_argument("catalogues", nargs="*", choices=[*CATALOGUES, []], metavar="CATALOGUE")
    parser.add_argument("--small", action="store_true", help="the part that runs with the tests")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.catalogues or CATALOGUES:
        rows.append(measured(name, arguments.small))
        if not arguments.small:
            RECORD.write_text(record({row.title: row for row in [*recorded(), rows[-1]]}))
    print(table(rows))
    return int(any(row.survived < row.cases for row in rows))


def recorded() -> list[Row]:
    """The rows of an earlier record, in which a catalogue that is run again takes its own place."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    cells = [
        [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        for line in lines
        if "|" in line
    ]
    titles = {
        catalogue.title.replace(",", ""): catalogue.title for catalogue in CATALOGUES.values()
    }
    return [
        Row(titles[title], int(cases), int(survived), float(seconds), day)
        for title, cases, survived, seconds, day in cells
        if title in titles
    ]


def measured(name: str, small: bool) -> Row:
    begin = time.monotonic()
    cases, problems = results(CATALOGUES[name], small)
    for problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    row = Row(
        CATALOGUES[name].title,
        cases,
        cases - len(problems),
        time.monotonic() - begin,
        f"{date.today()}",
    )
    print(
        f"{name}: {row.survived} of {row.cases} in {row.seconds:.0f} s", file=sys.stderr, flush=True
    )
    return row


def table(rows: Iterable[Row]) -> str:
    lines = [
        f"| {row.title} | {row.cases:,} | {row.survived:,} | {row.seconds:.0f} | {row.day} |"
        for row in rows
    ]
    return "\n".join(
        ["| fault | cases | survived | seconds | day |", "|---|---:|---:|---:|---|", *lines]
    )


def record(rows: dict[str, Row]) -> str:
    ordered = [rows[one.title] for one in CATALOGUES.values() if one.title in rows]
    return f"""# What a run survives

Real processes, real signals, real files. A case counts as survived when the run then holds, bit for bit, the weights,
scores and TensorBoard points of an undisturbed run, or when what is wrong is refused in one line with its exit code.
`tools/faults/` says what is done in each case.

{table(ordered)}

`make faults`, {sum(row.seconds for row in ordered) / 60:.0f} minutes in all. Each row is of the run of its day;
those of {date.today()} on {os.cpu_count()} cores of {cpu.cpu_model()};
Python {platform.python_version()}, torch {version("torch")}.
"""


def results(catalogue: Catalogue, small: bool) -> tuple[int, list[str]]:
    """How many cases there were, and a line for each that was not survived."""
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    tempfile.tempdir = str(scratch)
    try:
        cases = list(catalogue.cases(small))
        pids = [worker(catalogue, cases, number, scratch) for number in range(WORKERS)]
        for pid in pids:
            os.waitpid(pid, 0)
        told = [
            line
            for number in range(WORKERS)
            for line in (scratch / f"told{number}").read_text().splitlines()
        ]
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
