"""A run with all it works on: trained, tested and recorded; or, on a rank above 0, followed."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from vggexp import __version__, build, checkpoint, dist, keep, memory, rundir, summary
from vggexp.clock import Clock
from vggexp.config.identity import identity
from vggexp.config.read import plain
from vggexp.config.rules import disk_bytes
from vggexp.config.schema import Config
from vggexp.environment import device_name, environment
from vggexp.errors import RankError, ResourceError, StoppedError, VggexpError
from vggexp.predictions import PREDICTIONS
from vggexp.scoring import evaluate, predict
from vggexp.signals import Stop
from vggexp.sinks.console import Console
from vggexp.train import Keeper, Row, State, Watcher, train
from vggexp.watch import Silence, Watch


def machine(hardware: build.Hardware) -> dict[str, Any]:
    """What a result depends on besides configuration and data."""
    return {
        "torch": str(torch.__version__),
        "threads": hardware.threads,
        "device": hardware.device.type,
        "device_name": device_name(hardware.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": hardware.precision,
        "processes": dist.size(),
    }


def scores_of(
    net: nn.Module, config: Config, hardware: build.Hardware, data: build.Datasets, console: Console
) -> dict[str, float]:
    """The scores after an epoch: validation, and the test set only where the configuration asks for it."""
    scores: dict[str, float] = {}
    dist.spread(net.buffers())  # batch norm may have kept each rank's own
    if data.val is not None:
        batches = evaluated("validation", data.val, console)
        scores |= evaluate(net, batches, hardware.device, hardware.autocast, "val")
    if config.train.test_each_epoch:
        batches = evaluated("test", data.test, console)
        scores |= evaluate(net, batches, hardware.device, hardware.autocast, "test")
    return scores


def evaluated(label: str, batches: build.Batches, console: Console) -> Iterator[tuple[Tensor, Tensor]]:
    return console.counted(label, batches.evaluate(), len(range(batches.batches_per_epoch)[dist.share()]))


class Job:
    """A run with all it works on."""

    def __init__(
        self,
        config: Config,
        stop: Stop,
        console: Console,
        folder: Path,
        hardware: build.Hardware,
        data: build.Datasets,
        state: State,
    ):
        self.config, self.stop, self.console, self.folder = config, stop, console, folder
        self.hardware, self.data, self.state = hardware, data, state
        self.start: list[str] = []  # lines on the weights that it begins from

    def recorded(self, overrides: Sequence[str], saved: dict[str, Any] | None) -> Row:
        """Runs, and leaves in result.json how it ended."""
        try:
            summary.reset_peaks(self.hardware)
            with self._told():
                self._describe(overrides)
                return self._run(overrides, continued=saved is not None)
        except (StoppedError, RankError) as error:
            self._ended("interrupted", str(error), error.exit_code)
            raise
        except VggexpError as error:
            error.signal = self.stop.signal
            self._ended("failed", str(error), error.exit_code)
            raise
        except KeyboardInterrupt:
            self._ended("interrupted", "stopped at once by a second Ctrl-C", 130)
            raise
        except OSError as error:
            told = f"{error.filename or self.folder}: {error.strerror or error}"
            self._ended("failed", told, ResourceError.exit_code)
            raise ResourceError(told) from error
        except BaseException as error:
            self._ended("failed", f"{type(error).__name__}: {error}", 1)
            raise

    def followed(self) -> Row:
        """On a rank above 0: the same steps and scores, of which nothing is written."""
        with self._told():
            self._train(Silence(), None, Clock(self.hardware.device))
            self._tested()
        return {}

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        with memory.told(f"with data.batch_size={self.config.data.batch_size}; choose a smaller one"), dist.told():
            yield

    def _ended(self, state: str, error: str, exit_code: int) -> None:
        with contextlib.suppress(OSError):  # a full disk has no room for its own report
            rundir.set_state(self.folder, state, error=error, exit_code=exit_code)

    def _describe(self, overrides: Sequence[str]) -> None:
        self.console.log_file = self.folder / "run.log"
        here = {key: value for key, value in machine(self.hardware).items() if key != "torch"}  # among the versions
        known = environment() | here | {"attempts": rundir.attempts(self.folder), "data": self.data.fingerprint}
        known["versions"]["vggexp"] = __version__
        rundir.describe(self.folder, plain(self.config), overrides, known)
        rundir.set_state(self.folder, "running")

    def _run(self, overrides: Sequence[str], continued: bool) -> Row:
        config, state, data = self.config, self.state, self.data
        for line in [*summary.opening(config, self.hardware, data, self.folder), *self.start]:
            self.console.line(line)
        if continued:
            self.console.line(f"continued after step {state.step}: {state.epoch} epochs and {state.batch} batches")
        checkpoints = self._checkpoints()
        columns = summary.hyperparameters(config, overrides)
        watch = Watch(self.folder, self.console, config.train.epochs, columns, state.history)
        watch.guarded("the pictures of the first images", lambda: summary.first_images(watch, data))
        ok = False
        try:
            clock = Clock(self.hardware.device)
            self._train(watch, checkpoints, clock)
            content = self._finish(watch, checkpoints, clock)
            ok = True
        finally:
            watch.tensorboard.close(ok)
        for line in summary.closing(content, self.folder):
            self.console.line(line)
        return content

    def _train(self, watcher: Watcher, checkpoints: keep.Checkpoints | None, clock: Clock) -> None:
        """checkpoints: of rank 0."""
        plan, stop = build.plan(self.config, self.hardware), self.stop
        measure = partial(scores_of, config=self.config, hardware=self.hardware, data=self.data, console=self.console)
        keeper: Keeper | None = keep.Shared(stop, checkpoints) if isinstance(stop, dist.SharedStop) else checkpoints
        assert keeper is not None
        train(self.state, self.data.train, plan, clock, measure, watcher, keeper, stop)
        stop.check("before the test")

    def _tested(self) -> tuple[Row, nn.Module, Tensor, Tensor]:
        """The epoch whose weights are tested, these, and the test's logits and labels on the CPU."""
        state = self.state
        scored = summary.scored_row(state.history, self.config.train.test_weights)
        net = state.evaluated()
        if scored["step"] != state.step:
            path = self.folder / "checkpoints" / keep.name(scored["step"])
            net.load_state_dict(dist.first(lambda: checkpoint.weights_of(checkpoint.load(path))))
        dist.spread(net.buffers())
        logits, labels = predict(net, evaluated("test", self.data.test, self.console), self.hardware.autocast)
        return scored, net, logits, labels

    def _checkpoints(self) -> keep.Checkpoints:
        train, preprocess = self.config.train, self.data.preprocess
        facts = {
            "identity": identity(plain(self.config)), **machine(self.hardware), "data": self.data.fingerprint,
            "classes": list(self.data.classes), "mean": preprocess.mean, "std": preprocess.std,
        }  # fmt: skip
        checkpoints = keep.Checkpoints(self.folder / "checkpoints", train.keep, train.checkpoint_minutes, facts)
        keep.check_space(checkpoints.folder, disk_bytes(self.config)["run"])
        return checkpoints

    def _finish(self, watch: Watch, checkpoints: keep.Checkpoints, clock: Clock) -> Row:
        """The test, once; then the weights, the scores and the result."""
        state, data = self.state, self.data
        scored, net, logits, labels = self._tested()
        scores = logits.softmax(1)
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
        numpy.savez_compressed(self.folder / PREDICTIONS, scores=scores.numpy(), labels=labels.numpy())
        content = summary.content(self.config, self.hardware, state, scored, logits, labels, weights)
        clock.lap("evaluation")
        content |= summary.times(state.history, clock.read())
        scores_ = {key: value for key, value in content.items() if "/" in key and not key.startswith("time/")}
        watch.tensorboard.final(scores_, state.epoch)
        show = partial(summary.last_pictures, watch, data, scores, labels, state.epoch)
        watch.guarded("the pictures of the mistakes", show)
        watch.guarded("the graph", lambda: summary.graph(watch, net, data))
        # The views are whole by now: nothing comes back to them.
        content = rundir.set_state(self.folder, "finished", **content)
        if self.config.train.keep == "weights":  # from here on the run cannot be continued
            checkpoints.leave_only(scored["step"], {"weights": weights})
        return content
