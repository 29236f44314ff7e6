"""Records a step once as a CUDA graph and replays it: the host starts a step in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from vggexp.training.step import Batch, StepSettings, forward_backward

WARMUP_CALLS = 2  # calls in which libraries choose their kernels and allocate their workspaces
MIN_NUMEL_TO_PRECAST = 1 << 16  # elements of the smallest weight that is worth precasting


@dataclass(frozen=True)
class _Graph:
    """A recorded step and the tensors that the step reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    results: tuple[Tensor, Tensor]  # loss and logits
    gradients: Sequence[tuple[nn.Parameter, Tensor]]

    def replay(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        self.images.copy_(images)
        self.labels.copy_(labels)
        for weight, gradient in self.gradients:
            weight.grad = gradient
        self.graph.replay()
        return self.results


class CudaGraphStep:
    """Replaces `forward_backward` on CUDA, where the host is too slow for a small network.

    The same kernels run on the same values, so the results have the same bits. Dropout draws from
    the seed that is set before each call. Three cases call `forward_backward` instead of a graph: a
    short batch, fp16 (whose scaler changes the loss), and too little memory for a second step.
    A call overwrites the results of the call before.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.micro_batches = 0  # number for which the graph was recorded
        self.graph: _Graph | None = None

    def __call__(
        self, model: nn.Module, batch: Batch, settings: StepSettings
    ) -> tuple[Tensor, Tensor]:
        images, _ = batch
        if len(images) != settings.batch_size or settings.scaler.is_enabled():
            return forward_backward(model, batch, settings)
        if settings.micro_batches != self.micro_batches:
            self.calls = 0
            self.micro_batches = settings.micro_batches
            self.graph = None
        self.calls += 1
        if self.calls == WARMUP_CALLS + 1 and has_memory_for_graph():
            self.graph = record_graph(model, batch, settings)
        if self.graph is None:
            return forward_backward(model, batch, settings)
        return self.graph.replay(batch)


def record_graph(model: nn.Module, batch: Batch, settings: StepSettings) -> _Graph:
    """Records a step without computing it. The graph keeps the memory of one step for itself."""
    images, labels = batch
    images = images.clone()
    labels = labels.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = forward_backward(precast_weights(model), (images, labels), settings)
    gradients = [(weight, weight.grad) for weight in model.parameters() if weight.grad is not None]
    return _Graph(graph, images, labels, results, gradients)


def has_memory_for_graph() -> bool:
    """Returns whether a second step fits beside the memory of the steps that were called."""
    device = torch.cuda.current_device()
    allocated = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - allocated
    return free > torch.cuda.max_memory_allocated(device) - allocated


def precast_weights(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns the model with its large weights cast to autocast's format by one kernel.

    Autocast takes one kernel for each weight. Frozen weights are left to autocast, because the
    results of the one kernel would require a gradient.
    """

    def forward(images: Tensor) -> Tensor:
        device = images.device.type
        large = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.requires_grad and weight.ndim > 1 and weight.numel() >= MIN_NUMEL_TO_PRECAST
        }
        if not large or not torch.is_autocast_enabled(device):
            return model(images)
        cast = _Cast.apply(torch.get_autocast_dtype(device), *large.values())
        return functional_call(model, dict(zip(large, cast, strict=True)), (images,))

    return forward


class _Cast(torch.autograd.Function):
    """Casts tensors to another format, and their gradients to fp32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        return _copies(weights, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copies(gradients, torch.float32)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
