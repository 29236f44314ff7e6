"""python -m tools.faults [--small | --kinds] [CATALOG...]: runs catalogs and counts what survives.

Without --small or --kinds, each catalog writes its row into benchmarks/faults.md.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tools.faults import checkpoints, hostile, inputs, kills, resources, run_files, sweeps
from tools.faults.catalog import Catalog
from tools.faults.server import warm_up
from vggexp.system import cpu

ORDER = [  # order of the rows in benchmarks/faults.md
    "kills",
    "points",
    "signals",
    "exactness",
    "damage",
    "resources",
    "hostile",
    "files",
    "crowds",
    "data",
    "downloads",
    "commands",
    "workers",
    "memory",
    "syscalls",
    "jobs",
    "controllers",
    "halving",
    "pairs",
]
CATALOGS = dict(
    sorted(  # raises ValueError for a catalog without a place in ORDER
        {
            **kills.CATALOGS,
            **checkpoints.CATALOGS,
            **resources.CATALOGS,
            **hostile.CATALOGS,
            **run_files.CATALOGS,
            **inputs.CATALOGS,
            **sweeps.CATALOGS,
        }.items(),
        key=lambda item: ORDER.index(item[0]),
    )
)
PARTS = {
    "small": "a part of the cases, which the slow tests run",
    "kinds": "one case of each kind in the small part, which the default tests run",
}
WORKERS = 2  # processes that run all cases of a catalog; a part has one
RECORD = Path(__file__).parents[2] / "benchmarks" / "faults.md"
SURVIVED = "survived"  # line that a worker writes for a survived case


class Row(NamedTuple):
    """A row of the record."""

    title: str
    cases: int
    survived: int
    seconds: float
    day: str


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 only if every case was survived."""
    parser = argparse.ArgumentParser(prog="tools.faults", description=__doc__)
    parser.add_argument("catalogs", nargs="*", choices=[*CATALOGS, []], metavar="CATALOG")
    parts = parser.add_mutually_exclusive_group()
    for part, text in PARTS.items():
        parts.add_argument(f"--{part}", dest="part", action="store_const", const=part, help=text)
    arguments = parser.parse_args(argv)
    rows = []
    warm_up()
    for name in arguments.catalogs or CATALOGS:
        rows.append(measure(name, arguments.part))
        if not arguments.part:
            by_title = {row.title: row for row in [*read_record(), rows[-1]]}
            RECORD.write_text(format_record(by_title))
    print(format_table(rows))
    return int(any(row.survived < row.cases for row in rows))


def one_of_each_kind(cases: Iterable[Any]) -> list[Any]:
    """Returns the middle case of each kind: the first element of a tuple, or else the case."""
    by_kind: dict[str, list[Any]] = {}
    for case in cases:
        kind = case[0] if isinstance(case, tuple) else case
        by_kind.setdefault(str(kind), []).append(case)
    return [group[len(group) // 2] for group in by_kind.values()]


def measure(name: str, part: str | None) -> Row:
    """Runs a catalog, and prints on stderr the cases that were not survived."""
    begin = time.monotonic()
    cases, problems = run_catalog(CATALOGS[name], part)
    seconds = time.monotonic() - begin
    for problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    survived = cases - len(problems)
    print(f"{name}: {survived} of {cases} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return Row(CATALOGS[name].title, cases, survived, seconds, f"{date.today()}")


def run_catalog(catalog: Catalog, part: str | None) -> tuple[int, list[str]]:
    """Returns the number of cases, and a line for each case that was not survived."""
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    tempfile.tempdir = str(scratch)
    lines = []
    try:
        cases = list(catalog.cases(part is not None))
        if part == "kinds":
            cases = one_of_each_kind(cases)
        workers = 1 if part else WORKERS
        reports = [scratch / f"report{index}" for index in range(workers)]
        pids = [
            fork_worker(catalog, cases[index::workers], report)
            for index, report in enumerate(reports)
        ]
        for pid in pids:
            os.waitpid(pid, 0)
        for report in reports:
            lines += report.read_text().splitlines()
    finally:
        tempfile.tempdir = None
        shutil.rmtree(scratch, ignore_errors=True)
    problems = [line for line in lines if line != SURVIVED]
    missing = len(cases) - len(lines)  # a worker has died
    return len(cases), problems + [f"{missing} cases were not run"] * missing


def fork_worker(catalog: Catalog, cases: Sequence[Any], report: Path) -> int:
    """Forks a process that runs the cases, each in its own folder; returns the process id.

    The process writes a line into `report` for each case.
    """
    pid = os.fork()
    if pid:
        return pid
    with open(report, "w", buffering=1) as file:
        for case in cases:
            folder = Path(tempfile.mkdtemp())
            try:
                problem = catalog.check(case, folder)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            line = SURVIVED
            if problem:
                line = f"{case}: {' '.join(problem.split())}"
            file.write(line + "\n")
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def read_record() -> list[Row]:
    """Returns the rows of the present record, without those of unknown catalogs."""
    titles = {catalog.title.replace(",", ""): catalog.title for catalog in CATALOGS.values()}
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    rows = []
    for line in lines:
        if "|" not in line:
            continue
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        if cells[0] in titles:
            title, cases, survived, seconds, day = cells
            rows.append(Row(titles[title], int(cases), int(survived), float(seconds), day))
    return rows


def format_table(rows: Iterable[Row]) -> str:
    lines = ["| fault | cases | survived | seconds | day |", "|---|---:|---:|---:|---|"]
    for row in rows:
        counts = f"{row.cases:,} | {row.survived:,} | {row.seconds:.0f}"
        lines.append(f"| {row.title} | {counts} | {row.day} |")
    return "\n".join(lines)


def format_record(rows: dict[str, Row]) -> str:
    """Returns the text of benchmarks/faults.md. The keys of `rows` are titles."""
    titles = [catalog.title for catalog in CATALOGS.values()]
    ordered = [rows[title] for title in titles if title in rows]
    minutes = sum(row.seconds for row in ordered) / 60
    return f"""# What a run survives

The tests use real processes, real signals and real files. A case counts as survived in two situations. The run afterwards has, bit for bit, the weights,
scores and TensorBoard points of an undisturbed run. Or the run refuses an invalid input in one line with its exit code.
`tools/faults/` defines what each case does.

{format_table(ordered)}

`make faults`, {minutes:.0f} minutes in all. Each row is of the run of its day;
those of {date.today()} on {os.cpu_count()} cores of {cpu.cpu_model()};
Python {platform.python_version()}, torch {version("torch")}.
"""  # noqa: E501 (the lines of a Markdown page)


if __name__ == "__main__":
    sys.exit(main())
