"""One optimizer step, with a guard that keeps a non-finite loss or gradient out of the weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vggexp.distributed import collectives

# Images [N, C, H, W]. Labels [N], or the shares of the classes in mixed images, [N, K].
Batch = tuple[Tensor, Tensor]
Autocast = Callable[[], AbstractContextManager]  # returns a new context for each forward pass


class NonFiniteGuard:
    """Remembers the first step with a non-finite loss or gradient, and blocks updates from then on.

    On the CPU the host reads the flag in every step. On an accelerator the flag stays on the
    device. The fused optimizers read the flag there, as they read a gradient scaler's `found_inf`.
    The host reads the flag only when a line is due. Until then an optimizer without a fused form
    goes on updating. The run still ends then, and none of these updates has been saved.
    """

    def __init__(self, device: torch.device):
        self.on_cpu = device.type == "cpu"
        self.first_nonfinite = torch.full((), -1, dtype=torch.int64, device=device)

    def allows(
        self, step: int, loss: Tensor, norm: Tensor, optimizer: torch.optim.Optimizer
    ) -> bool:
        """Returns whether the optimizer may be called.

        Args:
            step: Index of the step.
            loss: Scalar on the device.
            norm: Norm of the gradients, a scalar on the device.
        """
        # Zero times a value is NaN unless the value is finite: 4 kernels, while isfinite takes 10.
        nonfinite = 0 * loss + 0 * norm != 0
        self.first_nonfinite = torch.where(
            (self.first_nonfinite < 0) & nonfinite, step, self.first_nonfinite
        )
        if self.on_cpu:
            return int(self.first_nonfinite) < 0
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = (self.first_nonfinite >= 0).float()  # type: ignore[attr-defined]
        return True

    def first_nonfinite_step(self) -> int | None:
        """Returns the first bad step of any rank, or None. Waits for the device and all ranks."""
        step = collectives.all_reduce_max(int(self.first_nonfinite))
        return None if step < 0 else step


def divergence_advice(lr: float, clip_norm: float | None) -> str:
    """Returns what to try after a loss that is not finite, if the configuration has it not yet."""
    advice = f"try optimizer.lr={lr / 10:g}"
    is_clipped = clip_norm is not None and clip_norm <= 1
    return advice if is_clipped else f"{advice} or train.clip_norm=1"


@dataclass(frozen=True)
class StepSettings:
    """Everything that a step needs besides the model, the optimizer and the batch."""

    batch_size: int  # images of a full batch, over all ranks
    label_smoothing: float
    clip_norm: float | None
    autocast: Autocast
    scaler: GradScaler
    guard: NonFiniteGuard
    micro_batches: int = 1


ForwardBackward = Callable[[nn.Module, Batch, StepSettings], tuple[Tensor, Tensor]]


def forward_backward(
    model: Callable[[Tensor], Tensor], batch: Batch, settings: StepSettings
) -> tuple[Tensor, Tensor]:
    """Runs the forward and the backward pass of a batch, one micro-batch after the other.

    The gradient is the sum over the images divided by `settings.batch_size`, also for a short last
    batch. Every image of an epoch therefore has the same weight. The gradients of the
    micro-batches add up to the same sum.

    Returns:
        The loss summed over the images, and the logits [N, K].
    """
    images, labels = batch
    scaler = settings.scaler
    size = ceil(len(images) / settings.micro_batches)
    losses = []
    logits = []
    for micro_images, micro_labels in zip(images.split(size), labels.split(size), strict=True):
        with settings.autocast():
            outputs = model(micro_images)
        loss = functional.cross_entropy(
            outputs.float(),
            micro_labels,
            reduction="sum",
            label_smoothing=settings.label_smoothing,
        )
        scaled = scaler.scale(loss / settings.batch_size)
        if scaler.is_enabled():
            # A scaler overwrites the optimizer's flag, so it has to see the bad step itself.
            scaled = scaled * torch.where(settings.guard.first_nonfinite < 0, 1.0, torch.nan)
        if collectives.world_size() > 1:
            # Each rank has its own loss, but all ranks share the gradient.
            scaled = scaled * torch.where(loss.isfinite(), 1.0, torch.nan)
        scaled.backward()
        losses.append(loss.detach())
        logits.append(outputs.detach())
    if len(logits) == 1:
        return losses[0], logits[0]
    return reduce(torch.add, losses), torch.cat(logits)


class Update(NamedTuple):
    """What became of the gradients of a step."""

    applied: bool  # false if the guard blocked the update
    gradient_norm: Tensor  # of the whole gradient before clipping, a scalar on the device


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    step: int,
    settings: StepSettings,
) -> Update:
    """Clips, applies and clears the gradients.

    Args:
        loss: First result of `forward_backward`.
        step: Index of the step, which the guard remembers.
    """
    scaler = settings.scaler
    scaler.unscale_(optimizer)  # clipping needs the true gradients
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients)
    if settings.clip_norm is not None:
        clip_grads_with_norm_(parameters, settings.clip_norm, norm)
    guarded_norm = norm
    if scaler.is_enabled():
        # fp16 overflows now and then: the scaler skips such a step and lowers its scale.
        guarded_norm = torch.zeros_like(norm)
    allowed = settings.guard.allows(step, loss, guarded_norm, optimizer)
    if allowed:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return Update(allowed, norm)
