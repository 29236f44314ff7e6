"""One run, from a checked configuration to a result."""

import copy
import resource
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from vggexp import __version__, build, checkpoint, rundir
from vggexp.clock import PARTS, Clock
from vggexp.config.identity import flat, network_name, run_name
from vggexp.config.read import plain
from vggexp.config.rules import layers
from vggexp.config.schema import Config
from vggexp.environment import environment
from vggexp.errors import ResourceError, VggexpError
from vggexp.evaluate import evaluate, predict, score
from vggexp.metrics import confusion
from vggexp.shapes import macs, parameters
from vggexp.sinks.console import Console, duration
from vggexp.train import Row, State, train
from vggexp.watch import Watch


def run(config: Config, overrides: Sequence[str]) -> Row:
    """Trains, tests and records; returns result.json's content. Raises VggexpError, after recording it."""
    hardware = build.hardware(config)
    data = build.data(config, hardware.device)
    state = build.state(config, hardware, data.train.batches_per_epoch)
    root = Path(config.run.root)
    name = rundir.next_free(root, run_name(config)) if config.resume == "never" else run_name(config)
    with rundir.claimed(root / name) as folder:
        console = Console(folder / "run.log")
        attempts = rundir.attempts(folder)
        known = environment(hardware.device) | {
            "vggexp": __version__, "threads": hardware.threads, "precision": hardware.precision,
            "attempts": attempts, "data": data.fingerprint,
        }  # fmt: skip
        rundir.describe(folder, plain(config), overrides, known)
        rundir.set_state(folder, "running")
        for line in opening(config, hardware, data, folder):
            console.line(line)
        try:
            return _trained(config, hardware, data, state, folder, console)
        except VggexpError as error:
            rundir.set_state(folder, "failed", error=str(error), exit_code=error.exit_code)
            raise
        except KeyboardInterrupt:
            rundir.set_state(folder, "interrupted")
            console.line("stopped by SIGINT")
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            told = f"out of memory with data.batch_size={config.data.batch_size}; try train.accumulate=2"
            rundir.set_state(folder, "failed", error=told, exit_code=ResourceError.exit_code)
            raise ResourceError(told) from error
        except BaseException as error:
            rundir.set_state(folder, "failed", error=f"{type(error).__name__}: {error}", exit_code=1)
            raise


def opening(config: Config, hardware: build.Hardware, data: build.Datasets, folder: Path) -> list[str]:
    """What will happen, told before it does."""
    table = layers(config)
    count, cost = parameters(table), macs(table) / 1e9
    held_out = f", {data.val.count:,} for validation" if data.val else ""
    epochs = f"{config.train.epochs} epochs of {data.train.batches_per_epoch} steps"
    return [
        f"network  {network_name(config)}  {count:,} parameters  {cost:.3f} GMAC an image",
        f"data     {config.data.name}  {data.train.count:,} images{held_out}, {data.test.count:,} for the test"
        f"  ({data.origin})",
        f"training {epochs}, batch {config.data.batch_size}, {config.optimizer.name} lr {config.optimizer.lr:g}",
        f"device   {config.device.name}  {hardware.precision}  {hardware.threads} threads",
        f"folder   {folder}  ({4 * count / 1e6:,.0f} MB of weights at the end)",
    ]


def _trained(
    config: Config, hardware: build.Hardware, data: build.Datasets, state: State, folder: Path, console: Console
) -> Row:
    started = time.monotonic()
    watch = Watch(folder, console, config.train.epochs, hyperparameters(config), state.history)
    watch.guarded("the pictures of the first images", lambda: _first_images(watch, data))
    plan, clock = build.plan(config, hardware), Clock(hardware.device)
    best = Best(enabled=config.train.test_weights == "best")
    measure = partial(_measure, config=config, hardware=hardware, data=data, best=best)
    ok = False
    try:
        train(state, data.train, plan, clock, measure, watch)
        net = best.into(state.evaluated())
        result = _finish(config, hardware, data, state, net, folder, watch, time.monotonic() - started)
        ok = True
    finally:
        watch.tensorboard.close(ok)
    for line in closing(result, state.history, folder):
        console.line(line)
    return result


class Best:
    """Keeps the weights of the best validation accuracy, on the CPU, where they are asked for."""

    def __init__(self, enabled: bool):
        self.enabled, self.accuracy = enabled, -1.0
        self.weights: dict[str, Tensor] | None = None

    def see(self, net: nn.Module, accuracy: float) -> None:
        if self.enabled and accuracy > self.accuracy:
            self.accuracy = accuracy
            self.weights = {key: tensor.detach().to("cpu", copy=True) for key, tensor in net.state_dict().items()}

    def into(self, net: nn.Module) -> nn.Module:
        if self.weights is None:
            return net
        net = copy.deepcopy(net)
        net.load_state_dict(self.weights)
        return net


