"""Command `vggexp.report`: writes a table, curves and heat maps of runs."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp import cli
from vggexp.errors import ConfigError, DataError, VggexpError
from vggexp.report.page import render_page
from vggexp.report.selection import Selection, select_runs
from vggexp.report.table import Section, build_sections, markdown_text, to_csv, to_markdown
from vggexp.runs.directory import is_searchable
from vggexp.runs.records import RunRecord, find_runs, read_run, without_neighbors
from vggexp.runs.sweeps import NO_RUN, name_sweeps
from vggexp.system.files import atomic_write, make_dir, os_error_as_resource_error

DESCRIPTION = """python -m vggexp.report DIR... [--where CONDITION] [--best N] [--out FOLDER]
[--json]: shows runs side by side, as Markdown, CSV and one HTML page.

DIR is a run directory, a folder that holds run directories at any depth, or the folder of a sweep
(outputs/sweeps/NAME), which stands for its runs. Running, paused, interrupted and failed runs are
included. A link to a run is followed. Files among the DIRs are
passed over, so `outputs/*` works again beside an earlier report. What cannot be read is named on
stderr and left out.

Runs of different data have tables of their own. The data is the same if the recorded SHA-256s of
the training and test files are.

--where has the grammar of sweep.where: 'val/accuracy > 0.9 and parameters < 30e6'. Metrics of
metrics.jsonl and result.json, state, network, run, parameters, macs, weight_layers and every key
may stand. A condition on a value that a run does not have is not satisfied.

--best lists the N best runs of each data set. Means over seeds and heat maps are of all runs.

Prints the tables and writes report.html, report.csv and report.md into FOLDER. FOLDER is by default
the first DIR, or the current folder if the first DIR is itself a run. The page needs no network and
no server.

Exit codes: 2 if an option is wrong, or a directory does not exist. 3 if no DIR holds a run. 4 if no
run can be read. 6 if a permission is missing, or a file cannot be written. 130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _report(sys.argv[1:] if argv is None else argv))


def _report(argv: Sequence[str]) -> str:
    parser = cli.make_parser("vggexp.report", DESCRIPTION)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a run directory, or a folder of them"
    )
    parser.add_argument("--where", metavar="CONDITION", help="only the runs that satisfy it")
    parser.add_argument("--best", metavar="N", help="only the N best runs of each data set")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the three files")
    arguments = parser.parse_intermixed_args(argv)
    best = None if arguments.best is None else _parse_count(arguments.best)
    folders = _existing_folders(arguments.folders)
    runs = read_runs(folders)
    selection = Selection(folders, len(runs), arguments.where, best)
    if arguments.where is not None:
        runs = select_runs(runs, arguments.where)
    sections = build_sections(runs, best)
    target = arguments.out or _default_target(folders[0])
    return write_report(sections, selection, target, arguments.json)


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"--best {text}: not a whole number from 1")
    return int(text)


def _existing_folders(paths: Sequence[Path]) -> list[Path]:
    """Returns the folders that may hold runs. Raises ConfigError if a path does not exist."""
    missing = []
    for path in paths:
        if not os.path.lexists(path) and is_searchable(path):
            missing.append(f"{path}: no such directory")
    if missing:
        raise ConfigError(*missing)
    folders = [path for path in paths if not os.path.isfile(path)]
    if not folders:
        raise ConfigError("DIR: only files are given, and a run is a folder; see --help")
    return list(without_neighbors(folders))


def write_report(
    sections: Sequence[Section], selection: Selection, target: Path, as_json: bool
) -> str:
    """Writes the three files and returns what the command prints.

    Args:
        target: The folder of the files.
        as_json: Return one JSON object instead of the tables.

    Raises:
        ConfigError: `target` is a file.
        ResourceError: A file cannot be written.
    """
    lines = _to_markdown(sections)
    files = {
        "report.html": render_page(sections, selection),
        "report.csv": to_csv([section.listed for section in sections]),
        "report.md": "\n".join(lines) + "\n",
    }
    _write(target, files)
    paths = [target / name for name in files]
    if as_json:
        runs = [row for section in sections for row in section.listed.rows]
        repeats = []
        for section in sections:
            repeats += [{"data": section.listed.data, **row} for row in section.repeats]
        result = {"runs": runs, "repeats": repeats, "files": list(map(str, paths))}
        return json.dumps(result, default=str)
    lines.append("")
    for path in paths:
        lines.append(f"{path.suffix[1:]:<5} {path}")
    return "\n".join(lines)


def _to_markdown(sections: Sequence[Section]) -> list[str]:
    """Returns the tables. Each has a heading if there are several data sets."""
    lines = []
    for section in sections:
        table = section.listed
        if len(sections) > 1:
            lines += [f"## {markdown_text(table.data)}", ""]
        lines += [*to_markdown(table.columns, table.rows), ""]
        if section.repeats:
            lines += [*to_markdown(list(section.repeats[0]), section.repeats), ""]
    return lines[:-1]


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
    named = {str(problem).partition(": ")[0] for problem in problems}
    for folder in folders:
        if str(folder) not in named and is_searchable(folder) and not find_runs([folder]):
            problems.append(DataError(f"{folder}: {NO_RUN}{name_sweeps(folder)}"))
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
