"""The check of a model that only guesses: its statistics, its message, and no effect on the run."""

import copy
import math

import pytest
import torch

from benchmarks.dead import DEAD, EPOCHS, HEALTHY, SLOW, TOO_LARGE, run_trial
from tests.conftest import TINY, result
from vggexp.config.compose import parse_command
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.shapes import Block, alexnet_layers, lenet_layers, vgg_layers
from vggexp.models.transfer import freeze
from vggexp.models.vgg import fuse, vgg
from vggexp.rng import generator
from vggexp.runner.build import dead_layer_check
from vggexp.sweep.expand import compose_run
from vggexp.training.dead_layers import (
    MAX_MEAN_LOSS,
    DeadLayerCheck,
    LayerStats,
    first_dead,
    layer_stats,
)

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


def make_model_and_layers(norm="none", dropout=0.5):
    model = vgg(BLOCKS, norm=norm, hidden=(16,), dropout=dropout, width=1, **FACTS)
    initialize(model, "kaiming", 0)
    return model, vgg_layers(BLOCKS, norm, (16,), 1, **FACTS)


def make_batch(size=16, count=8):
    images = torch.randn(count, 3, size, size, generator=generator(0, "images"))
    return images, torch.arange(count) % 10


@pytest.mark.parametrize("norm", ["none", "batch", "lrn"])
def test_there_are_statistics_for_each_layer_with_weights(norm):
    model, layers = make_model_and_layers(norm)
    stats, loss = layer_stats(model, make_batch(), layers)
    assert [layer.layer for layer in stats] == NAMES
    assert loss > 0
    assert all(layer.signal > 0.01 for layer in stats)
    assert all(layer.gradient > 0 for layer in stats)
    assert all(layer.open > 0.05 for layer in stats[:-1])
    assert all(layer.open < 0.95 for layer in stats[:-1])


