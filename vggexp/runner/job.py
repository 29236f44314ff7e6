"""A run with all it works on: trained, tested and recorded; or, on a rank above 0, followed."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from vggexp import __version__
from vggexp.config.derived import disk_bytes
from vggexp.config.keys import to_plain
from vggexp.config.run_id import identity
from vggexp.config.schema import Config
from vggexp.data.loaders import Loader
from vggexp.distributed import collectives
from vggexp.distributed.stop import DistributedStop
from vggexp.errors import RankError, ResourceError, StoppedError, VggexpError
from vggexp.loggers.console import Console
from vggexp.loggers.run_logger import NullLogger, RunLogger
from vggexp.runner import build, datasets, hardware, summary
from vggexp.runner.hardware import device_name
from vggexp.runs import directory
from vggexp.runs.environment import collect_environment
from vggexp.runs.predictions import PREDICTIONS
from vggexp.system import memory
from vggexp.system.signals import StopFlag
from vggexp.training import checkpoint, checkpoint_manager
from vggexp.training.loop import Checkpointer, EpochMetrics, Logger, TrainState, train
from vggexp.training.metrics import evaluate, predict
from vggexp.training.timer import PhaseTimer


def machine_fingerprint(hardware: hardware.DeviceSetup) -> dict[str, Any]:
    """What a result depends on besides configuration and data."""
    return {
        "torch": str(torch.__version__),
        "threads": hardware.threads,
        "device": hardware.device.type,
        "device_name": device_name(hardware.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": hardware.precision,
        "processes": collectives.world_size(),
    }


def evaluate_epoch(
    model: nn.Module,
    config: Config,
    hardware: hardware.DeviceSetup,
    data: datasets.DataLoaders,
    console: Console,
) -> dict[str, float]:
    """The scores after an epoch: validation, and the test set only where the configuration asks for it."""
    scores: dict[str, float] = {}
    collectives.broadcast_(model.buffers())  # batch norm may have kept each rank's own
    if data.val is not None:
        batches = with_progress("validation", data.val, console)
        scores |= evaluate(model, batches, hardware.device, hardware.autocast, "val")
    if config.train.test_each_epoch:
        batches = with_progress("test", data.test, console)
        scores |= evaluate(model, batches, hardware.device, hardware.autocast, "test")
    return scores


def with_progress(label: str, batches: Loader, console: Console) -> Iterator[tuple[Tensor, Tensor]]:
    return console.counted(
        label, batches.evaluate(), len(range(batches.batches_per_epoch)[collectives.rank_slice()])
    )


class TrainingJob:
    """A run with all it works on."""

    def __init__(
        self,
        config: Config,
        stop: StopFlag,
        console: Console,
        folder: Path,
        hardware: hardware.DeviceSetup,
        data: datasets.DataLoaders,
        state: TrainState,
    ):
        self.config = config
        self.stop = stop
        self.console = console
        self.folder = folder
        self.hardware = hardware
        self.data = data
        self.state = state
        self.init_lines: list[str] = []  # lines on the weights that it begins from

    def run_on_rank_zero(
        self, overrides: Sequence[str], saved: dict[str, Any] | None
    ) -> EpochMetrics:
        """Runs, and leaves in result.json how it ended."""
        try:
            summary.reset_peaks(self.hardware)
            with self._translate_errors():
                self._write_metadata(overrides)
                return self._run(overrides, continued=saved is not None)
        except (StoppedError, RankError) as error:
            self._record_end("interrupted", str(error), error.exit_code)
            raise
        except VggexpError as error:
            error.signal = self.stop.signal
            self._record_end("failed", str(error), error.exit_code)
            raise
        except KeyboardInterrupt:
            self._record_end("interrupted", "stopped at once by a second Ctrl-C", 130)
            raise
        except OSError as error:
            told = f"{error.filename or self.folder}: {error.strerror or error}"
            self._record_end("failed", told, ResourceError.exit_code)
            raise ResourceError(told) from error
        except BaseException as error:
            self._record_end("failed", f"{type(error).__name__}: {error}", 1)
            raise

    def run_on_other_ranks(self) -> EpochMetrics:
        """On a rank above 0: the same steps and scores, of which nothing is written."""
        with self._translate_errors():
            self._train(NullLogger(), None, PhaseTimer(self.hardware.device))
            self._predict_test_set()
        return {}

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        with (
            memory.oom_as_resource_error(
                f"with data.batch_size={self.config.data.batch_size}; choose a smaller one"
            ),
            collectives.translate_rank_errors(),
        ):
            yield

    def _record_end(self, state: str, error: str, exit_code: int) -> None:
        with contextlib.suppress(OSError):  # a full disk has no room for its own report
            directory.write_result(self.folder, state, error=error, exit_code=exit_code)

    def _write_metadata(self, overrides: Sequence[str]) -> None:
        self.console.log_file = self.folder / "run.log"
        here = {
            key: value
            for key, value in machine_fingerprint(self.hardware).items()
            if key != "torch"
        }  # among the versions
        known = (
            collect_environment()
            | here
            | {"attempts": directory.count_attempts(self.folder), "data": self.data.fingerprint}
        )
        known["versions"]["vggexp"] = __version__
        directory.write_metadata(self.folder, to_plain(self.config), overrides, known)
        directory.write_result(self.folder, "running")

    def _run(self, overrides: Sequence[str], continued: bool) -> EpochMetrics:
        config = self.config
        state = self.state
        data = self.data
        for line in [
            *summary.start_banner(config, self.hardware, data, self.folder),
            *self.init_lines,
        ]:
            self.console.line(line)
        if continued:
            self.console.line(
                f"continued after step {state.step}: {state.epoch} epochs and {state.batch} batches"
            )
        checkpoints = self._checkpoints()
        columns = summary.hyperparameters(config, overrides)
        watch = RunLogger(self.folder, self.console, config.train.epochs, columns, state.history)
        watch.best_effort(
            "the pictures of the first images", lambda: summary.log_first_images(watch, data)
        )
        ok = False
        try:
            clock = PhaseTimer(self.hardware.device)
            self._train(watch, checkpoints, clock)
            content = self._finish(watch, checkpoints, clock)
            ok = True
        finally:
            watch.tensorboard.close(ok)
        for line in summary.end_banner(content, self.folder):
            self.console.line(line)
        return content

    def _train(
        self,
        watcher: Logger,
        checkpoints: checkpoint_manager.CheckpointManager | None,
        clock: PhaseTimer,
    ) -> None:
        """checkpoints: of rank 0."""
        plan = build.train_settings(self.config, self.hardware)
        stop = self.stop
        measure = partial(
            evaluate_epoch,
            config=self.config,
            hardware=self.hardware,
            data=self.data,
            console=self.console,
        )
        keeper: Checkpointer | None = (
            checkpoint_manager.DistributedCheckpointManager(stop, checkpoints)
            if isinstance(stop, DistributedStop)
            else checkpoints
        )
        assert keeper is not None
        train(self.state, self.data.train, plan, clock, measure, watcher, keeper, stop)
        stop.check("before the test")

    def _predict_test_set(self) -> tuple[EpochMetrics, nn.Module, Tensor, Tensor]:
        """The epoch whose weights are tested, these, and the test's logits and labels on the CPU."""
        state = self.state
        scored = summary.tested_epoch(state.history, self.config.train.test_weights)
        model = state.eval_model()
        if scored["step"] != state.step:
            path = self.folder / "checkpoints" / checkpoint_manager.checkpoint_name(scored["step"])
            model.load_state_dict(
                collectives.run_on_rank_zero(lambda: checkpoint.weights_of(checkpoint.load(path)))
            )
        collectives.broadcast_(model.buffers())
        logits, labels = predict(
            model, with_progress("test", self.data.test, self.console), self.hardware.autocast
        )
        return scored, model, logits, labels

    def _checkpoints(self) -> checkpoint_manager.CheckpointManager:
        train = self.config.train
        preprocess = self.data.preprocess
        facts = {
            "identity": identity(to_plain(self.config)),
            **machine_fingerprint(self.hardware),
            "data": self.data.fingerprint,
            "classes": list(self.data.classes),
            "mean": preprocess.mean,
            "std": preprocess.std,
        }
        checkpoints = checkpoint_manager.CheckpointManager(
            self.folder / "checkpoints", train.keep, train.checkpoint_minutes, facts
        )
        checkpoint_manager.check_disk_space(checkpoints.folder, disk_bytes(self.config)["run"])
        return checkpoints

    def _finish(
        self, watch: RunLogger, checkpoints: checkpoint_manager.CheckpointManager, clock: PhaseTimer
    ) -> EpochMetrics:
        """The test, once; then the weights, the scores and the result."""
        state = self.state
        data = self.data
        scored, model, logits, labels = self._predict_test_set()
        scores = logits.softmax(1)
        weights = {
            key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()
        }
        numpy.savez_compressed(
            self.folder / PREDICTIONS, scores=scores.numpy(), labels=labels.numpy()
        )
        content = summary.result_fields(
            self.config, self.hardware, state, scored, logits, labels, weights
        )
        clock.lap("evaluation")
        content |= summary.total_times(state.history, clock.read())
        scores_ = {
            key: value
            for key, value in content.items()
            if "/" in key and not key.startswith("time/")
        }
        watch.tensorboard.final(scores_, state.epoch)
        show = partial(summary.log_test_images, watch, data, scores, labels, state.epoch)
        watch.best_effort("the pictures of the mistakes", show)
        watch.best_effort("the graph", lambda: summary.log_graph(watch, model, data))
        # The views are whole by now: nothing comes back to them.
        content = directory.write_result(self.folder, "finished", **content)
        if self.config.train.keep == "weights":  # from here on the run cannot be continued
            checkpoints.leave_only(scored["step"], {"weights": weights})
        return content
