"""Tests the start of several ranks: what is recorded if a rank fails."""

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tests.conftest import TINY, write_epochs
from vggexp.config.compose import parse_command
from vggexp.errors import InUseError
from vggexp.runner import launch
from vggexp.runs.directory import read_result
from vggexp.runs.records import run_dir
from vggexp.sweep.expand import compose_run
from vggexp.system.locks import lock_run_dir


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The configuration of a run that is recorded as running, and whose rank 0 exits with 8."""

    def fail(*_):
        raise ChildFailedError("", {0: ProcessFailure(0, 1, InUseError.exit_code, "")})

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: fail)
    config = compose_run(parse_command(["device=cpu", *TINY, f"run.root={tmp_path}"]))
    write_epochs(config, [], "running")
    return config


def test_a_rank_that_failed_is_recorded(config):
    assert launch.run_ranks(config, []) == InUseError.exit_code
    assert read_result(run_dir(config))["error"] == "rank 0 has failed"


def test_a_run_that_another_process_works_on_is_left_to_it(config):
    with lock_run_dir(run_dir(config)):
        assert launch.run_ranks(config, []) == InUseError.exit_code
    assert read_result(run_dir(config))["state"] == "running"
