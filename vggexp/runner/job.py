"""Trains, tests and records one run. Ranks above 0 take part and write nothing."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vggexp import __version__
from vggexp.config.derived import disk_bytes, tested_views
from vggexp.config.keys import to_plain
from vggexp.config.run_id import identity
from vggexp.config.schema import Config
from vggexp.data.loaders import Loader
from vggexp.distributed import collectives
from vggexp.distributed.stop import DistributedStop
from vggexp.errors import DivergedError, RankError, ResourceError, StoppedError, VggexpError
from vggexp.formatting import plural
from vggexp.loggers.console import Console
from vggexp.loggers.hparams import hparams_table
from vggexp.loggers.run_logger import RunLogger
from vggexp.runner import banner, figures
from vggexp.runner.build import load_weights, train_settings
from vggexp.runner.datasets import DataLoaders
from vggexp.runner.hardware import DeviceSetup, machine_fingerprint
from vggexp.runner.result import paused_fields, result_fields, tested_epoch, total_times
from vggexp.runs import directory, predictions
from vggexp.runs.environment import collect_environment
from vggexp.system import memory
from vggexp.system.signals import STOPPED_AT_ONCE, StopFlag
from vggexp.training import checkpoint, checkpoint_manager, checkpoint_schema
from vggexp.training.checkpoint_manager import CheckpointManager, DistributedCheckpointManager
from vggexp.training.loop import (
    Checkpointer,
    EpochMetrics,
    Logger,
    NullLogger,
    Position,
    TrainLoop,
    TrainState,
    is_trained,
    train,
)
from vggexp.training.metrics import IMAGE_ALONE, MakeViews, evaluate, predict, score_logits
from vggexp.training.step import divergence_advice
from vggexp.training.timer import PhaseTimer


@dataclass(frozen=True)
class TrainingJob:
    """A run that is ready to train."""

    config: Config
    overrides: Sequence[str]  # the words of overrides.txt
    swept: Sequence[str]  # the keys with several values in the sweep of this run
    folder: Path  # the run directory, locked by this process
    device_setup: DeviceSetup
    data: DataLoaders
    state: TrainState
    stop: StopFlag
    console: Console
    init_lines: Sequence[str]  # lines of the start banner on `train.init_from`
    is_resumed: bool  # the state is that of a checkpoint
    started_at: float  # time.monotonic() when this process began to read data


class PredictedTestSet(NamedTuple):
    """What the tested weights of a run predict for the test set."""

    epoch_metrics: EpochMetrics  # of the epoch whose weights are tested
    model: nn.Module
    logits: Tensor  # [N, classes], on the CPU
    labels: Tensor  # [N], on the CPU
    scores: dict[str, float]  # test/loss and test/accuracy


def train_and_record(job: TrainingJob) -> dict[str, Any]:
    """Trains, and tests unless `run.until` pauses the run. Rank 0 records the run.

    result.json also says how a run ends early.

    Returns:
        The content of result.json; empty on ranks above 0.
    """
    if collectives.rank() > 0:
        with _translate_errors(job):
            _train(job, NullLogger(), None, PhaseTimer(job.device_setup.device))
            if _is_trained(job):
                _predict_test_set(job)
        return {}
    with _record_failure(job), _translate_errors(job):
        memory.reset_peak_memory(job.device_setup.device)
        _write_metadata(job)
        _print_start(job)
        checkpoints = _make_checkpoint_manager(job)
        logger = _make_logger(job)
        is_complete: bool | None = False
        try:
            timer = PhaseTimer(job.device_setup.device)
            startup_seconds = time.monotonic() - job.started_at
            _train(job, logger, checkpoints, timer)
            if _is_trained(job):
                content = _finish(job, logger, checkpoints, timer, startup_seconds)
                lines = banner.end_banner(job.config, content, job.folder)
                is_complete = True
            else:
                content = _pause(job, checkpoints)
                lines = banner.paused_banner(job.config, content, job.folder)
                is_complete = None
        finally:
            logger.tensorboard.close(is_complete)
        for line in lines:
            job.console.line(line)
        return content


@contextlib.contextmanager
def _translate_errors(job: TrainingJob) -> Iterator[None]:
    """Raises ResourceError and RankError in place of the errors of torch."""
    hint = f"with data.batch_size={job.config.data.batch_size}; choose a smaller one"
    with (
        memory.oom_as_resource_error(hint),
        collectives.translate_rank_errors(job.stop.resume_hint),
    ):
        yield


@contextlib.contextmanager
def _record_failure(job: TrainingJob) -> Iterator[None]:
    """Writes an exception of the block to result.json, and raises it again.

    Raises:
        ResourceError: in place of an OSError.
    """
    try:
        yield
    except (StoppedError, RankError) as error:
        _record_end(job, "interrupted", str(error), error.exit_code)
        raise
    except VggexpError as error:
        error.signal = job.stop.signal
        _record_end(job, "failed", str(error), error.exit_code)
        raise
    except KeyboardInterrupt:
        _record_end(job, "interrupted", STOPPED_AT_ONCE, 128 + signal.SIGINT)
        raise
    except OSError as error:
        reason = f"{error.filename or job.folder}: {error.strerror or error}"
        _record_end(job, "failed", reason, ResourceError.exit_code)
        raise ResourceError(reason) from error
    except BaseException as error:
        _record_end(job, "failed", f"{type(error).__name__}: {error}", 1)
        raise


def _record_end(job: TrainingJob, state: str, error: str, exit_code: int) -> None:
    with contextlib.suppress(OSError, VggexpError):
        if directory.read_result(job.folder).get("state") == "finished":
            return  # the result is complete
    with contextlib.suppress(OSError):  # a full disk has no room for the report about itself
        directory.write_result(job.folder, state, error=error, exit_code=exit_code)


def _write_metadata(job: TrainingJob) -> None:
    job.console.log_file = job.folder / "run.log"
    environment = collect_environment() | machine_fingerprint(job.device_setup)
    del environment["torch"]  # is among the versions
    environment["attempts"] = directory.count_attempts(job.folder)
    environment["data"] = job.data.fingerprint
    environment["classes"] = list(job.data.classes)
    environment["versions"]["vggexp"] = __version__
    # The result first: that of fewer epochs must never stand beside the new configuration.
    directory.write_result(job.folder, "running")
    directory.write_metadata(job.folder, to_plain(job.config), job.overrides, environment)


def _print_start(job: TrainingJob) -> None:
    state = job.state
    lines = banner.start_banner(job.config, job.device_setup, job.data, job.folder)
    lines += job.init_lines
    if job.is_resumed:
        lines.append(
            f"continued after step {state.step}: "
            f"{plural(state.epoch, 'epoch')} and {plural(state.batch, 'batch')}"
        )
    for line in lines:
        job.console.line(line)


def _make_checkpoint_manager(job: TrainingJob) -> CheckpointManager:
    """Returns the manager of the run's checkpoints. Raises ResourceError for a disk too full."""
    train_cfg = job.config.train
    facts = {
        "identity": identity(to_plain(job.config)),
        **machine_fingerprint(job.device_setup),
        "data": job.data.fingerprint,
        "classes": list(job.data.classes),
        "mean": job.data.preprocess.mean,
        "std": job.data.preprocess.std,
    }
    folder = job.folder / "checkpoints"
    manager = CheckpointManager(folder, train_cfg.keep, train_cfg.checkpoint_minutes, facts)
    checkpoint_manager.check_disk_space(folder, disk_bytes(job.config)["run"])
    return manager


