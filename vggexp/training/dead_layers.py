"""Checks whether a model that still guesses can learn: one batch through a copy, layer by layer."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggexp.formatting import advise, format_metric
from vggexp.models.shapes import Layer
from vggexp.system import memory
from vggexp.training.step import Batch

PROBE_IMAGES = 64  # images of the batch that are used: enough for a scale
LOSS_MARGIN_NATS = 0.1  # a model does more than guess if its loss is this far below ln(classes)
# Share of the differences between images that a live layer lets through: dead models keep 1e-4 or
# less, slow models 1e-3 or more (benchmarks/dead.md).
MIN_SIGNAL_RATIO = 3e-4
# Mean training loss, relative to ln(classes), above which the steps are too large if the model
# still guesses. Models a little below learn slowly or not at all. Some above have recovered, so
# the mean alone does not separate (benchmarks/dead.md).
MAX_MEAN_LOSS = 1.2
# A model whose loss on one batch is this far below ln(classes) has recovered from large steps.
# Wider than the other margin, because the loss of a single batch scatters.
RECOVERY_MARGIN_NATS = 0.2
MIN_ACTIVE_SHARE = 1e-3  # a ReLU with a smaller share of outputs above zero counts as closed


@dataclass(frozen=True)
class LayerStats:
    """Statistics of the output of one convolution or linear layer, after its ReLU, on one batch.

    Differences and gradients are measured as root mean squares.
    """

    layer: str  # name in vggexp.models.shapes
    signal: float  # differences between the images, relative to those of the input images
    open: float  # share of outputs above zero
    gradient: float  # gradient of the weights, relative to the weights


class Diagnosis(NamedTuple):
    """Describes what is wrong with a model."""

    text: str  # two lines
    is_dead: bool  # False: the steps are too large, and the model may recover


@dataclass(frozen=True)
class DeadLayerCheck:
    """Decides once in a run whether the model is dead or the steps are too large, and warns."""

    steps: int  # after which the check runs
    layers: Sequence[Layer]  # of the whole model
    remedies: Sequence[str]  # overrides, each of which should make a dead model learn
    smaller_steps: Sequence[str]  # overrides, each of which should make the steps small enough
    stop: bool  # whether a dead model ends the run
    loss_margin: float = LOSS_MARGIN_NATS
    min_signal: float = MIN_SIGNAL_RATIO

    def diagnose(
        self, model: nn.Module, batch: Batch, loss: float, mean_loss: float
    ) -> Diagnosis | None:
        """Returns what is wrong with the model, or None if the model may learn.

        Args:
            loss: Recent training loss.
            mean_loss: Mean training loss of all steps until now.
        """
        guessing = math.log(self.layers[-1].out_channels)
        if not loss > guessing - self.loss_margin:
            return None
        images, labels = batch
        probe = (images[:PROBE_IMAGES], labels[:PROBE_IMAGES])
        try:
            stats, probe_loss = layer_stats(model, probe, self.layers)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            return None  # the run itself has enough memory for its steps
        dead = first_dead(stats, self.min_signal)
        if dead is not None:
            reason = f"{dead.signal:.1g} of the variation between images is left"
            if dead.open < MIN_ACTIVE_SHARE and dead is not stats[-1]:
                reason = "its ReLU is zero for all images"
            finding = f"{dead.layer} is dead, {reason}"
            text = self.message("the model only guesses", probe_loss, finding, self.remedies)
            return Diagnosis(text, is_dead=True)
        if mean_loss > MAX_MEAN_LOSS * guessing and probe_loss > guessing - RECOVERY_MARGIN_NATS:
            sign = "the mean loss is above that of guessing"
            text = self.message(sign, mean_loss, "the steps are too large", self.smaller_steps)
            return Diagnosis(text, is_dead=False)
        return None

    def message(self, sign: str, loss: float, finding: str, overrides: Sequence[str]) -> str:
        classes = self.layers[-1].out_channels
        return (
            f"after {self.steps} steps {sign} "
            f"(loss {format_metric(loss)}, ln {classes} = {math.log(classes):.4f}): "
            f"{finding}\nadvice   {advise(overrides)}"
        )


def first_dead(
    stats: Sequence[LayerStats], min_signal: float = MIN_SIGNAL_RATIO
) -> LayerStats | None:
    """Returns the first layer after which the signal stays lost to the output, or None."""
    dead = None
    for layer in reversed(stats):
        if not layer.signal < min_signal:
            break
        dead = layer
    return dead


def layer_stats(
    model: nn.Module, batch: Batch, layers: Sequence[Layer]
) -> tuple[list[LayerStats], float]:
    """Runs a copy of the model in fp32 and without dropout.

    The model itself keeps its gradients and running statistics.

    Returns:
        Statistics of each convolution and linear layer, and the loss.
    """
    images, labels = batch
    copy = deepcopy(model).requires_grad_()  # also frozen layers; the modes are those of the run
    for module in copy.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    outputs: list[Tensor] = []

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        outputs.append(spread_and_positive_share(output.detach()))

    for module in activation_modules(copy):
        module.register_forward_hook(record)
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        loss = functional.cross_entropy(copy(images.float()), labels)
        loss.backward()
    gradients = [
        rms(weight.grad) / rms(weight.detach()).clamp(min=1e-30) for weight in weights(copy)
    ]
    table = torch.stack(outputs)
    table[:, 0] /= spread_and_positive_share(images.float())[0]
    rows = torch.cat([table, torch.stack(gradients)[:, None]], 1).tolist()
    names = [layer.name for layer in layers if layer.kind in ("conv", "linear")]
    stats = [LayerStats(name, *row) for name, row in zip(names, rows, strict=True)]
    return stats, loss.item()


def activation_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the module with the output of each weighted layer: its ReLU, or the last layer."""
    modules: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            modules.append(module)
        elif isinstance(module, nn.ReLU):
            modules[-1] = module
    return modules


def weights(model: nn.Module) -> Iterator[Tensor]:
    """Yields the weights of each convolution and linear layer."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module.weight


def spread_and_positive_share(output: Tensor) -> Tensor:
    """Returns two values: the rms difference between the images, and the share above zero."""
    return torch.stack((rms(output - output.mean(0)), (output > 0).float().mean()))


def rms(values: Tensor | None) -> Tensor:
    assert values is not None
    return values.float().square().mean().sqrt()
