"""What each rank takes of a batch, and the collective operations of two real processes."""

import contextlib
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn
from torch.nn import functional

from tests.conftest import write_images
from vggexp.data.augment import Augment
from vggexp.data.loaders import InMemoryLoader, StreamingLoader
from vggexp.data.transforms import Preprocess
from vggexp.distributed import collectives
from vggexp.distributed.rank import RankInfo
from vggexp.distributed.stop import DistributedStop
from vggexp.errors import ConfigError, RankError
from vggexp.models.layers import BatchNorm2d, synchronize
from vggexp.system.signals import StopFlag
from vggexp.training.checkpoint_manager import DistributedCheckpointManager
from vggexp.training.ddp import DistributedStep
from vggexp.training.loop import TrainState
from vggexp.training.metrics import MetricSums
from vggexp.training.precision import build_scaler
from vggexp.training.step import NonFiniteGuard, StepSettings

CPU = torch.device("cpu")


@pytest.fixture(params=["in memory", "streaming"])
def loader(request, tmp_path):
    """Loads 41 images in batches of 8, so that the last batch has one image."""
    preprocess = Preprocess(16, torch.tensor([0.5] * 3), torch.tensor([0.2] * 3))
    options = {"batch_size": 8, "device": CPU, "augment": Augment(flip=0.5, crop=2, erase=0.5)}
    if request.param == "in memory":
        images = torch.randint(0, 256, (41, 3, 20, 20), dtype=torch.uint8)
        return InMemoryLoader(images, torch.arange(41), preprocess, **options)
    write_images(tmp_path, {"train": 20, "test": 1}, lambda index: (20, 20 + index), "png")
    paths = sorted(tmp_path.rglob("*.png"))[:41]
    return StreamingLoader(paths, range(41), preprocess, workers=0, **options)


@pytest.fixture
def each_rank(monkeypatch):
    """each_rank(size, call) -> what `call` yields on each rank, in the order of the ranks."""

    def run(size, call):
        batches = []
        for rank in range(size):
            state = collectives.ProcessGroupState(RankInfo(rank, size))
            monkeypatch.setattr(collectives, "_STATE", state)
            batches.append(list(call()))
        return batches

    return run


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_ranks_share_each_batch(loader, size, each_rank):
    """An image gets the changes that it would get in a single process."""
    single = list(loader.train(1, start=2))
    ranks = each_rank(size, lambda: loader.train(1, start=2))
    for rank, batches in enumerate(ranks):
        for (images, labels), (expected_images, expected_labels) in zip(
            batches, single, strict=True
        ):
            assert torch.equal(images, expected_images[rank::size])
            assert torch.equal(labels, expected_labels[rank::size])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_ranks_evaluate_each_image_once(loader, size, each_rank):
    seen = []
    for batches in each_rank(size, loader.evaluate):
        for _, labels in batches:
            seen += labels.tolist()
    assert sorted(seen) == list(range(41))