def _make_logger(job: TrainingJob) -> RunLogger:
    state = job.state
    hparams = hparams_table(job.config, job.overrides, job.swept)
    epochs = job.config.train.epochs
    images, _ = next(iter(job.data.train.train(0)))  # an error of the data ends the run here
    logger = RunLogger(
        job.folder,
        job.console,
        epochs,
        hparams,
        state.history,
        state.step,
        rest_seconds=60 * job.config.train.rest_minutes,
    )
    draw = partial(figures.log_first_images, logger, images)
    logger.best_effort("the first images", draw)
    return logger


def _train(
    job: TrainingJob, logger: Logger, manager: CheckpointManager | None, timer: PhaseTimer
) -> None:
    """Runs the training loop. `manager` is None on ranks above 0."""
    checkpointer: Checkpointer | None = manager
    if isinstance(job.stop, DistributedStop):
        checkpointer = DistributedCheckpointManager(job.stop, manager)
    assert checkpointer is not None
    evaluate_model = partial(
        evaluate_epoch,
        config=job.config,
        device_setup=job.device_setup,
        data=job.data,
        console=job.console,
    )
    loop = TrainLoop(
        settings=train_settings(job.config, job.device_setup),
        timer=timer,
        logger=logger,
        checkpointer=checkpointer,
        stop=job.stop,
    )
    until = job.config.run.until
    end = None if until is None else Position(until, 0)
    train(job.state, job.data.train, loop, evaluate_model, end)
    if _is_trained(job):
        job.stop.check("before the test")


def _is_trained(job: TrainingJob) -> bool:
    """Returns whether no epoch is left; False for a run that `run.until` pauses."""
    train_cfg = job.config.train
    return is_trained(job.state, train_cfg.epochs, train_cfg.patience)


