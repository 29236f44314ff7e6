import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.keys import to_plain
from vggexp.config.run_id import differences, identity
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.errors import CheckpointError, InUseError
from vggexp.loggers.console import Console
from vggexp.runner import build, datasets, hardware
from vggexp.runner.hardware import setup_device
from vggexp.runner.job import machine_fingerprint
from vggexp.runs import directory, records
from vggexp.system import locks
from vggexp.training import checkpoint_manager
from vggexp.training.loop import EpochMetrics, TrainState


class OpenedRun(NamedTuple):
    """What there is of a run. done: its result, where it has finished."""

    folder: Path
    new: bool
    saved: dict[str, Any] | None = None
    done: EpochMetrics | None = None


def open_run_dir(config: Config, held: contextlib.ExitStack, console: Console) -> OpenedRun:
    folder = records.run_dir(config)
    if not folder.exists():
        return OpenedRun(folder, new=True)
    held.enter_context(locks.lock_run_dir(folder))
    done = records.finished_result(config)
    if done is not None:  # by another process, since the door looked
        return OpenedRun(folder, new=False, done=done)
    return OpenedRun(
        folder,
        new=False,
        saved=checkpoint_manager.load_latest(folder / "checkpoints", console.line),
    )


def create_run_dir(folder: Path, held: contextlib.ExitStack) -> None:
    held.enter_context(locks.lock_run_dir(folder))
    if directory.read_result(folder):
        raise InUseError(
            f"{folder}: another process has made it meanwhile; run the same command again"
        )


def build_run(
    config: Config, saved: dict[str, Any] | None, console: Console
) -> tuple[hardware.DeviceSetup, datasets.DataLoaders, TrainState]:
    """Everything a run needs, at the state of the checkpoint. Raises before anything is written."""
    if saved is not None and "net" not in saved:
        raise CheckpointError(
            "checkpoints: this run kept only its weights (train.keep=weights) and cannot go on"
        )
    hardware = setup_device(config, saved["threads"] if saved else None)
    if saved is not None:
        _check_compatible(config, hardware, saved, console)
    with collectives.local_rank_zero_first():
        data = datasets.build_loaders(config, hardware.device, console.line)
    found = {
        "precision": hardware.precision,
        **{name: sha[:8] for name, sha in data.fingerprint.items()},
    }
    collectives.assert_same_on_all_ranks(found, "give all the same data and processors")
    if saved is not None:
        _check_same_data(config, data, saved, console)
    state = build.build_state(config, hardware, data.train.batches_per_epoch)
    if saved is not None:
        try:
            state.restore(saved)
        except (KeyError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"checkpoints: does not fit this configuration: {told}"
            ) from error
    return hardware, data, state


def _check_compatible(
    config: Config, hardware: hardware.DeviceSetup, saved: dict[str, Any], console: Console
) -> None:
    """Raises CheckpointError where the checkpoint is another configuration's, or, asked for `exact`, machine's."""
    other = differences(saved["identity"], identity(to_plain(config)))
    if other and config.resume != "force":
        raise CheckpointError(
            f"checkpoints: of another configuration ({'; '.join(other)}); resume=force continues"
        )
    here = machine_fingerprint(hardware)
    there = {"processes": 1, **saved}
    moved = [
        f"{key} {there.get(key)} -> {value}"
        for key, value in here.items()
        if there.get(key) != value
    ]
    if moved and config.resume == "exact":
        raise CheckpointError(
            f"resume=exact: not the same machine ({', '.join(moved)}); resume=auto continues"
        )
    for what in (*other, *([f"perhaps not bit-identical: {', '.join(moved)}"] if moved else ())):
        console.line(f"warning: continuing, but {what}")


def _check_same_data(
    config: Config, data: datasets.DataLoaders, saved: dict[str, Any], console: Console
) -> None:
    """Raises CheckpointError where the images or labels are not those the run began with."""
    changed = data.changed(saved["data"])
    if changed and config.resume != "force":
        raise CheckpointError(
            f"checkpoints: the data has changed since this run began ({changed}); bring it back, start anew with "
            "resume=never, or go on with resume=force"
        )
    if changed:
        console.line(f"warning: continuing, but the data has changed: {changed}")
