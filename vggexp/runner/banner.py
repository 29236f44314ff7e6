"""Composes the lines that a run prints before its first epoch and after its last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vggexp.config.derived import disk_bytes, disk_limit, layers
from vggexp.config.hints import hints
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.formatting import duration
from vggexp.models.shapes import macs, parameters
from vggexp.runner.datasets import DataLoaders
from vggexp.runner.hardware import DeviceSetup
from vggexp.training.timer import PARTS

# For some parts of the time: the share above which it is out of proportion, and what reduces it.
ADVICE = {
    "data": (0.1, "data.cache=ram or more data.workers"),
    "evaluation": (0.4, "a smaller data.val_fraction, or train.test_each_epoch=false"),
    "checkpoint": (0.05, "a larger train.checkpoint_minutes, or a faster disk for run.root"),
    "logging": (0.05, "a larger data.batch_size: the steps are short"),
}
MIN_ADVICE_SECONDS = 60  # a shorter run is mostly start and end, and needs no advice
MIN_SHOWN_SHARE = 1 / 200  # of the time; smaller parts are not printed


def start_banner(
    config: Config,
    device_setup: DeviceSetup,
    data: DataLoaders,
    folder: Path,
) -> list[str]:
    """Returns what a run will do, and hints on its configuration."""
    train = config.train
    optimizer = config.optimizer
    table = layers(config)
    disk = disk_bytes(config)
    limit = disk_limit(config, f"{disk['run'] / 1e6:,.0f} MB")
    held_out = f", {data.val.count:,} for validation" if data.val else ""
    ranks = collectives.world_size()
    epochs = f"{train.epochs} epochs"
    if config.run.until is not None:
        epochs = f"{config.run.until} of {epochs}"
    in_ranks = f" in each of {ranks} processes" if ranks > 1 else ""
    lines = [
        f"network  {network_name(config)}  {parameters(table):,} parameters  "
        f"{macs(table) / 1e9:.3f} GMAC an image",
        f"data     {config.data.name}  {data.train.count:,} images{held_out}, "
        f"{data.test.count:,} for the test  ({data.origin})",
        f"training {epochs} of {data.train.batches_per_epoch} steps, "
        f"batch {config.data.batch_size}, {optimizer.name} lr {optimizer.lr:g}",
        f"device   {config.device.name}  {device_setup.precision}  "
        f"{device_setup.threads} threads{in_ranks}",
        f"folder   {folder}  (checkpoints of {disk['checkpoint'] / 1e6:,.0f} MB, {limit})",
    ]
    for hint in hints(config, _gpu_bytes(device_setup.device)):
        lines.append(f"hint     {hint}")
    return lines


def _gpu_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def end_banner(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Returns the test metrics, where the time went, and the run directory.

    Args:
        result: the content of result.json.
        folder: the run directory.
    """
    total = result["seconds"]
    shares = {part: result[f"time/{part}_seconds"] / total for part in PARTS}
    parts = []
    for part, share in shares.items():
        if share > MIN_SHOWN_SHARE:
            parts.append(f"{part} {100 * share:.0f} %")
    epochs = "1 epoch" if result["epoch"] == 1 else f"{result['epoch']} epochs"
    return [
        f"test accuracy {result['test/accuracy']:.4f}  loss {result['test/loss']:.4f}",
        f"time     {duration(total)} in {epochs}: {', '.join(parts)}",
        *time_advice(total, shares),
        f"folder   {folder}",
    ]


def paused_banner(config: Config, result: Mapping[str, Any], folder: Path) -> list[str]:
    """Returns how far a paused run has come, and how to continue it.

    Args:
        result: the content of result.json.
        folder: the run directory.
    """
    command = f"without run.until={config.run.until} the same command continues it"
    if config.resume == "never":
        command = f"run.name={folder.name} continues it, without resume=never and run.until"
    return [
        f"paused   after epoch {result['epoch']} of {config.train.epochs}; {command}",
        f"folder   {folder}",
    ]


def time_advice(seconds: float, shares: Mapping[str, float]) -> list[str]:
    """Returns a line for each part of the time that is out of proportion.

    Args:
        seconds: the time of the run.
        shares: the share of each part, 0..1.
    """
    if seconds <= MIN_ADVICE_SECONDS:
        return []
    lines = []
    for part, (limit, remedy) in ADVICE.items():
        percent = 100 * shares[part]
        if shares[part] > limit:
            lines.append(f"advice   {percent:.0f} % of the time is {part}; try {remedy}")
    return lines
