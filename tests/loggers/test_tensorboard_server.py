"""Asks the real server over HTTP, with both of its loaders, and looks at it in a browser."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from queue import Queue
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from tools import chromium
from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.tensorboard import TensorBoardLogger, scalar_tag
from vggexp.sweep.tensorboard import write_means

pytestmark = pytest.mark.process

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
    table = HParamsTable(hparams, sorted(hparams)[-1:], sorted(hparams)[-1:])
    steps = [{"epoch": 1, "step": 5, "loss": 1.5}]
    logger = TensorBoardLogger(folder, table, rows, pytest.fail, steps)
    logger.step({"epoch": 2, "step": 10, "loss": 1.0})
    logger.epoch(row(len(rows) + 1))
    logger.final({"test/accuracy": 0.5}, len(rows) + 1)
    logger.close(ok)


@pytest.fixture(scope="module", params=["auto", "false"])
def two_runs(request, tmp_path_factory):
    """The folder of two runs, and ask(path) -> the server's reply, after both are loaded."""
    root = tmp_path_factory.mktemp("two")
    record(root / "a", {"lr": 0.1, "compile": True}, [row(1)], ok=True)
    record(root / "b", {"lr": 0.2, "compile": False}, [], ok=True)
    # Resumed, then failed.
    record(root / "b", {"lr": 0.2, "compile": False}, [row(1)], ok=False)
    with serve(root, f"--load_fast={request.param}", "--reload_interval=1") as server:
        yield (
            root,
            client(
                server,
                lambda ask: sorted(statuses(ask).values()) == ["STATUS_FAILURE", "STATUS_SUCCESS"],
            ),
        )


@contextlib.contextmanager
def serve(logdir, *flags):
    """Yields the address of a server on this folder."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logdir),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    server = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    lines = Queue()
    reader = threading.Thread(
        target=lambda: [lines.put(line) for line in server.stderr], daemon=True
    )
    reader.start()
    try:
        yield read_address(lines)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)
        reader.join(10)
        server.stderr.close()


def read_address(lines):
    while True:
        match = re.search(r"http://127\.0\.0\.1:\d+", lines.get(timeout=WAIT_SECONDS))
        if match:
            return match[0]


def client(server, ready):
    """Returns a function that requests JSON, after `ready` is true for this function."""

    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urlopen(
            Request(f"{server}/data/{path}", data, {"Content-Type": "application/json"}), timeout=20
        ) as reply:
            return json.load(reply)

    wait(lambda: ready(ask))
    return ask


def wait(ready):
    deadline = time.monotonic() + WAIT_SECONDS
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.2)


def statuses(ask):
    groups = ask("plugin/hparams/session_groups", EVERY_ROW)["sessionGroups"]
    return {group["name"]: session["status"] for group in groups for session in group["sessions"]}


def test_both_loaders_show_each_run_and_each_point_once(two_runs):
    _, ask = two_runs
    assert sorted(ask("runs")) == ["a", "b"]
    tags = ask("plugin/scalars/tags")
    assert tags["a"].keys() == tags["b"].keys()
    keys = row(1).keys() - {"epoch", "step"} | {"test/accuracy"}
    assert tags["b"].keys() == {scalar_tag(key) for key in keys} | {"step/loss"}
    for run in "ab":
        points = ask(f"plugin/scalars/scalars?run={run}&tag=loss/train")
        assert [(step, value) for _, step, value in points] == [(1, 1.0), (2, 0.5)]
        points = ask(f"plugin/scalars/scalars?run={run}&tag=step/loss")
        assert [(step, value) for _, step, value in points] == [(5, 1.5), (10, 1.0)]

    infos = ask("plugin/hparams/experiment", {"experimentName": ""})
    types = {info["name"]: info["type"] for info in infos["hparamInfos"]}
    assert types == {"lr": "DATA_TYPE_FLOAT64"}
    scores = [info["name"]["tag"] for info in infos["metricInfos"]]
    assert scores == ["accuracy/val", "accuracy/test", "loss/val", "loss/test"]

    rows = {
        group["name"]: group
        for group in ask("plugin/hparams/session_groups", EVERY_ROW)["sessionGroups"]
    }
    assert statuses(ask) == {"a": "STATUS_SUCCESS", "b": "STATUS_FAILURE"}
    assert rows.keys() == {
        "a",
        "b",
    }
    assert rows["a"]["hparams"] == {"lr": 0.1, "compile": True}
    metrics = {metric["name"]["tag"]: metric["value"] for metric in rows["b"]["metricValues"]}
    assert (metrics["loss/val"], metrics["accuracy/test"]) == (1.0, 0.5)

    sections = ask("plugin/custom_scalars/layout")["category"]
    titles = {section["title"]: len(section["chart"]) for section in sections}
    assert titles == {"accuracy": 3, "loss": 3, "time": 2}


def test_both_loaders_show_the_epochs_of_a_run_that_continues(two_runs):
    """Stands after the test above, which reads the run before this epoch."""
    root, ask = two_runs

    def steps():
        points = ask("plugin/scalars/scalars?run=a&tag=loss/train")
        return [step for _, step, _ in points]

    record(root / "a", {"lr": 0.1, "compile": True}, [row(1), row(2)], ok=True)
    wait(lambda: len(steps()) == 3)
    assert steps() == [1, 2, 3]


LABELS = ["arch.norm=batch,arch.hidden=[16]", "arch.norm=none,arch.hidden=[16]"]
SWEEP = "sweeps/norm-seed"
SETTING = f"{SWEEP}/repeats/{LABELS[0]}"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A server on two runs and their sweep: folder, address, and a function that asks."""
    root = tmp_path_factory.mktemp("outputs")
    for seed in (0, 1):
        record(root / f"vgg11-seed{seed}", {"arch.norm": "batch", "seed": seed}, [row(1)], ok=True)
    (root / SWEEP).mkdir(parents=True)
    write_means(root / SWEEP, dict.fromkeys(LABELS, [[row(1), row(2)]] * 2))
    with serve(root, "--reload_interval=1") as server:
        yield (
            root,
            server,
            client(server, lambda ask: len(ask("runs")) == 4 and len(layout(ask)) == 5),
        )


