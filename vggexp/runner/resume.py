"""Opens a run directory and builds a run, new or at the state of its newest checkpoint."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.keys import to_plain
from vggexp.config.run_id import differences, identity
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.errors import CheckpointError, InUseError, LostRunError
from vggexp.formatting import one_line
from vggexp.loggers.console import Console
from vggexp.runner.build import build_state
from vggexp.runner.datasets import DataLoaders, build_loaders, check_image_counts
from vggexp.runner.hardware import DeviceSetup, machine_fingerprint, setup_device
from vggexp.runs import directory, records
from vggexp.runs.data_source import check_pinned_data
from vggexp.system import locks
from vggexp.training import checkpoint_manager, checkpoint_schema
from vggexp.training.loop import TrainState

Checkpoint = dict[str, Any]
UNFINISHED = ("running", "interrupted", "paused")  # states of a run that could continue


class OpenedRun(NamedTuple):
    """What a run directory holds at the start of a command."""

    folder: Path
    is_new: bool  # the directory does not exist yet
    checkpoint: Checkpoint | None = None  # the newest one that verifies
    result: dict[str, Any] | None = None  # of a run with nothing left to do


class RunSetup(NamedTuple):
    """Everything that a run needs to train."""

    device_setup: DeviceSetup
    data: DataLoaders
    state: TrainState


def open_run_dir(config: Config, stack: contextlib.ExitStack, console: Console) -> OpenedRun:
    """Locks and reads the run directory, if it exists. Every rank calls this; rank 0 reads.

    Args:
        config: the configuration.
        stack: receives the lock on rank 0; the caller closes it after the run.
        console: receives a warning for each checkpoint that does not verify.

    Raises:
        InUseError: another process works on the run.
        CheckpointError: another run has the name, or no checkpoint verifies.
    """
    return collectives.run_on_rank_zero(partial(_open_run_dir, config, stack, console))


def _open_run_dir(config: Config, stack: contextlib.ExitStack, console: Console) -> OpenedRun:
    folder = records.run_dir(config)
    if not folder.exists():
        return OpenedRun(folder, is_new=True)
    stack.enter_context(locks.lock_run_dir(folder))
    result = records.done_result(config)
    if result is not None:  # another process trained the run after this command had checked
        return OpenedRun(folder, is_new=False, result=result)
    console.log_file = folder / "run.log"  # also has the warnings before the first batch
    lost = records.lost_files(folder, directory.read_result(folder))
    if lost:
        console.line(f"warning: the finished run lost {', '.join(lost)}: writing it again")
    with record_loss(folder):
        newest = checkpoint_manager.load_latest(folder / "checkpoints", console.line)
    return OpenedRun(folder, is_new=False, checkpoint=newest)


@contextlib.contextmanager
def record_loss(folder: Path) -> Iterator[None]:
    """Records a LostRunError of the block, so that no rung of sweep.halving waits for the run."""
    try:
        yield
    except LostRunError as error:
        is_unfinished = directory.read_result(folder).get("state") in UNFINISHED
        if collectives.rank() == 0 and is_unfinished:
            with contextlib.suppress(OSError):
                code = error.exit_code
                directory.write_result(folder, "failed", error=str(error), exit_code=code)
        raise


def create_run_dir(folder: Path, stack: contextlib.ExitStack) -> None:
    """Makes and locks a new run directory. Every rank calls this; see `open_run_dir`.

    Raises InUseError if another process has made the directory in the meantime.
    """
    collectives.run_on_rank_zero(partial(_create_run_dir, folder, stack))


def _create_run_dir(folder: Path, stack: contextlib.ExitStack) -> None:
    stack.enter_context(locks.lock_run_dir(folder))
    if directory.read_result(folder):
        raise InUseError(
            f"{folder}: another process has made it meanwhile; run the same command again"
        )


def build_run(config: Config, checkpoint: Checkpoint | None, console: Console) -> RunSetup:
    """Builds everything that a run needs, before anything is written. Every rank calls this.

    Args:
        config: the configuration.
        checkpoint: the state to continue from; None for the start of a run.
        console: receives warnings.

    Raises:
        CheckpointError: the checkpoint cannot be continued with this configuration and data.
        ConfigError: this machine lacks the device, or the images are too few.
        DataError: the data is missing or corrupt.
        RankError: the ranks do not have the same data and precision.
    """
    if checkpoint is not None and "net" not in checkpoint:
        raise CheckpointError(
            "checkpoints: this run kept only its weights (train.keep=weights) and cannot go on"
        )
    device_setup = setup_device(config, checkpoint["threads"] if checkpoint else None)
    if checkpoint is not None:
        _check_compatible(config, device_setup, checkpoint, console)
    with collectives.local_rank_zero_first():  # the first rank may download
        data = build_loaders(config, device_setup.device, console.line)
    shared = {"precision": device_setup.precision}
    shared |= {name: sha256[:8] for name, sha256 in data.fingerprint.items()}
    collectives.assert_same_on_all_ranks(shared, "give all the same data and processors")
    check_image_counts(config, data)
    if checkpoint is None:
        check_pinned_data(config, data.fingerprint)
    else:
        _check_same_data(config, data, checkpoint, console)
    state = build_state(config, device_setup, data.train.batches_per_epoch)
    if checkpoint is not None:
        _restore(config, state, checkpoint)
    return RunSetup(device_setup, data, state)


def _restore(config: Config, state: TrainState, checkpoint: Checkpoint) -> None:
    epochs = None if config.resume == "force" else config.train.epochs
    accumulate = config.train.accumulate
    if config.resume == "force" and state.ema is not None:  # a new average begins with the weights
        checkpoint.setdefault("ema", {"updates": 0, "module": checkpoint["net"]})
    try:
        checkpoint_schema.check_state(checkpoint, state, epochs)
        state.restore(checkpoint)
        # The checkpoint may have more micro-batches than its configuration: the memory ran out.
        if checkpoint["identity"].get("train.accumulate") != accumulate:  # with resume=force
            state.micro_batches = accumulate
    except (KeyError, RuntimeError, ValueError) as error:
        # With resume=force the run may still continue with its own configuration.
        error_type = CheckpointError if config.resume == "force" else LostRunError
        raise error_type(
            f"checkpoints: does not fit this configuration: {one_line(error)}; "
            "move the run's folder away to start over"
        ) from error


def _check_compatible(
    config: Config, device_setup: DeviceSetup, checkpoint: Checkpoint, console: Console
) -> None:
    """Checks that a checkpoint belongs to this configuration and machine; warns if it may differ.

    Raises:
        CheckpointError: the configuration differs without resume=force, or the machine differs
            with resume=exact.
    """
    different = differences(checkpoint["identity"], identity(to_plain(config)))
    if different and config.resume != "force":
        raise CheckpointError(
            f"checkpoints: of another configuration ({'; '.join(different)}); "
            "resume=force continues"
        )
    recorded = {"processes": 1, "numerics": 1, **checkpoint}
    moved = []
    for key, value in machine_fingerprint(device_setup).items():
        if recorded.get(key) != value:
            moved.append(f"{key} {recorded.get(key)} -> {value}")
    if moved and config.resume == "exact":
        raise CheckpointError(
            f"resume=exact: not the same machine ({', '.join(moved)}); resume=auto continues"
        )
    warnings = list(different)
    if moved:
        warnings.append(f"perhaps not bit-identical: {', '.join(moved)}")
    for warning in warnings:
        console.line(f"warning: continuing, but {warning}")


def _check_same_data(
    config: Config, data: DataLoaders, checkpoint: Checkpoint, console: Console
) -> None:
    """Raises CheckpointError if images or labels have changed; with resume=force it only warns."""
    changed = data.changed_files(checkpoint["data"])
    if not changed:
        return
    if config.resume != "force":
        raise CheckpointError(
            f"checkpoints: the data has changed since this run began ({changed}); "
            "bring it back, move the run's folder away to start over, or continue with resume=force"
        )
    console.line(f"warning: continuing, but the data has changed: {changed}")
