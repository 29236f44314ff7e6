"""Mixed batches are torchvision's for the same draws: a function of (seed, epoch, index)."""

from functools import partial

import pytest
import scipy.stats
import torch
from torch.nn import functional
from torchvision.transforms import v2

from tests.data.conftest import assert_same_batches
from tests.data.test_loaders import in_memory_loader
from vggexp.data.mix import Mix, MixingLoader, label_shares, mix_images, mix_labels, sample_mix
from vggexp.data.transforms import box_mask
from vggexp.rng import generator
from vggexp.training.metrics import MetricSums

CLASSES = 11
SIZE = 12
BOTH = Mix(mixup=0.4, cutmix=1)


@pytest.fixture
def batch():
    images = torch.randn(7, 3, SIZE, SIZE, generator=generator(0, "images"))
    return images, torch.tensor([3, 3, 0, 10, 5, 1, 2])


def draw(mix, count=7, seed=0):
    return sample_mix(generator(seed, "mix"), count, SIZE, mix)


def mixed(batch, params):
    images, labels = batch
    shares = label_shares(params, SIZE, labels.shape)
    return mix_images(images, params), mix_labels(labels, shares, CLASSES)


def by_torchvision(transform, batch, index, **params):
    """Returns image `index` and its label after torchvision mixed it with the one before it."""
    images, labels = (values[[index, index - 1]] for values in batch)
    params |= {"labels": labels, "batch_size": 2}
    return transform.transform(images, params)[0], transform.transform(labels, params)[0]


def test_mixup_is_torchvisions(batch):
    params = draw(Mix(mixup=0.4))
    images, labels = mixed(batch, params)
    transform = v2.MixUp(num_classes=CLASSES)
    for index, share in enumerate(params.blend.tolist()):
        image, label = by_torchvision(transform, batch, index, lam=share)
        torch.testing.assert_close(images[index], image)
        torch.testing.assert_close(labels[index], label)


def test_cutmix_is_torchvisions(batch):
    params = draw(Mix(cutmix=1))
    images, labels = mixed(batch, params)
    transform = v2.CutMix(num_classes=CLASSES)
    for index, (top, left, bottom, right) in enumerate(params.box.tolist()):
        share = 1 - (bottom - top) * (right - left) / SIZE**2
        box = (left, top, right, bottom)
        image, label = by_torchvision(transform, batch, index, box=box, lam_adjusted=share)
        assert torch.equal(images[index], image)
        torch.testing.assert_close(labels[index], label)


def test_a_box_is_torchvisions_for_the_same_draws(monkeypatch):
    uniform = torch.rand(50, 4, generator=generator(0, "mix"), dtype=torch.float64)
    boxes = draw(Mix(cutmix=1), count=50).box
    transform = v2.CutMix(num_classes=CLASSES)
    images = torch.zeros(2, 3, SIZE, SIZE)
    for (_, kept, row, column), box in zip(uniform.tolist(), boxes.tolist(), strict=True):
        monkeypatch.setattr(transform._dist, "sample", lambda *_, kept=kept: torch.tensor([kept]))
        positions = iter((int(column * SIZE), int(row * SIZE)))
        monkeypatch.setattr(torch, "randint", lambda *_, p=positions, **__: torch.tensor([next(p)]))
        left, top, right, bottom = transform.make_params([images])["box"]
        assert box == [top, left, bottom, right]


@pytest.mark.parametrize("concentration", [0.2, 1, 4])
def test_the_share_has_the_distribution_of_the_paper(concentration):
    shares = draw(Mix(mixup=concentration), count=4000).blend
    expected = scipy.stats.beta(concentration, concentration)
    assert scipy.stats.kstest(shares.double(), expected.cdf).pvalue > 0.01


def test_each_pair_draws_one_of_the_two():
    params = draw(BOTH, count=4000)
    has_box = box_mask(params.box, SIZE, SIZE).flatten(1).any(1)
    assert not (has_box & (params.blend < 1)).any()
    assert 0.45 < (params.blend < 1).double().mean() < 0.55


def test_the_loss_is_that_of_the_two_labels(batch):
    _, labels = batch
    params = draw(BOTH)
    _, mixed_labels = mixed(batch, params)
    shares = label_shares(params, SIZE, labels.shape)
    logits = torch.randn(7, CLASSES, generator=generator(0, "logits"))
    loss = functional.cross_entropy(logits, mixed_labels, reduction="none")
    cross_entropy = partial(functional.cross_entropy, logits, reduction="none")
    expected = shares * cross_entropy(labels) + (1 - shares) * cross_entropy(labels.roll(1))
    torch.testing.assert_close(loss, expected)


def test_the_accuracy_counts_the_share_of_the_predicted_class(batch):
    _, labels = batch
    params = draw(BOTH)
    _, mixed_labels = mixed(batch, params)
    sums = MetricSums(torch.device("cpu"))
    sums.add(torch.tensor(0.0), functional.one_hot(labels, CLASSES), mixed_labels)
    shares = label_shares(params, SIZE, labels.shape)
    correct = torch.where(labels == labels.roll(1), 1, shares)
    assert sums.read("train")["train/accuracy"] == pytest.approx(correct.mean().item())


def test_the_memory_format_stays(batch):
    images, _ = batch
    images = images.to(memory_format=torch.channels_last)
    assert mix_images(images, draw(BOTH)).is_contiguous(memory_format=torch.channels_last)


def test_a_batch_depends_on_seed_epoch_and_index_alone():
    loader = MixingLoader(in_memory_loader(), BOTH, CLASSES)
    batches = list(loader.train(1))
    (last_images, last_labels), *_ = loader.train(1, start=2)
    assert torch.equal(last_images, batches[2][0])
    assert torch.equal(last_labels, batches[2][1])
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    other_epoch = torch.cat([labels for _, labels in loader.train(0)])
    assert not torch.equal(other_epoch, torch.cat([labels for _, labels in batches]))


def test_the_labels_of_an_image_add_up_to_one():
    loader = MixingLoader(in_memory_loader(), BOTH, CLASSES)
    labels = torch.cat([labels for _, labels in loader.train(0)])
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))


def test_the_last_epochs_are_not_mixed():
    plain = in_memory_loader()
    loader = MixingLoader(plain, BOTH, CLASSES, unmixed_from=2)
    always = MixingLoader(plain, BOTH, CLASSES)
    assert_same_batches(loader.train(1), always.train(1))
    unmixed = []
    for images, labels in plain.train(2, 1):
        unmixed.append((images, functional.one_hot(labels, CLASSES)))
    batches = list(loader.train(2, 1))
    assert_same_batches(batches, unmixed)
    assert {labels.dtype for _, labels in batches} == {torch.float32}
