"""LeNet has no dropout, AlexNet has. tests/models/test_shapes.py has their layers."""

import pytest
import torch

from vggexp.models.classic import alexnet, lenet

SIZES = {"in_channels": 1, "size": 64, "classes": 3}


@pytest.mark.parametrize(
    ("model", "same"), [(lenet(**SIZES), True), (alexnet(dropout=0.5, **SIZES), False)]
)
def test_two_passes_in_training_differ_only_by_dropout(model, same):
    images = torch.ones(2, 1, 64, 64)
    assert model.training
    assert torch.equal(model(images), model(images)) == same
