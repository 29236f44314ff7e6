"""Starts TensorBoard's own server in this process, on the loopback address only."""

import contextlib
import io
import logging
import socket
from pathlib import Path

from tensorboard import default, program

from vggexp.errors import ConfigError, ResourceError

HOST = "127.0.0.1"


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
    if port:
        _check_port(port)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    flags = ["--logdir", str(folder), "--host", HOST, "--load_fast", load_fast]
    if port is not None:
        flags += ["--port", str(port)]
    board.configure(["tensorboard", *flags])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # notes on TensorFlow and the loader
            return board.launch()
    except program.TensorBoardPortInUseError as error:
        raise _port_in_use(port) from error
    except program.TensorBoardServerException as error:
        raise ResourceError(f"--port {port}: {error}") from error


def _check_port(port: int) -> None:
    """Raises ConfigError or ResourceError unless the port is free, before anything is started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError as error:
            raise ResourceError(f"--port {port}: {error.strerror}; choose 1024 or above") from error
        except OSError as error:
            raise _port_in_use(port) from error


def _port_in_use(port: int | None) -> ConfigError:
    return ConfigError(f"--port {port}: in use; choose another, or leave it out for a free one")