def test_the_statistics_are_those_of_the_layers():
    model, layers = make_model_and_layers(dropout=0)
    images, labels = make_batch()
    first_block = model[0][0](images)
    logits = model(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    stats, _ = layer_stats(copy.deepcopy(model), (images, labels), layers)
    image_spread = (images - images.mean(0)).square().mean().sqrt()
    for layer, output in ((stats[1], first_block), (stats[-1], logits)):
        spread = (output - output.mean(0)).square().mean().sqrt()
        assert layer.signal == pytest.approx((spread / image_spread).item(), rel=1e-5)
        assert layer.open == pytest.approx((output > 0).float().mean().item())
    weight = model[2][-1].weight
    ratio = (weight.grad.norm() / weight.norm()).item()
    assert stats[-1].gradient == pytest.approx(ratio, rel=1e-4)


def test_frozen_layers_have_statistics_too():
    model, layers = make_model_and_layers("batch")
    freeze(model, 1)
    stats, _ = layer_stats(model, make_batch(), layers)
    assert all(layer.gradient > 0 for layer in stats)
    assert not model[0][0][0].weight.requires_grad


@pytest.mark.parametrize(
    ("build", "build_layers", "size", "arguments"),
    [(lenet, lenet_layers, 32, {}), (alexnet, alexnet_layers, 64, {"dropout": 0.5})],
    ids=["lenet", "alexnet"],
)
def test_the_classic_networks(build, build_layers, size, arguments):
    facts = FACTS | {"size": size}
    stats, _ = layer_stats(build(**facts, **arguments), make_batch(size), build_layers(**facts))
    assert [layer.layer for layer in stats][-2:] == ["hidden2", "output"]


def test_the_model_stays_as_it_was():
    model, layers = make_model_and_layers("batch")
    model(make_batch()[0]).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [weight.grad.clone() for weight in model.parameters()]
    rng_state = torch.get_rng_state()
    model.eval()
    layer_stats(model, make_batch(), layers)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.catalog
def test_the_layers_themselves_run_in_fp32():
    model, layers = make_model_and_layers()
    expected = layer_stats(model, make_batch(), layers)
    fuse(model)
    model.compile()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert layer_stats(model, make_batch(), layers) == expected


@pytest.mark.parametrize(
    ("signals", "name"),
    [
        ([1, 1, 1, 1], None),
        ([1, 1, 1e-5, 1], None),  # a later layer brings the signal back
        ([1, 1e-5, 1e-6, 0], "1"),
        ([1, 1, 1, 0], "3"),
        ([0, 0, 0, 0], "0"),
        ([1, 1, math.nan, math.nan], None),  # diverged, which the guard reports
    ],
)
def test_the_first_dead_layer(signals, name):
    stats = [LayerStats(str(index), signal, 0.5, 1) for index, signal in enumerate(signals)]
    dead = first_dead(stats)
    assert (dead and dead.layer) == name


def close_relu(model, block, conv):
    """Makes the ReLU behind a convolution zero for all images."""
    convs = [module for module in model[0][block] if isinstance(module, torch.nn.Conv2d)]
    torch.nn.init.zeros_(convs[conv].weight)
    torch.nn.init.constant_(convs[conv].bias, -1)


def make_check(layers, stop=False):
    return DeadLayerCheck(150, layers, ["a=1", "b=2 c=3"], ["d=4", "e=5"], stop)


def test_the_message():
    model, layers = make_model_and_layers()
    check = make_check(layers)
    assert check.diagnose(model, make_batch(), math.log(10), 2.3) is None
    torch.nn.init.zeros_(model[2][-1].weight)
    diagnosis = check.diagnose(model, make_batch(), 2.3, 2.3)
    assert diagnosis.is_dead
    assert diagnosis.text == (
        "after 150 steps the model only guesses (loss 2.3026, ln 10 = 2.3026): output is dead, "
        "0 of the variation between images is left\nadvice   try a=1, or b=2 c=3"
    )
    close_relu(model, 1, 1)
    diagnosis = check.diagnose(model, make_batch(), 2.3, mean_loss=100)  # dead is the stronger one
    assert diagnosis.is_dead
    assert diagnosis.text.partition(": ")[2] == (
        "block2.conv2 is dead, its ReLU is zero for all images\nadvice   try a=1, or b=2 c=3"
    )


def make_guessing_model(classes):
    """Returns a live model that gives each of the first classes nearly the same probability."""
    model, layers = make_model_and_layers()
    with torch.no_grad():
        model[2][-1].weight.mul_(0.01)
        model[2][-1].bias[:classes].fill_(9)
    return model, layers


def test_steps_that_are_too_large():
    model, layers = make_guessing_model(10)
    diagnosis = make_check(layers).diagnose(model, make_batch(), 2.4, 7.12345)
    assert not diagnosis.is_dead
    assert diagnosis.text == (
        "after 150 steps the mean loss is above that of guessing (loss 7.1235, ln 10 = 2.3026): "
        "the steps are too large\nadvice   try d=4, or e=5"
    )


@pytest.mark.parametrize(
    ("classes", "mean_ratio", "is_reported"),
    [
        (10, MAX_MEAN_LOSS + 0.01, True),
        (10, MAX_MEAN_LOSS - 0.01, False),  # a network that is slow, and may learn
        (8, 5, False),  # ln 8: a network that has recovered
        (10, math.nan, False),
    ],
)
def test_only_a_high_mean_without_recovery_is_reported(classes, mean_ratio, is_reported):
    model, layers = make_guessing_model(classes)
    mean_loss = mean_ratio * math.log(10)
    diagnosis = make_check(layers).diagnose(model, make_batch(), 2.4, mean_loss)
    assert (diagnosis is not None) == is_reported


@pytest.mark.parametrize("loss", [2.2, 0.1, math.nan])
def test_a_model_that_does_more_than_guess_is_not_run(loss):
    _, layers = make_model_and_layers()
    assert make_check(layers).diagnose(None, make_batch(), loss, 100) is None


def test_a_run_suggests_what_its_configuration_needs():
    check = dead_layer_check(compose_run(parse_command(["optimizer.lr=0.1"])))
    assert check.remedies == ["optimizer.lr=0.01", "optimizer.lr=0.01 arch.norm=batch"]
    assert check.smaller_steps == ["optimizer.lr=0.003"]


def test_a_check_without_memory_gives_no_message():
    model, layers = make_model_and_layers()
    close_relu(model, 0, 0)
    model[0].register_forward_hook(lambda *_: torch.empty(1 << 60))
    assert make_check(layers).diagnose(model, make_batch(), 2.3, 100) is None


def test_any_other_error_in_a_check_is_raised():
    model, layers = make_model_and_layers()
    with pytest.raises(RuntimeError, match="shape"):
        make_check(layers).diagnose(model, make_batch(size=32), 2.3, 2.3)


FADED = [*TINY, "arch=vgg19", "arch.width=0.02", "arch.init=paper", "train.probe_steps=2"]


@pytest.mark.process
def test_a_run_with_a_dead_model_warns_and_goes_on(command):
    code, out, err = command(*FADED, "run.name=a")
    warning, advice = [line for line in out.splitlines() if line.startswith(("warning", "advice"))]
    assert code == 0
    assert err == ""
    assert "after 2 steps the model only guesses" in warning
    assert "block" in warning
    assert advice == "advice   try arch.norm=batch, or arch.init=kaiming"
    assert command(*FADED, "run.name=b", "train.probe_steps=null")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]


