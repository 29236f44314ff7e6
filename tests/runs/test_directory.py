"""One process owns a run directory; what it holds is read as data, never executed."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from vggexp.errors import CheckpointError, InUseError, ResourceError
from vggexp.runs import directory
from vggexp.system import locks

HOLDER = """
import sys, time
from pathlib import Path
from vggexp.runs.directory import claimed
with claimed(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path):
    folder, host = tmp_path / "outputs" / "run", socket.gethostname()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "ready\n"
        for _ in range(2):  # a refused claim leaves the holder's name as it is
            with pytest.raises(InUseError, match=f"in use by {host} pid {holder.pid};"):
                locks.lock_run_dir(folder).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with (
            locks.lock_run_dir(folder) as claimed,
            pytest.raises(InUseError, match=f"by {host} pid {os.getpid()};"),
        ):
            locks.lock_run_dir(claimed).__enter__()


def test_names(tmp_path):
    (tmp_path / "run-4").write_text("a file takes a name too")
    names = []
    for _ in range(4):
        names.append(directory.unused_name(tmp_path, "run"))
        (tmp_path / names[-1]).mkdir()
    assert names == ["run", "run-2", "run-3", "run-5"]
    with pytest.raises(ResourceError, match="cannot be made: Not a directory"):
        locks.lock_run_dir(tmp_path / "run-4" / "run").__enter__()


def test_what_was_described_comes_back(tmp_path):
    config = {
        "seed": 0,
        "data": {"root": None, "name": "größe"},
        "arch": {"blocks": [[1, 64], [2, 8, 1]]},
        "lr": 1e-05,
    }
    directory.write_metadata(tmp_path, config, ["arch=vgg11", "data.root='a b'"], {"attempts": 2})
    assert directory.read_config(tmp_path) == config
    assert list(directory.read_config(tmp_path)) == list(config)
    assert (tmp_path / "overrides.txt").read_text() == "arch=vgg11\ndata.root='a b'\n"
    assert directory.count_attempts(tmp_path) == 3
    assert directory.read_result(tmp_path) == {}
    directory.write_result(tmp_path, "failed", error="x", **{"val/loss": float("nan")})
    assert directory.read_result(tmp_path) == {"state": "failed", "error": "x", "val/loss": None}


NO_CONFIGURATION = {
    "tag": (b"!!python/object/apply:os.system ['touch planted']", "not the folder of a run"),
    "name": (b"seed: !!python/name:os.system", "not the folder of a run"),
    "list": (b"[1, 2]", "not a configuration"),
    "empty": (b"", "not a configuration"),
    "cut": (b"a: [", "not the folder of a run"),
    "bytes": (b"\xff\xfe\x00", "not the folder of a run"),
    "deep": (b"[" * 2_000, "not the folder of a run"),
    "large": (b"#" * (directory.MAX_CONFIG_BYTES + 1), "larger than"),
}


@pytest.mark.parametrize(("content", "told"), NO_CONFIGURATION.values(), ids=NO_CONFIGURATION)
def test_what_is_no_configuration(tmp_path, monkeypatch, content, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        directory.read_config(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*{told}[^\n]*\Z"):
        directory.read_config(tmp_path)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("content", [b'{"state": ', b"", b"\xff", b"[]", b"null", b"[" * 10_000])
def test_what_is_no_result(tmp_path, content):
    for name in (directory.RESULT, directory.ENVIRONMENT):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"result\.json: "):
        directory.read_result(tmp_path)
    assert directory.count_attempts(tmp_path) == 1


def test_the_lock_does_not_outlive_its_process_in_a_forked_one(tmp_path):
    """As when a run with data workers is killed: they live on for some seconds."""
    folder, (read, write) = tmp_path / "a", os.pipe()
    if not (owner := os.fork()):
        with locks.lock_run_dir(folder):
            if not os.fork():
                os.close(write)
                time.sleep(30)
                os._exit(0)
            os.write(write, b"x")
            time.sleep(30)
        os._exit(0)
    os.close(write)
    os.read(read, 1)
    with pytest.raises(InUseError), locks.lock_run_dir(folder):
        pass
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    with locks.lock_run_dir(folder):
        pass
