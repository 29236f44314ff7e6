"""A checkpoint is read as it was written or is refused; a failed write leaves the old file."""

import hashlib
import io
import multiprocessing
import os
import random
import resource
import signal
import warnings
import zipfile

import pytest
import torch

from tests.permissions import without_root_rights
from tests.system.conftest import record_disk_events
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
VALUES = {"format": 1, "epoch": 3, "history": [{"epoch": 1, "train/loss": 0.5, "val/loss": None}]}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "00000001.pt", {**VALUES, "weights": WEIGHTS})
    return tmp_path / "00000001.pt"


def read_with_torch(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("read", [checkpoint.load, read_with_torch])
def test_round_trip(path, read):
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = read(path)
    weights = content.pop("weights")
    assert content == VALUES
    assert list(weights) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(weights[name], tensor)
        assert weights[name].dtype == tensor.dtype
        assert weights[name].stride() == tensor.stride()


def damaged_versions(content: bytes):
    """Yields the content cut at several lengths, with a byte too many, and with a flipped bit."""
    draws = random.Random(0)
    size = len(content)
    ends = [0, 1, TRAILER_BYTES - 1, TRAILER_BYTES, size - TRAILER_BYTES, size - 1]
    for end in (*ends, *draws.sample(range(size), 14)):
        yield content[:end]
    yield content + b"\0"
    for bit in draws.sample(range(8 * size), 100):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield flipped


def test_damage_is_detected(path):
    for content in damaged_versions(path.read_bytes()):
        path.write_bytes(content)
        for read in (checkpoint.verify, checkpoint.load):
            with pytest.raises(CheckpointError, match=f"^{path}: damaged"):
                read(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load(path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("created",)


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.load_foreign])
def test_nothing_in_a_file_is_executed(path, read, monkeypatch):
    monkeypatch.chdir(path.parent)
    checkpoint.save(path, {"weights": Malicious()})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.load_foreign])
def test_a_decompression_bomb_is_not_unpacked(path, read):
    """Zeros, compressed to a thousandth: hash and pickle are right, the size is not."""
    checkpoint.save(path, {"weights": torch.zeros(1_000_000)})
    compressed = io.BytesIO()
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    content = compressed.getvalue()
    path.write_bytes(content + checkpoint.MAGIC + hashlib.sha256(content).digest())
    with pytest.raises(CheckpointError, match="not a file that torch"):
        read(path)


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.load_foreign])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(path, read):
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"^{path}: cannot be read: not a regular file$"):
        read(path)


@pytest.mark.parametrize("read", [checkpoint.verify, checkpoint.load, checkpoint.load_foreign])
def test_a_missing_permission_is_no_damage(path, read):
    path.chmod(0)
    with (
        without_root_rights(),
        pytest.raises(ResourceError, match=f"^{path}: cannot be read: Permission denied$"),
    ):
        read(path)


def test_a_warning_of_torch_about_a_file_is_not_printed(path):
    checkpoint.save(path, {"weights": torch.zeros(2, 2).to_sparse()})
    with warnings.catch_warnings(action="error"):
        assert checkpoint.load(path)["weights"].is_sparse


def save_at_limits(path, limits) -> None:
    """Runs in a process of its own, whose files may not grow beyond each of the limits in turn."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            checkpoint.save(path, {**VALUES, "weights": WEIGHTS})
        except ResourceError as error:
            if "cannot be written" not in str(error) or path.with_name(path.name + ".tmp").exists():
                os._exit(2)
        else:
            os._exit(3)
    os._exit(0)


def test_a_full_disk(path):
    size = path.stat().st_size
    path.write_bytes(b"the old file")
    limits = [0, 1, 1000, size // 2, size - TRAILER_BYTES, size - 1]
    child = multiprocessing.get_context("fork").Process(target=save_at_limits, args=(path, limits))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [file.read_bytes() for file in path.parent.iterdir()] == [b"the old file"]


def test_hash_of_the_weights():
    digest = hashlib.sha256()
    for name in sorted(WEIGHTS):
        tensor = WEIGHTS[name].contiguous()
        digest.update(bytes(tensor.view(-1).view(torch.uint8).tolist()))
    reversed_weights = {name: WEIGHTS[name].contiguous() for name in reversed(WEIGHTS)}
    changed_weights = reversed_weights | {"count": torch.tensor(8)}
    assert checkpoint.weights_sha256(WEIGHTS) == digest.hexdigest()
    assert checkpoint.weights_sha256(reversed_weights) == digest.hexdigest()
    assert checkpoint.weights_sha256(changed_weights) != digest.hexdigest()


def test_the_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    events = record_disk_events(monkeypatch)
    path = tmp_path / "00000001.pt"
    checkpoint.save(path, VALUES)
    assert events == [path.stat().st_size, "rename", "folder"]


def test_a_pickle_larger_than_any_of_ours_is_not_read(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match="not a file that torch"):
        checkpoint.load(path)


def test_the_average_is_evaluated_if_there_is_one():
    content = {"net": {"w": 1}, "ema": {"module": {"w": 2}, "updates": 5}}
    assert checkpoint.select_eval_weights(content) == {"w": 2}
    assert checkpoint.select_eval_weights({"net": {"w": 1}}) == {"w": 1}
    assert checkpoint.select_eval_weights({"weights": {"w": 3}}) == {"w": 3}
