"""Tests the threads of a run: those of the configuration, or else those that the run began with."""

import pytest
import torch

from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.run_id import identity
from vggexp.loggers.console import Console
from vggexp.runner.hardware import machine_fingerprint, setup_device
from vggexp.runner.resume import build_run
from vggexp.sweep.expand import compose_run

SMALL = ["device=cpu", "data=synthetic", "data.images=24", "data.classes=2", "data.size=8"]
SMALL += ["data.batch_size=8", "arch.blocks=[[1,4]]", "arch.hidden=[8]"]


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_config(*overrides):
    return compose_run(parse_command([*SMALL, *overrides]))


@pytest.mark.parametrize(("overrides", "threads"), [([], 3), (["device.threads=2"], 2)])
def test_configured_threads_win_over_those_of_the_continued_run(overrides, threads):
    assert setup_device(make_config(*overrides), threads=3).threads == threads
    assert torch.get_num_threads() == threads


def test_a_continued_run_has_the_threads_that_it_began_with():
    config = make_config()
    console = Console(None)
    begun = build_run(config, None, console)
    facts = machine_fingerprint(begun.device_setup) | {"threads": begun.device_setup.threads + 1}
    checkpoint = {**begun.state.capture(), **facts, "data": begun.data.fingerprint}
    checkpoint["identity"] = identity(to_plain(config))
    continued = build_run(config, checkpoint, console)
    assert continued.device_setup.threads == begun.device_setup.threads + 1