def layout(ask):
    """Returns the charts of the Custom Scalars tab: section -> title -> regular expression."""
    sections = {}
    for category in ask("plugin/custom_scalars/layout").get("category", []):
        charts = {chart["title"]: chart["multiline"]["tag"][0] for chart in category["chart"]}
        sections[category["title"]] = charts
    return sections


def test_each_setting_of_a_sweep_is_one_more_run_without_hyperparameters(sweep):
    _, _, ask = sweep
    settings = [f"{SWEEP}/repeats/{label}" for label in LABELS]
    assert sorted(ask("runs")) == [*settings, "vgg11-seed0", "vgg11-seed1"]
    assert statuses(ask).keys() == {"vgg11-seed0", "vgg11-seed1"}


@pytest.mark.parametrize(
    ("section", "chart", "lines"),
    [
        ("loss", "loss, validation", {"vgg11-seed0": 1, "vgg11-seed1": 1}),
        ("mean over the seeds", "val/loss", {SETTING: 1}),
        ("mean and one sd below and above", "val/loss", {SETTING: 3}),
    ],
)
def test_a_chart_has_the_lines_of_its_runs_only(sweep, section, chart, lines):
    _, _, ask = sweep
    found = {}
    for run in ("vgg11-seed0", "vgg11-seed1", SETTING):
        query = urlencode({"run": run, "tag": layout(ask)[section][chart]})
        tags = ask(f"plugin/custom_scalars/scalars?{query}")["tag_to_events"]
        if tags:
            found[run] = len(tags)
    assert found == lines


def test_a_server_shows_the_means_that_replace_earlier_ones(sweep):
    root, _, ask = sweep

    def points():
        mean = urlencode({"run": SETTING, "tag": "repeats/loss/val"})
        return [point[1:] for point in ask(f"plugin/scalars/scalars?{mean}")]

    assert points() == [[1, 2.0], [2, 1.0]]
    write_means(root / SWEEP, {LABELS[0]: [[row(1) | {"val/loss": 8.0}, row(2)]] * 2})
    wait(lambda: points() == [[1, 8.0], [2, 1.0]])
    assert points() == [[1, 8.0], [2, 1.0]]


def load_in_chromium(folder, address, *flags):
    command = [
        *chromium.COMMAND,
        *flags,
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1500,1000",
        "--virtual-time-budget=15000",
    ]
    return subprocess.run(
        [*command, address], capture_output=True, text=True, timeout=120, check=True
    ).stdout


@pytest.mark.browser
def test_in_a_browser(sweep, tmp_path):
    """Names appear in the text of the page; charts in shadow trees change the colors."""
    _, server, _ = sweep
    page = load_in_chromium(tmp_path, f"{server}/#timeseries", "--dump-dom")
    for name in ("vgg11-seed0", "vgg11-seed1", SWEEP, "loss/train", LABELS[0]):
        assert name in page
    screenshots = {}
    for tab in ("hparams", "custom_scalars"):
        load_in_chromium(tmp_path, f"{server}/#{tab}", f"--screenshot={tmp_path / tab}.png")
        screenshots[tab] = Image.open(tmp_path / f"{tab}.png").convert("RGB")
    charts = screenshots["custom_scalars"].crop((320, 60, 1500, 1000))  # without header and sidebar
    assert len(charts.getcolors(1 << 24)) > 200  # 15 without charts
    header, views = (screenshots["hparams"].getpixel((450, height)) for height in (10, 75))
    assert header == views  # the bar of views exists only if there is a table
