"""The probe of a net that only guesses: what it reads, what it says, and that the run does not feel it."""

import copy
import math

import pytest
import torch

from benchmarks.dead import DEAD, EPOCHS, HEALTHY, SLOW, trial
from tests.conftest import TINY, result
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.shapes import Block, alexnet_layers, lenet_layers, vgg_layers
from vggexp.models.transfer import freeze
from vggexp.models.vgg import fuse, vgg
from vggexp.rng import generator
from vggexp.training.dead_layers import DeadLayerCheck, LayerStats, first_dead, layer_stats

FACTS = {"in_channels": 3, "size": 16, "classes": 10}
BLOCKS = [Block(2, 8), Block(3, 12, 1)]
NAMES = [
    "block1.conv1",
    "block1.conv2",
    "block2.conv1",
    "block2.conv2",
    "block2.conv3",
    "hidden1",
    "output",
]


def made(norm="none", dropout=0.5):
    model = vgg(BLOCKS, norm=norm, hidden=(16,), dropout=dropout, width=1, **FACTS)
    initialize(model, "kaiming", 0)
    return model, vgg_layers(BLOCKS, norm, (16,), 1, **FACTS)


def batch(size=16, count=8):
    images = torch.randn(count, 3, size, size, generator=generator(0, "images"))
    return images, torch.arange(count) % 10


@pytest.mark.parametrize("norm", ["none", "batch", "lrn"])
def test_a_reading_for_each_layer_with_weights(norm):
    model, layers = made(norm)
    images, labels = batch()
    found, loss = layer_stats(model, images, labels, layers)
    assert [reading.layer for reading in found] == NAMES
    assert loss > 0 and all(reading.signal > 0.01 and reading.gradient > 0 for reading in found)
    assert all(0.05 < reading.open < 0.95 for reading in found[:-1])


def test_the_numbers_are_those_of_the_layers():
    model, layers = made(dropout=0)
    images, labels = batch()
    block, logits = model[0][0](images), model(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    found, _ = layer_stats(copy.deepcopy(model), images, labels, layers)
    spread = (images - images.mean(0)).square().mean().sqrt()
    for reading, answer in ((found[1], block), (found[-1], logits)):
        expected = (answer - answer.mean(0)).square().mean().sqrt() / spread
        assert reading.signal == pytest.approx(expected.item(), rel=1e-5)
        assert reading.open == pytest.approx((answer > 0).float().mean().item())
    weight = model[2][-1].weight
    assert found[-1].gradient == pytest.approx(
        (weight.grad.norm() / weight.norm()).item(), rel=1e-4
    )


def test_frozen_layers_are_read_too():
    model, layers = made("batch")
    freeze(model, 1)
    found, _ = layer_stats(model, *batch(), layers)
    assert all(reading.gradient > 0 for reading in found)
    assert not model[0][0][0].weight.requires_grad


@pytest.mark.parametrize(
    ("build", "rows", "size"),
    [(lenet, lenet_layers, 32), (alexnet, alexnet_layers, 64)],
    ids=["lenet", "alexnet"],
)
def test_the_nets_before_vgg(build, rows, size):
    facts = FACTS | {"size": size}
    model = build(**facts, **({"dropout": 0.5} if build is alexnet else {}))
    found, _ = layer_stats(model, *batch(size), rows(**facts))
    assert [reading.layer for reading in found][-2:] == ["hidden2", "output"]


def test_the_net_is_left_as_it_was():
    model, layers = made("batch")
    model(batch()[0]).sum().backward()
    before = copy.deepcopy(
        [model.state_dict(), [weight.grad for weight in model.parameters()], torch.get_rng_state()]
    )
    model.eval()
    layer_stats(model, *batch(), layers)
    after = [
        model.state_dict(),
        [weight.grad for weight in model.parameters()],
        torch.get_rng_state(),
    ]
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    assert not model.training and not any(module._forward_hooks for module in model.modules())


def test_it_reads_the_layers_themselves_in_fp32():
    model, layers = made()
    expected = layer_stats(model, *batch(), layers)
    fuse(model)
    model.compile()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert layer_stats(model, *batch(), layers) == expected


@pytest.mark.parametrize(
    ("signals", "layer"),
    [
        ([1, 1, 1, 1], None),
        ([1, 1, 1e-5, 1], None),  # which a later layer brings back
        ([1, 1e-5, 1e-6, 0], "1"),
        ([1, 1, 1, 0], "3"),
        ([0, 0, 0, 0], "0"),
        ([1, 1, math.nan, math.nan], None),  # diverged, which the guard tells
    ],
)
def test_the_first_dead_layer(signals, layer):
    dead = first_dead(
        [LayerStats(str(index), signal, 0.5, 1) for index, signal in enumerate(signals)]
    )
    assert (dead and dead.layer) == layer


def killed(model, block, conv):
    """Its ReLU lets nothing through."""
    weighted = [module for module in model[0][block] if isinstance(module, torch.nn.Conv2d)][conv]
    torch.nn.init.zeros_(weighted.weight)
    torch.nn.init.constant_(weighted.bias, -1)


def probe(layers, stop=False):
    return DeadLayerCheck(150, layers, ["a=1", "b=2 c=3"], stop)


def test_what_it_says():
    model, layers = made()
    assert probe(layers).diagnose(model, *batch(), math.log(10)) is None
    torch.nn.init.zeros_(model[2][-1].weight)
    assert probe(layers).diagnose(model, *batch(), 2.3) == (
        "after 150 steps the net only guesses (loss 2.3026, ln 10 = 2.3026): output is dead, "
        "0 of what tells images apart is left\nadvice   try a=1, or b=2 c=3"
    )
    killed(model, 1, 1)
    assert probe(layers).diagnose(model, *batch(), 2.3).partition(": ")[2] == (
        "block2.conv2 is dead, its ReLU is zero for all images\nadvice   try a=1, or b=2 c=3"
    )


def test_a_net_that_does_more_than_guess_is_not_touched():
    _, layers = made()
    for loss in (2.2, 0.1, math.nan):
        assert probe(layers).diagnose(None, *batch(), loss) is None


def test_a_probe_without_memory_says_nothing():
    model, layers = made()
    killed(model, 0, 0)
    model[0].register_forward_hook(lambda *_: torch.empty(1 << 60))
    assert probe(layers).diagnose(model, *batch(), 2.3) is None
    with pytest.raises(RuntimeError, match="shape"):  # any other error is one
        probe(layers).diagnose(made()[0], *batch(size=32), 2.3)


FADED = [*TINY, "arch=vgg19", "arch.width=0.02", "arch.init=paper", "train.probe_steps=2"]


def test_a_run_says_so_and_goes_on(command):
    code, out, err = command(*FADED, "run.name=a")
    warned = [line for line in out.splitlines() if line.startswith(("warning", "advice"))]
    assert (code, err, len(warned)) == (0, "", 2)
    assert "after 2 steps the net only guesses" in warned[0] and "block" in warned[0]
    assert warned[1] == "advice   try arch.norm=batch, or arch.init=kaiming"
    assert command(*FADED, "run.name=b", "train.probe_steps=null")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]


