"""Stop signals: a flag for the loop, and what another's handler does only once the run has saved."""

import os
import signal
import subprocess
import sys

import pytest

from vggexp.errors import StoppedError
from vggexp.system.signals import handle_stop_signals


@pytest.fixture
def handler():
    """handler(call): what was there before for SIGUSR2."""
    before = signal.getsignal(signal.SIGUSR2)
    yield lambda call: signal.signal(signal.SIGUSR2, lambda number, frame: call())
    signal.signal(signal.SIGUSR2, before)


def stopped(done: list[str]) -> None:
    with (
        pytest.raises(StoppedError, match="stopped by SIGUSR2 here"),
        handle_stop_signals() as stop,
    ):
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        done.append("saved")
        stop.check("here")


def test_an_earlier_handler_comes_after_the_save(handler):
    done: list[str] = []
    handler(lambda: done.append("handed back"))
    stopped(done)
    assert done == ["saved", "handed back"]


def test_an_earlier_handler_may_end_the_process(handler):
    """As submitit's does, once it has asked Slurm for the job's return."""
    handler(lambda: exit(-1))
    with pytest.raises(SystemExit), handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        stop.check("here")


def test_what_an_earlier_handler_refuses_is_told(handler, capsys):
    def refuse() -> None:
        raise RuntimeError("timed-out too many times")

    handler(refuse)
    stopped([])
    assert capsys.readouterr().err == "vggexp: SIGUSR2: timed-out too many times\n"


INTERRUPTED = """
import sys
from vggexp import __main__
from vggexp.loggers.console import answered
def late(*_): exec("raise KeyboardInterrupt")  # as a dataclass at import is made
__main__._command = late
raise SystemExit(__main__.main([]) if sys.argv[1] == "vggexp" else answered(late, "stopped"))
"""


@pytest.mark.parametrize(
    ("door", "told"), [("vggexp", "vggexp: stopped at once"), ("other", "vggexp: error: stopped")]
)
def test_ctrl_c_at_an_import_ends_with_its_code_and_not_by_the_signal(tmp_path, door, told):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, "-m", "interrupted", door]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, f"{told}\n")
