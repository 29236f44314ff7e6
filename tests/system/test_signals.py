"""Stop signals set a flag. Handlers of other libraries are called after the run has saved."""

import os
import signal
import subprocess
import sys

import pytest

from vggexp.errors import StoppedError
from vggexp.system.signals import handle_stop_signals


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


def test_an_earlier_handler_may_end_the_process(install_handler):
    """submitit's handler does so, after it has asked Slurm to requeue the job."""
    install_handler(lambda: exit(-1))
    with pytest.raises(SystemExit), handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        stop.check("at step 1")


def test_an_error_of_an_earlier_handler_is_printed(install_handler, capsys):
    def raise_error() -> None:
        raise RuntimeError("timed-out too many times")

    install_handler(raise_error)
    stop_by_signal([])
    assert capsys.readouterr().err == "vggexp: SIGUSR2: timed-out too many times\n"


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