def test_a_run_that_is_to_stop_leaves_a_checkpoint_and_can_go_on(command, tmp_path):
    for _ in range(2):  # the second continues, and stops at the same place
        code, _, err = command(*FADED, "run.name=a", "train.stop_if_dead=true")
        assert code == 5 and "is dead" in err and err.count("\n") == 1
        assert err.strip().endswith("train.stop_if_dead=false goes on")
        assert (result("a")["state"], result("a")["exit_code"]) == ("failed", 5)
        assert [path.stem for path in (tmp_path / "outputs/a/checkpoints").iterdir()] == [
            "00000002"
        ]
    assert command(*FADED, "run.name=a")[0] == command(*FADED, "run.name=b")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]


def test_a_dead_set_up_and_its_cures_and_a_healthy_one():
    told = trial(DEAD[0].split(), 4)
    assert told.warning and not told.learns()
    assert trial([*DEAD[0].split(), *told.cures()[0].split()], 6).learns()
    assert trial(HEALTHY[0].split(), 4).warning == []


@pytest.mark.slow
@pytest.mark.parametrize("words", DEAD)
def test_every_dead_set_up_is_told_and_every_cure_learns(words):
    told = trial(words.split(), EPOCHS)
    assert len(told.warning) == 2 and not told.learns()
    for cure in told.cures():
        assert trial([*words.split(), *cure.split()], EPOCHS).learns(), cure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "epochs"), [*((words, EPOCHS) for words in HEALTHY), *SLOW.items()]
)
def test_no_healthy_set_up_is_told(words, epochs):
    told = trial(words.split(), epochs)
    assert told.warning == [] and told.learns()


def test_to_stop_it_has_to_look(command):
    code, _, err = command(*TINY, "train.stop_if_dead=true", "train.probe_steps=null")
    assert code == 2 and "train.stop_if_dead=true: needs train.probe_steps" in err
