"""Lines and progress of a run on the terminal and in run.log."""

import io
import logging
import os
import resource
import signal
import subprocess
import sys

import pytest
import tqdm

from tests.conftest import full_pipe
from vggexp.loggers import console as console_module
from vggexp.loggers.console import Console, LaterEpochs, print_text
from vggexp.system import signals

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
    """A clock that only the test moves: a list with the time in seconds."""
    seconds = [0.0]
    monkeypatch.setattr(console_module, "monotonic", lambda: seconds[0])
    return seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({}, "epoch 1/5  loss 2.1394  train acc 0.2708  lr 0.01  102.3 s  74.1 img/s"),
        (
            {"val/accuracy": 0.58541},
            "epoch 1/5  loss 2.1394  train acc 0.2708  val acc 0.5854  lr 0.01  102.3 s  "
            "74.1 img/s",
        ),
        (
            {"test/accuracy": 0.5},
            "epoch 1/5  loss 2.1394  train acc 0.2708  test acc 0.5000  lr 0.01  102.3 s  "
            "74.1 img/s",
        ),
        (
            {"train/loss": 294394365291751296.0},
            "epoch 1/5  loss 2.944e+17  train acc 0.2708  lr 0.01  102.3 s  74.1 img/s",
        ),
        (
            {"train/loss": None},
            "epoch 1/5  loss nan  train acc 0.2708  lr 0.01  102.3 s  74.1 img/s",
        ),
    ],
)
def test_the_line_of_an_epoch_is_printed_and_logged(tmp_path, capsys, metrics, line):
    Console(tmp_path / "run.log").epoch(EPOCH | metrics, 5)
    assert capsys.readouterr().out == line + "\n"
    assert (tmp_path / "run.log").read_text() == line + "\n"


def test_without_a_terminal_there_is_a_line_each_minute(tmp_path, clock):
    out = io.StringIO()
    with Console(tmp_path / "run.log", out).progress("epoch 2/5", 60) as progress:
        for _ in range(60):
            clock[0] += 5.0
            progress.update(images=370)
    lines = out.getvalue().splitlines()
    assert lines[0] == "epoch 2/5  batch 12/60  74.0 img/s  4.0 min left"
    assert [int(line.split()[3].split("/")[0]) for line in lines] == [12, 24, 36, 48, 60]
    assert (tmp_path / "run.log").read_text() == out.getvalue()


def test_a_resumed_pass_counts_on_and_the_first_minute_has_no_line(clock):
    out = io.StringIO()
    with Console(None, out).progress("validation", 4, done=2) as progress:
        clock[0] = 20
        progress.update(images=10)
        assert out.getvalue() == ""
        clock[0] = 80
        progress.update(images=10)
    assert out.getvalue() == "validation  batch 4/4  0.2 img/s  0.0 s left\n"


def test_the_time_left_includes_the_later_epochs(clock):
    out = io.StringIO()
    for epoch_seconds, rest_seconds in ((None, 0), (900, 60)):
        later = LaterEpochs(2, epoch_seconds, rest_seconds)
        with Console(None, out).progress("epoch 1/3", 10, later=later) as progress:
            clock[0] += 100
            progress.update(images=100)
    left = [line.split("  ")[-1] for line in out.getvalue().splitlines()]
    assert left == ["48.3 min left", "47.0 min left"]


def test_the_loss_is_read_only_for_a_line_that_is_due(clock):
    out = io.StringIO()
    reads = []

    def loss() -> float:
        reads.append(clock[0])
        return 0.51

    with Console(None, out).progress("epoch 1/1", 100) as progress:
        for _ in range(100):
            clock[0] += 1
            progress.update(8, loss)
    assert out.getvalue() == "epoch 1/1  batch 60/100  loss 0.5100  8.0 img/s  40.0 s left\n"
    assert len(reads) == 1


