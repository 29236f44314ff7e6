"""What comes from outside: data, downloads, command lines, worker processes, memory, and the kernel itself."""

import contextlib
import gzip
import io
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import mkdtemp

import numpy
from PIL import Image

from tests.config.test_bad_input import ROWS, VALUES
from tests.conftest import FASHION
from tools.faults.catalogues import SMALLEST, Catalogue, seeds, until
from tools.faults.server import awaited, different, finished, good, reference, run, start
from vggexp import plan
from vggexp.config.parse import schema_keys
from vggexp.data import datasets, download
from vggexp.data.catalog import DATASETS, IDX_TEST, IDX_TRAIN
from vggexp.errors import DataError

# 9: data that is not what it should be

FILES = (*IDX_TRAIN, *IDX_TEST)
ON_FASHION = [
    "data.root=data",
    "data.download=false",
    "data.resize=28",
    "arch.blocks=[[1,2]]",
    "arch.hidden=[4]",
]
ON_FASHION += ["data.limit=200", "train.epochs=1", "device.threads=1", "run.name=a"]


def spoiled(small: bool) -> Iterable[tuple[str, str, int]]:
    counts = {"flip": 200, "cut": 200, "packed": 4, "swapped": 4, "label": 4}
    for kind, count in counts.items():
        files = FILES if kind != "label" else FILES[1::2]
        yield from (
            (kind, files[seed % len(files)], seed)
            for seed in range(count // 50 if small else count)
        )


def noticed(case: tuple[str, str, int], folder: Path) -> str:
    """Exit 3, one line that names the file, and nothing written."""
    kind, name, _ = case
    (data := folder / "data").mkdir()
    for file in FILES:
        (data / file).symlink_to(unpacked() / file)
    raw = bytearray((unpacked() / name).read_bytes())
    (data / name).unlink()
    (data / name).write_bytes(spoil(kind, name, raw, random.Random(repr(case))))
    end = run(folder, ON_FASHION)
    if end.code != 3 or len(end.err.splitlines()) != 1 or name not in end.err:
        return f"exit {end.code} {end.err[-300:]}"
    return "something was written" if (folder / "outputs").exists() else ""


def spoil(kind: str, name: str, raw: bytearray, draw: random.Random) -> bytes:
    if kind == "packed":
        return gzip.compress(raw, 1)
    if kind == "swapped":
        return (unpacked() / FILES[(FILES.index(name) + 2) % 4]).read_bytes()
    if kind == "cut":
        return bytes(raw[: draw.randrange(len(raw))])
    if kind == "label":
        raw[draw.randrange(8, len(raw))] = draw.randrange(10, 256)
    else:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(raw)


@cache
def unpacked() -> Path:
    """The four files of Debian's package, once for each process."""
    folder = Path(mkdtemp())
    for file in FILES:
        with gzip.open(FASHION / f"{file}.gz") as packed, open(folder / file, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    return folder


# 10: downloads


class Mirror(ThreadingHTTPServer):
    """Has Debian's files, and gives them as it likes."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, kind: str):
        super().__init__(("127.0.0.1", 0), Answer)
        self.kind = kind
        self.asked = list[str]()


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = bytearray((FASHION / self.path[1:]).read_bytes())
        if self.server.kind == "wrong":
            body[len(body) // 2] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client may leave
            self.wfile.write(body[: len(body) // 2])
            time.sleep(1.5 if self.server.kind == "slow" else 0.05)
            self.wfile.write(b"" if self.server.kind == "short" else body[len(body) // 2 :])

    def log_message(self, *message: object) -> None: ...


def mirrored(small: bool) -> Iterable[tuple[str, int]]:
    yield from (
        (kind, number)
        for kind in ("good", "short", "wrong", "slow")
        for number in range(1 if small else 5)
    )


def downloaded(case: tuple[str, int], folder: Path, size: int = 20) -> str:
    """20 processes want the data set at once: each file is fetched once, or each of them says why it is not there."""
    kind, _ = case
    with Mirror(kind) as mirror:
        threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        pids = [
            loading(folder, mirror.server_port, 0.5 if kind == "slow" else 30) for _ in range(size)
        ]
        codes = {awaited(pid) for pid in pids}
        mirror.shutdown()
    left = sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.name != ".download.lock"
    )
    whole = sorted(f"{file}.gz" for file in FILES)
    if codes != ({0} if kind == "good" else {3}) or left != (whole if kind == "good" else []):
        return f"codes {codes}, left {left}"
    return f"asked {mirror.asked}" if kind == "good" and len(mirror.asked) != len(FILES) else ""


def loading(folder: Path, port: int, silence: float) -> int:
    """Forks a process that loads Fashion-MNIST from nowhere but the mirror; its exit code is 0, or 3 for DataError."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ["no_proxy"] = "127.0.0.1"
        download.TIMEOUT_SECONDS = silence
        DATASETS["fashion_mnist"] = replace(
            DATASETS["fashion_mnist"], mirrors=(f"http://127.0.0.1:{port}/",), system=""
        )
        datasets.load_dataset("fashion_mnist", folder / "data", True)
        code = 0
    except DataError as error:
        code = 3 if len(str(error).splitlines()) == 1 else 1
    finally:
        os._exit(code)


# 11: command lines


def lines(small: bool) -> Iterable[str | int]:
    yield from [command for command, _ in ROWS][:: 8 if small else 1]
    yield from range(2 if small else 100)


def refused(case: str | int, folder: Path, count: int = 50) -> str:
    """A bad line is one line on stderr, exit 2, and leaves nothing. A number stands for `count` generated ones."""
    if isinstance(case, str):
        end = run(folder, shlex.split(case))
        left = sorted(path.name for path in folder.iterdir())
        fine = end.code == 2 and len(end.err.splitlines()) == 1 and left == ["err", "out"]
        return "" if fine else f"exit {end.code}, left {left}: {end.err[-300:]}"
    draw = random.Random(case)
    wrong = []
    for argv in (generated(draw) for _ in range(count)):
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = plan.main(argv)  # as a run reads and checks it, and it trains nothing
        if code not in (0, 2) or told.getvalue().count("\n") != (code == 2):
            wrong.append(f"{argv}: exit {code} {told.getvalue()[-200:]}")
    return "; ".join(wrong[:3])


def generated(draw: random.Random) -> list[str]:
    keys = [
        *schema_keys(),
        "arch",
        "data",
        "optimizer",
        "scheduler",
        "experiment",
        "arch.blocks.0",
        "hydra/launcher",
    ]
    words = []
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(keys)
        value = draw.choice([*VALUES.split("|"), str(draw.randint(-3, 300)), "0.1", "none"])
        if draw.random() < 0.2:  # a slip of the finger
            place = draw.randrange(len(key))
            key = key[:place] + draw.choice("abcxyz._=") + key[place + 1 :]
        words.append(f"{draw.choice(['', '', '', '+', '++', '~'])}{key}={value}")
    return words


# 12: worker processes


def worker_kills(seed: int, folder: Path) -> str:
    """One killed worker is survived, with the same bits; a second one ends the run, which then can be continued."""
    draw = random.Random(seed)
    times = 1 + seed % 2
    argv = [
        *SMALLEST[5:],
        "data=image_folder",
        f"data.root={pictures()}",
        "data.resize=16",
        "data.batch_size=4",
    ]
    argv += ["data.workers=2", "augment=strong", "data.val_fraction=0.2", "train.epochs=6"]
    reference(tuple(argv))

    def kill(pid: int) -> None:
        for _ in range(times):
            with contextlib.suppress(OSError):
                until(lambda: len(children(pid)) >= 2)
                time.sleep(draw.uniform(0, 0.3))
                if there := children(
                    pid
                ):  # none once the run has ended; and 0 would be this process's own group
                    os.kill(draw.choice(there), signal.SIGKILL)

    end = run(folder, argv, meanwhile=kill)
    if (
        end.code not in (0, 6)
        or len(end.err.splitlines()) != bool(end.code)
        or (times == 1 and end.code)
    ):
        return f"exit {end.code} {end.err[-300:]}"
    return finished(folder, argv) if end.code else different(folder, reference(tuple(argv))[0])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@cache
def pictures() -> Path:
    """A folder of two classes, the same in every process but for its place, which is no part of what a run is."""
    folder = Path(mkdtemp())
    draw = numpy.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for name in ("dark", "light"):
            (place := folder / part / name).mkdir(parents=True)
            for number in range(count):
                noise = draw.integers(0, 128, (24, 20, 3)) + 127 * (name == "light")
                Image.fromarray(noise.astype("uint8")).save(place / f"{number:02}.png")
    return folder


# 13: memory


def short(small: bool) -> Iterable[tuple[str, int]]:
    yield from (
        (norm, room)
        for norm in ("none", "batch")
        for room in ((500, 700) if small else range(300, 1100, 100))
    )


def split(case: tuple[str, int], folder: Path) -> str:
    """room: MB beyond what the process has before it trains. Either it is done in smaller parts, or told in a line."""
    norm, room = case
    argv = [
        f"arch.norm={norm}",
        "data=synthetic",
        "data.images=320",
        "data.channels=3",
        "data.size=64",
        "run.name=a",
    ]
    argv += [
        "data.batch_size=256",
        "arch.blocks=[[1,64],[1,32]]",
        "arch.hidden=[16]",
        "train.epochs=1",
    ]
    argv += ["device.threads=1", "device.precision=fp32", "data.classes=4"]

    def limit() -> None:
        status = Path("/proc/self/status").read_text()
        size = next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")
        )
        resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + room * 10**6, resource.RLIM_INFINITY))

    end = run(folder, argv, limit)
    if end.code not in (0, 6) or len(end.err.splitlines()) != bool(end.code):
        return f"exit {end.code} {end.err[-300:]}"
    if end.code and "memory" not in end.err:
        return f"another reason: {end.err}"
    return (
        "batch norm was computed in parts" if norm == "batch" and "micro-batches" in end.out else ""
    )


