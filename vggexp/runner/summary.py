"""What a run says of itself at its beginning and at its end."""

import contextlib
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from vggexp.config.derived import disk_bytes, layers
from vggexp.config.hints import hints
from vggexp.config.keys import flatten, to_plain
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.formatting import duration
from vggexp.loggers.run_logger import RunLogger
from vggexp.models.shapes import macs, parameters
from vggexp.runner.datasets import DataLoaders
from vggexp.runner.hardware import DeviceSetup
from vggexp.system.memory import CLEAR, STATUS
from vggexp.training.checkpoint import weights_sha256
from vggexp.training.checkpoint_manager import best_epoch
from vggexp.training.loop import EpochMetrics, TrainState
from vggexp.training.metrics import confusion_matrix, score_logits
from vggexp.training.timer import PARTS


def start_banner(
    config: Config, hardware: DeviceSetup, data: DataLoaders, folder: Path
) -> list[str]:
    """What will happen, told before it does."""
    table = layers(config)
    disk = disk_bytes(config)
    held_out = f", {data.val.count:,} for validation" if data.val else ""
    epochs = f"{config.train.epochs} epochs of {data.train.batches_per_epoch} steps"
    return [
        f"network  {network_name(config)}  {parameters(table):,} parameters  {macs(table) / 1e9:.3f} GMAC an image",
        f"data     {config.data.name}  {data.train.count:,} images{held_out}, {data.test.count:,} for the test"
        f"  ({data.origin})",
        f"training {epochs}, batch {config.data.batch_size}, {config.optimizer.name} lr {config.optimizer.lr:g}",
        f"device   {config.device.name}  {hardware.precision}  {hardware.threads} threads{_ranks()}",
        f"folder   {folder}  (checkpoints of {disk['checkpoint'] / 1e6:,.0f} MB, {disk['run'] / 1e6:,.0f} MB at most)",
        *(f"hint     {hint}" for hint in hints(config, _gpu_bytes(hardware))),
    ]


def _ranks() -> str:
    return (
        f" in each of {collectives.world_size()} processes" if collectives.world_size() > 1 else ""
    )


def _gpu_bytes(hardware: DeviceSetup) -> int | None:
    device = hardware.device
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


COLUMNS = (
    "data.name",
    "data.resize",
    "data.batch_size",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "scheduler.name",
    "train.epochs",
    "seed",
)


def hyperparameters(
    config: Config, overrides: Sequence[str]
) -> dict[str, bool | int | float | str]:
    """The columns of TensorBoard's HParams table: the network, what tells most runs apart, and what was typed."""
    typed = [word.lstrip("+").partition("=")[0] for word in overrides]
    values = {key: value for key, value in flatten(to_plain(config)).items() if value is not None}
    chosen = {
        key: values[key]
        for key in (*COLUMNS, *typed)
        if key in values and not key.startswith(("run.", "sweep."))
    }
    shown = {
        key: value if isinstance(value, bool | int | float) else str(value)
        for key, value in chosen.items()
    }
    return {"network": network_name(config), **shown}


def tested_epoch(history: Sequence[EpochMetrics], test_weights: str) -> EpochMetrics:
    """The epoch whose weights are tested: the last, or the first of the best validation accuracy."""
    best = best_epoch(history) if test_weights == "best" else None
    return best or history[-1]


def result_fields(
    config: Config,
    hardware: DeviceSetup,
    state: TrainState,
    scored: EpochMetrics,
    logits: Tensor,
    labels: Tensor,
    weights: dict[str, Tensor],
) -> EpochMetrics:
    """result.json of a finished run; val/... are of the weights that were tested."""
    final = {key: value for key, value in scored.items() if key.startswith(("train/", "val/"))}
    return {
        "epoch": state.epoch,
        "step": state.step,
        "micro_batches": state.micro_batches,
        **final,
        **score_logits(logits, labels, "test"),
        "test_weights": config.train.test_weights,
        "weights_step": scored["step"],
        "weights_sha256": weights_sha256(weights),
        **_best(state.history),
        "images_per_second": float(
            numpy.median([row["images_per_second"] for row in state.history])
        ),
        "parameters": parameters(layers(config)),
        **_peaks(hardware),
    }


