"""One run, from a checked configuration to a result; started, continued or both."""

import contextlib
import platform
from collections.abc import Sequence
from typing import Any

import torch

from vggexp.config.keys import flatten, to_plain
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.distributed.stop import DistributedStop
from vggexp.loggers.console import Console
from vggexp.runner.init_weights import load_init_weights
from vggexp.runner.job import TrainingJob
from vggexp.runner.resume import build_run, create_run_dir, open_run_dir
from vggexp.runs import records
from vggexp.runs.environment import code_sha256
from vggexp.system import memory
from vggexp.system.signals import StopFlag, handle_stop_signals
from vggexp.training.loop import EpochMetrics


def run(config: Config, overrides: Sequence[str], stop: StopFlag | None = None) -> EpochMetrics:
    """Trains, tests and records; returns result.json's content. Raises VggexpError, after recording it.

    Several ranks do so together; those above 0 record nothing. stop: where the caller listens to signals already.
    """
    with contextlib.ExitStack() as held:
        stop = stop or held.enter_context(handle_stop_signals())
        held.enter_context(
            collectives.process_group(config.device.name, config.device.timeout_minutes)
        )
        held.enter_context(collectives.translate_rank_errors())
        collectives.assert_same_on_all_ranks(
            _launch_fingerprint(config), "start all with the same command and code"
        )
        console = Console(None, silent=collectives.rank() > 0)
        opened = collectives.run_on_rank_zero(lambda: open_run_dir(config, held, console))
        if opened.done is not None:
            console.line(records.finished_line(config, opened.done))
            return opened.done
        if config.resume == "never":
            stop.resume_hint = (
                f"run.name={opened.folder.name} in place of resume=never continues it"
            )
        stop = DistributedStop(stop) if collectives.world_size() > 1 else stop
        with memory.oom_as_resource_error(
            "before the first batch; choose a smaller network, data.resize or data.limit"
        ):
            job = TrainingJob(
                config, stop, console, opened.folder, *build_run(config, opened.saved, console)
            )
            if opened.saved is None:  # other ranks get the weights from rank 0
                job.init_lines = collectives.run_on_rank_zero(
                    lambda: load_init_weights(job.state.model, config)
                )
        stop.rest(0)
        stop.check("before its first batch")
        if opened.new:
            collectives.run_on_rank_zero(lambda: create_run_dir(opened.folder, held))
        return (
            job.run_on_other_ranks()
            if collectives.rank()
            else job.run_on_rank_zero(overrides, opened.saved)
        )


PER_MACHINE_KEYS = (
    "run.",
    "data.root",
    "data.workers",
    "data.cache",
    "data.download",
)  # may differ from machine to machine


def _launch_fingerprint(config: Config) -> dict[str, Any]:
    """What all ranks must have in common before anything is read."""
    keys = {
        key: value
        for key, value in flatten(to_plain(config)).items()
        if not key.startswith(PER_MACHINE_KEYS)
    }
    versions = {"torch": str(torch.__version__), "Python": platform.python_version()}
    return keys | versions | {"code": code_sha256()[:8] if collectives.world_size() > 1 else ""}
