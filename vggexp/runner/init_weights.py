"""Loads the weights that a run starts from: `train.init_from` and `train.freeze`."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, ConfigError
from vggexp.models.torchvision import parse_torchvision_layers
from vggexp.models.transfer import (
    LayerTransfer,
    SourceLayer,
    describe_transfer,
    load_layers,
    plan_transfer,
    select_first_blocks,
    source_layers,
)
from vggexp.runner.load import load_run
from vggexp.runs.init_source import source_sha256
from vggexp.system import memory
from vggexp.training.checkpoint import load_foreign, weights_sha256

MAX_ERROR_CHARS = 300  # of the source's error text in ours


def load_init_weights(model: nn.Module, config: Config) -> list[str]:
    """Copies the layers of the source that fit into a model. Writes no file.

    Args:
        model: the model at its initial weights; changed in place.
        config: names the source in `train.init_from`, which may be null.

    Returns:
        The lines of the start banner on the source and on each layer.

    Raises:
        ConfigError: a frozen layer would stay random, or the source is gone.
        CheckpointError: the source is unusable or does not fit.
    """
    if config.train.init_from is None:
        return []
    path = Path(config.train.init_from)
    sha256 = config.train.init_sha256 or ""
    try:
        description, source = _load_source(path, sha256)
        transfers = plan_transfer(model, source)
        _check_frozen(transfers, config.train.freeze or 0)
        load_layers(model, transfers)
    except (CheckpointError, RuntimeError) as error:
        # torch raises RuntimeError for a tensor that cannot be copied
        if memory.is_out_of_memory(error):
            raise
        problem = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise CheckpointError(f"train.init_from={path}: {problem[:MAX_ERROR_CHARS]}") from error
    header = f"start    {path}  ({description}, SHA-256 {sha256[:8]}...)"
    return [f"{header}; new layers {config.arch.init}", *_layer_lines(transfers, config)]


def _load_source(path: Path, sha256: str) -> tuple[str, Mapping[str, SourceLayer]]:
    """Returns what the source is, and its layers. Raises CheckpointError for another SHA-256."""
    if not path.exists():  # the command had the SHA-256 from a run that started from this source
        raise ConfigError(f"train.init_from={path}: has gone, and this run has no checkpoint yet")
    if path.is_dir():
        run = load_run(path)
        actual = weights_sha256(run.model.state_dict())
        description = network_name(run.config)
        layers = source_layers(run.model)
    else:
        actual = source_sha256(path)
        description = "torchvision's naming"
        layers = parse_torchvision_layers(load_foreign(path))
    if actual != sha256:
        raise CheckpointError(
            f"has changed since this command began: SHA-256 {actual}, not {sha256}"
        )
    return description, layers


def _check_frozen(transfers: Mapping[str, LayerTransfer], blocks: int) -> None:
    """Raises ConfigError if a layer of the first blocks would stay at its random weights."""
    frozen = select_first_blocks(transfers, blocks)
    random = [name for name in frozen if transfers[name].source is None]
    if random:
        raise ConfigError(f"train.freeze={blocks}: the source has nothing for {', '.join(random)}")


def _layer_lines(transfers: Mapping[str, LayerTransfer], config: Config) -> list[str]:
    frozen = [f"block{number}" for number in range(1, (config.train.freeze or 0) + 1)]
    lines = []
    for part, text in describe_transfer(transfers):
        prefix = "frozen: " if part in frozen else ""
        lines.append(f"  {part:<10}  {prefix}{text}")
    return lines