def test_a_bar_reads_the_loss_once_a_second(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    losses = iter([2.0, 1.0, 0.5])
    with Console(None, io.StringIO()).progress("epoch 1/1", 30) as progress:
        for _ in range(30):
            clock[0] += 0.1
            progress.update(8, losses.__next__)
    assert list(losses) == []


def test_an_evaluation_shows_its_progress(clock):
    out = io.StringIO()

    def batches():
        for index in range(4):
            clock[0] += 40
            yield [index] * 5, [0] * 5

    tracked = Console(None, out).track("test", batches(), 4)
    assert [images[0] for images, _ in tracked] == [0, 1, 2, 3]
    positions = [line.split("  ")[:2] for line in out.getvalue().splitlines()]
    assert positions == [["test", f"batch {index}/4"] for index in (1, 2, 3, 4)]


def test_a_bar_leaves_lines_complete(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    console = Console(None)
    with console.progress("epoch 1/2", 3) as progress:
        progress.update(images=8)
        console.line("checkpoint written")
    assert "epoch 1/2" in terminal.getvalue()
    assert "/3 batches" in terminal.getvalue()
    assert "\rcheckpoint written\n" in terminal.getvalue()


def test_neither_a_bar_nor_a_line_takes_a_lock_that_processes_share(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delattr(tqdm.tqdm, "_lock", raising=False)
    monkeypatch.delattr(tqdm.std.TqdmDefaultWriteLock, "mp_lock", raising=False)
    console = Console(None)
    with console.progress("epoch 1/2", 3):
        console.line("checkpoint written")
    assert not hasattr(tqdm.std.TqdmDefaultWriteLock, "mp_lock")


def test_ranks_above_zero_print_nothing(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console(None, terminal, rank=1)
    with console.progress("epoch 1/2", 3) as progress:
        console.line("checkpoint written")
        progress.update(images=8)
    assert terminal.getvalue() == ""


def test_each_console_prints_to_its_own_stream():
    streams = [io.StringIO(), io.StringIO()]
    consoles = [Console(None, stream) for stream in streams]
    for index in (0, 1, 0):
        consoles[index].line(f"from {index}")
    assert streams[0].getvalue() == "from 0\nfrom 0\n"
    assert streams[1].getvalue() == "from 1\n"


@pytest.fixture
def logger():
    """The logger `vggexp` in its state before the first console."""
    logger = logging.getLogger("vggexp")
    level = logger.level
    logger.setLevel(logging.NOTSET)
    yield logger
    logger.setLevel(level)


def test_a_program_can_redirect_the_lines(logger, capsys):
    copy = io.StringIO()
    handler = logging.StreamHandler(copy)
    logger.addHandler(handler)
    Console(None).line("100 % done")
    logger.removeHandler(handler)
    assert copy.getvalue() == "100 % done\n"
    assert capsys.readouterr().out == "100 % done\n"


def test_a_program_can_silence_a_run(logger, tmp_path, capsys):
    logger.setLevel(logging.WARNING)
    Console(tmp_path / "run.log").line("epoch")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run.log").exists()


def test_logging_of_other_libraries_costs_no_line(logger, tmp_path, capsys, monkeypatch):
    """runner.launch disables logging while it starts ranks."""
    root_output = io.StringIO()
    root_handler = logging.StreamHandler(root_output)
    logging.getLogger().addHandler(root_handler)
    monkeypatch.setattr(logger, "disabled", True)
    logging.disable(logging.CRITICAL)
    try:
        Console(tmp_path / "run.log").line("epoch")
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger().removeHandler(root_handler)
    assert capsys.readouterr().out == "epoch\n"
    assert (tmp_path / "run.log").read_text() == "epoch\n"
    assert root_output.getvalue() == ""


PRINT_TO_A_CLOSED_PIPE = """
import pathlib, sys
from vggexp.loggers.console import Console
from vggexp.system import signals
console = Console(pathlib.Path(sys.argv[1]))
sys.stdin.read()
for index in range(3):
    console.line(f"line {index}")
assert "torch" not in sys.modules
assert "tqdm" not in sys.modules
"""


@pytest.mark.process
def test_a_closed_pipe_changes_neither_the_log_nor_the_exit_code(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT_TO_A_CLOSED_PIPE, str(tmp_path / "run.log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    assert (tmp_path / "run.log").read_text() == "line 0\nline 1\nline 2\n"


@pytest.mark.process
def test_importing_the_console_configures_no_logging():
    program = """
import logging, vggexp.loggers.console
logger = logging.getLogger("vggexp")
assert not logging.getLogger().handlers
assert not logger.handlers
assert not logger.filters
assert logger.propagate
assert logger.level == logging.NOTSET
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_full_disk_is_one_warning(tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    console = Console(tmp_path / "run.log")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        console.line("one")
        console.line("two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    first, warning, second = capsys.readouterr().out.splitlines()
    assert first == "one"
    assert second == "two"
    assert "File too large" in warning


def test_a_run_log_is_not_written_through_a_link(tmp_path, capsys):
    notes = tmp_path / "notes"
    notes.write_text("mine")
    (tmp_path / "run.log").symlink_to(notes)
    Console(tmp_path / "run.log").line("one")
    first, warning = capsys.readouterr().out.splitlines()
    assert first == "one"
    assert "run.log: a link, and no file is written through links; remove it" in warning
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_text_from_a_file_stays_one_line(encoding):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")
    Console(None, terminal).line("a\n\x1b[2J\u202e\udc80")
    assert terminal.buffer.getvalue() == b"a\\n\\x1b[2J\\u202e\\udc80\n"


def test_a_result_for_a_terminal_without_unicode_is_printed(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii", newline="\n")
    monkeypatch.setattr("sys.stdout", terminal)
    print_text("0.5 \xb1 0.1\n\udc80\x1b[2J")
    assert terminal.buffer.getvalue() == b"0.5 \\xb1 0.1\n\\udc80\\x1b[2J\n"


def test_a_terminal_without_unicode_gets_escapes(tmp_path):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii", newline="\n")
    Console(tmp_path / "run.log", terminal).line("class 猫")
    assert terminal.buffer.getvalue() == b"class \\u732b\n"
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "class 猫\n"


def test_after_a_stop_signal_a_reader_that_does_not_read_holds_up_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.01)
    read_end, write_end = full_pipe()
    with open(write_end, "w") as stream, signals.handle_stop_signals():
        console = Console(tmp_path / "run.log", stream)
        os.kill(os.getpid(), signal.SIGTERM)
        console.line("first")
        console.line("second")
        assert os.fstat(write_end).st_rdev == os.stat(os.devnull).st_rdev
    assert (tmp_path / "run.log").read_text() == "first\nsecond\n"
    os.close(read_end)
