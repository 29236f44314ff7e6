"""Command `vggexp.tensorboard`: shows runs in TensorBoard under readable names."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from vggexp import cli
from vggexp.errors import ConfigError, StoppedError, VggexpError
from vggexp.formatting import plural
from vggexp.loggers.console import print_text
from vggexp.system.signals import handle_stop_signals
from vggexp.tensorboard.links import ShownRuns, check_folders, link_event_files
from vggexp.tensorboard.port import check_port, parse_port

DESCRIPTION = """python -m vggexp.tensorboard DIR... [--port N] [--json]:
shows runs in TensorBoard, each under the settings in which the runs differ.

DIR is a run directory, a folder that holds run directories at any depth, or the folder of a sweep
(outputs/sweeps/NAME), which stands for its runs. A run is shown once, also if several DIRs hold it.
Its name is what was typed for it, as arch=vgg13,optimizer.lr=0.05, or else that of its folder.
Prints the address of the page, on this machine only, and serves until Ctrl-C. Runs that start or
continue meanwhile appear after some seconds. The event files stay where they are: TensorBoard reads
a temporary folder of links, which is removed at the end.

Exit codes: 2 if a directory does not exist, the port is in use, or TensorBoard is not installed. 3
if a DIR holds no run. 4 if a file of a sweep is damaged. 6 if a permission is missing. 130 after
Ctrl-C.
"""

UPDATE_SECONDS = 3.0  # between two looks for new runs and new event files


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(lambda: _show(sys.argv[1:] if argv is None else argv))


def _show(argv: Sequence[str]) -> None:
    parser = cli.make_parser("vggexp.tensorboard", DESCRIPTION)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="runs, folders of runs, or sweeps"
    )
    parser.add_argument(
        "--port", type=parse_port, metavar="N", help="port (default: the first free from 6006 on)"
    )
    arguments = parser.parse_intermixed_args(argv)
    problems = []
    for folder in arguments.folders:
        if not os.path.isdir(folder):
            reason = "not a directory" if os.path.exists(folder) else "no such directory"
            problems.append(f"{folder}: {reason}")
    if problems:
        raise ConfigError(*problems)
    if find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed; pip install tensorboard")
    check_folders(arguments.folders)
    if arguments.port is not None:
        check_port(arguments.port)
    serve(arguments.folders, arguments.port, arguments.json)


def describe(address: str, names: Mapping[Path, str], as_json: bool) -> str:
    """Returns what the command prints once the server answers."""
    if as_json:
        runs = {name: str(run) for run, name in names.items()}
        return json.dumps({"address": address, "runs": runs})
    return f"{plural(len(names), 'run')} at {address}  (Ctrl-C ends the server)"


def serve(folders: Sequence[Path], port: int | None, as_json: bool) -> None:
    """Serves until a stop signal.

    Raises:
        StoppedError: the signal.
        ConfigError, ResourceError: the port cannot be taken.
    """
    shown = ShownRuns(folders)
    with handle_stop_signals() as stop, tempfile.TemporaryDirectory(prefix="vggexp-") as links:
        shown.update()
        link_event_files(shown.names, Path(links))
        from vggexp.tensorboard.server import start_server  # imports TensorBoard: seconds

        address = start_server(Path(links), port)
        print_text(describe(address, shown.names, as_json))
        while stop.signal is None:
            stop.rest(UPDATE_SECONDS)
            with contextlib.suppress(VggexpError, OSError):  # of a folder that is being moved
                shown.update()
                link_event_files(shown.names, Path(links))
    raise StoppedError(stop.signal, "while it served", "the same command serves again")


if __name__ == "__main__":
    sys.exit(main())
