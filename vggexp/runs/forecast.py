"""Expects the time of a run from finished runs of the same kind on this host. Needs no torch.

A finished run gives the seconds of one image in training and in evaluation. Both are scaled by the
multiply-adds of an image. The start of a process is left out.
"""

import socket
from collections.abc import Sequence
from functools import cache
from heapq import heapreplace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from vggexp.config.derived import (
    command_epochs,
    decodes_each_epoch,
    divide_images,
    ends_with_test,
    expected_precision,
    input_spec,
    layers,
    tested_views,
)
from vggexp.config.parse import parse_config
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config, ImageFolder
from vggexp.data.image_folder import count_images
from vggexp.errors import VggexpError
from vggexp.formatting import duration, plural
from vggexp.models.shapes import macs
from vggexp.runs import records
from vggexp.runs.directory import RESULT, read_config, read_environment, read_result
from vggexp.system.cpu import default_threads

# Only runs within this factor in multiply-adds an image predict the time of another network: the
# time for one multiply-add depends on the size of the network.
SIMILAR_MACS_FACTOR = 8
TRAINING_PASSES = 3  # forward, and the products for the gradients of inputs and weights
MAX_RUNS = 30  # the newest that are read; reading one takes 4 ms


class ImageCounts(NamedTuple):
    train: int
    val: int
    test: int


class Machine(NamedTuple):
    """How a run uses this host, as env.json records it."""

    device: str
    precision: str
    threads: int  # of one process; 0 on an accelerator, whose speed does not depend on them
    processes: int


class RunKind(NamedTuple):
    """What decides the speed of a run besides the size of its network."""

    machine: Machine
    channels_last: bool
    compile: bool
    deterministic: bool
    decodes: bool  # image files, in every epoch


class RunSpeed(NamedTuple):
    """What a finished run measured."""

    folder: Path
    kind: RunKind
    network: str
    macs: int  # multiply-adds an image
    train_seconds: float  # of an image in training
    eval_seconds: float  # of a forward pass of one image in validation or test


class Forecast(NamedTuple):
    """The expected time of a run."""

    seconds: float | None  # None: unknown
    sources: frozenset[Path] = frozenset()  # the run directories that the time is from


UNKNOWN = Forecast(None)
NO_RUNS = "no run of this kind has finished on this host"


def known_counts(config: Config) -> ImageCounts | None:
    """Returns the numbers of images; None for an image folder, whose files must be counted."""
    spec = input_spec(config)
    if spec.train_images is None or spec.val_images is None or spec.test_images is None:
        return None
    return ImageCounts(spec.train_images, spec.val_images, spec.test_images)


@cache
def _count_folder(root: str, test_fraction: float | None) -> tuple[int, int]:
    """Counts the images of a folder, which many jobs share, only once."""
    return count_images(Path(root), test_fraction)


def count_run_images(config: Config) -> ImageCounts | None:
    """Returns the numbers of images, of a folder by counting its files; None if that fails."""
    data = config.data
    if not isinstance(data, ImageFolder):
        return known_counts(config)
    try:
        images, test = _count_folder(data.root or "", data.test_fraction)
    except VggexpError:
        return None
    return ImageCounts(*divide_images(images, config), min(test, data.test_limit or test))


def evaluation_passes(config: Config, counts: ImageCounts, epochs: int, is_tested: bool) -> int:
    """Returns the number of forward passes of one image in validation and tests.

    Args:
        config: the configuration.
        counts: the numbers of images.
        epochs: how many are evaluated.
        is_tested: whether the test after the last epoch counts as well.
    """
    tests = is_tested + epochs * config.train.test_each_epoch
    return epochs * counts.val + tests * passes_per_test(config, counts)


def passes_per_test(config: Config, counts: ImageCounts) -> int:
    """Returns the forward passes of a test, which sees each image in one or more views."""
    return counts.test * tested_views(config).count


def epoch_passes(config: Config, counts: ImageCounts) -> int:
    """Returns the work of an epoch in forward passes of one image."""
    return TRAINING_PASSES * counts.train + evaluation_passes(config, counts, 1, is_tested=False)


