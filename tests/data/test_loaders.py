"""A batch is a pure function of (seed, epoch, index): wherever the epoch starts, and whoever decodes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from PIL import Image

from vggexp.data.loaders import InMemoryLoader, StreamingLoader, epoch_permutation
from vggexp.data.transforms import PLAIN, Augment, Preprocess, color_basis
from vggexp.data.workers import decode_images
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator

CPU = torch.device("cpu")
STRONG = Augment(flip=0.5, crop=2, scale=(1, 1.5), color=0.1, erase=0.5)
SIZE, COUNT = 16, 11


def resident(augment=PLAIN, seed=0, count=COUNT, cache="auto", size=SIZE):
    images = torch.randint(
        0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=generator(0, "images")
    )
    preprocess = Preprocess(size, torch.full((3,), 0.5), torch.full((3,), 0.25))
    labels = torch.arange(count)  # each picture's own, so that it can be told
    return InMemoryLoader(
        images,
        labels,
        preprocess,
        batch_size=4,
        device=CPU,
        seed=seed,
        augment=augment,
        cache=cache,
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for place in range(COUNT):
        shape = (20 + place, 37 - 2 * place, 3)
        pixels = torch.randint(
            0, 256, shape, dtype=torch.uint8, generator=generator(0, "file", place)
        )
        Image.fromarray(pixels.numpy()).save(folder / f"{place:02}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture
def streaming(paths):
    made = []

    def make(workers=0, augment=PLAIN, seed=0, files=paths):
        preprocess = Preprocess(SIZE, torch.full((3,), 0.5), torch.full((3,), 0.25))
        basis = color_basis(decode_images(paths, SIZE, 0)) if augment.color else None
        wanted = {"workers": workers, "seed": seed, "augment": augment, "basis": basis}
        made.append(
            StreamingLoader(
                files, range(len(files)), preprocess, batch_size=4, device=CPU, **wanted
            )
        )
        return made[-1]

    yield make
    made.clear()


def same(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(
        torch.equal(images, other) and torch.equal(labels, truth)
        for (images, labels), (other, truth) in zip(some, others, strict=True)
    )


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_order_is_a_permutation_of_its_own():
    orders = [
        epoch_permutation(seed, epoch, 100).tolist() for seed in (0, 1) for epoch in (0, 1, 2)
    ]
    assert all(sorted(each) == list(range(100)) for each in orders)
    assert len({tuple(each) for each in orders}) == 6
    assert epoch_permutation(0, 0, 100).tolist() == orders[0]


@pytest.mark.parametrize("kind", ["resident", "streaming"])
def test_each_image_once(kind, streaming):
    batches = resident(STRONG) if kind == "resident" else streaming(0, STRONG)
    assert (batches.count, batches.batches_per_epoch) == (COUNT, 3)
    labels = [labels for _, labels in batches.train(0)]
    assert [len(part) for part in labels] == [4, 4, 3]
    assert torch.equal(torch.cat(labels), epoch_permutation(0, 0, COUNT))
    assert torch.cat([labels for _, labels in batches.evaluate()]).tolist() == list(range(COUNT))
    assert all(
        images.shape[1:] == (3, SIZE, SIZE) and images.dtype == torch.float32
        for images, _ in batches.train(1)
    )


@pytest.mark.parametrize("augment", [PLAIN, STRONG])
def test_resident_starts_anywhere(augment):
    batches = resident(augment)
    whole = list(batches.train(3))
    for start in range(4):
        assert same(batches.train(3, start), whole[start:])
    assert same(resident(augment, cache="ram").train(3), whole)
    assert not same(batches.train(4), whole)
    assert not same(resident(augment, seed=1).train(3), whole)


def test_resident_evaluates_plainly():
    plain, strong = resident(), resident(STRONG)
    assert same(plain.evaluate(), strong.evaluate())
    shuffled = torch.cat([images for images, _ in plain.train(0)])
    inorder = torch.cat([images for images, _ in plain.evaluate()])
    assert torch.equal(shuffled, inorder[epoch_permutation(0, 0, COUNT)])


def test_no_images_no_batches():
    empty = resident(count=0)
    assert empty.batches_per_epoch == 0 and not list(empty.train(0)) and not list(empty.evaluate())


def test_batches_leave_torchs_generator_alone(streaming):
    before = torch.get_rng_state()
    for batches in (resident(STRONG), streaming(0, STRONG)):
        list(batches.train(0)), list(batches.evaluate())
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing(streaming):
    alone, helped = streaming(0, STRONG), streaming(2, STRONG)
    epochs = {epoch: list(alone.train(epoch)) for epoch in (0, 1)}
    assert not same(epochs[0], epochs[1])
    for epoch, start in ((0, 0), (1, 0), (1, 2), (0, 1), (0, 3)):
        assert same(helped.train(epoch, start), epochs[epoch][start:])
        assert same(alone.train(epoch, start), epochs[epoch][start:])
    next(helped.train(0))  # an epoch that is left behind
    assert same(helped.evaluate(), alone.evaluate())
    assert same(helped.train(1), epochs[1])


def test_streaming_equals_decoded(streaming, paths):
    assert decode_images([], SIZE, 2).shape == (0, 3, SIZE, SIZE)
    images = decode_images(paths, SIZE, 2)
    kept = InMemoryLoader(
        images, torch.arange(COUNT), streaming().preprocess, batch_size=4, device=CPU
    )
    assert same(streaming().evaluate(), kept.evaluate())
    assert same(streaming().train(2), kept.train(2))


def test_whole_pictures_at_several_scales(streaming, paths):
    resized, sizes = resident(), (12, 20)
    for scales, labels in resized.full_images(sizes):
        assert [(group.places, group.images.shape[1:]) for (group,) in scales] == [
            (list(range(len(labels))), (3, side, side)) for side in sizes
        ]
        assert torch.equal(scales[0][0].images, resized.images[labels])
    for workers in (0, 1):
        labels, found = [], []
        for scales, truth in streaming(workers).full_images(sizes):
            for groups in scales:
                assert sorted(place for group in groups for place in group.places) == list(
                    range(len(truth))
                )
            found += [{tuple(group.images.shape[2:]) for group in of} for of in scales]
            labels += truth.tolist()
        assert labels == list(range(COUNT))
        assert all(
            min(shape) == side
            for shapes, side in zip(found, 3 * sizes, strict=True)
            for shape in shapes
        )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "read", [StreamingLoader.evaluate, lambda batches: batches.full_images((16,))]
)
def test_a_broken_file_is_one_line(workers, read, streaming, paths, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(paths[0].read_bytes()[:40])
    with pytest.raises(DataError, match=r"broken\.jpg") as error:
        list(read(streaming(workers, files=[paths[0], broken])))
    assert "\n" not in str(error.value)


@pytest.fixture
def worker(streaming):
    others = set(multiprocessing.active_children())
    batches = streaming(1)
    assert same(batches.evaluate(), streaming().evaluate())
    (process,) = set(multiprocessing.active_children()) - others
    return batches, process


def test_signals_to_the_group_pass_a_worker_by(worker):
    batches, process = worker
    before = list(batches.evaluate())
    for name in ("INT", "TERM", "HUP", "USR1", "USR2"):
        os.kill(process.pid, getattr(signal, f"SIG{name}"))
    assert same(batches.evaluate(), before)
    process.join(0.1)
    assert process.is_alive()


def test_no_worker_outlives_its_parent(paths):
    code = f"""
