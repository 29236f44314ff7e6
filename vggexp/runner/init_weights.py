"""The start of a run from weights that are there: `train.init_from` and `train.freeze`."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, ConfigError
from vggexp.models.torchvision import layers_in
from vggexp.models.transfer import (
    LayerTransfer,
    SourceLayer,
    describe_transfer,
    in_first_blocks,
    load_layers,
    plan_transfer,
    source_layers,
)
from vggexp.runner.load import load_run
from vggexp.runs.init_source import source_sha256
from vggexp.system import memory
from vggexp.training.checkpoint import load_foreign, weights_sha256


def load_init_weights(model: nn.Module, config: Config) -> list[str]:
    """Fills `net` with what it takes from the source, and tells it in lines. Raises before anything is written:
    ConfigError where a frozen layer would stay random, CheckpointError where the source is unusable or does not fit."""
    if config.train.init_from is None:
        return []
    path = Path(config.train.init_from)
    try:
        kind, source = _source(path, config.train.init_sha256)
        fates = plan_transfer(model, source)
        _check_frozen(fates, config.train.freeze or 0)
        load_layers(model, fates)
    except (
        CheckpointError,
        RuntimeError,
    ) as error:  # torch's, where a tensor is none that can be copied
        if memory.is_out_of_memory(error):
            raise
        problem = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise CheckpointError(f"train.init_from={path}: {problem[:300]}") from error
    return _lines(
        f"{path}  ({kind}, SHA-256 {(config.train.init_sha256 or '')[:8]}...)", fates, config
    )


def _source(path: Path, sha256: str | None) -> tuple[str, Mapping[str, SourceLayer]]:
    """What the source is, and its layers."""
    if not path.exists():  # the door knew its hash from a run that was begun from it
        raise ConfigError(f"train.init_from={path}: has gone, and this run has no checkpoint yet")
    if path.is_dir():
        run = load_run(path)
        found = weights_sha256(run.model.state_dict())
        kind = network_name(run.config)
        layers = source_layers(run.model)
    else:
        found = source_sha256(path)
        kind = "torchvision's naming"
        layers = layers_in(load_foreign(path))
    if found != sha256:
        raise CheckpointError(
            f"has changed since this command began: SHA-256 {found}, not {sha256}"
        )
    return kind, layers


def _check_frozen(fates: Mapping[str, LayerTransfer], blocks: int) -> None:
    """Raises ConfigError where a layer would never learn what it was never given."""
    frozen = in_first_blocks(fates, blocks)
    if random := [name for name in frozen if fates[name].given is None]:
        raise ConfigError(f"train.freeze={blocks}: the source has nothing for {', '.join(random)}")


def _lines(source: str, fates: Mapping[str, LayerTransfer], config: Config) -> list[str]:
    frozen = config.train.freeze or 0
    lines = [f"start    {source}; new layers {config.arch.init}"]
    for part, text in describe_transfer(fates):
        is_frozen = part in [f"block{number}" for number in range(1, frozen + 1)]
        lines.append(f"  {part:<10}  {'frozen: ' if is_frozen else ''}{text}")
    return lines