# 14: the kernel's own calls

CALLS = ("fsync", "rename", "write")
SECOND = "outputs/a/checkpoints/00000002.pt"


def calls(small: bool) -> Iterable[tuple[str, int]]:
    """Every fsync and rename of a run, and every write of its second checkpoint. None where tracing is not allowed."""
    for call in CALLS:
        folder = Path(mkdtemp())
        if traced(folder, call) != 0:
            print("syscalls: no cases, strace is missing or may not trace here", file=sys.stderr)
            return
        count = sum(f"{call}(" in line for line in (folder / "trace").read_text().splitlines())
        numbers = range(1, count + 1)
        yield from (
            (call, number)
            for number in (random.Random(call).sample(numbers, 3) if small else numbers)
        )


def traced(folder: Path, call: str, *inject: str) -> int:
    """Runs SMALLEST under strace, from its first line on; the exit code, 127 where that is not possible."""
    paths = ["-P", f"{folder}/{SECOND}.tmp"] if call == "write" else []

    def wait() -> None:
        until(lambda: "TracerPid:\t0" not in Path("/proc/self/status").read_text(), 10)

    pid = start(folder, SMALLEST, wait)
    command = [
        "strace",
        "-f",
        "-q",
        "-o",
        folder / "trace",
        "-e",
        f"trace={call}",
        *paths,
        *inject,
        "-p",
        str(pid),
    ]
    try:
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        awaited(pid)
        return 127
    code = awaited(pid)
    return code if tracer.wait() == 0 or code else 127


def kill_at_call(case: tuple[str, int], folder: Path) -> str:
    call, number = case
    code = traced(folder, call, "-e", f"inject={call}:signal=KILL:when={number}")
    if code != -signal.SIGKILL:
        return f"not killed: exit {code}"
    if call == "write" and not good(folder):
        return "no checkpoint verifies"
    return finished(folder, SMALLEST)


CATALOGUES = {
    "data": Catalogue(
        "data with a flipped bit, cut short, packed, swapped, labels out of range", spoiled, noticed
    ),
    "downloads": Catalogue(
        "20 downloads at once: whole, interrupted, wrong, slow", mirrored, downloaded
    ),
    "commands": Catalogue("bad command lines; groups of 50 generated ones", lines, refused),
    "workers": Catalogue("worker processes killed", seeds(2, 40), worker_kills),
    "memory": Catalogue("out of memory in training", short, split),
    "syscalls": Catalogue(
        "SIGKILL at each fsync, rename and write that strace sees", calls, kill_at_call
    ),
}
