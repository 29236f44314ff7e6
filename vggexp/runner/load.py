"""Loads the network, configuration, preprocessing and metrics of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vggexp.config.derived import input_spec
from vggexp.config.schema import Config, ImageFiles
from vggexp.data.transforms import Preprocess
from vggexp.data.workers import print_warning
from vggexp.errors import CheckpointError
from vggexp.runner import build, datasets
from vggexp.runs import jsonl
from vggexp.runs.data_root import hint_at_moved_data
from vggexp.runs.directory import METRICS, read_result
from vggexp.runs.predictions import Predictions
from vggexp.runs.predictions import read as read_predictions
from vggexp.runs.records import load_config
from vggexp.training import checkpoint, checkpoint_schema
from vggexp.training.checkpoint_manager import find_checkpoints


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A trained network with its preprocessing, and what its run directory holds.

    `model(preprocess(images))` returns logits [N, classes] for uint8 images [N, C, H, W] of any
    height and width. The files are read on first use.
    """

    path: Path  # the run directory
    classes: tuple[str, ...]
    config: Config = field(repr=False)
    # In eval mode. Sees an image once, also if the run was tested with mirror images or shifts.
    model: nn.Module = field(repr=False)
    preprocess: Preprocess = field(repr=False)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one dictionary for each finished epoch."""
        return jsonl.read(self.path / METRICS)

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json."""
        return read_result(self.path)

    @cached_property
    def predictions(self) -> Predictions:
        """Probabilities and labels of the test images. Raises CheckpointError without a test.

        With `train.test_flip` or `train.test_shift` they are means over the copies of an image.
        """
        return read_predictions(self.path)


def load_run(path: str | Path) -> LoadedRun:
    """Loads the tested weights of a run directory onto the CPU, in eval mode, in fp32.

    Raises CheckpointError.
    """
    config, tested = load_tested_checkpoint(Path(path))
    return build_loaded_run(config, tested, Path(path))


def load_tested_checkpoint(folder: Path, step: int | None = None) -> tuple[Config, dict[str, Any]]:
    """Returns the configuration of a run, and the checkpoint whose weights were tested.

    Args:
        folder: the run directory.
        step: the step of another checkpoint to return.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit the configuration.
    """
    config = load_config(folder)
    path = _checkpoint_path(folder, step)
    tested = checkpoint_schema.load(path)
    config = build.with_class_count(config, len(tested["classes"]))
    try:
        check_tested(config, tested)
    except ValueError as error:
        raise CheckpointError(f"{path}: does not fit config.yaml: {error}") from error
    return config, tested


def check_tested(config: Config, tested: dict[str, Any]) -> None:
    """Raises ValueError unless classes, mean and std belong to the configuration.

    The classes of a folder decide the size of its network, so the weights must have as many.
    """
    spec = input_spec(config)
    *_, bias = checkpoint.select_eval_weights(tested).values()
    classes = len(tested["classes"])
    if classes != spec.classes or bias.shape != (classes,):
        raise ValueError(f"{classes} classes, but the weights are of {list(bias.shape)}")
    for name in ("mean", "std"):
        channels = 0 if tested[name] is None else len(tested[name])
        if channels not in (0, 1, spec.channels):
            raise ValueError(f"{name} of {channels} channels, but the images have {spec.channels}")


def _checkpoint_path(folder: Path, step: int | None) -> Path:
    """Returns the checkpoint of a step; of None the tested one, or the newest without a test."""
    if step is None:
        step = read_result(folder).get("weights_step")
    for path in find_checkpoints(folder / "checkpoints"):
        if step is None or int(path.stem) == step:
            return path
    suffix = "" if step is None else f" of step {step}"
    raise CheckpointError(f"{folder}: holds no checkpoint{suffix}")


def build_loaded_run(config: Config, tested: dict[str, Any], folder: Path) -> LoadedRun:
    """Builds a LoadedRun from the result of `load_tested_checkpoint`. Raises CheckpointError."""
    model = build.build_model(config)
    build.load_weights(model, checkpoint.select_eval_weights(tested), folder)
    return LoadedRun(
        path=folder,
        classes=tuple(tested["classes"]),
        config=config,
        model=model.eval(),
        preprocess=datasets.make_preprocess(config, tested["mean"], tested["std"]),
    )


def load_test_data(
    config: Config,
    folder: Path,
    tested: dict[str, Any],
    device: torch.device,
    warn: Callable[[str], None] = print_warning,
) -> datasets.DataLoaders:
    """Builds the loaders of the data that a run was tested on.

    Args:
        config: of the run, as `test_only_config` returns it and with the data's present place.
        folder: the run directory, for messages.
        tested: the checkpoint that the run was tested with.
        device: where the batches go.
        warn: as in `build_loaders`.

    Raises:
        CheckpointError: the data is not what the run was tested on.
        DataError: the data is missing or damaged.
    """
    with hint_at_moved_data():
        data = datasets.build_loaders(config, device, warn)
    if changed := data.changed_files(tested["data"]):
        raise CheckpointError(
            f"{folder}: the data has changed since this run began ({changed}); restore it, "
            "or give its place with --data FOLDER"
        )
    return data


def test_only_config(config: Config) -> Config:
    """Returns a run's configuration for the test set alone.

    A folder's images are decoded again, because the images that a run caches are cut to its size.
    Color augmentation is off, because it reads the training images.
    """
    data = config.data
    if isinstance(data, ImageFiles):
        data = replace(data, cache="none")
    return replace(config, data=data, augment=replace(config.augment, color=0))
