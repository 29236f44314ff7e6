"""One step: what its gradient is, and that nothing that is not finite reaches the weights."""

import contextlib
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.training.metrics import MetricSums
from vggexp.training.precision import scaler
from vggexp.training.step import NonFiniteGuard, forward_backward, optimizer_step

CPU = torch.device("cpu")
DRAWS = torch.Generator().manual_seed(0)
IMAGES, LABELS = (
    torch.randn(128, 1, 4, 4, generator=DRAWS),
    torch.randint(3, (128,), generator=DRAWS),
)
SHORT = IMAGES[:96], LABELS[:96]
USUAL = {
    "batch_size": 128,
    "micro_batches": 1,
    "label_smoothing": 0.0,
    "autocast": contextlib.nullcontext,
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return vgg(
        [Block(2, 4)],
        norm="none",
        hidden=(5,),
        dropout=0,
        width=1,
        in_channels=1,
        size=4,
        classes=3,
    )


def flat_gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


class Setup:
    """A network, an optimizer whose gradients are recorded as it sees them, and what else a step takes."""

    def __init__(self, model: nn.Module, optimizer=torch.optim.SGD, precision="fp32"):
        self.scaler = scaler(precision, CPU)
        self.model, self.guard, self.sums, self.gradients = (
            model,
            NonFiniteGuard(CPU),
            MetricSums(CPU),
            [],
        )
        self.optimizer = optimizer(model.parameters(), lr=0.1)
        self.optimizer.register_step_pre_hook(
            lambda *_: self.gradients.append(flat_gradient(model))
        )

    def step(self, images=IMAGES, labels=LABELS, step=0, clip_norm=None, **changed) -> bool:
        loss, logits = forward_backward(
            self.model, self.scaler, self.guard, images, labels, **(USUAL | changed)
        )
        self.sums.add(loss, logits, labels)
        return optimizer_step(
            self.model, self.optimizer, self.scaler, self.guard, step, loss, clip_norm
        )


def gradient(images=IMAGES, labels=LABELS, **changed) -> torch.Tensor:
    setup = Setup(network())
    assert setup.step(images, labels, **changed)
    return setup.gradients[0]


def by_torch(images=IMAGES, labels=LABELS, **key) -> torch.Tensor:
    """The gradient of the mean loss."""
    model = network()
    cross_entropy(model(images), labels, **key).backward()
    return flat_gradient(model)


@pytest.mark.parametrize("micro_batches", [2, 3, 4, 100, 128])
@pytest.mark.parametrize("batch", [(IMAGES, LABELS), SHORT], ids=["full", "short"])
def test_accumulating_changes_no_gradient(micro_batches, batch):
    assert (gradient(*batch, micro_batches=micro_batches) - gradient(*batch)).abs().max() < 1e-6


def test_the_gradient_is_torchs():
    torch.testing.assert_close(gradient(), by_torch())
    torch.testing.assert_close(gradient(label_smoothing=0.1), by_torch(label_smoothing=0.1))
    torch.testing.assert_close(
        gradient(*SHORT), 0.75 * by_torch(*SHORT)
    )  # of the nominal 128 images


@pytest.mark.parametrize("share", [1 / 3, 2])
def test_clipping(share):
    plain = gradient()
    clipped = gradient(clip_norm=share * plain.norm().item(), micro_batches=4)
    torch.testing.assert_close(clipped, plain * min(1, share))


def test_a_good_step():
    setup = Setup(network())
    logits = setup.model(IMAGES)
    before = nn.utils.parameters_to_vector(setup.model.parameters()).detach().clone()
    assert setup.step(step=7, micro_batches=3)
    assert setup.guard.first_nonfinite_step() is None
    torch.testing.assert_close(
        nn.utils.parameters_to_vector(setup.model.parameters()), before - 0.1 * setup.gradients[0]
    )
    loss, accuracy = (
        cross_entropy(logits, LABELS).item(),
        (logits.argmax(1) == LABELS).double().mean().item(),
    )
    assert setup.sums.read("train") == pytest.approx(
        {"train/loss": loss, "train/accuracy": accuracy}, rel=1e-6
    )
    assert all(weight.grad is None for weight in setup.model.parameters())


class Root(nn.Module):
    """A finite loss with an infinite gradient: the slope of the root at zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, images):
        return images.flatten(1)[:, :3] + self.weight.sqrt()


def broken(value: float) -> torch.Tensor:
    images = IMAGES.clone()
    images[77, 0, 1, 2] = value
    return images


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("changed", [{}, {"clip_norm": 1.0}, {"micro_batches": 4}])
@pytest.mark.parametrize(("model", "value"), [(network, math.nan), (network, math.inf), (Root, 0)])
def test_what_is_not_finite_changes_nothing(model, value, changed, optimizer):
    setup, images = Setup(model(), optimizer), broken(value)
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    assert cross_entropy(setup.model(images), LABELS).isfinite() == (model is Root)
    assert not setup.step(images, step=7, **changed)
    assert not setup.step(step=8)  # a good batch comes too late
    assert setup.guard.first_nonfinite_step() == 7
    assert not setup.gradients
    assert not setup.optimizer.state
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in setup.model.state_dict().items()
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_guard_that_is_read_late(name, precision):
    setup = Setup(network(), partial(getattr(torch.optim, name), fused=True), precision)
    setup.guard.on_cpu = (
        False  # as on an accelerator: the fused kernels read the flag, the host does not
    )
    before = nn.utils.parameters_to_vector(setup.model.parameters()).detach().clone()
    assert setup.step(broken(math.nan), step=7)
    assert setup.step(step=8)
    assert setup.guard.first_nonfinite_step() == 7
    assert torch.equal(nn.utils.parameters_to_vector(setup.model.parameters()), before)
