"""The command starts the real server, shows the runs once, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.tensorboard.test_links import write_typed_run
from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.tensorboard import TensorBoardLogger
from vggexp.runs.sweeps import SweptRun, write_runs
from vggexp.tensorboard.__main__ import describe, main
from vggexp.tensorboard.links import link_event_files

WAIT_SECONDS = 60


def row(epoch):
    return {"epoch": epoch, "step": epoch, "train/loss": 1 / epoch}


def write_events(folder, epochs):
    """Writes the events of a run that continues before its last epoch."""
    table = HParamsTable({}, [], [])
    rows = [row(epoch) for epoch in range(1, epochs)]
    logger = TensorBoardLogger(folder, table, rows, pytest.fail)
    logger.epoch(row(epochs))
    logger.close(True)


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two runs; the second has not started."""
    run = write_typed_run(tmp_path / "outputs/a")
    (run / "events.out.tfevents.1").unlink()
    write_events(run, 1)
    folder = tmp_path / "outputs/sweeps/lr"
    folder.mkdir(parents=True)
    runs = [SweptRun(run, ["optimizer.lr=0.1"])]
    runs.append(SweptRun(tmp_path / "outputs/b", ["optimizer.lr=0.2"]))
    write_runs(folder, runs)
    return folder


COMMAND = """
import sys
from vggexp.tensorboard import __main__, server
__main__.UPDATE_SECONDS = 0.1
server.RELOAD_SECONDS = 1.0  # the least of the fast loader
sys.exit(__main__.main())
"""


def start(folder, tmp_path):
    """Starts the command, which looks often for new events; returns its process and its object."""
    (tmp_path / "tmp").mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder), str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
    )
    return server, json.loads(server.stdout.readline())


def wait_for(read, expected):
    """Waits for a reply, because the server reads the files in the background."""
    end = time.monotonic() + WAIT_SECONDS
    while read() != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert read() == expected


def read_runs(address):
    return sorted(json.loads(urlopen(f"{address}data/runs").read()))


def read_steps(address, run):
    """Returns the steps of the run's first curve."""
    charts = f"{address}data/plugin/scalars"
    tags = json.loads(urlopen(f"{charts}/tags").read()).get(run)
    if not tags:
        return []
    query = urlencode({"run": run, "tag": min(tags)})
    return [step for _, step, _ in json.loads(urlopen(f"{charts}/scalars?{query}").read())]


def stop(server, signum):
    server.send_signal(signum)
    _, errors = server.communicate(timeout=WAIT_SECONDS)
    return server.returncode, errors


@pytest.mark.process
def test_the_server_shows_runs_that_start_and_continue(sweep, tmp_path):
    server, shown = start(sweep, tmp_path)
    try:
        address = shown["address"]
        assert address.startswith("http://127.0.0.1:")
        assert list(shown["runs"]) == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
        wait_for(lambda: read_runs(address), ["optimizer.lr=0.1"])
        write_events(sweep.parents[1] / "a", 2)
        wait_for(lambda: read_steps(address, "optimizer.lr=0.1"), [1, 2])
        write_events(write_typed_run(sweep.parents[1] / "b"), 1)
        wait_for(lambda: read_runs(address), ["optimizer.lr=0.1", "optimizer.lr=0.2"])
    finally:
        stop(server, signal.SIGTERM)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.process
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_ends_the_server_and_leaves_nothing_behind(sweep, tmp_path, signum, code):
    server, _ = start(sweep, tmp_path)
    error = f"vggexp: stopped by {signum.name} while it served: the same command serves again\n"
    assert stop(server, signum) == (code, error)
    assert not list((tmp_path / "tmp").iterdir())


SERVE = """
import sys
from pathlib import Path
from vggexp.tensorboard.server import start_server
print(start_server(Path(sys.argv[1]), None, sys.argv[2]), flush=True)
sys.stdin.read()
"""


@pytest.mark.process
@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_both_loaders_follow_the_links(sweep, tmp_path, load_fast):
    link_event_files({sweep.parents[1] / "a": "arch=vgg11,seed=1"}, tmp_path / "links")
    command = [sys.executable, "-c", SERVE, str(tmp_path / "links"), load_fast]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        address = server.stdout.readline().strip()
        wait_for(lambda: read_runs(address), ["arch=vgg11,seed=1"])
        server.stdin.close()


def test_a_port_in_use_is_an_error_in_one_line(sweep, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([str(sweep), "--port", str(port)]) == 2
    advice = "in use; choose another, or leave it out for a free one"
    assert capsys.readouterr().err == f"vggexp: error: --port {port}: {advice}\n"


def test_without_tensorboard_the_error_names_the_package(sweep, capsys, monkeypatch):
    monkeypatch.setattr("vggexp.tensorboard.__main__.find_spec", lambda name: None)
    assert main([str(sweep)]) == 2
    error = "TensorBoard is not installed; pip install tensorboard"
    assert capsys.readouterr().err == f"vggexp: error: {error}\n"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ([], 2, "the following arguments are required: DIR; see --help"),
        (["nowhere"], 2, "nowhere: no such directory"),
        ([__file__], 2, f"{__file__}: not a directory"),
        (["."], 3, ".: holds no run (a run is a folder with config.yaml and result.json)"),
        ([".", "--port", "0"], 2, "argument --port: 0: expected 1..65535; see --help"),
    ],
)
def test_a_wrong_command_is_an_error_in_one_line(words, code, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert capsys.readouterr().err == f"vggexp: error: {error}\n"


def test_the_command_prints_the_address(tmp_path):
    text = describe("http://127.0.0.1:6006/", {tmp_path: "a"}, as_json=False)
    assert text == "1 run at http://127.0.0.1:6006/  (Ctrl-C ends the server)"
