"""python -m vggexp.report DIR... [--out FOLDER] [--json]: runs side by side, as Markdown, CSV and one HTML page.

DIR: run directories, or folders that hold them at any depth; running, interrupted and failed runs too. Prints the table
and writes report.html, report.csv and report.md into FOLDER: by default the first DIR, or the current folder where that
is itself a run. The page needs no network and no server.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vggexp import cli
from vggexp.cli import run_command
from vggexp.errors import CheckpointError, ConfigError, DataError, ResourceError
from vggexp.formatting import printable
from vggexp.report.page import page
from vggexp.report.table import Table, as_csv, as_markdown, build_table, repeats
from vggexp.runs.records import RunRecord, find_runs, read_run
from vggexp.runs.repeats import Row
from vggexp.system.files import atomic_write


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _answer(sys.argv[1:] if argv is None else argv))


def _answer(argv: Sequence[str]) -> str:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a run directory, or a folder of them"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go")
    arguments = parser.parse_intermixed_args(argv)
    return write_report(arguments.folders, arguments.out, arguments.json)


def write_report(folders: Sequence[Path], out: Path | None, as_json: bool) -> str:
    """Writes the three files; returns what is to be printed. Raises ConfigError, DataError, ResourceError."""
    missing = [f"{folder}: no such directory" for folder in folders if not folder.is_dir()]
    if missing:
        raise ConfigError(*missing)
    runs = list(read_runs(folders))
    if not runs:
        raise DataError(
            f"{', '.join(map(str, folders))}: holds no run (a run is a folder with config.yaml and result.json)"
        )
    table = build_table(runs)
    groups = repeats(table)
    target = out or (Path() if find_runs(folders[:1]) == [folders[0]] else folders[0])
    lines = markdown(table, groups)
    files = {
        "report.html": page(table, groups, folders),
        "report.csv": as_csv(table.columns, table.rows),
        "report.md": "\n".join(lines) + "\n",
    }
    _write(target, files)
    if as_json:
        answer = {
            "runs": table.rows,
            "repeats": groups,
            "files": [str(target / name) for name in files],
        }
        return json.dumps(answer, default=str)
    return "\n".join(
        [*lines, "", *(f"{Path(name).suffix[1:]:<5} {target / name}" for name in files)]
    )


def read_runs(folders: Sequence[Path]) -> Iterator[RunRecord]:
    """The runs, and a line on stderr for each folder that holds none or cannot be read as one."""
    for folder in folders:
        if not find_runs([folder]):
            _warn(f"{folder}: holds no run")
    for folder in find_runs(folders):
        try:
            yield read_run(folder)
        except (CheckpointError, OSError, RecursionError) as error:
            _warn(str(error) or f"{folder}: nested too deeply")


def _warn(text: str) -> None:
    print(f"vggexp: warning: {printable(text)} (left out)", file=sys.stderr)


def markdown(table: Table, groups: Sequence[Row]) -> list[str]:
    repeated: list[str] = ["", *as_markdown(list(groups[0]), groups)] if groups else []
    return as_markdown(table.columns, table.rows) + repeated


def _write(target: Path, files: dict[str, Any]) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            atomic_write(target / name, text.encode("utf-8", "backslashreplace"))
    except FileExistsError as error:
        raise ConfigError(f"--out {target}: not a folder") from error
    except OSError as error:
        raise ResourceError(
            f"{target}: cannot be written: {error.strerror} (choose another --out)"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
