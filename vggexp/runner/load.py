"""A finished run in a notebook: the network, its configuration and its preprocessing."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from vggexp.config.schema import Config, ImageFolder
from vggexp.data.transforms import Preprocess
from vggexp.errors import CheckpointError
from vggexp.runner import build, datasets
from vggexp.runs.directory import read_result
from vggexp.runs.records import load_config
from vggexp.training import checkpoint
from vggexp.training.checkpoint_manager import find_checkpoints


class LoadedRun(NamedTuple):
    """`net(preprocess(images))` are logits [N, classes]; images: uint8 [N, C, H, W] of any size."""

    model: nn.Module
    config: Config
    preprocess: Preprocess
    classes: tuple[str, ...]


def load_tested_checkpoint(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a run, and the checkpoint with its tested weights. Raises CheckpointError."""
    config = load_config(folder)
    saved = checkpoint.load(_scored(folder))
    return build.with_class_count(config, len(saved["classes"])), saved


def _scored(folder: Path) -> Path:
    """The checkpoint whose weights were tested; of an unfinished run the newest."""
    step = read_result(folder).get("weights_step")
    paths = find_checkpoints(folder / "checkpoints")
    chosen = [path for path in paths if step is None or int(path.stem) == step]
    if not chosen:
        raise CheckpointError(
            f"{folder}: holds no checkpoint{'' if step is None else f' of step {step}'}"
        )
    return chosen[0]


def load_run(path: str | Path) -> LoadedRun:
    """Loads the tested weights of a run directory onto the CPU, in eval mode, in fp32. Raises CheckpointError."""
    return build_loaded_run(*load_tested_checkpoint(Path(path)))


def build_loaded_run(config: Config, saved: dict[str, Any]) -> LoadedRun:
    """From what `tested` gives."""
    model = build.build_model(config)
    model.load_state_dict(checkpoint.weights_of(saved))
    return LoadedRun(
        model.eval(),
        config,
        datasets.make_preprocess(config, saved["mean"], saved["std"]),
        tuple(saved["classes"]),
    )


def test_only_config(config: Config) -> Config:
    """For the test set alone. A folder's pictures are decoded anew: what a run keeps of them is cut to its size."""
    data = config.data
    if isinstance(data, ImageFolder):
        data = replace(data, cache="none")
    plain = replace(config.augment, color=0)  # which would look at the training images
    return replace(config, data=data, augment=plain)
