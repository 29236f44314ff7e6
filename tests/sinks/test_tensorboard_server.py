"""The real server over HTTP on two runs, with both of its loaders."""

import json
import re
import subprocess
import sys
import threading
import time
from queue import Queue
from urllib.request import Request, urlopen

import pytest

from vggexp.sinks.tensorboard import TensorBoard

WAIT_SECONDS = 60
STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
EVERY_ROW = {"allowedStatuses": STATUSES, "colParams": [], "startIndex": 0, "sliceSize": 9}


def row(epoch):
    return {
        "epoch": epoch,
        "step": epoch,
        "train/loss": 1.0 / epoch,
        "val/loss": 2.0 / epoch,
        "time/epoch_seconds": 9.0,
    }


def record(folder, hparams, rows, ok):
    folder.mkdir(exist_ok=True)
    board = TensorBoard(folder, hparams, rows, pytest.fail)
    board.epoch(row(len(rows) + 1))
    board.final({"test/accuracy": 0.5}, len(rows) + 1)
    board.close(ok)


@pytest.fixture(params=["auto", "false"])
def ask(request, tmp_path):
    """The server's answer, as soon as both runs are loaded."""
    record(tmp_path / "a", {"lr": 0.1, "compile": True}, [row(1)], ok=True)
    record(tmp_path / "b", {"lr": 0.2, "compile": False}, [], ok=True)
    record(tmp_path / "b", {"lr": 0.2, "compile": False}, [row(1)], ok=False)  # continued, then failed
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(tmp_path),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    server = subprocess.Popen([*command, f"--load_fast={request.param}"], stderr=subprocess.PIPE, text=True)
    lines = Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in server.stderr], daemon=True)
    reader.start()
    try:
        yield answering(address(lines))
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)
        reader.join(10)
        server.stderr.close()


def address(lines):
    while True:
        found = re.search(r"http://127\.0\.0\.1:\d+", lines.get(timeout=WAIT_SECONDS))
        if found:
            return found[0]


def answering(server):
    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{server}/data/{path}", data, {"Content-Type": "application/json"}), timeout=20) as reply:
            return json.load(reply)

    deadline = time.monotonic() + WAIT_SECONDS
    while sorted(statuses(ask).values()) != ["STATUS_FAILURE", "STATUS_SUCCESS"] and time.monotonic() < deadline:
        time.sleep(0.2)
    return ask


def statuses(ask):
    groups = ask("plugin/hparams/session_groups", EVERY_ROW)["sessionGroups"]
    return {group["name"]: session["status"] for group in groups for session in group["sessions"]}


def test_both_loaders_show_a_row_a_run_and_every_point_once(ask):
    assert sorted(ask("runs")) == ["a", "b"]
    tags = ask("plugin/scalars/tags")
    assert tags["a"].keys() == tags["b"].keys() == row(1).keys() - {"epoch", "step"} | {"test/accuracy"}
    for run in "ab":
        points = ask(f"plugin/scalars/scalars?run={run}&tag=train/loss")
        assert [(step, value) for _, step, value in points] == [(1, 1.0), (2, 0.5)]

    infos = ask("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"]: info["type"] for info in infos["hparamInfos"]} == {
        "lr": "DATA_TYPE_FLOAT64",
        "compile": "DATA_TYPE_BOOL",
    }
    assert {info["name"]["tag"] for info in infos["metricInfos"]} == tags["a"].keys()

    rows = {group["name"]: group for group in ask("plugin/hparams/session_groups", EVERY_ROW)["sessionGroups"]}
    assert statuses(ask) == {"a": "STATUS_SUCCESS", "b": "STATUS_FAILURE"} and rows.keys() == {"a", "b"}
    assert rows["a"]["hparams"] == {"lr": 0.1, "compile": True}
    metrics = {metric["name"]["tag"]: metric["value"] for metric in rows["b"]["metricValues"]}
    assert (metrics["train/loss"], metrics["test/accuracy"]) == (0.5, 0.5)

    (category,) = ask("plugin/custom_scalars/layout")["category"]
    assert category["chart"][0]["multiline"]["tag"] == ["train/loss", "val/loss", "test/loss"]