def _best(history: Sequence[EpochMetrics]) -> EpochMetrics:
    best = best_epoch(history)
    return (
        {}
        if best is None
        else {"best/epoch": best["epoch"], "best/val/accuracy": best["val/accuracy"]}
    )


def total_times(history: Sequence[EpochMetrics], end: Mapping[str, float]) -> EpochMetrics:
    """Seconds of the whole run, and by part: of all epochs, and of the last checkpoint and the test after them."""
    total = {key: seconds + sum(row[key] for row in history) for key, seconds in end.items()}
    return {"seconds": total.pop("time/epoch_seconds"), **total}


def reset_peaks(hardware: DeviceSetup) -> None:
    """Before a run, whose process may have done another one."""
    with contextlib.suppress(OSError):  # not Linux
        CLEAR.write_text("5")
    if hardware.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(hardware.device)


def _peaks(hardware: DeviceSetup) -> EpochMetrics:
    if STATUS.exists():
        kib = next(
            line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")
        )
        peaks: EpochMetrics = {"peak_memory_bytes": int(kib) * 1024}
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peaks = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if hardware.device.type == "cuda":
        peaks["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(hardware.device)
    return peaks


def log_first_images(watch: RunLogger, data: DataLoaders) -> None:
    from vggexp.loggers.images import image_grid

    images, _ = next(iter(data.train.train(0)))
    watch.tensorboard.images("images/first_batch", image_grid(images[:32].float().cpu().numpy()))


def log_test_images(
    watch: RunLogger, data: DataLoaders, scores: Tensor, labels: Tensor, epoch: int
) -> None:
    from vggexp.loggers.images import confusion_image, mistakes_image

    confidences, predictions = scores.max(1)
    counts = confusion_matrix(labels, predictions, len(data.classes))
    watch.tensorboard.images("test/confusion", confusion_image(counts.numpy(), data.classes), epoch)
    wrong = (predictions != labels).nonzero()[:, 0]
    worst = wrong[confidences[wrong].argsort(descending=True)][:25]
    arrays = (labels[worst].numpy(), predictions[worst].numpy(), confidences[worst].numpy())
    picture = mistakes_image(data.pictures(worst).numpy(), *arrays, data.classes)
    watch.tensorboard.images("test/worst_mistakes", picture, epoch)


def log_graph(watch: RunLogger, model: nn.Module, data: DataLoaders) -> None:
    images, _ = next(iter(data.test.evaluate()))
    watch.tensorboard.graph(model, images[:1])


# The share of the time from which a part is out of proportion, and what cures it.
ADVICE = {
    "data": (0.1, "data.cache=ram or more data.workers"),
    "evaluation": (0.4, "a smaller data.val_fraction, or train.test_each_epoch=false"),
    "checkpoint": (0.05, "a larger train.checkpoint_minutes, or a faster disk for run.root"),
    "logging": (0.05, "a larger data.batch_size: the steps are short"),
}
SHORT_SECONDS = 60  # a shorter run is mostly beginning and end, and needs no advice


def end_banner(result: EpochMetrics, folder: Path) -> list[str]:
    """The score, where the time went, and where everything lies."""
    total = result["seconds"]
    shares = {part: result[f"time/{part}_seconds"] / total for part in PARTS}
    epochs = f"{result['epoch']} epoch" + "s" * (result["epoch"] != 1)
    large = ", ".join(
        f"{part} {100 * share:.0f} %" for part, share in shares.items() if share > 1 / 200
    )
    return [
        f"test accuracy {result['test/accuracy']:.4f}  loss {result['test/loss']:.4f}",
        f"time     {duration(total)} in {epochs}: {large}",
        *time_advice(total, shares),
        f"folder   {folder}",
    ]


def time_advice(seconds: float, shares: Mapping[str, float]) -> list[str]:
    large = [
        part
        for part, (limit, _) in ADVICE.items()
        if shares[part] > limit and seconds > SHORT_SECONDS
    ]
    return [
        f"advice   {100 * shares[part]:.0f} % of the time is {part}; try {ADVICE[part][1]}"
        for part in large
    ]
