"""Worker processes survive signals and the loss of one worker, and report damaged files."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.data.conftest import SIZE, STRONG, assert_same_batches
from vggexp.data import image_file
from vggexp.data.loaders import StreamingLoader
from vggexp.data.workers import DecoderPool, ImageDecoder, decode_images
from vggexp.errors import DataError, ResourceError, WaitStoppedError
from vggexp.system import signals

pytestmark = pytest.mark.process


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def new_workers():
    """new_workers() -> the processes that were started since the test began, in this order."""
    before = set(multiprocessing.active_children())

    def list_new():
        started = set(multiprocessing.active_children()) - before
        return sorted(started, key=lambda process: process._identity)

    return list_new


def test_no_files_need_no_workers():
    assert decode_images([], SIZE, 2).shape == (0, 3, SIZE, SIZE)


def full_images(loader):
    return loader.full_images((16,))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("read", [StreamingLoader.evaluate, full_images])
def test_a_damaged_file_is_one_line(workers, read, streaming_loader, paths, tmp_path):
    damaged = tmp_path / "broken.jpg"
    damaged.write_bytes(paths[0].read_bytes()[:40])
    with pytest.raises(DataError, match=r"broken\.jpg") as error:
        list(read(streaming_loader(workers, files=[paths[0], damaged])))
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_an_abandoned_call_does_not_end_the_next(paths, tmp_path):
    damaged = tmp_path / "broken.jpg"
    damaged.write_bytes(paths[0].read_bytes()[:40])
    pool = DecoderPool(ImageDecoder([paths[0], damaged, paths[1]], SIZE), workers=2)
    images, _ = next(pool.decode([(None, [0]), (None, [1]), (None, [2])]))
    again, _ = next(pool.decode([(None, [0])]))
    assert torch.equal(images, again)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        list(pool.decode([(None, [1])]))


def test_workers_ignore_the_stop_signals(streaming_loader, new_workers):
    loader = streaming_loader(1)
    expected = list(loader.evaluate())
    assert_same_batches(expected, streaming_loader().evaluate())
    (worker,) = new_workers()
    for name in ("INT", "TERM", "HUP", "USR1", "USR2"):
        os.kill(worker.pid, getattr(signal, f"SIG{name}"))
    assert_same_batches(loader.evaluate(), expected)
    worker.join(0.1)
    assert worker.is_alive()


EXIT_IN_AN_EPOCH = """
import multiprocessing, os, pathlib, signal, sys, torch
from vggexp.data.loaders import StreamingLoader
from vggexp.data.transforms import Preprocess
paths = sorted(pathlib.Path(sys.argv[1]).iterdir())
labels = range(len(paths))
preprocess = Preprocess(8, None, None)
cpu = torch.device("cpu")
loader = StreamingLoader(paths, labels, preprocess, batch_size=2, device=cpu, workers=2)
for images, labels in loader.train(0):
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "exit":
        raise SystemExit(3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("end", "code"), [("exit", 3), ("kill", -signal.SIGKILL)])
def test_no_worker_outlives_its_parent(end, code, paths):
    command = [sys.executable, "-c", EXIT_IN_AN_EPOCH, str(paths[0].parent), end]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == code
    assert process.stderr == ""
    pids = [int(pid) for pid in process.stdout.split()]
    assert len(pids) == 2
    if end == "exit":  # after a kill, `run` has waited until each worker has closed its output
        assert not any(map(is_alive, pids))


@pytest.mark.parametrize("received", [0, 1])
def test_one_killed_worker_is_replaced(received, streaming_loader, new_workers, capsys):
    loader = streaming_loader(2, STRONG)
    expected = list(streaming_loader(0, STRONG).train(1))

    def kill_worker():
        worker = new_workers()[-1]
        worker.kill()
        worker.join()

    list(loader.evaluate())  # starts the workers
    os.kill(new_workers()[-1].pid, signal.SIGSTOP)  # so that it cannot answer before it is killed
    epoch = loader.train(1)
    batches = [next(epoch) for _ in range(received)]
    kill_worker()
    assert_same_batches([*batches, *epoch], expected)
    assert "it was replaced" in capsys.readouterr().err
    kill_worker()
    with pytest.raises(ResourceError, match="killed for the second time"):
        list(loader.evaluate())
    # A caller that catches the error goes on with new workers.
    assert_same_batches(loader.evaluate(), streaming_loader(0).evaluate())


def test_a_worker_may_be_killed_while_its_batch_is_awaited(streaming_loader, new_workers):
    loader = streaming_loader(1, STRONG)
    list(loader.evaluate())
    (worker,) = new_workers()
    os.kill(worker.pid, signal.SIGSTOP)  # so that the next batch does not arrive
    threading.Timer(0.3, worker.kill).start()
    assert_same_batches(loader.evaluate(), streaming_loader(0).evaluate())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_the_wait_for_an_image(workers, streaming_loader, monkeypatch):
    """A dead disk gives no answer."""
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(image_file, "_open_image", lambda path: time.sleep(60))
    loader = streaming_loader(workers)
    with signals.handle_stop_signals():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(WaitStoppedError, match="stopped by SIGTERM while an image was"):
            list(loader.evaluate())
    monkeypatch.undo()
    assert_same_batches(loader.evaluate(), streaming_loader(0).evaluate())


WITHOUT_SHARED_MEMORY = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
WITHOUT_SHARED_MEMORY += ['mount -t tmpfs -o size=4k none /dev/shm && exec "$0" "$@"']
DECODE = """
import pathlib, sys
from vggexp.data.workers import DecoderPool, ImageDecoder, decode_images
paths = sorted(pathlib.Path(sys.argv[1]).iterdir())
print(*decode_images(paths, 256, 2, batch_size=4).shape)
"""


def test_batches_need_neither_shared_memory_nor_the_path_of_a_socket(paths, tmp_path):
    """A container has 64 MB of shared memory by default; the path of a socket has 107 bytes."""
    if subprocess.run([*WITHOUT_SHARED_MEMORY, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot mount")
    folder = tmp_path / ("long" * 20) / ("path" * 20)
    folder.mkdir(parents=True)
    command = [*WITHOUT_SHARED_MEMORY, sys.executable, "-c", DECODE, str(paths[0].parent)]
    variables = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)
    assert (process.stdout, process.stderr) == ("11 3 256 256\n", "")


START_UNDER_JOBLIB = """
import sys
from multiprocessing import set_start_method
from joblib.externals.loky.backend import context
set_start_method("loky", force=True)
"""


def test_workers_start_in_a_process_of_joblib(paths):
    """joblib sets a start method that needs what only its own processes have."""
    command = [sys.executable, "-c", START_UNDER_JOBLIB + DECODE, str(paths[0].parent)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (process.stderr, process.returncode) == ("", 0)
