"""One optimizer step, and the guard that keeps a non-finite loss or gradient out of the weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import reduce

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vggexp.distributed import collectives


class NonFiniteGuard:
    """Remembers the first step whose loss or gradient was not finite, and lets no update through from there on.

    On the CPU that is seen at once. On an accelerator a flag stays on the device, where the fused optimizers read it
    as they read a gradient scaler's `found_inf`; `first_bad` is read only when a line is due. An optimizer without a
    fused form goes on there until then: the run ends all the same, and none of it has been saved.
    """

    def __init__(self, device: torch.device):
        self.on_cpu = device.type == "cpu"
        self.first_nonfinite = torch.full((), -1, dtype=torch.int64, device=device)

    def allows(
        self, step: int, loss: Tensor, norm: Tensor, optimizer: torch.optim.Optimizer
    ) -> bool:
        """Whether the optimizer may be called. loss, norm: scalars on the device."""
        bad = 0 * loss + 0 * norm != 0  # NaN unless both are finite: 4 kernels, with isfinite 10
        self.first_nonfinite = torch.where(
            (self.first_nonfinite < 0) & bad, step, self.first_nonfinite
        )
        if self.on_cpu:
            return int(self.first_nonfinite) < 0
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = (self.first_nonfinite >= 0).float()  # type: ignore[attr-defined]
        return True

    def first_nonfinite_step(self) -> int | None:
        """The first bad step of any rank, or None. Waits for the device and for all ranks."""
        step = collectives.all_reduce_max(int(self.first_nonfinite))
        return None if step < 0 else step


def forward_backward(
    model: Callable[[Tensor], Tensor],
    scaler: GradScaler,
    guard: NonFiniteGuard,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    micro_batches: int,
    label_smoothing: float,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[Tensor, Tensor]:
    """Forward and backward; returns the loss summed over the images, and the logits [N, K].

    images: [N, C, H, W], labels: [N]. The gradient is the sum over the images divided by `batch_size`, also for a
    short last batch: every image of an epoch weighs the same. The gradients of micro-batches add up to the same sum.
    """
    size = -(-len(images) // micro_batches)
    losses = []
    answers = []
    for part, truth in zip(images.split(size), labels.split(size), strict=True):
        with autocast():
            logits = model(part)
        loss = functional.cross_entropy(
            logits.float(), truth, reduction="sum", label_smoothing=label_smoothing
        )
        scaled = scaler.scale(loss / batch_size)
        if (
            scaler.is_enabled()
        ):  # a scaler overwrites the optimizer's flag, so it has to see the bad step itself
            scaled = scaled * torch.where(guard.first_nonfinite < 0, 1.0, torch.nan)
        if collectives.world_size() > 1:  # a loss is one rank's own, the gradient is everyone's
            scaled = scaled * torch.where(loss.isfinite(), 1.0, torch.nan)
        scaled.backward()
        losses.append(loss.detach())
        answers.append(logits.detach())
    return reduce(torch.add, losses), torch.cat(answers) if len(answers) > 1 else answers[0]


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    guard: NonFiniteGuard,
    step: int,
    loss: Tensor,
    clip_norm: float | None,
) -> bool:
    """Clips and applies the gradients, and clears them; False if the guard stopped it. loss: of `gradients`."""
    scaler.unscale_(optimizer)  # before clipping, always
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm(
        [parameter.grad for parameter in parameters if parameter.grad is not None]
    )
    if clip_norm is not None:
        clip_grads_with_norm_(parameters, clip_norm, norm)
    if (
        scaler.is_enabled()
    ):  # fp16 overflows now and then: the scaler skips that step and lowers its scale
        norm = torch.zeros_like(norm)
    allowed = guard.allows(step, loss, norm, optimizer)
    if allowed:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return allowed