def expected_machine(config: Config, threads: int) -> Machine:
    """Returns what env.json of the run will record.

    Args:
        config: the configuration.
        threads: of the run, unless device.threads is set; its ranks share them.
    """
    device = config.device
    processes = device.processes or 1
    if device.name != "cpu":
        threads = 0
    else:
        threads = device.threads or max(1, threads // processes)
    return Machine(device.name, expected_precision(device), threads, processes)


def run_kind(config: Config, machine: Machine) -> RunKind:
    return RunKind(
        machine=machine,
        channels_last=config.device.channels_last,
        compile=config.device.compile,
        deterministic=config.device.deterministic,
        decodes=decodes_each_epoch(config.data),
    )


def finished_speeds(root: Path, machines: Sequence[Machine]) -> list[RunSpeed]:
    """Returns the speeds of the newest finished runs on these machines.

    Folders that cannot be read, and runs of versions without the needed numbers, are left out.

    Args:
        root: run.root, which is searched.
        machines: the results of `expected_machine`.
    """
    found: list[tuple[float, Path, dict[str, Any], Machine]] = []
    for folder in records.find_runs([root]):
        try:
            result = read_result(folder)
            environment = read_environment(folder)
            written_at = (folder / RESULT).stat().st_mtime
        except (VggexpError, OSError):
            continue
        machine = _recorded_machine(environment)
        is_here = environment.get("host") == socket.gethostname()
        if result.get("state") == "finished" and is_here and machine in machines:
            found.append((written_at, folder, result, machine))
    found.sort(key=lambda run: run[0], reverse=True)
    speeds = []
    for _, folder, result, machine in found[:MAX_RUNS]:
        speed = _run_speed(folder, result, machine)
        if speed is not None:
            speeds.append(speed)
    return speeds


def _recorded_machine(environment: dict[str, Any]) -> Machine:
    device = environment.get("device", "")
    threads = environment.get("threads", 0) if device == "cpu" else 0
    precision = environment.get("precision", "")
    return Machine(device, precision, threads, environment.get("processes", 1))


def _run_speed(folder: Path, result: dict[str, Any], machine: Machine) -> RunSpeed | None:
    """Returns the speed of a finished run; None if its files do not have the needed numbers."""
    try:
        config, _ = parse_config(read_config(folder))
        if config is None:
            return None
        size = macs(layers(config))
        network = network_name(config)
        counts = _tested_counts(config, result)
    except (VggexpError, ValueError):
        return None
    rate = result.get("images_per_second")
    epochs = result.get("epoch")
    if counts is None or not epochs or rate is None or rate <= 0:
        return None
    train_seconds = 1 / rate
    images = evaluation_passes(config, counts, epochs, is_tested=True)
    seconds = result.get("time/evaluation_seconds")
    eval_seconds = train_seconds / TRAINING_PASSES
    if seconds and images:
        eval_seconds = seconds / images
    kind = run_kind(config, machine)
    return RunSpeed(folder, kind, network, size, train_seconds, eval_seconds)


def _tested_counts(config: Config, result: dict[str, Any]) -> ImageCounts | None:
    """Returns the numbers of images of a finished run."""
    counts = [result.get(f"{part}_images") for part in ("train", "val", "test")]
    if None in counts:  # version 0.1.0 recorded none
        return known_counts(config)
    return ImageCounts(*counts)  # type: ignore[arg-type]


def expected_time(
    config: Config,
    counts: ImageCounts | None,
    speeds: Sequence[RunSpeed],
    threads: int,
) -> Forecast:
    """Returns the expected time of a run, from its first epoch to its test or to `run.until`.

    The runs of the same network count, or without them those of a similar size.

    Args:
        config: the configuration.
        counts: the numbers of images; None: unknown.
        speeds: the result of `finished_speeds`.
        threads: as in `expected_machine`.
    """
    size = macs(layers(config))
    kind = run_kind(config, expected_machine(config, threads))
    similar = []
    for speed in speeds:
        is_similar = size / SIMILAR_MACS_FACTOR <= speed.macs <= size * SIMILAR_MACS_FACTOR
        if is_similar and speed.kind == kind:
            similar.append(speed)
    name = network_name(config)
    chosen = [speed for speed in similar if speed.network == name] or similar
    if counts is None or not chosen:
        return UNKNOWN
    train_seconds = size * median(speed.train_seconds / speed.macs for speed in chosen)
    eval_seconds = size * median(speed.eval_seconds / speed.macs for speed in chosen)
    epochs = command_epochs(config)
    images = evaluation_passes(config, counts, epochs, ends_with_test(config))
    seconds = train_seconds * epochs * counts.train + eval_seconds * images
    seconds += 60 * config.train.rest_minutes * (epochs - 1)
    return Forecast(seconds, frozenset(speed.folder for speed in chosen))


def expected_run(config: Config) -> Forecast:
    """Returns the expected time of a single run on this host. Lists no image file."""
    threads = default_threads()
    machine = expected_machine(config, threads)
    speeds = finished_speeds(Path(config.run.root), [machine])
    return expected_time(config, known_counts(config), speeds, threads)


def total_seconds(seconds: Sequence[float], at_a_time: int) -> float:
    """Returns the time of runs that start in this order, some of them at a time."""
    ends = [0.0] * at_a_time
    for run_seconds in seconds:
        heapreplace(ends, ends[0] + run_seconds)
    return max(ends)


def time_text(seconds: float, runs: int) -> str:
    """Returns `about 3.2 min (from 4 finished runs of this kind on this host)`."""
    finished = plural(runs, "finished run")
    return f"about {duration(seconds)} (from {finished} of this kind on this host)"
