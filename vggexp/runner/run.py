"""Runs one checked configuration: a new run, or a run that continues."""

import contextlib
import platform
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from vggexp.config.keys import flatten, to_plain
from vggexp.config.run_id import identity
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.distributed.rank import rank_info
from vggexp.distributed.stop import DistributedStop
from vggexp.loggers.console import Console
from vggexp.runner.init_weights import load_init_weights
from vggexp.runner.job import TrainingJob, train_and_record
from vggexp.runner.resume import (
    OpenedRun,
    RunSetup,
    build_run,
    create_run_dir,
    open_run_dir,
    record_loss,
)
from vggexp.runs import records
from vggexp.runs.environment import code_sha256
from vggexp.system import memory
from vggexp.system.signals import STOPPING, StopFlag, handle_stop_signals

# Keys that may differ between the machines of one run. `build_run` compares the data themselves.
PER_MACHINE_KEYS = (
    "run.",
    "data.root",
    "data.sha256",
    "data.workers",
    "data.cache",
    "data.download",
)

SAME_COMMAND = "start all with the same command and code"


def run(
    config: Config,
    overrides: Sequence[str],
    stop: StopFlag | None = None,
    swept: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains, tests and records a run. Every rank calls this; only rank 0 writes.

    Args:
        config: a checked configuration.
        overrides: the words of overrides.txt; flags and mode may stand before the overrides.
        stop: the caller's flag, if the caller already handles signals.
        swept: the keys with several values in the sweep that the run belongs to.

    Returns:
        The content of result.json; empty on ranks above 0 that have trained.

    Raises:
        VggexpError: after it was recorded, if the run directory existed by then.
    """
    started_at = time.monotonic()
    with contextlib.ExitStack() as stack:
        if stop is None:
            line = "" if rank_info().rank else STOPPING
            stop = stack.enter_context(handle_stop_signals(line, long_calls=True))
        device = config.device
        stack.enter_context(collectives.process_group(device.name, device.timeout_minutes))
        stack.enter_context(collectives.translate_rank_errors())
        collectives.assert_same_on_all_ranks(_launch_fingerprint(config), SAME_COMMAND)
        console = Console(None, rank=collectives.rank())
        opened = open_run_dir(config, stack, console)
        if opened.result is not None:
            console.line(records.done_line(config, opened.result))
            return opened.result
        stop.resume_hint = records.resume_hint(config, opened.folder)
        if collectives.world_size() > 1:
            stop = DistributedStop(stop)
        setup, init_lines = _build_run(config, opened, console)
        stop.rest(0)  # lets all ranks know of a signal that one rank got
        stop.check("before its first batch")
        if opened.is_new:
            create_run_dir(opened.folder, stack)
        job = TrainingJob(
            config=config,
            overrides=overrides,
            swept=swept,
            folder=opened.folder,
            device_setup=setup.device_setup,
            data=setup.data,
            state=setup.state,
            stop=stop,
            console=console,
            init_lines=init_lines,
            is_resumed=opened.checkpoint is not None,
            started_at=started_at,
        )
        return train_and_record(job)


def _build_run(config: Config, opened: OpenedRun, console: Console) -> tuple[RunSetup, list[str]]:
    """Builds the run, and returns the lines of the start banner on its initial weights."""
    hint = "before the first batch; choose a smaller network, data.resize or data.limit"
    with memory.oom_as_resource_error(hint), record_loss(opened.folder):
        setup = build_run(config, opened.checkpoint, console)
        if opened.checkpoint is not None:
            return setup, []
        # Ranks above 0 get the weights from rank 0 later.
        load = partial(load_init_weights, setup.state.model, config)
        return setup, collectives.run_on_rank_zero(load)


def _launch_fingerprint(config: Config) -> dict[str, Any]:
    """Returns what all ranks must have in common before they read anything."""
    shared = {}
    for key, value in flatten(to_plain(config)).items():
        if not key.startswith(PER_MACHINE_KEYS):
            shared[key] = value
    shared["run.until"] = config.run.until
    shared["data.cache"] = identity(to_plain(config)).get("data.cache")  # as far as it counts
    shared["torch"] = str(torch.__version__)
    shared["Python"] = platform.python_version()
    shared["code"] = code_sha256()[:8] if collectives.world_size() > 1 else ""
    return shared
