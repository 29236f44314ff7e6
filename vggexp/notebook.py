"""A finished run in a notebook: the network, its configuration and its preprocessing."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from vggexp import build, checkpoint
from vggexp.config.read import Problems, read
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError
from vggexp.keep import found
from vggexp.rundir import config_of, result_of


class LoadedRun(NamedTuple):
    """`net(preprocess(images))` are logits [N, classes]; images: uint8 [N, C, H, W] of any size."""

    net: nn.Module
    config: Config
    preprocess: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]


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
    folder = Path(path)
    problems = Problems()
    config = read(config_of(folder), problems)
    if config is None:
        raise CheckpointError(f"{folder / 'config.yaml'}: not a configuration of this version ({problems[0]})")
    saved = checkpoint.load(_scored(folder))
    config = build.with_classes(config, len(saved["classes"]))
    net = build.network(config)
    net.load_state_dict(checkpoint.weights_of(saved))
    return LoadedRun(
        net.eval(), config, build.preprocessing(config, saved["mean"], saved["std"]), tuple(saved["classes"])
    )
