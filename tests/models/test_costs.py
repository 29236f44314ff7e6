"""What a step holds and a checkpoint takes, by hand; both are measured in tests/benchmarks/test_benchmarks.py."""

import pytest
import torch

from vggexp.models.costs import disk_bytes, memory_bytes, optimizer_states
from vggexp.models.shapes import Block, vgg_layers


def layers_of(*hidden):
    """One convolution to 8 channels, pooled to 2 x 2; then fully connected layers."""
    return vgg_layers([Block(1, 8)], "none", hidden, 1.0, in_channels=1, size=4, classes=2)


CONV, HIDDEN, OUTPUT = 9 * 8 + 8, 33 * 4096, 4097 * 2
WEIGHTS = CONV + HIDDEN + OUTPUT


@pytest.mark.parametrize(
    ("precision_bytes", "accumulated", "copies", "gradients"),
    [  # a single image's activations weigh less than a copy of the hidden layer
        (4, False, 0, 4 * (HIDDEN + OUTPUT)),
        (
            2,
            False,
            2 * CONV,
            4 * (HIDDEN + OUTPUT) + 2 * HIDDEN,
        ),  # its gradient is made in 16 bits, then cast
        (4, True, 0, 4 * WEIGHTS + 4 * HIDDEN),
        (2, True, 2 * CONV, 4 * WEIGHTS + 6 * HIDDEN),
    ],
)
def test_weights_and_gradients_at_the_fullest_instant(
    precision_bytes, accumulated, copies, gradients
):
    memory = memory_bytes(
        layers_of(4096),
        batch_size=1,
        precision_bytes=precision_bytes,
        optimizer_states=2,
        ema=True,
        accumulated=accumulated,
    )
    assert (memory["parameters"], memory["gradients"]) == (4 * WEIGHTS + copies, gradients)
    assert (memory["optimizer"], memory["ema"]) == (8 * WEIGHTS, 4 * WEIGHTS)
    assert memory["total"] == sum(size for key, size in memory.items() if key != "total")


@pytest.mark.parametrize("precision_bytes", [2, 4])
def test_activations_by_hand(precision_bytes):
    memory = memory_bytes(
        layers_of(), batch_size=3, precision_bytes=precision_bytes, optimizer_states=0, ema=False
    )
    image, convolved, pooled = 16, 128, 32
    fullest = (
        image + pooled + (convolved + pooled)
    )  # kept, and the two gradients around the pooling
    assert memory["activations"] == 3 * (fullest * precision_bytes + 8 * pooled)


def test_what_is_unknown_is_left_out():
    memory = memory_bytes(
        layers_of(), batch_size=3, precision_bytes=4, optimizer_states=None, ema=False
    )
    assert memory["optimizer"] is None and memory["total"] == sum(
        filter(None, list(memory.values())[:-1])
    )


def test_disk():
    assert disk_bytes(layers_of(4096), optimizer_states=2, ema=True) == {
        "checkpoint": 16 * WEIGHTS,
        "weights": 4 * WEIGHTS,
    }


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"momentum": 0}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("RMSprop", {}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"betas": (0.9, 0.99)}),
        *(
            (name, {})
            for name in ("Adamax", "NAdam", "RAdam", "Adadelta", "Rprop", "Adagrad", "ASGD")
        ),
    ],
)
def test_optimizer_states(name, arguments):
    weight = torch.nn.Parameter(torch.ones(8))
    weight.grad = torch.ones(8)
    optimizer = getattr(torch.optim, name)([weight], lr=0.01, **arguments)
    optimizer.step()
    copies = sum(
        value.shape == weight.shape
        for value in optimizer.state[weight].values()
        if torch.is_tensor(value)
    )
    assert optimizer_states(name, arguments) == copies


def test_an_optimizer_of_unknown_states():
    assert optimizer_states("Adafactor", {}) is None
