"""A batch is a pure function of (seed, epoch, index), for any first batch and any decoder."""

from functools import partial

import pytest
import torch

from tests.data.conftest import COUNT, CPU, SIZE, STRONG, assert_same_batches
from vggexp.data.augment import NO_AUGMENTATION, Augment
from vggexp.data.loaders import InMemoryLoader, epoch_permutation
from vggexp.data.transforms import Preprocess
from vggexp.data.workers import decode_images
from vggexp.rng import generator


def in_memory_loader(augment=NO_AUGMENTATION, seed=0, count=COUNT, cache="auto"):
    draws = generator(0, "images")
    images = torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=draws)
    return InMemoryLoader(
        images,
        torch.arange(count),  # each image has a label of its own
        Preprocess(SIZE, torch.full((3,), 0.5), torch.full((3,), 0.25)),
        batch_size=4,
        device=CPU,
        seed=seed,
        augment=augment,
        cache=cache,
    )


@pytest.fixture(params=["in memory", "streaming"])
def loader(request, streaming_loader):
    """A loader with every augmentation."""
    if request.param == "in memory":
        return in_memory_loader(STRONG)
    return streaming_loader(0, STRONG)


def test_each_seed_and_epoch_has_a_permutation_of_its_own():
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            orders.append(tuple(epoch_permutation(seed, epoch, 100).tolist()))
    for order in orders:
        assert sorted(order) == list(range(100))
    assert len(set(orders)) == 6
    assert tuple(epoch_permutation(0, 0, 100).tolist()) == orders[0]


def test_each_image_once(loader):
    assert loader.count == COUNT
    assert loader.batches_per_epoch == 3
    labels = [labels for _, labels in loader.train(0)]
    assert [len(part) for part in labels] == [4, 4, 3]
    assert torch.equal(torch.cat(labels), epoch_permutation(0, 0, COUNT))
    assert torch.cat([labels for _, labels in loader.evaluate()]).tolist() == list(range(COUNT))
    for images, _ in loader.train(1):
        assert images.shape[1:] == (3, SIZE, SIZE)
        assert images.dtype == torch.float32


def test_batches_leave_torchs_generator_alone(loader):
    before = torch.get_rng_state()
    list(loader.train(0))
    list(loader.evaluate())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", [NO_AUGMENTATION, STRONG])
def test_an_epoch_may_start_at_any_batch(augment):
    loader = in_memory_loader(augment)
    epoch = list(loader.train(3))
    for start in range(4):
        assert_same_batches(loader.train(3, start), epoch[start:])
    assert_same_batches(in_memory_loader(augment, cache="ram").train(3), epoch)


@pytest.mark.parametrize("augment", [NO_AUGMENTATION, STRONG])
def test_the_seed_and_the_epoch_change_the_batches(augment):
    epoch = list(in_memory_loader(augment).train(3))
    for loader, index in ((in_memory_loader(augment), 4), (in_memory_loader(augment, seed=1), 3)):
        with pytest.raises(AssertionError):
            assert_same_batches(loader.train(index), epoch)


def test_the_last_epochs_only_flip(streaming_loader):
    ending = STRONG._replace(flip_only_from=2)
    flips = Augment(flip=STRONG.flip)
    for make in (in_memory_loader, partial(streaming_loader, 0)):
        for epoch, expected in enumerate((STRONG, STRONG, flips, flips)):
            assert_same_batches(make(ending).train(epoch), make(expected).train(epoch))


def test_an_evaluation_is_not_augmented():
    plain = in_memory_loader()
    assert_same_batches(plain.evaluate(), in_memory_loader(STRONG).evaluate())
    shuffled = torch.cat([images for images, _ in plain.train(0)])
    in_order = torch.cat([images for images, _ in plain.evaluate()])
    assert torch.equal(shuffled, in_order[epoch_permutation(0, 0, COUNT)])


def test_no_images_no_batches():
    empty = in_memory_loader(count=0)
    assert empty.batches_per_epoch == 0
    assert not list(empty.train(0))
    assert not list(empty.evaluate())


@pytest.mark.process
def test_the_number_of_workers_changes_nothing(streaming_loader):
    alone = streaming_loader(0, STRONG)
    workers = streaming_loader(2, STRONG)
    epochs = [list(alone.train(epoch)) for epoch in (0, 1)]
    with pytest.raises(AssertionError):
        assert_same_batches(*epochs)
    for epoch, start in ((0, 0), (1, 0), (1, 2), (0, 1), (0, 3)):
        assert_same_batches(workers.train(epoch, start), epochs[epoch][start:])
        assert_same_batches(alone.train(epoch, start), epochs[epoch][start:])
    next(workers.train(0))  # an epoch that is not finished
    assert_same_batches(workers.evaluate(), alone.evaluate())
    assert_same_batches(workers.train(1), epochs[1])


@pytest.mark.process
def test_streaming_equals_decoded_images_in_memory(streaming_loader, paths):
    streaming = streaming_loader()
    in_memory = InMemoryLoader(
        decode_images(paths, SIZE, 2),
        torch.arange(COUNT),
        streaming.preprocess,
        batch_size=4,
        device=CPU,
    )
    assert_same_batches(streaming.evaluate(), in_memory.evaluate())
    assert_same_batches(streaming.train(2), in_memory.train(2))


def test_full_images_in_memory_at_several_scales():
    loader = in_memory_loader()
    for scales, labels in loader.full_images((12, 20)):
        ((unscaled,), (enlarged,)) = scales
        for group, size in ((unscaled, 12), (enlarged, 20)):
            assert group.indices == list(range(len(labels)))
            assert group.images.shape[1:] == (3, size, size)
        assert torch.equal(unscaled.images, loader.images[labels])


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_full_images_of_files_at_several_scales(workers, streaming_loader):
    sizes = (12, 20)
    seen = []
    for scales, labels in streaming_loader(workers).full_images(sizes):
        seen += labels.tolist()
        for groups, size in zip(scales, sizes, strict=True):
            indices = []
            for group in groups:
                indices += group.indices
                assert min(group.images.shape[2:]) == size
            assert sorted(indices) == list(range(len(labels)))
    assert seen == list(range(COUNT))


def test_an_image_is_augmented_differently_in_each_epoch():
    loader = in_memory_loader(Augment(erase=1))
    loader.images[:] = loader.images[:1]  # the order of the epochs makes no difference
    first, second = (next(loader.train(epoch))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_images_that_need_a_quarter_of_the_free_memory_stay_in_ram(monkeypatch):
    images = torch.zeros(2, 1, 5, 5, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200, 1000))
    loader = InMemoryLoader(
        images,
        torch.arange(2),
        Preprocess(SIZE, None, None),
        batch_size=2,
        device=torch.device("cuda"),
    )
    assert loader.images.device == CPU