@pytest.mark.process
def test_two_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(run_rank, (port, str(tmp_path)), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def run_rank(rank, port, folder):
    """Runs one of two ranks; a failed assertion fails the test."""
    os.environ["RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = "2"
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = str(port)
    with collectives.process_group("cpu", 1):
        assert collectives.rank() == rank
        assert collectives.world_size() == 2
        check_results(rank)
        check_errors(rank)
        check_saved_sums(rank)
        check_micro_batches(rank)
        check_first_step(rank)
        check_due_checkpoint(rank)
        for counts in ((5, 3), (4, 0)):
            check_batch_norm(rank, counts)
        assert collectives.should_report_error("an error") is (rank == 0)
        collectives.barrier()  # rank 0 keeps the store
    Path(folder, str(rank)).touch()
    # Without the interpreter's own end, at which a thread of torch's store aborted the process
    # once ("terminate called without an active exception"). Every check is done.
    os._exit(0)


def check_results(rank):
    assert collectives.run_on_rank_zero(lambda: rank + 7) == 7
    assert collectives.all_reduce_max(rank) == 1
    assert collectives.all_reduce_sum(torch.tensor([1.0, rank])).tolist() == [2, 1]
    batches = [(torch.tensor([index]),) for index in range(5)]
    assert collectives.gather_interleaved(batches[collectives.rank_slice()]) == batches
    collectives.assert_same_on_all_ranks({"seed": 1}, "")


def check_errors(rank):
    with pytest.raises(RankError, match=r"rank 1 is not as rank 0: seed 0 -> 1; give one"):
        collectives.assert_same_on_all_ranks({"seed": rank, "lr": 1}, "give one")
    with pytest.raises(ConfigError, match="only rank 0 fails"):
        collectives.run_on_rank_zero(raise_config_error)
    model = nn.Linear(1, 1).requires_grad_(False)
    model.weight.fill_(rank)
    model.bias.zero_()
    state = TrainState(model, None, None, None, None, MetricSums(CPU))
    manager = DistributedCheckpointManager(DistributedStop(StopFlag()), None)
    with pytest.raises(RankError, match=r"rank 1 is not as rank 0: weights .*drifted apart"):
        manager.save(state)


def raise_config_error():
    raise ConfigError("only rank 0 fails")


def check_batch_norm(rank, counts):
    """Synchronized batch norm computes over the images of all ranks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sum(counts), 3, 4, 4, generator=generator) * 2 + 5
    local_images = images.split(counts)[rank].clone().requires_grad_()
    images.requires_grad_()
    synchronized = BatchNorm2d(3)
    synchronize(synchronized)
    plain = nn.BatchNorm2d(3)
    functional.silu(plain(images)).sum().backward()
    functional.silu(synchronized(local_images)).sum().backward()
    expected = images.grad.split(counts)[rank]
    torch.testing.assert_close(local_images.grad, expected, atol=1e-5, rtol=1e-5)
    weight_grad = collectives.all_reduce_sum(synchronized.weight.grad)
    torch.testing.assert_close(weight_grad, plain.weight.grad, atol=1e-8, rtol=1e-4)
    for name, buffer in plain.named_buffers():
        actual = synchronized.get_buffer(name)
        torch.testing.assert_close(actual, buffer, atol=1e-5, rtol=1e-5)


def check_saved_sums(rank):
    """A checkpoint, which rank 0 writes, holds the sums of all ranks once."""
    sums = MetricSums(CPU)
    logits = torch.eye(2)[[0, 0, 1]]
    sums.add(torch.tensor(3.0 + rank), logits[rank:], torch.tensor([0, 1, 1])[rank:])
    state = TrainState(nn.Linear(1, 1).requires_grad_(False), None, None, None, None, sums)
    for parameter in state.model.parameters():
        parameter.zero_()
    DistributedCheckpointManager(DistributedStop(StopFlag()), None).save(state)
    assert sums.count == (5, 0)[rank]
    assert sums.sums.tolist() == ([7, 3], [0, 0])[rank]
    assert sums.read("train") == {"train/loss": 7 / 5, "train/accuracy": 3 / 5}
    point = {"loss": 7 / 5, "accuracy": 3 / 5, "gradient_norm": 2.0}
    assert sums.read_since_last(torch.tensor(2.0)) == point


def check_micro_batches(rank):
    """The gradients are those of the whole batch, if each rank takes its part in two parts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, generator=generator)
    labels = torch.arange(8) % 2
    plain = nn.Linear(3, 2)
    shared = nn.Linear(3, 2)
    for model in (plain, shared):
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
    functional.cross_entropy(plain(images), labels).backward()
    batch = (images[rank::2], labels[rank::2])
    DistributedStep()(shared, batch, step_settings(micro_batches=2))
    torch.testing.assert_close(shared.weight.grad, plain.weight.grad)


def step_settings(micro_batches):
    return StepSettings(
        batch_size=8,
        label_smoothing=0.0,
        clip_norm=None,
        autocast=contextlib.nullcontext,
        scaler=build_scaler("fp32", CPU),
        guard=NonFiniteGuard(CPU),
        micro_batches=micro_batches,
    )


def check_first_step(rank):
    """Rank 0 alone has read initial weights: all ranks get its statistics, not only its weights."""
    norm = BatchNorm2d(2).eval()  # as a frozen layer
    norm.running_mean.fill_(5.0 if rank == 0 else 0.0)
    model = nn.Sequential(norm, nn.Flatten())
    _, logits = DistributedStep()(
        model, (torch.ones(4, 2, 1, 1), torch.zeros(4).long()), step_settings(micro_batches=1)
    )
    torch.testing.assert_close(logits, torch.full((4, 2), -4.0), atol=1e-4, rtol=0)


def check_due_checkpoint(rank):
    """A checkpoint that becomes due on rank 0 is saved once, on both ranks at the same step."""
    stop = DistributedStop(StopFlag())
    last_save = 0
    saved = []
    for step in range(1, 17):
        if stop.step(is_due=rank == 0 and step - last_save >= 5):
            saved.append(step)
            last_save = step
    assert saved == [8, 16]
