"""A checkpoint comes back as it was written or is refused; a write that fails leaves what was there before."""

import hashlib
import io
import multiprocessing
import os
import random
import resource
import signal
import zipfile

import pytest
import torch

from vggexp.errors import CheckpointError, ResourceError
from vggexp.training import checkpoint
from vggexp.training.checkpoint import TRAILER_BYTES

DRAWS = torch.Generator().manual_seed(0)
WEIGHTS = {
    "w": torch.randn(3, 4, 5, 5, generator=DRAWS).to(memory_format=torch.channels_last),
    "half": torch.tensor([1.0, -0.5], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.empty(0),
}
REST = {"format": 1, "epoch": 3, "history": [{"epoch": 1, "train/loss": 0.5, "val/loss": None}]}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "00000001.pt", {**REST, "weights": WEIGHTS})
    return tmp_path / "00000001.pt"


def test_round_trip(path):
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for content in (
        checkpoint.load(path),
        torch.load(path, weights_only=True),
    ):  # any program with torch can open it
        weights = content.pop("weights")
        assert (content, list(weights)) == (REST, list(WEIGHTS))
        for name, tensor in WEIGHTS.items():
            assert torch.equal(weights[name], tensor)
            assert (weights[name].dtype, weights[name].stride()) == (tensor.dtype, tensor.stride())


def test_damage_is_seen(path):
    written, draw = path.read_bytes(), random.Random(0)
    ends = [0, 1, TRAILER_BYTES - 1, TRAILER_BYTES, len(written) - TRAILER_BYTES, len(written) - 1]
    damaged = [written[:end] for end in (*ends, *draw.sample(range(len(written)), 14))] + [
        written + b"\0"
    ]
    for bit in draw.sample(range(8 * len(written)), 100):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(flipped)
    for content in damaged:
        path.write_bytes(content)
        for read in (checkpoint.verify, checkpoint.load):
            with pytest.raises(CheckpointError, match=f"^{path}: damaged"):
                read(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load(path)


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_nothing_in_a_file_is_executed(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    checkpoint.save(path, {"weights": Planted()})
    for read in (checkpoint.load, checkpoint.load_foreign):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_bomb_is_not_unpacked(path):
    """A tensor of zeros, compressed to a thousandth: hash and pickle are right, only its size is not."""
    checkpoint.save(path, {"weights": torch.zeros(1_000_000)})
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as there, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in there.infolist():
            bomb.writestr(entry.filename, there.read(entry))
    raw = packed.getvalue()
    path.write_bytes(raw + checkpoint.MAGIC + hashlib.sha256(raw).digest())
    for read in (checkpoint.load, checkpoint.load_foreign):
        with pytest.raises(CheckpointError, match="not a file that torch"):
            read(path)


def refused_at(path, limits) -> None:
    """In a process of its own, whose files may not grow beyond each of the limits in turn."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoint.save(path, {**REST, "weights": WEIGHTS})
        except ResourceError as error:
            if "cannot be written" not in str(error) or path.with_name(path.name + ".tmp").exists():
                os._exit(2)
        else:
            os._exit(3)
    os._exit(0)


def test_a_full_disk(path):
    size = path.stat().st_size
    path.write_bytes(b"the one before")
    limits = [0, 1, 1000, size // 2, size - TRAILER_BYTES, size - 1]
    child = multiprocessing.get_context("fork").Process(target=refused_at, args=(path, limits))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [file.read_bytes() for file in path.parent.iterdir()] == [b"the one before"]


def test_hash_of_the_weights():
    in_bytes = [
        bytes(WEIGHTS[name].contiguous().view(-1).view(torch.uint8).tolist())
        for name in sorted(WEIGHTS)
    ]
    turned = {name: WEIGHTS[name].contiguous() for name in reversed(WEIGHTS)}
    expected = hashlib.sha256(b"".join(in_bytes)).hexdigest()
    assert checkpoint.weights_sha256(WEIGHTS) == checkpoint.weights_sha256(turned) == expected
    assert checkpoint.weights_sha256(turned | {"count": torch.tensor(8)}) != expected
