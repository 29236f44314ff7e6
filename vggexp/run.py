"""One run, from a checked configuration to a result; started, continued or both."""

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vggexp import build, dist, keep, memory, rundir, runs
from vggexp.config.identity import differences, flat, identity
from vggexp.config.read import plain
from vggexp.config.schema import Config
from vggexp.environment import code_sha256
from vggexp.errors import CheckpointError, InUseError
from vggexp.job import Job, machine
from vggexp.signals import Stop, stopping
from vggexp.sinks.console import Console
from vggexp.start import started
from vggexp.train import Row, State


def run(config: Config, overrides: Sequence[str], stop: Stop | None = None) -> Row:
    """Trains, tests and records; returns result.json's content. Raises VggexpError, after recording it.

    Several ranks do so together; those above 0 record nothing. stop: where the caller listens to signals already.
    """
    with contextlib.ExitStack() as held:
        stop = stop or held.enter_context(stopping())
        held.enter_context(dist.joined(config.device.name, config.device.timeout_minutes))
        held.enter_context(dist.told())
        dist.same(_commanded(config), "start all with the same command and code")
        console = Console(None, silent=dist.rank() > 0)
        opened = dist.first(lambda: _opened(config, held, console))
        if opened.done is not None:
            console.line(runs.finished_line(config, opened.done))
            return opened.done
        if config.resume == "never":
            stop.advice = f"run.name={opened.folder.name} in place of resume=never continues it"
        stop = dist.SharedStop(stop) if dist.size() > 1 else stop
        with memory.told("before the first batch; choose a smaller network, data.resize or data.limit"):
            job = Job(config, stop, console, opened.folder, *built(config, opened.saved, console))
            if opened.saved is None:  # other ranks get the weights from rank 0
                job.start = dist.first(lambda: started(job.state.net, config))
        stop.rest(0)
        stop.check("before its first batch")
        if opened.new:
            dist.first(lambda: _made(opened.folder, held))
        return job.followed() if dist.rank() else job.recorded(overrides, opened.saved)


class Opened(NamedTuple):
    """What there is of a run. done: its result, where it has finished."""

    folder: Path
    new: bool
    saved: dict[str, Any] | None = None
    done: Row | None = None


def _opened(config: Config, held: contextlib.ExitStack, console: Console) -> Opened:
    folder = runs.folder_of(config)
    if not folder.exists():
        return Opened(folder, new=True)
    held.enter_context(rundir.claimed(folder))
    done = runs.finished(config)
    if done is not None:  # by another process, since the door looked
        return Opened(folder, new=False, done=done)
    return Opened(folder, new=False, saved=keep.latest(folder / "checkpoints", console.line))


def _made(folder: Path, held: contextlib.ExitStack) -> None:
    held.enter_context(rundir.claimed(folder))
    if rundir.result_of(folder):
        raise InUseError(f"{folder}: another process has made it meanwhile; run the same command again")


APART = ("run.", "data.root", "data.workers", "data.cache", "data.download")  # may differ from machine to machine


def _commanded(config: Config) -> dict[str, Any]:
    """What all ranks must have in common before anything is read."""
    keys = {key: value for key, value in flat(plain(config)).items() if not key.startswith(APART)}
    versions = {"torch": str(torch.__version__), "Python": platform.python_version()}
    return keys | versions | {"code": code_sha256()[:8] if dist.size() > 1 else ""}


def built(
    config: Config, saved: dict[str, Any] | None, console: Console
) -> tuple[build.Hardware, build.Datasets, State]:
    """Everything a run needs, at the state of the checkpoint. Raises before anything is written."""
    if saved is not None and "net" not in saved:
        raise CheckpointError("checkpoints: this run kept only its weights (train.keep=weights) and cannot go on")
    hardware = build.hardware(config, saved["threads"] if saved else None)
    if saved is not None:
        _compatible(config, hardware, saved, console)
    with dist.one_before():
        data = build.data(config, hardware.device, console.line)
    found = {"precision": hardware.precision, **{name: sha[:8] for name, sha in data.fingerprint.items()}}
    dist.same(found, "give all the same data and processors")
    if saved is not None:
        _same_data(config, data, saved, console)
    state = build.state(config, hardware, data.train.batches_per_epoch)
    if saved is not None:
        try:
            state.restore(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise CheckpointError(f"checkpoints: does not fit this configuration: {told}") from error
    return hardware, data, state


def _compatible(config: Config, hardware: build.Hardware, saved: dict[str, Any], console: Console) -> None:
    """Raises CheckpointError where the checkpoint is another configuration's, or, asked for `exact`, machine's."""
    other = differences(saved["identity"], identity(plain(config)))
    if other and config.resume != "force":
        raise CheckpointError(f"checkpoints: of another configuration ({'; '.join(other)}); resume=force continues")
    here = machine(hardware)
    there = {"processes": 1, **saved}
    moved = [f"{key} {there.get(key)} -> {value}" for key, value in here.items() if there.get(key) != value]
    if moved and config.resume == "exact":
        raise CheckpointError(f"resume=exact: not the same machine ({', '.join(moved)}); resume=auto continues")
    for what in (*other, *([f"perhaps not bit-identical: {', '.join(moved)}"] if moved else ())):
        console.line(f"warning: continuing, but {what}")


def _same_data(config: Config, data: build.Datasets, saved: dict[str, Any], console: Console) -> None:
    """Raises CheckpointError where the images or labels are not those the run began with."""
    changed = data.changed(saved["data"])
    if changed and config.resume != "force":
        raise CheckpointError(
            f"checkpoints: the data has changed since this run began ({changed}); bring it back, start anew with "
            "resume=never, or go on with resume=force"
        )
    if changed:
        console.line(f"warning: continuing, but the data has changed: {changed}")
