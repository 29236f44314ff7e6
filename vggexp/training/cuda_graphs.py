"""step.gradients recorded once as a CUDA graph and played back: the host starts a step in one call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from vggexp.training.step import NonFiniteGuard, forward_backward

WARMUP_CALLS = 2  # calls in which libraries choose their kernels and take their workspaces
MIN_NUMEL_TO_PRECAST = 1 << 16  # numbers of a weight that is worth casting ahead


class CudaGraphStep:
    """Stands for `gradients` on a CUDA device, where a step of a small network waits for the host.

    The same kernels on the same numbers, so the same bits; dropout draws by the seed set before each call. Short
    batches, fp16, whose scaler changes the loss, and what would not fit beside its own memory are called as they are.
    The results of a call are overwritten by the next.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.parts = 0  # micro-batches for which the graph was recorded
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self,
        model: nn.Module,
        scaler: GradScaler,
        guard: NonFiniteGuard,
        images: Tensor,
        labels: Tensor,
        **given: Any,
    ) -> tuple[Tensor, Tensor]:
        if len(images) != given["batch_size"] or scaler.is_enabled():
            return forward_backward(model, scaler, guard, images, labels, **given)
        if given["micro_batches"] != self.parts:
            self.calls = 0
            self.parts = given["micro_batches"]
            self.graph = None
        self.calls += 1
        if self.calls == WARMUP_CALLS + 1 and has_memory_for_graph():
            self._record(model, scaler, guard, images, labels, given)
        if self.graph is None:
            return forward_backward(model, scaler, guard, images, labels, **given)
        return self._replay(images, labels)

    def _record(
        self,
        model: nn.Module,
        scaler: GradScaler,
        guard: NonFiniteGuard,
        images: Tensor,
        labels: Tensor,
        given: dict[str, Any],
    ) -> None:
        """Nothing is computed yet. The graph keeps the memory of a step to itself."""
        self.images = images.clone()
        self.labels = labels.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.results = forward_backward(
                precast_weights(model), scaler, guard, self.images, self.labels, **given
            )
        self.gradients = [
            (weights, weights.grad) for weights in model.parameters() if weights.grad is not None
        ]
        self.graph = graph

    def _replay(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.images.copy_(images)
        self.labels.copy_(labels)
        for weights, gradient in self.gradients:
            weights.grad = gradient
        assert self.graph is not None
        self.graph.replay()
        return self.results


def has_memory_for_graph() -> bool:
    """Whether there is room for a second step beside the memory of those that were called."""
    device = torch.cuda.current_device()
    held = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    return free > torch.cuda.max_memory_allocated(device) - held


def precast_weights(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network with its large weights in autocast's format by one kernel, where autocast takes one for each.

    Those that are frozen are left to autocast: a result of this kernel would want a gradient.
    """

    def called(images: Tensor) -> Tensor:
        device = images.device.type
        learnt = [
            (name, weight) for name, weight in model.named_parameters() if weight.requires_grad
        ]
        large = {
            name: weight
            for name, weight in learnt
            if weight.ndim > 1 and weight.numel() >= MIN_NUMEL_TO_PRECAST
        }
        if not large or not torch.is_autocast_enabled(device):
            return model(images)
        cast = _Cast.apply(torch.get_autocast_dtype(device), *large.values())
        return functional_call(model, dict(zip(large, cast, strict=True)), (images,))

    return called


class _Cast(torch.autograd.Function):
    """Tensors in another format, and their gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        return _copies(weights, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copies(gradients, torch.float32)


def _copies(tensors: Sequence[Tensor], kind: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=kind) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
