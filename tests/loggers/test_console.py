import io
import os
import subprocess
import sys

import pytest

from vggexp.formatting import duration, error_line
from vggexp.loggers import console
from vggexp.loggers.console import Console

EPOCH = {
    "epoch": 1,
    "step": 469,
    "lr": 0.01,
    "train/loss": 2.13942,
    "train/accuracy": 0.27079,
    "images_per_second": 74.08,
    "time/epoch_seconds": 102.3,
}


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds that only the test moves."""
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0.0 s"), (102.3, "102.3 s"), (234, "3.9 min"), (744, "12.4 min"), (11160, "3.1 h")],
)
def test_duration_carries_its_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "extra, line",
    [
        ({}, "epoch 1/5  loss 2.1394  train acc 0.2708  lr 0.01  102.3 s  74.1 img/s"),
        (
            {"val/accuracy": 0.58541},
            "epoch 1/5  loss 2.1394  train acc 0.2708  val acc 0.5854  lr 0.01  102.3 s  74.1 img/s",
        ),
        (
            {"test/accuracy": 0.5},
            "epoch 1/5  loss 2.1394  train acc 0.2708  test acc 0.5000  lr 0.01  102.3 s  74.1 img/s",
        ),
        (
            {"train/loss": None},
            "epoch 1/5  loss nan  train acc 0.2708  lr 0.01  102.3 s  74.1 img/s",
        ),
    ],
)
def test_epoch_line_is_printed_and_logged(tmp_path, capsys, extra, line):
    Console(tmp_path / "run.log").epoch(EPOCH | extra, 5)
    assert capsys.readouterr().out == line + "\n" == (tmp_path / "run.log").read_text()


def test_an_error_is_one_line_whatever_it_holds():
    assert error_line("a\nb\x1b[2J\u2028\udc80é猫") == r"vggexp: error: a\nb\x1b[2J\u2028\udc80é猫"


def test_without_a_terminal_a_line_a_minute(tmp_path, clock):
    out = io.StringIO()
    said = Console(tmp_path / "run.log", out)
    with said.progress("epoch 2/5", 60) as progress:
        for _ in range(60):
            clock[0] += 5.0
            progress.update(images=370)
    lines = out.getvalue().splitlines()
    assert lines[0] == "epoch 2/5  batch 12/60  74.0 img/s  4.0 min left"
    assert [int(line.split()[3].split("/")[0]) for line in lines] == [12, 24, 36, 48, 60]
    assert (tmp_path / "run.log").read_text() == out.getvalue()


def test_short_epochs_stay_silent_and_a_continued_one_counts_on(clock):
    out = io.StringIO()
    said = Console(None, out)
    with said.progress("validation", 4, done=2) as progress:
        clock[0] = 20
        progress.update(images=10)
        assert out.getvalue() == ""
        clock[0] = 80
        progress.update(images=10)
    assert out.getvalue() == "validation  batch 4/4  0.2 img/s  0.0 s left\n"


def test_a_pass_that_is_not_training_is_told_too(clock):
    out = io.StringIO()

    def batches():
        for number in range(4):
            clock[0] += 40
            yield [number] * 5, [0] * 5

    assert [images[0] for images, _ in Console(None, out).counted("test", batches(), 4)] == [
        0,
        1,
        2,
        3,
    ]
    assert [line.split("  ")[:2] for line in out.getvalue().splitlines()] == [
        ["test", f"batch {n}/4"] for n in (1, 2, 3, 4)
    ]


def test_bar_on_a_terminal_leaves_lines_whole(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    said = Console(None)
    with said.progress("epoch 1/2", 3) as progress:
        progress.update(images=8)
        said.line("checkpoint written")
    assert "epoch 1/2" in screen.getvalue() and "/3 batches" in screen.getvalue()
    assert "\rcheckpoint written\n" in screen.getvalue()


def test_a_reader_that_leaves_changes_neither_log_nor_exit_code(tmp_path):
    program = f"""
import pathlib, sys, time
from vggexp.loggers.console import Console
said = Console(pathlib.Path({str(tmp_path / "run.log")!r}))
sys.stdin.read()
for i in range(3): said.line(f"line {{i}}")
assert "torch" not in sys.modules and "tqdm" not in sys.modules
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()
    child.stdin.close()
    assert (child.wait(60), child.stderr.read()) == (0, b"")
    child.stderr.close()
    assert (tmp_path / "run.log").read_text() == "line 0\nline 1\nline 2\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told_once(tmp_path, capsys):
    (tmp_path / "run.log").symlink_to("/dev/full")
    said = Console(tmp_path / "run.log")
    said.line("one")
    said.line("two")
    out = capsys.readouterr().out.splitlines()
    assert (out[0], out[2]) == ("one", "two") and "No space left" in out[1]


def test_a_terminal_without_unicode_gets_escapes(tmp_path):
    screen = io.TextIOWrapper(io.BytesIO(), "ascii", newline="\n")
    Console(tmp_path / "run.log", screen).line("class 猫")
    assert screen.buffer.getvalue() == b"class \\u732b\n"
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "class 猫\n"
