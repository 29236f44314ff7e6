"""Scores count every image once and leave the network as it was."""

import contextlib
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.training.metrics import confusion_matrix, evaluate, predict, score_logits

CPU, PLAIN = torch.device("cpu"), contextlib.nullcontext
DRAWS = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(10, 1, 4, 4, generator=DRAWS), torch.randint(3, (10,), generator=DRAWS)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return vgg(
        [Block(1, 4)],
        norm="batch",
        hidden=(8,),
        dropout=0.5,
        width=1,
        in_channels=1,
        size=4,
        classes=3,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 7, 10])
def test_scores_do_not_depend_on_the_batches(model, size, training):
    logits = model.eval()(IMAGES).detach()
    before = {name: tensor.clone() for name, tensor in model.train(training).state_dict().items()}
    batches = list(zip(IMAGES.split(size), LABELS.split(size), strict=True))
    accuracy = (logits.argmax(1) == LABELS).double().mean().item()
    expected = {
        "val/loss": pytest.approx(cross_entropy(logits, LABELS).item()),
        "val/accuracy": accuracy,
    }
    assert evaluate(model, batches, CPU, PLAIN, "val") == expected
    kept, labels = predict(model, batches, PLAIN)
    torch.testing.assert_close(kept, logits)
    assert torch.equal(labels, LABELS)
    assert score_logits(kept, labels, "val") == expected
    rough, _ = predict(model, batches, partial(torch.autocast, "cpu", torch.bfloat16))
    assert rough.dtype == torch.float32
    assert 0 < (rough - logits).abs().max() < 0.05
    for check in (
        lambda bad: evaluate(model, bad, CPU, PLAIN, "val"),
        lambda bad: predict(model, bad, PLAIN),
    ):
        with pytest.raises(RuntimeError, match="shape"):
            check([(IMAGES[:, :, :2], LABELS)])
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_confusion():
    counts = confusion_matrix(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 2, 1, 0, 0]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
