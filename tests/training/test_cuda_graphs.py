"""A recorded step equals the step on a GPU; precast weights equal autocast's on any device."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from tests.factories import flat_weights
from vggexp.config import compose
from vggexp.config.schema import Config
from vggexp.models.transfer import freeze
from vggexp.runner import build, datasets
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand
from vggexp.system.signals import StopFlag
from vggexp.training import dead_layers
from vggexp.training.cuda_graphs import CudaGraphStep, precast_weights
from vggexp.training.loop import (
    NullCheckpointer,
    NullLogger,
    TrainLoop,
    TrainState,
    step_settings,
    train_epoch,
)
from vggexp.training.step import NonFiniteGuard, forward_backward
from vggexp.training.timer import PhaseTimer

OVERRIDES = [
    "experiment=gluon_vgg11",
    "device=cuda",
    "device.deterministic=true",
    "data=synthetic",
    "data.images=330",
    "data.size=32",
    "data.batch_size=32",
    "arch.width=0.25",
    "arch.hidden=[64]",
]


def compose_config(*overrides: str) -> Config:
    return expand.compose_run(compose.parse_command([*OVERRIDES, *overrides]))


def train_one_epoch(
    *overrides: str,
    record: bool = True,
    start: dict | None = None,
    batches: int | None = None,
    loss_margin: float | None = None,
) -> TrainState:
    """Trains an epoch of ten batches and a short one, or the first `batches` of it."""
    config = compose_config(*overrides)
    device_setup = setup_device(config)
    data = datasets.build_loaders(config, device_setup.device)
    state = build.build_state(config, device_setup, data.train.batches_per_epoch)
    settings = build.train_settings(config, device_setup)
    step = settings.forward_backward
    assert isinstance(step, CudaGraphStep)
    if not record:
        settings = replace(settings, forward_backward=forward_backward)
    if loss_margin is not None and settings.dead_layer_check is not None:
        check = replace(settings.dead_layer_check, loss_margin=loss_margin)
        settings = replace(settings, dead_layer_check=check)
    if start is not None:
        state.restore(start)
    timer = PhaseTimer(device_setup.device)
    loop = TrainLoop(settings, timer, NullLogger(), NullCheckpointer(), StopFlag())
    train_epoch(state, islice(data.train.train(state.epoch, state.batch), batches), loop)
    if record and state.micro_batches == config.train.accumulate:
        assert step.graph is not None
    return state


@pytest.mark.cuda
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["arch=vgg16", "train.accumulate=4", "optimizer=adam"],
        ["arch=vgg11_bn", "train.ema=0.9"],
        ["device.precision=fp32", "train.clip_norm=1", "optimizer=momentum"],
        ["augment.flip=0.5", "augment.erase=0.5", "device.channels_last=false"],
    ],
    ids=lambda overrides: " ".join(overrides) or "vgg11",
)
def test_the_bits_are_those_of_the_step(overrides):
    replayed = train_one_epoch(*overrides)
    called = train_one_epoch(*overrides, record=False)
    assert torch.equal(flat_weights(replayed), flat_weights(called))
    assert torch.equal(replayed.sums.sums, called.sums.sums)


@pytest.mark.cuda
def test_a_run_resumed_inside_an_epoch():
    uninterrupted = train_one_epoch()
    half = train_one_epoch(batches=6)
    assert half.batch == 6
    resumed = train_one_epoch(start=half.capture())
    assert torch.equal(flat_weights(resumed), flat_weights(uninterrupted))


@pytest.mark.cuda
@pytest.mark.parametrize("overrides", [[], ["arch=vgg11_bn"]], ids=["plain", "batch norm"])
def test_a_check_for_dead_layers_changes_no_bit(overrides, monkeypatch):
    stats = []
    monkeypatch.setattr(dead_layers, "first_dead", lambda layers, _: stats.append(layers))
    unchecked = train_one_epoch(*overrides, "train.probe_steps=null")
    checked = train_one_epoch(*overrides, "train.probe_steps=5", loss_margin=100)
    assert torch.equal(flat_weights(unchecked), flat_weights(checked))
    assert len(stats) == 1
    assert stats[0][-1].layer == "output"
    assert stats[0][-1].signal > 0


@pytest.mark.cuda
def test_with_little_memory_the_step_is_called():
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    ballast = torch.empty(free - 700_000_000, dtype=torch.uint8, device="cuda")
    overrides = ["data.batch_size=256", "data.images=3000", "arch.width=1", "data.resize=64"]
    state = train_one_epoch(*overrides)
    assert state.micro_batches > 1
    assert state.batch == 12
    del ballast


@pytest.mark.catalog
@pytest.mark.parametrize("frozen", [0, 4])
@pytest.mark.parametrize("overrides", [[], ["arch=vgg11_bn"]], ids=["plain", "batch norm"])
def test_precast_weights(overrides, frozen):
    config = compose_config("device=cpu", "device.precision=bf16", *overrides)
    device_setup = setup_device(config)
    state = build.build_state(config, device_setup, 10)
    freeze(state.model, frozen)
    state.micro_batches = 2
    parameters = list(state.model.parameters())
    trainable = [weight for weight in parameters if weight.requires_grad]
    if frozen:
        assert len(trainable) < len(parameters)
    settings = build.train_settings(config, device_setup)
    step_cfg = step_settings(state, settings, NonFiniteGuard(device_setup.device))
    batch = next(iter(datasets.build_loaders(config, device_setup.device).train.train(0)))
    results = []
    for model in (state.model, precast_weights(state.model)):
        torch.manual_seed(0)
        loss, logits = forward_backward(model, batch, step_cfg)
        results.append([loss, logits, *(weight.grad for weight in trainable)])
        state.optimizer.zero_grad()
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(expected, actual)
