"""A recorded step is the step, on a GPU; its weights, cast ahead, are those that autocast casts, anywhere."""

import pytest
import torch

from vggexp import build
from vggexp.clock import Clock
from vggexp.config import compose
from vggexp.graphs import Recorded, cast_ahead
from vggexp.models.transfer import freeze
from vggexp.repeat import Silence
from vggexp.signals import Stop
from vggexp.speed import Never
from vggexp.step import Guard, gradients
from vggexp.train import State, one_epoch

WORDS = ["experiment=gluon_vgg11", "device=cuda", "device.deterministic=true", "data=synthetic", "data.images=330"]
WORDS += ["data.size=32", "data.batch_size=32", "arch.width=0.25", "arch.hidden=[64]"]


def trained(words: list[str], record: bool, start: dict | None = None, batches: int | None = None) -> State:
    """After an epoch of ten batches and a short one, or its first `batches`."""
    config = compose.load_run(compose.parse([*WORDS, *words]))
    hardware = build.hardware(config)
    data = build.data(config, hardware.device)
    state, plan = build.state(config, hardware, data.train.batches_per_epoch), build.plan(config, hardware)
    assert isinstance(plan.gradients, Recorded)
    if not record:
        object.__setattr__(plan, "gradients", gradients)
    if start is not None:
        state.restore(start)
    stop = Stop()
    if batches is not None:
        stop_after(stop, state, batches)
    try:
        one_epoch(state, data.train, plan, Clock(hardware.device), Guard(hardware.device), Silence(), Never(), stop)
    except StopIteration:
        pass
    if isinstance(plan.gradients, Recorded) and state.micro_batches == config.train.accumulate:
        assert plan.gradients.graph is not None
    return state


def stop_after(stop: Stop, state: State, batches: int) -> None:
    def check(where: str) -> None:
        if state.batch == batches:
            raise StopIteration(where)

    stop.check = check  # type: ignore[method-assign]


def bits(state: State) -> torch.Tensor:
    return torch.cat([part.detach().flatten().double() for part in state.net.state_dict().values()])


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
    assert torch.equal(bits(played), bits(called)) and torch.equal(played.sums.sums, called.sums.sums)


@pytest.mark.cuda
def test_a_run_continued_in_the_middle():
    whole, half = trained([], True), trained([], True, batches=6)
    assert half.batch == 6
    assert torch.equal(bits(trained([], True, start=half.capture())), bits(whole))


@pytest.mark.cuda
@pytest.mark.parametrize("words", [[], ["arch=vgg11_bn"]], ids=["plain", "batch norm"])
def test_a_probe_changes_no_bit(words, monkeypatch):
    monkeypatch.setattr("vggexp.probe.MARGIN", 100)  # whatever the loss
    looked = []
    monkeypatch.setattr("vggexp.probe.first_dead", looked.append)
    alone, probed = (trained([*words, f"train.probe_steps={steps}"], True) for steps in ("null", "5"))
    assert torch.equal(bits(alone), bits(probed)) and len(looked) == 1
    assert looked[0][-1].layer == "output" and looked[0][-1].signal > 0


@pytest.mark.cuda
def test_where_memory_is_short_the_step_is_called():
    torch.cuda.empty_cache()
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - 700_000_000, dtype=torch.uint8, device="cuda")
    state = trained(["data.batch_size=256", "data.images=3000", "arch.width=1", "data.resize=64"], True)
    assert state.micro_batches > 1 and state.batch == 12 and len(ballast)


@pytest.mark.parametrize("frozen", [0, 4])
@pytest.mark.parametrize("words", [[], ["arch=vgg11_bn"]], ids=["plain", "batch norm"])
def test_weights_cast_ahead(words, frozen):
    config = compose.load_run(compose.parse([*WORDS, "device=cpu", "device.precision=bf16", *words]))
    hardware = build.hardware(config)
    state, plan = build.state(config, hardware, 10), build.plan(config, hardware)
    freeze(state.net, frozen)
    images, labels = next(iter(build.data(config, hardware.device).train.train(0)))
    found = []
    for net in (state.net, cast_ahead(state.net)):
        torch.manual_seed(0)
        results = gradients(
            net, state.scaler, Guard(hardware.device), images, labels, batch_size=32, micro_batches=2,
            label_smoothing=0, autocast=plan.autocast,
        )  # fmt: skip
        learnt = [weights for weights in state.net.parameters() if weights.requires_grad]
        found.append([*results, *(weights.grad for weights in learnt)])
        assert len(learnt) < len(list(state.net.parameters())) or not frozen
        state.optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