import multiprocessing, pathlib, torch
from vggexp.data.loaders import Streaming
from vggexp.data.transforms import Preprocess
paths = sorted(pathlib.Path({str(paths[0].parent)!r}).iterdir())
batches = Streaming(
    paths, range(len(paths)), Preprocess(8, None, None), batch_size=2, device=torch.device("cpu"), workers=2)
for images, labels in batches.train(0):
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (3, "")
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2 and not any(alive(pid) for pid in workers)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_killed_worker_is_survived_once(taken, streaming, capsys):
    batches = streaming(2, STRONG)
    expected, others = list(streaming(0, STRONG).train(1)), set(multiprocessing.active_children())
    epoch = batches.train(1)
    received = [next(epoch) for _ in range(taken)]

    def kill() -> None:
        process = list(set(multiprocessing.active_children()) - others)[-1]
        process.kill()
        process.join()

    list(batches.evaluate()) if not taken else None  # so that there are workers
    kill()
    assert same([*received, *epoch], expected)
    assert "the workers were replaced" in capsys.readouterr().out
    kill()
    with pytest.raises(ResourceError, match="killed for the second time"):
        list(batches.evaluate())
    assert same(batches.evaluate(), streaming(0).evaluate())  # for who has let it pass


def test_a_worker_killed_while_it_is_awaited(streaming):
    batches, others = streaming(1, STRONG), set(multiprocessing.active_children())
    list(batches.evaluate())
    (process,) = set(multiprocessing.active_children()) - others
    os.kill(process.pid, signal.SIGSTOP)  # silent, so that the next batch is awaited
    threading.Timer(0.3, process.kill).start()
    assert same(batches.evaluate(), streaming(0).evaluate())