@pytest.mark.process
def test_a_run_that_stops_with_a_dead_model_can_go_on(command, tmp_path):
    for _ in range(2):  # the second call resumes, and stops at the same step
        code, _, err = command(*FADED, "run.name=a", "train.stop_if_dead=true")
        assert code == 5
        assert "is dead" in err
        assert err.count("\n") == 1
        assert err.strip().endswith("train.stop_if_dead=false goes on")
        assert result("a")["state"] == "failed"
        assert result("a")["exit_code"] == 5
        checkpoints = (tmp_path / "outputs/a/checkpoints").iterdir()
        assert [path.stem for path in checkpoints] == ["00000002"]
    assert command(*FADED, "run.name=a")[0] == 0
    assert command(*FADED, "run.name=b")[0] == 0
    assert result("a")["weights_sha256"] == result("b")["weights_sha256"]


@pytest.mark.process
def test_a_dead_configuration_with_its_remedy_and_a_healthy_one():
    half = ["data.limit=640", "data.batch_size=16"]  # as many steps, of half the images
    dead = run_trial([*DEAD[0].split(), *half], 4)
    assert dead.warning
    assert not dead.learns()
    assert run_trial([*DEAD[0].split(), *half, *dead.suggestions()[0].split()], 4).learns()
    assert run_trial([*HEALTHY[0].split(), *half], 4).warning == []


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [*DEAD, *TOO_LARGE])
def test_every_bad_configuration_is_reported_and_every_remedy_learns(overrides):
    bad = run_trial(overrides.split(), EPOCHS)
    assert len(bad.warning) == 2
    assert ("is dead" in bad.warning[0]) == (overrides in DEAD)
    assert not bad.learns()
    for remedy in bad.suggestions():
        assert run_trial([*overrides.split(), *remedy.split()], EPOCHS).learns(), remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "epochs"), [*((overrides, EPOCHS) for overrides in HEALTHY), *SLOW.items()]
)
def test_no_healthy_configuration_is_reported(overrides, epochs):
    healthy = run_trial(overrides.split(), epochs)
    assert healthy.warning == []
    assert healthy.learns()


def test_stop_if_dead_needs_a_check(command):
    code, _, err = command(*TINY, "train.stop_if_dead=true", "train.probe_steps=null")
    assert code == 2
    assert "train.stop_if_dead=true: needs train.probe_steps" in err
