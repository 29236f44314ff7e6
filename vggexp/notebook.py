"""A finished run in a notebook: the network, its configuration and its preprocessing."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from vggexp import build, checkpoint
from vggexp.config.read import Problems, read
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError
from vggexp.rundir import config_of


class LoadedRun(NamedTuple):
    """`net(preprocess(images))` are logits [N, classes]; images: uint8 [N, C, H, W] of any size."""

    net: nn.Module
    config: Config
    preprocess: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]


def load_run(path: str | Path) -> LoadedRun:
    """Loads the newest weights of a run directory onto the CPU, in eval mode, in fp32. Raises CheckpointError."""
    folder = Path(path)
    problems = Problems()
    config = read(config_of(folder), problems)
    if config is None:
        raise CheckpointError(f"{folder / 'config.yaml'}: not a configuration of this version ({problems[0]})")
    saved = checkpoint.load(checkpoint.newest(folder / "checkpoints"))
    net = build.network(config)
    net.load_state_dict(saved["weights"])
    return LoadedRun(
        net.eval(), config, build.preprocessing(config, saved["mean"], saved["std"]), tuple(saved["classes"])
    )
