"""Command `vggexp.report`: writes a table, curves and heat maps of runs."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp import cli
from vggexp.errors import ConfigError, DataError, VggexpError
from vggexp.report.page import render_page
from vggexp.report.table import build_table, repeat_rows, to_csv, to_markdown
from vggexp.runs.directory import is_searchable
from vggexp.runs.records import RunRecord, find_runs, read_run
from vggexp.system.files import atomic_write, make_dir, os_error_as_resource_error

DESCRIPTION = """python -m vggexp.report DIR... [--out FOLDER] [--json]:
shows runs side by side, as Markdown, CSV and one HTML page.

DIR is a run directory, a folder that holds run directories at any depth, or the folder of a sweep
(outputs/sweeps/NAME), which stands for its runs. Running, interrupted and failed runs are included.
A link to a run is followed. Files among the DIRs are passed over, so `outputs/*` works again beside
an earlier report. What cannot be read is named on stderr and left out. Prints the table and writes
report.html, report.csv and report.md into FOLDER. FOLDER is by default the first DIR, or the
current folder if the first DIR is itself a run. The page needs no network and no server.
"""

NO_RUN = "holds no run (a run is a folder with config.yaml and result.json)"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _report(sys.argv[1:] if argv is None else argv))


def _report(argv: Sequence[str]) -> str:
    parser = cli.make_parser("vggexp.report", DESCRIPTION)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a run directory, or a folder of them"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the three files")
    arguments = parser.parse_intermixed_args(argv)
    return write_report(arguments.folders, arguments.out, arguments.json)


def write_report(folders: Sequence[Path], out: Path | None, as_json: bool) -> str:
    """Writes the three files and returns what the command prints.

    Args:
        folders: Run directories, or folders that hold them at any depth.
        out: Folder of the files; None for the default.
        as_json: Return one JSON object instead of the table.

    Raises:
        ConfigError: A folder does not exist, or `out` is a file.
        DataError: There is no run.
        CheckpointError, ResourceError: No run can be read; the reason of the first one.
        ResourceError: A file cannot be written.
    """
    missing = []
    for folder in folders:
        if not os.path.lexists(folder) and is_searchable(folder):
            missing.append(f"{folder}: no such directory")
    if missing:
        raise ConfigError(*missing)
    folders = [folder for folder in folders if not os.path.isfile(folder)]
    if not folders:
        raise ConfigError("DIR: only files are given, and a run is a folder; see --help")
    runs = read_runs(folders)
    table = build_table(runs)
    groups = repeat_rows(table)
    lines = to_markdown(table.columns, table.rows)
    if groups:
        lines += ["", *to_markdown(list(groups[0]), groups)]
    target = out or _default_target(folders[0])
    files = {
        "report.html": render_page(table, groups, folders),
        "report.csv": to_csv(table.columns, table.rows),
        "report.md": "\n".join(lines) + "\n",
    }
    _write(target, files)
    paths = [target / name for name in files]
    if as_json:
        result = {"runs": table.rows, "repeats": groups, "files": list(map(str, paths))}
        return json.dumps(result, default=str)
    lines.append("")
    for path in paths:
        lines.append(f"{path.suffix[1:]:<5} {path}")
    return "\n".join(lines)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Reads the runs. Warns on stderr about what is left out, if anything can be read.

    Raises:
        DataError: There is no run.
        CheckpointError, ResourceError: No run can be read; the reason of the first one.
    """
    problems: list[VggexpError] = []
    runs = []
    for folder in find_runs(folders, problems.append):
        try:
            runs.append(read_run(folder))
        except VggexpError as error:
            problems.append(error)
    for folder in folders:
        if is_searchable(folder) and not find_runs([folder]):
            problems.append(DataError(f"{folder}: {NO_RUN}"))
    if not runs:
        unreadable = [error for error in problems if not isinstance(error, DataError)]
        raise [*unreadable, *problems][0]
    for problem in problems:
        cli.warn_left_out(str(problem))
    return runs


def _default_target(folder: Path) -> Path:
    """Returns the folder itself, or the current folder if `folder` is a run."""
    if find_runs([folder]) == [folder]:
        return Path()
    return folder


def _write(target: Path, files: dict[str, str]) -> None:
    with os_error_as_resource_error(target, "written", "choose another --out"):
        try:
            make_dir(target)
        except FileExistsError as error:
            raise ConfigError(f"--out {target}: not a folder") from error
        for name, text in files.items():
            # backslashreplace: file names may hold bytes that are not UTF-8
            atomic_write(target / name, text.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