def evaluate_epoch(
    model: nn.Module,
    config: Config,
    device_setup: DeviceSetup,
    data: DataLoaders,
    console: Console,
) -> dict[str, float]:
    """Returns the validation metrics after an epoch, and with `test_each_epoch` the test metrics.

    Every rank calls this and gets the same metrics.
    """
    collectives.broadcast_(model.buffers())  # batch norm may have kept the statistics of each rank
    splits = {"val": ("validation", data.val)}
    if config.train.test_each_epoch:
        splits["test"] = ("test", data.test)
    metrics: dict[str, float] = {}
    for split, (label, loader) in splits.items():
        if loader is not None:
            batches = with_progress(label, loader, console)
            views = _make_test_views(config, loader) if split == "test" else IMAGE_ALONE
            metrics |= evaluate(
                model, batches, device_setup.device, device_setup.autocast, split, views
            )
    return metrics


def _make_test_views(config: Config, loader: Loader) -> MakeViews:
    """Returns what makes the views of a batch of normalized test images."""
    mean = loader.preprocess.mean
    pixel = torch.zeros(1, 1 if mean is None else len(mean), 1, 1, device=loader.device)
    black = loader.preprocess.normalize(pixel)[0]
    return partial(tested_views(config).make, black=black)


def with_progress(label: str, loader: Loader, console: Console) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields this rank's batches of an evaluation, and shows its progress."""
    count = len(range(loader.batches_per_epoch)[collectives.rank_slice()])
    return console.track(label, loader.evaluate(), count)


def _predict_test_set(job: TrainingJob) -> PredictedTestSet:
    """Predicts the test set with the weights that `train.test_weights` chooses.

    Raises:
        DivergedError: The test loss is not finite. Of an epoch before the last the validation loss
            may not be: batch normalization and fp16 can recover.
    """
    state = job.state
    epoch_metrics = tested_epoch(state.history, job.config.train.test_weights)
    step = epoch_metrics["step"]
    model = state.eval_model()
    if step != state.step:
        path = job.folder / "checkpoints" / checkpoint_manager.checkpoint_name(step)
        load = partial(_load_weights, path)
        load_weights(model, collectives.run_on_rank_zero(load), job.folder)
    collectives.broadcast_(model.buffers())
    batches = with_progress("test", job.data.test, job.console)
    views = _make_test_views(job.config, job.data.test)
    logits, labels = predict(model, batches, job.device_setup.autocast, views)
    scores = score_logits(logits, labels, "test")
    if not math.isfinite(scores["test/loss"]):
        raise DivergedError(
            f"the test loss is not finite with the weights of epoch {epoch_metrics['epoch']}; "
            + divergence_advice(state.schedule.lr, job.config.train.clip_norm)
        )
    return PredictedTestSet(epoch_metrics, model, logits, labels, scores)


def _load_weights(path: Path) -> dict[str, Tensor]:
    return checkpoint.select_eval_weights(checkpoint_schema.load(path))


def _pause(job: TrainingJob, manager: CheckpointManager) -> dict[str, Any]:
    """Records the end of a command that `run.until` limits; nothing is tested."""
    tested = tested_epoch(job.state.history, job.config.train.test_weights)
    manager.keep_newest(also=tested["step"])
    return directory.write_result(job.folder, "paused", **paused_fields(job.config, job.state))


def _finish(
    job: TrainingJob,
    logger: RunLogger,
    manager: CheckpointManager,
    timer: PhaseTimer,
    startup_seconds: float,
) -> dict[str, Any]:
    """Tests once; then writes the predictions, the figures and result.json."""
    state = job.state
    data = job.data
    test = _predict_test_set(job)
    probs = test.logits.softmax(1)
    weights = {}
    for key, tensor in test.model.state_dict().items():
        weights[key] = tensor.detach().cpu().contiguous()
    predictions.write(job.folder, probs.numpy(), test.labels.numpy())
    content = result_fields(job.config, state, test.epoch_metrics, test.scores, weights)
    content["train_images"] = data.train.count
    content["val_images"] = data.val.count if data.val else 0
    content["test_images"] = data.test.count
    content |= memory.peak_memory(job.device_setup.device)
    timer.lap("evaluation")
    content |= total_times(state.history, timer.read())
    # Of this process, and not part of `seconds`.
    content["time/startup_seconds"] = startup_seconds
    content["time/rest_seconds"] = timer.paused_seconds
    scalars = {}
    for key, value in content.items():
        if key.startswith(("train/", "val/", "test/")):
            scalars[key] = value
    epoch = test.epoch_metrics["epoch"]
    logger.tensorboard.final(scalars, epoch)
    draw = partial(figures.log_test_images, logger, data, probs, test.labels, epoch)
    logger.best_effort("the images of the mistakes", draw)
    logger.best_effort("the graph", partial(figures.log_graph, logger, test.model, data))
    if job.is_resumed:
        manager.update_metadata(test.epoch_metrics["step"])
    # What result.json vouches for is on the disk before result.json is.
    logger.tensorboard.sync()
    # All views are complete before the state is "finished": a finished run is never continued.
    content = directory.write_result(job.folder, "finished", **content)
    if job.config.train.keep == "weights":  # after this the run cannot be continued
        manager.replace_all(test.epoch_metrics["step"], {"weights": weights})
    return content
