"""Composes the lines that a run prints before its first epoch and after its last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vggexp.config.derived import disk_bytes, disk_limit, flip_only_from, layers, tested_views
from vggexp.config.hints import hints
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.formatting import (
    duration,
    format_bytes,
    format_metric,
    plural,
    tensorboard_command,
)
from vggexp.models.shapes import macs, parameters
from vggexp.runner.advice import time_advice
from vggexp.runner.datasets import DataLoaders
from vggexp.runner.hardware import DeviceSetup
from vggexp.runs.times import added_seconds, part_seconds

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
    limit = disk_limit(config, format_bytes(disk["run"], "B"))
    held_out = f", {data.val.count:,} for validation" if data.val else ""
    limited = " (data.test_limit)" if config.data.test_limit is not None else ""
    ranks = collectives.world_size()
    epochs = plural(train.epochs, "epoch")
    if config.run.until is not None:
        epochs = f"{config.run.until} of {epochs}"
    ending = ""
    first_flip_only = flip_only_from(config)
    if first_flip_only is not None:
        change = "only flipped" if config.augment.flip else "unchanged"
        ending = f"; images {change} from epoch {first_flip_only + 1}"
    in_ranks = f" in each of {ranks} processes" if ranks > 1 else ""
    lines = [
        f"network  {network_name(config)}  {parameters(table):,} parameters  "
        f"{format_bytes(macs(table), 'MAC')} an image",
        f"data     {config.data.name}  {data.train.count:,} images{held_out}, "
        f"{data.test.count:,} for the test{limited}  ({data.origin})",
        f"training {epochs} of {plural(data.train.batches_per_epoch, 'step')}, "
        f"batch {config.data.batch_size}, {optimizer.name} lr {optimizer.lr:g}{ending}",
        f"device   {config.device.name}  {device_setup.precision}  "
        f"{plural(device_setup.threads, 'thread')}{in_ranks}",
        f"folder   {folder}  (checkpoints of {format_bytes(disk['checkpoint'], 'B')}, {limit})",
    ]
    for hint in hints(config, _gpu_bytes(device_setup.device)):
        lines.append(f"hint     {hint}")
    return lines


def _gpu_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def end_banner(config: Config, result: Mapping[str, Any], folder: Path) -> list[str]:
    """Returns the test metrics, where the time went, what would shorten it, and the run directory.

    Args:
        config: the configuration.
        result: the content of result.json.
        folder: the run directory.
    """
    loss = format_metric(result["test/loss"])
    score = f"test accuracy {result['test/accuracy']:.4f}  loss {loss}"
    views = tested_views(config)
    if views.keys:
        score += f" {views.suffix} ({', '.join(views.keys)})"
    if config.data.test_limit is not None:
        score += f"  on {plural(result['test_images'], 'image')} (data.test_limit)"
    return [
        score,
        _time_line(result),
        *time_advice(config, result),
        f"folder   {folder}",
        f"show     {tensorboard_command(folder)}",
    ]


def _time_line(result: Mapping[str, Any]) -> str:
    """Returns the time of the epochs and the test by part, and what came in addition."""
    total = result["seconds"]
    parts = []
    for part, seconds in part_seconds(result).items():
        share = seconds / total
        if share > MIN_SHOWN_SHARE:
            parts.append(f"{part} {100 * share:.0f} %")
    line = f"time     {duration(total)} in {plural(result['epoch'], 'epoch')}: {', '.join(parts)}"
    for name, seconds in added_seconds(result).items():
        if seconds > MIN_SHOWN_SHARE * total:
            line += f"; {duration(seconds)} of {name}"
    return line


def paused_banner(config: Config, result: Mapping[str, Any], folder: Path) -> list[str]:
    """Returns how far a paused run has come, how to continue it, and what shows it.

    Args:
        config: the configuration.
        result: the content of result.json.
        folder: the run directory.
    """
    command = f"without run.until={config.run.until} the same command continues it"
    if config.resume == "never":
        command = f"run.name={folder.name} continues it, without resume=never and run.until"
    return [
        f"paused   after epoch {result['epoch']} of {config.train.epochs}; {command}",
        f"folder   {folder}",
        f"show     {tensorboard_command(folder)}",
    ]
