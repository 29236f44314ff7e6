"""Memory of a step and size of a checkpoint by hand; tests/benchmarks measures both."""

import pytest
import torch

from tests.factories import make_model, make_state, run_training
from vggexp.models.costs import disk_bytes, memory_bytes, optimizer_states
from vggexp.models.shapes import Block, vgg_layers
from vggexp.training.checkpoint_manager import CheckpointManager


def make_layers(*hidden, norm="none", convs=1):
    """Returns convolutions to 8 channels, pooled to 2 x 2, and fully connected layers."""
    return vgg_layers([Block(convs, 8)], norm, hidden, 1.0, in_channels=1, size=4, classes=2)


CONV = 9 * 8 + 8
HIDDEN = 33 * 4096
OUTPUT = 4097 * 2
WEIGHTS = CONV + HIDDEN + OUTPUT


@pytest.mark.parametrize(
    ("precision_bytes", "accumulated", "copies", "gradients"),
    [
        # The activations of a single image are smaller than a copy of the hidden layer.
        (4, False, 0, 4 * (HIDDEN + OUTPUT)),
        # The gradient of the hidden layer is made in 16 bits, then cast.
        (2, False, 2 * CONV, 4 * (HIDDEN + OUTPUT) + 2 * HIDDEN),
        (4, True, 0, 4 * WEIGHTS + 4 * HIDDEN),
        (2, True, 2 * CONV, 4 * WEIGHTS + 6 * HIDDEN),
    ],
)
def test_weights_and_gradients_at_the_peak(precision_bytes, accumulated, copies, gradients):
    memory = memory_bytes(
        make_layers(4096),
        batch_size=1,
        precision_bytes=precision_bytes,
        optimizer_states=2,
        ema=True,
        accumulated=accumulated,
    )
    assert memory["parameters"] == 4 * WEIGHTS + copies
    assert memory["gradients"] == gradients
    assert memory["optimizer"] == 8 * WEIGHTS
    assert memory["ema"] == 4 * WEIGHTS
    assert memory["total"] == sum(size for key, size in memory.items() if key != "total")


IMAGE = 16
CONVOLVED = 128
POOLED = 32


def activation_bytes(layers, precision_bytes=4, **options):
    memory = memory_bytes(
        layers,
        batch_size=3,
        precision_bytes=precision_bytes,
        optimizer_states=0,
        ema=False,
        **options,
    )
    return memory["activations"]


@pytest.mark.parametrize("precision_bytes", [2, 4])
def test_activations_by_hand(precision_bytes):
    # At the pooling: the image, the pooled result, and the two gradients around the pooling.
    elements = IMAGE + POOLED + (CONVOLVED + POOLED)
    expected = 3 * (elements * precision_bytes + 8 * POOLED)
    assert activation_bytes(make_layers(), precision_bytes) == expected


def test_activations_of_a_fused_block_by_hand():
    # At the second convolution: the image, the result of the first convolution with a byte per
    # element, and the two gradients around the second convolution.
    elements = IMAGE + CONVOLVED + 2 * CONVOLVED
    expected = 3 * (elements * 2 + CONVOLVED)
    assert activation_bytes(make_layers(convs=2), 2, fused=True) == expected


def test_activations_of_response_normalization_by_hand():
    # The norm keeps four tensors, one padded by 4 channels, but not its result, which is pooled.
    # The gradients at the norm are those of its input, its result and three of its steps.
    kept = IMAGE + CONVOLVED + 4 * 9 * 16 - CONVOLVED
    expected = 3 * 4 * (kept + 5 * CONVOLVED)
    assert activation_bytes(make_layers(norm="lrn")) == expected


def test_unknown_optimizer_states_are_left_out():
    memory = memory_bytes(
        make_layers(), batch_size=3, precision_bytes=4, optimizer_states=None, ema=False
    )
    total = memory.pop("total")
    assert memory["optimizer"] is None
    assert total == sum(size for size in memory.values() if size is not None)


@pytest.mark.catalog
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(("optimizer", "states"), [("SGD", 0), ("AdamW", 2), ("Adagrad", 1)])
def test_a_checkpoint_is_not_larger_than_its_estimate(tmp_path, norm, ema, optimizer, states):
    model = make_model(norm=norm, hidden=(512,))
    state = make_state(model, getattr(torch.optim, optimizer), ema_decay=ema)
    run_training(state, epochs=3)
    facts = {"classes": ["a class with a name"] * 4, "mean": None, "std": None}
    manager = CheckpointManager(tmp_path / "checkpoints", "all", 5, facts)
    manager.save(state)
    manager._write(0, {"weights": model.state_dict()})
    layers = vgg_layers([Block(1, 8)], norm, (512,), 1.0, in_channels=1, size=4, classes=4)
    bytes_at_most = disk_bytes(
        layers, optimizer_states=states, ema=ema is not None, classes=4, epochs=3
    )
    checkpoint = manager.path(state.step).stat().st_size
    assert 0.6 * bytes_at_most["checkpoint"] < checkpoint <= bytes_at_most["checkpoint"]
    assert manager.path(0).stat().st_size <= bytes_at_most["weights"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"momentum": 0}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("RMSprop", {}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"betas": (0.9, 0.99)}),
        ("Adamax", {}),
        ("NAdam", {}),
        ("RAdam", {}),
        ("Adadelta", {}),
        ("Rprop", {}),
        ("Adagrad", {}),
        ("ASGD", {}),
    ],
)
def test_optimizer_states(name, arguments):
    weight = torch.nn.Parameter(torch.ones(8))
    weight.grad = torch.ones(8)
    optimizer = getattr(torch.optim, name)([weight], lr=0.01, **arguments)
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if torch.is_tensor(value)]
    copies = sum(tensor.shape == weight.shape for tensor in tensors)
    assert optimizer_states(name, arguments) == copies


def test_an_optimizer_of_unknown_states():
    assert optimizer_states("Adafactor", {}) is None
