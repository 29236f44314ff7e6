"""One step: its gradient, and that nothing that is not finite reaches the weights."""

import contextlib
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.factories import CPU, make_model
from vggexp.distributed import collectives
from vggexp.distributed.rank import RankInfo
from vggexp.models.shapes import Block
from vggexp.training.metrics import MetricSums
from vggexp.training.precision import build_scaler
from vggexp.training.step import NonFiniteGuard, StepSettings, forward_backward, optimizer_step

DRAWS = torch.Generator().manual_seed(0)
IMAGES = torch.randn(128, 1, 4, 4, generator=DRAWS)
LABELS = torch.randint(3, (128,), generator=DRAWS)
FULL = (IMAGES, LABELS)
SHORT = (IMAGES[:96], LABELS[:96])


def make_plain_model() -> nn.Module:
    return make_model(blocks=[Block(2, 4)], hidden=(5,), dropout=0, classes=3)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def flat_parameters(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


class Setup:
    """A model, an optimizer that records its gradients, and everything else that a step takes."""

    def __init__(self, model: nn.Module, optimizer=torch.optim.SGD, precision="fp32"):
        self.model = model
        self.scaler = build_scaler(precision, CPU)
        self.guard = NonFiniteGuard(CPU)
        self.sums = MetricSums(CPU)
        self.gradients: list[Tensor] = []
        self.optimizer = optimizer(model.parameters(), lr=0.1)
        self.optimizer.register_step_pre_hook(
            lambda *_: self.gradients.append(flat_gradient(model))
        )

    def step(
        self, batch=FULL, step=0, clip_norm=None, label_smoothing=0.0, micro_batches=1
    ) -> bool:
        settings = StepSettings(
            batch_size=128,
            label_smoothing=label_smoothing,
            clip_norm=clip_norm,
            autocast=contextlib.nullcontext,
            scaler=self.scaler,
            guard=self.guard,
            micro_batches=micro_batches,
        )
        loss, logits = forward_backward(self.model, batch, settings)
        self.sums.add(loss, logits, batch[1])
        update = optimizer_step(self.model, self.optimizer, loss, step, settings)
        self.gradient_norm = update.gradient_norm
        return update.applied


def gradient(batch=FULL, **settings) -> Tensor:
    setup = Setup(make_plain_model())
    assert setup.step(batch, **settings)
    return setup.gradients[0]


def torch_gradient(batch=FULL, **arguments) -> Tensor:
    """Returns the gradient of the mean loss."""
    images, labels = batch
    model = make_plain_model()
    cross_entropy(model(images), labels, **arguments).backward()
    return flat_gradient(model)


@pytest.mark.parametrize("micro_batches", [2, 3, 4, 100, 128])
@pytest.mark.parametrize("batch", [FULL, SHORT], ids=["full", "short"])
def test_micro_batches_change_no_gradient(micro_batches, batch):
    difference = gradient(batch, micro_batches=micro_batches) - gradient(batch)
    assert difference.abs().max() < 1e-6


def test_the_gradient_is_that_of_torch():
    torch.testing.assert_close(gradient(), torch_gradient())
    smoothed = torch_gradient(label_smoothing=0.1)
    torch.testing.assert_close(gradient(label_smoothing=0.1), smoothed)
    # A short batch is divided by the nominal 128 images.
    torch.testing.assert_close(gradient(SHORT), 0.75 * torch_gradient(SHORT))


@pytest.mark.parametrize("share", [1 / 3, 2])
def test_clipping(share):
    plain = gradient()
    clipped = gradient(clip_norm=share * plain.norm().item(), micro_batches=4)
    torch.testing.assert_close(clipped, plain * min(1, share))


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_the_norm_is_that_of_the_gradient_before_clipping(clip_norm):
    setup = Setup(make_plain_model())
    setup.step(clip_norm=clip_norm)
    assert float(setup.gradient_norm) == pytest.approx(float(gradient().norm()), rel=1e-6)


def test_a_finite_step():
    setup = Setup(make_plain_model())
    logits = setup.model(IMAGES)
    before = flat_parameters(setup.model)
    assert setup.step(step=7, micro_batches=3)
    assert setup.guard.first_nonfinite_step() is None
    expected = before - 0.1 * setup.gradients[0]
    torch.testing.assert_close(flat_parameters(setup.model), expected)
    metrics = {
        "train/loss": cross_entropy(logits, LABELS).item(),
        "train/accuracy": (logits.argmax(1) == LABELS).double().mean().item(),
    }
    assert setup.sums.read("train") == pytest.approx(metrics, rel=1e-6)
    assert all(weight.grad is None for weight in setup.model.parameters())


class SquareRoot(nn.Module):
    """A finite loss with an infinite gradient: the slope of the square root at zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, images):
        return images.flatten(1)[:, :3] + self.weight.sqrt()


def batch_with(value: float) -> tuple[Tensor, Tensor]:
    images = IMAGES.clone()
    images[77, 0, 1, 2] = value
    return images, LABELS


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.0}, {"micro_batches": 4}])
@pytest.mark.parametrize(
    ("build", "value"),
    [(make_plain_model, math.nan), (make_plain_model, math.inf), (SquareRoot, 0)],
)
def test_a_nonfinite_step_changes_nothing(build, value, settings, optimizer):
    setup = Setup(build(), optimizer)
    batch = batch_with(value)
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    loss = cross_entropy(setup.model(batch[0]), LABELS)
    assert loss.isfinite() == (build is SquareRoot)
    assert not setup.step(batch, step=7, **settings)
    assert not setup.step(step=8)  # a finite batch comes too late
    assert setup.guard.first_nonfinite_step() == 7
    assert not setup.gradients
    assert not setup.optimizer.state
    for name, tensor in setup.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_guard_that_is_read_late(name, precision):
    optimizer = partial(getattr(torch.optim, name), fused=True)
    setup = Setup(make_plain_model(), optimizer, precision)
    setup.guard.on_cpu = False  # as on an accelerator: the fused kernels read the flag
    before = flat_parameters(setup.model)
    assert setup.step(batch_with(math.nan), step=7)
    assert setup.step(step=8)
    assert setup.guard.first_nonfinite_step() == 7
    assert torch.equal(flat_parameters(setup.model), before)


@pytest.mark.parametrize("micro_batches", [3, 100])
def test_there_are_not_more_micro_batches_than_asked_for(micro_batches):
    setup = Setup(make_plain_model())
    sizes = []
    setup.model.register_forward_hook(lambda model, args, logits: sizes.append(len(logits)))
    assert setup.step(micro_batches=micro_batches)
    assert len(sizes) <= micro_batches
    assert sum(sizes) == 128


def test_an_overflow_of_fp16_is_skipped_and_no_divergence():
    setup = Setup(SquareRoot(), precision="fp16")
    scale = setup.scaler.get_scale()
    assert setup.step(batch_with(0), step=7)
    assert setup.guard.first_nonfinite_step() is None
    assert flat_parameters(setup.model).tolist() == [0, 0, 0]
    assert setup.scaler.get_scale() < scale


def run_forward_backward(model: nn.Module, batch=FULL, autocast=contextlib.nullcontext):
    settings = StepSettings(
        batch_size=128,
        label_smoothing=0.0,
        clip_norm=None,
        autocast=autocast,
        scaler=build_scaler("fp32", CPU),
        guard=NonFiniteGuard(CPU),
    )
    return forward_backward(model, batch, settings)


def test_the_loss_of_bf16_logits_is_computed_in_fp32():
    bf16 = partial(torch.autocast, "cpu", torch.bfloat16)
    loss, logits = run_forward_backward(make_plain_model(), autocast=bf16)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(logits.float(), LABELS, reduction="sum"))


class AddedWeight(nn.Module):
    """The first three pixels are the logits."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, images):
        return images.flatten(1)[:, :3] + self.weight


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_ranks_learn_of_the_infinite_loss_of_one(ranks, monkeypatch):
    """The ranks share gradients but no loss, and this loss has a finite gradient."""
    state = collectives.ProcessGroupState(RankInfo(0, ranks))
    monkeypatch.setattr(collectives, "_STATE", state)
    images = IMAGES.clone()
    images[77].view(-1)[LABELS[77]] = -math.inf  # the true class has the probability zero
    model = AddedWeight()
    loss, _ = run_forward_backward(model, (images, LABELS))
    assert loss == math.inf
    assert bool(model.weight.grad.isfinite().all()) == (ranks == 1)
