"""One run, from a checked configuration to a result; started, continued or both."""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from vggexp import __version__, build, checkpoint, keep, memory, rundir, runs, summary
from vggexp.clock import Clock
from vggexp.config.identity import differences, identity, run_name
from vggexp.config.read import plain
from vggexp.config.rules import disk_bytes
from vggexp.config.schema import Config
from vggexp.environment import device_name, environment
from vggexp.errors import CheckpointError, InUseError, ResourceError, StoppedError, VggexpError
from vggexp.predictions import PREDICTIONS
from vggexp.scoring import evaluate, predict
from vggexp.signals import Stop, stopping
from vggexp.sinks.console import Console
from vggexp.start import started
from vggexp.train import Row, State, train
from vggexp.watch import Watch


def run(config: Config, overrides: Sequence[str]) -> Row:
    """Trains, tests and records; returns result.json's content. Raises VggexpError, after recording it."""
    root = Path(config.run.root)
    folder = root / (rundir.next_free(root, run_name(config)) if config.resume == "never" else run_name(config))
    with contextlib.ExitStack() as held:
        stop = held.enter_context(stopping())
        if config.resume == "never":
            stop.advice = f"run.name={folder.name} in place of resume=never continues it"
        new = not folder.exists()
        if not new:  # its checkpoint says how to build
            held.enter_context(rundir.claimed(folder))
            done = runs.finished(config)
            if done is not None:  # by another process, since the door looked
                return done
        console = Console(None)
        saved = keep.latest(folder / "checkpoints", console.line)
        with memory.told("before the first batch; choose a smaller network, data.resize or data.limit"):
            job = Job(config, stop, console, folder, *built(config, saved, console))
            if saved is None:
                job.start = started(job.state.net, config)
        stop.check("before its first batch")
        if new:
            held.enter_context(rundir.claimed(folder))
            if rundir.result_of(folder):
                raise InUseError(f"{folder}: another process has made it meanwhile; run the same command again")
        return job.recorded(overrides, saved)


def built(
    config: Config, saved: dict[str, Any] | None, console: Console
) -> tuple[build.Hardware, build.Datasets, State]:
    """Everything a run needs, at the state of the checkpoint. Raises before anything is written."""
    if saved is not None and "net" not in saved:
        raise CheckpointError("checkpoints: this run kept only its weights (train.keep=weights) and cannot go on")
    hardware = build.hardware(config, saved["threads"] if saved else None)
    if saved is not None:
        _compatible(config, hardware, saved, console)
    data = build.data(config, hardware.device, console.line)
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
    moved = [f"{key} {saved.get(key)} -> {value}" for key, value in here.items() if saved.get(key) != value]
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


def machine(hardware: build.Hardware) -> dict[str, Any]:
    """What a result depends on besides configuration and data."""
    return {
        "torch": str(torch.__version__),
        "threads": hardware.threads,
        "device": str(hardware.device),
        "device_name": device_name(hardware.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": hardware.precision,
    }


def scores_of(
    net: nn.Module, config: Config, hardware: build.Hardware, data: build.Datasets, console: Console
) -> dict[str, float]:
    """The scores after an epoch: validation, and the test set only where the configuration asks for it."""
    scores: dict[str, float] = {}
    if data.val is not None:
        batches = console.counted("validation", data.val.evaluate(), data.val.batches_per_epoch)
        scores |= evaluate(net, batches, hardware.device, hardware.autocast, "val")
    if config.train.test_each_epoch:
        batches = console.counted("test", data.test.evaluate(), data.test.batches_per_epoch)
        scores |= evaluate(net, batches, hardware.device, hardware.autocast, "test")
    return scores


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
            with memory.told(f"with data.batch_size={self.config.data.batch_size}; choose a smaller one"):
                self._describe(overrides)
                return self._run(overrides, continued=saved is not None)
        except StoppedError as error:
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
            plan, clock = build.plan(config, self.hardware), Clock(self.hardware.device)
            measure = partial(scores_of, config=config, hardware=self.hardware, data=data, console=self.console)
            train(state, data.train, plan, clock, measure, watch, checkpoints, self.stop)
            self.stop.check("before the test")
            content = self._finish(watch, checkpoints, clock)
            ok = True
        finally:
            watch.tensorboard.close(ok)
        for line in summary.closing(content, self.folder):
            self.console.line(line)
        return content

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
        scored = summary.scored_row(state.history, self.config.train.test_weights)
        net = state.evaluated()
        if scored["step"] != state.step:
            net.load_state_dict(checkpoint.weights_of(checkpoint.load(checkpoints.path(scored["step"]))))
        batches = self.console.counted("test", data.test.evaluate(), data.test.batches_per_epoch)
        logits, labels = predict(net, batches, self.hardware.autocast)
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
