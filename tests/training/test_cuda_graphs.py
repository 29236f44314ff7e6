"""A recorded step is the step, on a GPU; its weights, cast ahead, are those that autocast casts, anywhere."""

import pytest
import torch

from vggexp.bench.measure import NullCheckpointer
from vggexp.config import compose
from vggexp.loggers.run_logger import NullLogger
from vggexp.models.transfer import freeze
from vggexp.runner import build, datasets
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system.signals import StopFlag
from vggexp.training.cuda_graphs import CudaGraphStep, precast_weights
from vggexp.training.loop import TrainState, train_epoch
from vggexp.training.step import NonFiniteGuard, forward_backward
from vggexp.training.timer import PhaseTimer

WORDS = [
    "experiment=gluon_vgg11",
    "device=cuda",
    "device.deterministic=true",
    "data=synthetic",
    "data.images=330",
]
WORDS += ["data.size=32", "data.batch_size=32", "arch.width=0.25", "arch.hidden=[64]"]


def trained(
    words: list[str], record: bool, start: dict | None = None, batches: int | None = None
) -> TrainState:
    """After an epoch of ten batches and a short one, or its first `batches`."""
    config = expand.compose_run(compose.parse_command([*WORDS, *words]))
    hardware = setup_device(config)
    data = datasets.build_loaders(config, hardware.device)
    state, plan = (
        build.build_state(config, hardware, data.train.batches_per_epoch),
        build.train_settings(config, hardware),
    )
    assert isinstance(plan.gradients, CudaGraphStep)
    if not record:
        object.__setattr__(plan, "gradients", forward_backward)
    if start is not None:
        state.restore(start)
    stop = StopFlag()
    if batches is not None:
        stop_after(stop, state, batches)
    try:
        train_epoch(
            state,
            data.train,
            plan,
            PhaseTimer(hardware.device),
            NonFiniteGuard(hardware.device),
            NullLogger(),
            NullCheckpointer(),
            stop,
        )
    except StopIteration:
        pass
    if isinstance(plan.gradients, CudaGraphStep) and state.micro_batches == config.train.accumulate:
        assert plan.gradients.graph is not None
    return state


def stop_after(stop: StopFlag, state: TrainState, batches: int) -> None:
    def check(where: str) -> None:
        if state.batch == batches:
            raise StopIteration(where)

    stop.check = check  # type: ignore[method-assign]


def bits(state: TrainState) -> torch.Tensor:
    return torch.cat(
        [part.detach().flatten().double() for part in state.model.state_dict().values()]
    )


@pytest.mark.cuda
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["arch=vgg16", "train.accumulate=4", "optimizer=adam"],
        ["arch=vgg11_bn", "train.ema=0.9"],
        ["device.precision=fp32", "train.clip_norm=1", "optimizer=momentum"],
        ["augment.flip=0.5", "augment.erase=0.5", "device.channels_last=false"],
    ],
    ids=lambda words: " ".join(words) or "vgg11",
)
def test_the_bits_are_those_of_the_step(words):
    played, called = (trained(words, record) for record in (True, False))
    assert torch.equal(bits(played), bits(called)) and torch.equal(
        played.sums.sums, called.sums.sums
    )


@pytest.mark.cuda
def test_a_run_continued_in_the_middle():
    whole, half = trained([], True), trained([], True, batches=6)
    assert half.batch == 6
    assert torch.equal(bits(trained([], True, start=half.capture())), bits(whole))


@pytest.mark.cuda
@pytest.mark.parametrize("words", [[], ["arch=vgg11_bn"]], ids=["plain", "batch norm"])
def test_a_probe_changes_no_bit(words, monkeypatch):
    monkeypatch.setattr("vggexp.training.dead_layers.LOSS_MARGIN_NATS", 100)  # whatever the loss
    looked = []
    monkeypatch.setattr("vggexp.training.dead_layers.first_dead", looked.append)
    alone, probed = (
        trained([*words, f"train.probe_steps={steps}"], True) for steps in ("null", "5")
    )
    assert torch.equal(bits(alone), bits(probed)) and len(looked) == 1
    assert looked[0][-1].layer == "output" and looked[0][-1].signal > 0


@pytest.mark.cuda
def test_where_memory_is_short_the_step_is_called():
    torch.cuda.empty_cache()
    ballast = torch.empty(
        torch.cuda.mem_get_info()[0] - 700_000_000, dtype=torch.uint8, device="cuda"
    )
    state = trained(
        ["data.batch_size=256", "data.images=3000", "arch.width=1", "data.resize=64"], True
    )
    assert state.micro_batches > 1 and state.batch == 12 and len(ballast)


@pytest.mark.parametrize("frozen", [0, 4])
@pytest.mark.parametrize("words", [[], ["arch=vgg11_bn"]], ids=["plain", "batch norm"])
def test_weights_cast_ahead(words, frozen):
    config = expand.compose_run(
        compose.parse_command([*WORDS, "device=cpu", "device.precision=bf16", *words])
    )
    hardware = setup_device(config)
    state, plan = build.build_state(config, hardware, 10), build.train_settings(config, hardware)
    freeze(state.model, frozen)
    images, labels = next(iter(datasets.build_loaders(config, hardware.device).train.train(0)))
    found = []
    for model in (state.model, precast_weights(state.model)):
        torch.manual_seed(0)
        results = forward_backward(
            model,
            state.scaler,
            NonFiniteGuard(hardware.device),
            images,
            labels,
            batch_size=32,
            micro_batches=2,
            label_smoothing=0,
            autocast=plan.autocast,
        )
        learnt = [weights for weights in state.model.parameters() if weights.requires_grad]
        found.append([*results, *(weights.grad for weights in learnt)])
        assert len(learnt) < len(list(state.model.parameters())) or not frozen
        state.optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
