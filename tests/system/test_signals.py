"""Stop signals set a flag. Handlers of other libraries are called after the run has saved."""

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import full_pipe
from vggexp.errors import StoppedError, WaitStoppedError
from vggexp.system import signals
from vggexp.system.signals import (
    call_in_thread,
    end_on_interrupt,
    handle_stop_signals,
    interruptible,
    time_limit,
)


@pytest.fixture
def install_handler():
    """install_handler(call): calls `call` at SIGUSR2, as another library would."""
    before = signal.getsignal(signal.SIGUSR2)
    yield lambda call: signal.signal(signal.SIGUSR2, lambda signum, frame: call())
    signal.signal(signal.SIGUSR2, before)


def stop_by_signal(events: list[str]) -> None:
    """Gets SIGUSR2 twice, and saves before the run stops."""
    with (
        pytest.raises(StoppedError, match="stopped by SIGUSR2 at step 1"),
        handle_stop_signals() as stop,
    ):
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        events.append("saved")
        stop.check("at step 1")


def test_an_earlier_handler_is_called_after_the_save(install_handler):
    events: list[str] = []
    install_handler(lambda: events.append("handed back"))
    stop_by_signal(events)
    assert events == ["saved", "handed back"]


def test_another_thread_gets_a_flag_that_stays_unset():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with handle_stop_signals() as stop, interruptible("while a file was read"):
            seen.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_an_earlier_handler_may_end_the_process(install_handler):
    """submitit's handler does so, after it has asked Slurm to requeue the job."""
    install_handler(lambda: exit(-1))
    with pytest.raises(SystemExit), handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        stop.check("at step 1")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, print])
def test_an_import_changes_only_pythons_own_handler_of_ctrl_c(handler):
    earlier = signal.signal(signal.SIGINT, handler)
    try:
        with end_on_interrupt():
            inside = signal.getsignal(signal.SIGINT)
        after = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, earlier)
    is_pythons = handler is signal.default_int_handler
    assert inside == (signal.SIG_DFL if is_pythons else handler)
    assert after == handler


def test_an_error_of_an_earlier_handler_is_printed(install_handler, capsys):
    def raise_error() -> None:
        raise RuntimeError("timed-out too many times\n\x1b[2J")

    install_handler(raise_error)
    stop_by_signal([])
    assert capsys.readouterr().err == "vggexp: SIGUSR2: timed-out too many times \\x1b[2J\n"


@pytest.fixture
def short_grace(monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.01)


@pytest.fixture
def empty_pipe():
    """The end of a pipe that nothing is written to: a read waits for ever."""
    ends = os.pipe()
    yield ends[0]
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("is_before", [True, False])
def test_a_signal_ends_a_wait(is_before, short_grace, empty_pipe):
    def send_signal():
        os.kill(os.getpid(), signal.SIGTERM)

    alarm_handler = signal.getsignal(signal.SIGALRM)
    with handle_stop_signals():
        if is_before:
            send_signal()
        else:
            threading.Timer(0.05, send_signal).start()
        message = "stopped by SIGTERM while asleep: run the same command to continue"
        with pytest.raises(WaitStoppedError, match=message), interruptible("while asleep"):
            with pytest.raises(WaitStoppedError, match="awake"), interruptible("while awake"):
                os.read(empty_pipe, 1)
            os.read(empty_pipe, 1)  # the end of the inner block does not end the outer one's limit
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == alarm_handler


def test_a_signal_ends_the_wait_for_a_call_in_a_thread(short_grace):
    release = threading.Event()
    with handle_stop_signals(), pytest.raises(WaitStoppedError), interruptible("while asleep"):
        os.kill(os.getpid(), signal.SIGTERM)
        call_in_thread(release.wait)
    release.set()


def test_a_call_in_a_thread_returns_or_raises():
    assert call_in_thread(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_in_thread(lambda: 1 // 0)


def test_a_wait_without_a_signal_goes_on(short_grace, empty_pipe):
    with handle_stop_signals(), interruptible("while asleep"):
        time.sleep(0.05)
    with interruptible("while asleep"):  # nothing handles the signals
        time.sleep(0.05)


def test_a_time_limit(empty_pipe):
    with pytest.raises(TimeoutError), time_limit(0.01):
        os.read(empty_pipe, 1)


def test_a_second_ctrl_c_stops_at_once_whatever_came_first():
    with handle_stop_signals() as stop:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        assert not stop.at_once
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.at_once
        assert stop.signal == signal.SIGTERM


@contextlib.contextmanager
def terminal(monkeypatch):
    """Makes a terminal stderr; yields the function that reads what was printed within 5 s."""
    master, slave = os.openpty()

    def read() -> str:
        is_there, _, _ = select.select([master], [], [], 5)
        return os.read(master, 1000).decode().replace("\r", "") if is_there else ""

    with open(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield read
    os.close(master)


def test_the_first_ctrl_c_is_acknowledged_once(monkeypatch):
    with terminal(monkeypatch) as read, handle_stop_signals("stopping") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert read() == "\nstopping\n"
        assert stop.acknowledgement == ""


def test_a_ctrl_c_is_acknowledged_during_a_long_call(monkeypatch):
    """Python's handler runs after the call, so the flag is not set yet."""
    seen = []
    with terminal(monkeypatch) as read, handle_stop_signals("stopping", long_calls=True) as stop:
        reader = threading.Thread(target=lambda: seen.append((read(), stop.signal)))
        reader.start()
        threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 1_000_000)  # releases the interpreter's lock
        reader.join()
        assert seen == [("\nstopping\n", None)]
        assert stop.signal == signal.SIGINT
    assert signal.set_wakeup_fd(-1) == -1


def test_a_reader_that_does_not_read_gets_no_acknowledgement(monkeypatch):
    read_end, write_end = full_pipe()
    with open(write_end, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with handle_stop_signals("stopping") as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == signal.SIGINT
    os.close(read_end)


INTERRUPTED = """
import sys
from vggexp import __main__, cli

def interrupt(*_):
    exec("raise KeyboardInterrupt")  # as in the code that dataclasses generate at import

__main__.parse_command = interrupt
if sys.argv[1] == "vggexp":
    sys.exit(__main__.main([]))
sys.exit(cli.run(interrupt, "stopped"))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "message"),
    [("vggexp", "vggexp: stopped at once"), ("other", "vggexp: error: stopped")],
)
def test_ctrl_c_at_an_import_ends_with_the_exit_code(tmp_path, command, message):
    """Without clear_pending_interrupt CPython would end the process by the signal."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    process = subprocess.run(
        [sys.executable, "-m", "interrupted", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 130
    assert process.stderr == f"{message}\n"


def test_the_first_signal_stays():
    with handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGTERM
        assert not stop.at_once


def test_a_second_ctrl_c_stops_at_once():
    with handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.at_once


def test_a_forked_process_does_not_handle_the_signals():
    with handle_stop_signals() as stop:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if stop.signal is None else 1)
        assert os.waitpid(pid, 0)[1] == 0
