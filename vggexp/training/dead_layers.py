"""Whether a net that still guesses can learn at all: one batch through a copy of it, read layer by layer."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vggexp.models.shapes import Layer
from vggexp.system import memory

PROBE_IMAGES = 64  # of the batch: enough for a scale
LOSS_MARGIN_NATS = 0.1  # nats below ln(classes) from which on a net does more than guess
MIN_SIGNAL_RATIO = 3e-4  # of the differences between images: dead nets keep 1e-4 or less, slow ones 1e-3 (benchmarks/dead.md)
MIN_ACTIVE_SHARE = 1e-3  # share of a ReLU's results above zero below which it counts as closed


@dataclass(frozen=True)
class LayerStats:
    """What one convolution or linear layer makes of a batch, after its ReLU."""

    layer: str  # as shapes.Layer has it
    signal: float  # the differences between images, over those of the images themselves (root mean squares)
    open: float  # share of results above zero
    gradient: float  # of its weights, over the weights (root mean squares)


@dataclass(frozen=True)
class DeadLayerCheck:
    """When a run looks whether its net is dead, and what it says then."""

    steps: int
    layers: Sequence[Layer]  # of the whole network
    cures: Sequence[str]  # overrides of which each should make it learn
    stop: bool  # whether a dead net ends the run

    def diagnose(self, model: nn.Module, images: Tensor, labels: Tensor, loss: float) -> str | None:
        """What is wrong with the net in two lines, None where it learns, or may. loss: its mean until now."""
        if not loss > math.log(self.layers[-1].out_channels) - LOSS_MARGIN_NATS:
            return None
        try:
            found, loss = layer_stats(
                model, images[:PROBE_IMAGES], labels[:PROBE_IMAGES], self.layers
            )
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            return None  # the run itself has room for its steps
        dead = first_dead(found)
        return (
            None
            if dead is None
            else self.message(
                loss, dead, closed=dead.open < MIN_ACTIVE_SHARE and dead is not found[-1]
            )
        )

    def message(self, loss: float, dead: LayerStats, closed: bool) -> str:
        classes = self.layers[-1].out_channels
        why = (
            "its ReLU is zero for all images"
            if closed
            else f"{dead.signal:.1g} of what tells images apart is left"
        )
        return (
            f"after {self.steps} steps the net only guesses (loss {loss:.4f}, ln {classes} = {math.log(classes):.4f}): "
            f"{dead.layer} is dead, {why}\nadvice   try {', or '.join(self.cures)}"
        )


def first_dead(found: Sequence[LayerStats]) -> LayerStats | None:
    """The first layer from which on no signal comes back, where none reaches the output."""
    dead = None
    for reading in reversed(found):
        if not reading.signal < MIN_SIGNAL_RATIO:
            break
        dead = reading
    return dead


def layer_stats(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[Layer]
) -> tuple[list[LayerStats], float]:
    """One for each layer with weights that are multiplied, and the loss; in fp32, without dropout.

    images: [N, C, H, W]. The net is copied, so that its gradients and running statistics stay as they are.
    """
    copied = deepcopy(model).requires_grad_()  # frozen layers too; the modes are those of the run
    answers: dict[nn.Module, Tensor] = {}
    for module in copied.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    for outlet in activation_modules(copied):
        outlet.register_forward_hook(
            lambda module, _, result: answers.update(
                {module: spread_and_positive_share(result.detach())}
            )
        )
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        loss = functional.cross_entropy(copied(images.float()), labels)
        loss.backward()
    gradients = [
        rms(weight.grad) / rms(weight.detach()).clamp(min=1e-30) for weight in weights(copied)
    ]
    scales = torch.stack([*answers.values()])
    scales[:, 0] /= spread_and_positive_share(images.float())[0]
    rows = torch.cat([scales, torch.stack(gradients)[:, None]], 1).tolist()
    names = [layer.name for layer in layers if layer.kind in ("conv", "linear")]
    return [LayerStats(name, *row) for name, row in zip(names, rows, strict=True)], loss.item()


def activation_modules(model: nn.Module) -> list[nn.Module]:
    """Of each convolution and linear layer the module whose result goes on: its ReLU, or the last layer itself."""
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.append(module)
        elif isinstance(module, nn.ReLU):
            found[-1] = module
    return found


def weights(model: nn.Module) -> Iterator[Tensor]:
    return (
        module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    )


def spread_and_positive_share(result: Tensor) -> Tensor:
    """Two numbers: the root mean square of what differs between the images, and the share above zero."""
    return torch.stack((rms(result - result.mean(0)), (result > 0).float().mean()))


def rms(values: Tensor | None) -> Tensor:
    assert values is not None
    return values.float().square().mean().sqrt()
