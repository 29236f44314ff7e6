"""A forked call: its exit code, its output, its signals."""

import os
import signal
import time

import pytest

from vggexp.system.processes import fork_call, poll, signal_name
from vggexp.system.signals import handle_stop_signals


def wait(pid):
    while (code := poll(pid)) is None:
        time.sleep(0.001)
    return code


def fail():
    raise RuntimeError("a bug")


def exit_with_text():
    raise SystemExit("text")


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda: 0, 0),
        (lambda: 7, 7),
        (lambda: exit(3), 3),
        (exit_with_text, 1),
        (interrupt, 130),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
    ],
)
def test_the_exit_code(call, code):
    assert wait(fork_call(call)) == code


def test_a_bug_is_code_1_and_a_traceback(tmp_path):
    log = tmp_path / "log"
    assert wait(fork_call(fail, log)) == 1
    assert log.read_text().endswith("RuntimeError: a bug\n")


def test_the_output_is_appended(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    wait(fork_call(lambda: print("after") or 0, log))
    assert log.read_text() == "before\nafter\n"


def test_variables_are_the_childs_alone(tmp_path):
    log = tmp_path / "log"
    wait(fork_call(lambda: print(os.environ["VGGEXP_X"]) or 0, log, {"VGGEXP_X": "1"}))
    assert log.read_text() == "1\n"
    assert "VGGEXP_X" not in os.environ


def test_a_child_is_in_no_group_of_the_terminal():
    assert wait(fork_call(lambda: os.getpgid(0) != os.getpgid(os.getppid()))) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_child(signum):
    pid = fork_call(lambda: time.sleep(60))
    os.kill(pid, signum)
    assert wait(pid) == 128 + signum


def test_a_stop_signal_is_no_exception_in_the_child(tmp_path):
    log = tmp_path / "log"

    def replace_exception() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException as error:
            raise RuntimeError("as omegaconf does") from error
        return 0

    assert wait(fork_call(replace_exception, log)) == 128 + signal.SIGINT
    assert log.read_text() == ""


def test_a_child_that_handles_stop_signals_ends_by_itself():
    def stop_and_report() -> int:
        with handle_stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return 7 if stop.signal else 0

    assert wait(fork_call(stop_and_report)) == 7


def test_a_child_gets_sigterm_when_its_parent_dies(tmp_path):
    log = tmp_path / "log"

    def parent():
        child = fork_call(lambda: time.sleep(60))
        log.write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)

    wait(fork_call(parent))
    child = int(log.read_text())
    for _ in range(1000):
        if not os.path.exists(f"/proc/{child}") or "(zombie)" in state_of(child):
            break
        time.sleep(0.005)
    assert not os.path.exists(f"/proc/{child}") or "(zombie)" in state_of(child)


def state_of(pid):
    with open(f"/proc/{pid}/status") as file:
        return file.read()


@pytest.mark.parametrize("code, name", [(-9, "SIGKILL"), (-15, "SIGTERM"), (-200, "signal 200")])
def test_the_name_of_a_signal(code, name):
    assert signal_name(code) == name
