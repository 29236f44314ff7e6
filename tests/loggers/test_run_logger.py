"""RunLogger, as a run that continues finds its files."""

import io

import pytest

from vggexp.loggers.console import Console
from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.run_logger import RunLogger
from vggexp.runs.directory import STEPS
from vggexp.runs.steps import read_steps


def point(step: int) -> dict:
    return {"epoch": 1, "step": step, "loss": 1 / step}


@pytest.fixture
def open_logger(tmp_path):
    """open_logger(step) -> a logger of a run at this step, and what it has printed."""
    loggers = []

    def open_one(step: int) -> tuple[RunLogger, io.StringIO]:
        output = io.StringIO()
        logger = RunLogger(tmp_path, Console(None, output), 2, HParamsTable({}, [], []), [], step)
        loggers.append(logger)
        return logger, output

    yield open_one
    for logger in loggers:
        logger.tensorboard.close(False)


def test_a_run_without_points_has_no_file(open_logger, tmp_path):
    open_logger(0)
    assert not (tmp_path / STEPS).exists()


def test_points_after_the_checkpoint_are_taken_again(open_logger, tmp_path):
    killed, _ = open_logger(0)
    for step in (2, 4, 6):
        killed.step(point(step))
    resumed, output = open_logger(4)
    assert [row["step"] for row in read_steps(tmp_path)] == [2, 4]
    resumed.step(point(6))
    assert [row["step"] for row in read_steps(tmp_path)] == [2, 4, 6]
    assert output.getvalue() == ""


def test_a_damaged_file_costs_only_the_curve(open_logger, tmp_path):
    (tmp_path / STEPS).write_text("not JSON\n{}\n")
    resumed, output = open_logger(4)
    resumed.step(point(6))
    assert [row["step"] for row in read_steps(tmp_path)] == [6]
    assert output.getvalue().startswith(f"warning: {tmp_path / STEPS}: line 1: not JSON")
    assert output.getvalue().endswith("; the curves inside the epochs start again\n")
    assert (tmp_path / "steps.jsonl.corrupt").read_text() == "not JSON\n{}\n"