def _measure(
    net: nn.Module, config: Config, hardware: build.Hardware, data: build.Datasets, best: Best
) -> dict[str, float]:
    """Scores after an epoch: validation, and the test set only where the configuration asks for it."""
    rows: dict[str, float] = {}
    if data.val is not None:
        rows |= evaluate(net, data.val.evaluate(), hardware.device, hardware.autocast, "val")
        best.see(net, rows["val/accuracy"])
    if config.train.test_each_epoch:
        rows |= evaluate(net, data.test.evaluate(), hardware.device, hardware.autocast, "test")
    return rows


def _finish(
    config: Config, hardware: build.Hardware, data: build.Datasets, state: State, net: nn.Module,
    folder: Path, watch: Watch, seconds: float,
) -> Row:  # fmt: skip
    """The test, once; then the weights, the scores and the result."""
    logits, labels = predict(net, data.test.evaluate(), hardware.autocast)
    scores = logits.softmax(1)
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    (folder / "checkpoints").mkdir(exist_ok=True)
    path = folder / "checkpoints" / f"{state.step:08d}.pt"
    known = {"classes": list(data.classes), "mean": data.preprocess.mean, "std": data.preprocess.std}
    checkpoint.save(path, {"format": 1, "step": state.step, "epoch": state.epoch, "weights": weights, **known})
    numpy.savez_compressed(folder / "predictions.npz", scores=scores.numpy(), labels=labels.numpy())
    scored = state.history[best_epoch(state.history) - 1 if config.train.test_weights == "best" else -1]
    final = {key: value for key, value in scored.items() if key.startswith(("train/", "val/"))}
    test = score(logits, labels, "test")
    result = rundir.set_state(
        folder, "finished", epoch=state.epoch, step=state.step, **final, **test,
        test_weights=config.train.test_weights, **_best(state.history),
        weights_sha256=checkpoint.weights_sha256(weights), seconds=seconds, **_peaks(hardware),
        images_per_second=float(numpy.median([row["images_per_second"] for row in state.history])),
        parameters=sum(tensor.numel() for tensor in net.parameters()),
    )  # fmt: skip
    watch.tensorboard.final({**test, **_best(state.history)}, state.epoch)
    pictures = partial(_last_pictures, watch, data, scores, labels, state.epoch)
    watch.guarded("the pictures of the mistakes", pictures)
    watch.guarded("the graph", lambda: _graph(watch, net, data))
    return result


def best_epoch(history: Sequence[Row]) -> int:
    """The first epoch of the best validation accuracy."""
    return max(history, key=lambda row: row["val/accuracy"])["epoch"]


def _best(history: Sequence[Row]) -> Row:
    if "val/accuracy" not in history[-1]:
        return {}
    epoch = best_epoch(history)
    return {"best/epoch": epoch, "best/val/accuracy": history[epoch - 1]["val/accuracy"]}


def _peaks(hardware: build.Hardware) -> Row:
    unit = 1 if sys.platform == "darwin" else 1024
    peaks: Row = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if hardware.device.type == "cuda":
        peaks["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(hardware.device)
    return peaks


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """The columns of TensorBoard's HParams table: every key of the configuration that has a value."""
    values = {key: value for key, value in flat(plain(config)).items() if value is not None}
    shown = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
    return {"network": network_name(config), **shown}


def _first_images(watch: Watch, data: build.Datasets) -> None:
    from vggexp.sinks.pictures import grid

    images, _ = next(iter(data.train.train(0)))
    watch.tensorboard.images("images/first_batch", grid(images[:32].float().cpu().numpy()))


def _last_pictures(watch: Watch, data: build.Datasets, scores: Tensor, labels: Tensor, epoch: int) -> None:
    from vggexp.sinks.pictures import confusion_picture, mistakes_picture

    confidences, predictions = scores.max(1)
    counts = confusion(labels, predictions, len(data.classes))
    watch.tensorboard.images("test/confusion", confusion_picture(counts.numpy(), data.classes), epoch)
    wrong = (predictions != labels).nonzero()[:, 0]
    worst = wrong[confidences[wrong].argsort(descending=True)][:25]
    picture = mistakes_picture(
        data.pictures(worst).numpy(), labels[worst].numpy(), predictions[worst].numpy(), confidences[worst].numpy(),
        data.classes,
    )  # fmt: skip
    watch.tensorboard.images("test/worst_mistakes", picture, epoch)


def _graph(watch: Watch, net: nn.Module, data: build.Datasets) -> None:
    images, _ = next(iter(data.test.evaluate()))
    watch.tensorboard.graph(net, images[:1])


def closing(result: Row, history: Sequence[Row], folder: Path) -> list[str]:
    """The score, where the time went, and where everything lies."""
    total = sum(row["time/epoch_seconds"] for row in history)
    spent = {part: sum(row[f"time/{part}_seconds"] for row in history) for part in PARTS}
    shares = ", ".join(
        f"{part} {100 * seconds / total:.0f} %" for part, seconds in spent.items() if seconds > total / 200
    )
    return [
        f"test accuracy {result['test/accuracy']:.4f}  loss {result['test/loss']:.4f}",
        f"time     {duration(total)} in {len(history)} epochs: {shares}",
        f"folder   {folder}",
    ]
