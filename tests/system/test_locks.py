"""One process owns a run directory; its lock ends with the process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vggexp.errors import InUseError, ResourceError
from vggexp.system.locks import is_locked, lock_run_dir

HOLDER = """
import sys, time
from pathlib import Path
from vggexp.system.locks import lock_run_dir
with lock_run_dir(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def assert_in_use(folder: Path, holder: str) -> None:
    with pytest.raises(InUseError, match=f"in use by {holder};"), lock_run_dir(folder):
        pass


@pytest.mark.process
def test_the_lock_names_its_holder_and_ends_with_the_holder(tmp_path):
    folder = tmp_path / "outputs" / "run"
    host = socket.gethostname()
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "ready\n"
        for _ in range(2):  # a refused attempt does not change the recorded holder
            assert_in_use(folder, f"{host} pid {holder.pid}")
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with lock_run_dir(folder) as locked:
            assert_in_use(locked, f"{host} pid {os.getpid()}")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResourceError, match="cannot be made: Not a directory"),
        lock_run_dir(tmp_path / "file" / "run"),
    ):
        pass


@pytest.mark.process
def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    """The data workers of a killed run live on for some seconds."""
    folder = tmp_path / "a"
    read_end, write_end = os.pipe()
    owner = os.fork()
    if owner == 0:
        with lock_run_dir(folder):
            if os.fork() == 0:
                os.close(write_end)
                time.sleep(30)
                os._exit(0)
            os.write(write_end, b"x")
            time.sleep(30)
        os._exit(0)
    os.close(write_end)
    os.read(read_end, 1)
    with pytest.raises(InUseError), lock_run_dir(folder):
        pass
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    with lock_run_dir(folder):
        pass


def test_a_lock_is_not_written_through_a_link(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("mine")
    (tmp_path / ".lock").symlink_to(notes)
    assert not is_locked(tmp_path)
    with (
        pytest.raises(ResourceError, match=r"\.lock: cannot be written: a link, and no file"),
        lock_run_dir(tmp_path),
    ):
        pass
    assert notes.read_text() == "mine"


def test_nobody_holds_a_fifo(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    assert not is_locked(tmp_path)
    with (
        pytest.raises(ResourceError, match="not a regular file; remove it"),
        lock_run_dir(tmp_path),
    ):
        pass


def test_the_recorded_holder_is_clipped_and_may_be_any_bytes(tmp_path):
    with lock_run_dir(tmp_path):
        (tmp_path / ".lock").write_bytes(b"\xff" * 10_000)
        with pytest.raises(InUseError) as caught, lock_run_dir(tmp_path):
            pass
    assert len(str(caught.value)) < 500
