"""Starts TensorBoard's own server in this process, on the loopback address only."""

import contextlib
import io
import logging
from pathlib import Path

from tensorboard import default, program

from vggexp.errors import ResourceError
from vggexp.tensorboard.port import HOST, port_in_use

RELOAD_SECONDS = 5.0  # between two looks into the event files; TensorBoard's own default


def start_server(folder: Path, port: int | None, load_fast: str = "auto") -> str:
    """Serves a folder in a thread of its own, until the process ends.

    Args:
        folder: the folder with the event files.
        port: the port; None for the first free one from TensorBoard's own, 6006, on.
        load_fast: whether the loader is the fast one that some platforms have: auto, true or false.

    Returns:
        The address of the page.

    Raises:
        ConfigError: the port is in use.
        ResourceError: the system does not give the port.
    """
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    flags = ["--logdir", str(folder), "--host", HOST, "--load_fast", load_fast]
    flags += ["--reload_interval", str(RELOAD_SECONDS)]
    if port is not None:
        flags += ["--port", str(port)]
    board.configure(["tensorboard", *flags])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # notes on TensorFlow and the loader
            return board.launch()
    except program.TensorBoardPortInUseError as error:  # another process was faster
        raise port_in_use(port) from error
    except program.TensorBoardServerException as error:
        raise ResourceError(f"--port {port}: {error}") from error
