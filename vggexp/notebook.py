"""A finished run in a notebook: the network, its configuration and its preprocessing."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from vggexp import build, checkpoint
from vggexp.config.schema import Config, ImageFolder
from vggexp.data.transforms import Preprocess
from vggexp.errors import CheckpointError
from vggexp.keep import found
from vggexp.rundir import result_of
from vggexp.runs import configuration


class LoadedRun(NamedTuple):
    """`net(preprocess(images))` are logits [N, classes]; images: uint8 [N, C, H, W] of any size."""

    net: nn.Module
    config: Config
    preprocess: Preprocess
    classes: tuple[str, ...]


def tested(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a run, and the checkpoint with its tested weights. Raises CheckpointError."""
    config = configuration(folder)
    saved = checkpoint.load(_scored(folder))
    return build.with_classes(config, len(saved["classes"])), saved


def _scored(folder: Path) -> Path:
    """The checkpoint whose weights were tested; of an unfinished run the newest."""
    step = result_of(folder).get("weights_step")
    paths = found(folder / "checkpoints")
    chosen = [path for path in paths if step is None or int(path.stem) == step]
    if not chosen:
        raise CheckpointError(f"{folder}: holds no checkpoint{'' if step is None else f' of step {step}'}")
    return chosen[0]


def load_run(path: str | Path) -> LoadedRun:
    """Loads the tested weights of a run directory onto the CPU, in eval mode, in fp32. Raises CheckpointError."""
    return loaded(*tested(Path(path)))


def loaded(config: Config, saved: dict[str, Any]) -> LoadedRun:
    """From what `tested` gives."""
    net = build.network(config)
    net.load_state_dict(checkpoint.weights_of(saved))
    return LoadedRun(
        net.eval(), config, build.preprocessing(config, saved["mean"], saved["std"]), tuple(saved["classes"])
    )


def without_training(config: Config) -> Config:
    """For the test set alone. A folder's pictures are decoded anew: what a run keeps of them is cut to its size."""
    data = config.data
    if isinstance(data, ImageFolder):
        data = replace(data, cache="none")
    plain = replace(config.augment, color=0)  # which would look at the training images
    return replace(config, data=data, augment=plain)
