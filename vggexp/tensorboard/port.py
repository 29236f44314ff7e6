"""Checks a port before TensorBoard, whose import takes seconds, is started."""

import argparse
import socket

from vggexp.errors import ConfigError, ResourceError

HOST = "127.0.0.1"  # nobody else reaches the page


def parse_port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: expected 1..65535")
    return int(text)


def check_port(port: int) -> None:
    """Raises ConfigError if a port is in use, and ResourceError if the system does not give it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError as error:
            raise ResourceError(f"--port {port}: {error.strerror}; choose 1024 or above") from error
        except OSError as error:
            raise port_in_use(port) from error


def port_in_use(port: int | None) -> ConfigError:
    return ConfigError(f"--port {port}: in use; choose another, or leave it out for a free one")
