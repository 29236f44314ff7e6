"""Inputs: damaged data, downloads, command lines and dying workers."""

import contextlib
import gzip
import io
import itertools
import os
import random
import shlex
import shutil
import signal
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

from tests.config.test_bad_input import ROWS, SCALARS
from tests.conftest import FASHION
from tools.faults.catalog import (
    SMALLEST,
    Catalog,
    check_error,
    replace_attribute,
    seeds,
    wait_until,
)
from tools.faults.server import (
    compare_with_reference,
    finish,
    reference_run,
    run_command,
    wait_for,
)
from vggexp.config.parse import schema_keys
from vggexp.data import datasets, download
from vggexp.data.catalog import DATASETS, IDX_TEST, IDX_TRAIN
from vggexp.errors import DataError
from vggexp.plan.__main__ import main as plan_main

# Damaged data

DATA_FILES = (*IDX_TRAIN, *IDX_TEST)
LABEL_FILES = DATA_FILES[1::2]
FASHION_RUN = [
    "data.root=data",
    "data.download=false",
    "data.resize=28",
    "arch.blocks=[[1,2]]",
    "arch.hidden=[4]",
    "data.limit=200",
    "train.epochs=1",
    "device.threads=1",
    "run.name=a",
]


def data_cases(small: bool) -> Iterable[tuple[str, str, int]]:
    """Returns the damage, the damaged file and a seed."""
    counts = {"flip": 200, "cut": 200, "packed": 4, "swapped": 4, "label": 4}
    for damage, count in counts.items():
        files = LABEL_FILES if damage == "label" else DATA_FILES
        for seed in range(count // 50 if small else count):
            yield damage, files[seed % len(files)], seed


def check_damaged_data(case: tuple[str, str, int], folder: Path) -> str:
    """Checks for exit code 3, one line that names the file, and nothing written."""
    damage, name, _ = case
    data = folder / "data"
    data.mkdir()
    for file in DATA_FILES:
        (data / file).symlink_to(unpacked_fashion() / file)
    (data / name).unlink()
    (data / name).write_bytes(damage_file(damage, name, random.Random(repr(case))))
    result = run_command(folder, FASHION_RUN)
    problem = check_error(result.code, result.err, 3)
    if problem:
        return problem
    if name not in result.err:
        return f"the file is not named: {result.err[-300:]}"
    return "something was written" if (folder / "outputs").exists() else ""


def damage_file(damage: str, name: str, draws: random.Random) -> bytes:
    """Returns the content of a file with this damage."""
    if damage == "swapped":  # with the file of the other part
        other = DATA_FILES[(DATA_FILES.index(name) + 2) % 4]
        return (unpacked_fashion() / other).read_bytes()
    content = bytearray((unpacked_fashion() / name).read_bytes())
    if damage == "packed":
        return gzip.compress(content, 1)
    if damage == "cut":
        return bytes(content[: draws.randrange(len(content))])
    if damage == "label":  # a class that does not exist, after the header of 8 bytes
        content[draws.randrange(8, len(content))] = draws.randrange(10, 256)
    else:
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    return bytes(content)


@cache
def unpacked_fashion() -> Path:
    """Returns a folder with the four files of Debian's package, unpacked once a process."""
    folder = Path(mkdtemp())
    for file in DATA_FILES:
        with gzip.open(FASHION / f"{file}.gz") as packed, open(folder / file, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    return folder


# Downloads


class Mirror(ThreadingHTTPServer):
    """Serves Debian's files: whole ("good"), cut ("short"), changed ("wrong") or "slow"."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behavior: str):
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.behavior = behavior
        self.requested_paths: list[str] = []


class MirrorHandler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        behavior = self.server.behavior
        self.server.requested_paths.append(self.path)
        body = bytearray((FASHION / self.path[1:]).read_bytes())
        half = len(body) // 2
        if behavior == "wrong":
            body[half] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client may disconnect
            self.wfile.write(body[:half])
            time.sleep(1.5 if behavior == "slow" else 0.05)
            if behavior != "short":
                self.wfile.write(body[half:])

    def log_message(self, *message: object) -> None: ...


def download_cases(small: bool) -> Iterable[tuple[str, int]]:
    """Returns the behavior of the mirror, and the processes that want the data at the same time."""
    counts = [3] if small else [20] * 5
    return itertools.product(("good", "short", "wrong", "slow"), counts)


def check_downloads(case: tuple[str, int], folder: Path) -> str:
    """Checks that each file is fetched once, or that each process fails with one line."""
    behavior, processes = case
    timeout = 0.5 if behavior == "slow" else 30
    with Mirror(behavior) as mirror:
        threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        pids = [fork_download(folder, mirror.server_port, timeout) for _ in range(processes)]
        codes = {wait_for(pid) for pid in pids}
        mirror.shutdown()
    expected_codes = {3}
    expected_names = []
    if behavior == "good":
        expected_codes = {0}
        expected_names = sorted(f"{file}.gz" for file in DATA_FILES)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = sorted(path.name for path in paths if path.name != ".download.lock")
    if codes != expected_codes or names != expected_names:
        return f"codes {codes}, left {names}"
    if behavior == "good" and len(mirror.requested_paths) != len(DATA_FILES):
        return f"requested {mirror.requested_paths}"
    return ""


def fork_download(folder: Path, port: int, timeout: float) -> int:
    """Forks a process that loads Fashion-MNIST from the mirror only; returns its process id.

    Its exit code is 0, 3 for a DataError of one line, or 1.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["no_proxy"] = "127.0.0.1"
        replace_attribute(download, "TIMEOUT_SECONDS", timeout)
        mirrors = (f"http://127.0.0.1:{port}/",)
        DATASETS["fashion_mnist"] = replace(DATASETS["fashion_mnist"], mirrors=mirrors, system="")
        datasets.load_dataset("fashion_mnist", folder / "data", True)
        code = 0
    except DataError as error:
        if len(str(error).splitlines()) == 1:
            code = 3
    finally:
        os._exit(code)


# Command lines


def command_cases(small: bool) -> Iterable[str | tuple[str, int, int]]:
    """Returns the refused commands of the tests; numbers of generated commands, with a seed."""
    yield from [command for command, _ in ROWS][:: 25 if small else 1]
    for seed in range(1 if small else 100):
        yield "generated", 20 if small else 50, seed


def check_bad_command(case: str | tuple[str, int, int], folder: Path) -> str:
    """Checks that a bad command prints one line on stderr, exits with 2, and writes nothing."""
    if isinstance(case, str):
        result = run_command(folder, shlex.split(case))
        names = sorted(path.name for path in folder.iterdir())
        if names != ["err", "out"]:
            return f"something was written: {names}"
        return check_error(result.code, result.err, 2)
    _, count, seed = case
    draws = random.Random(seed)
    problems = []
    for _ in range(count):
        argv = generate_command(draws)
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            code = plan_main(argv)  # reads and checks the command as a run does, without training
        problem = check_error(code, stderr.getvalue(), 0, 2)
        if problem:
            problems.append(f"{argv}: {problem}")
    return "; ".join(problems[:3])


def generate_command(draws: random.Random) -> list[str]:
    """Returns one to three overrides, most of them invalid."""
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
    overrides = []
    for _ in range(draws.randint(1, 3)):
        key = draws.choice(keys)
        values = [*SCALARS, str(draws.randint(-3, 300)), "0.1", "none"]
        value = draws.choice(values)
        if draws.random() < 0.2:  # a typing error
            index = draws.randrange(len(key))
            key = key[:index] + draws.choice("abcxyz._=") + key[index + 1 :]
        prefix = draws.choice(["", "", "", "+", "++", "~"])
        overrides.append(f"{prefix}{key}={value}")
    return overrides


# Worker processes


def check_killed_workers(seed: int, folder: Path) -> str:
    """Kills one or two workers.

    After the loss of one, the run ends with the same bits. The loss of a second worker ends the
    run, and the same command then continues it.
    """
    draws = random.Random(seed)
    kills = 1 + seed % 2
    argv = [
        *SMALLEST[5:],
        "data=image_folder",
        f"data.root={image_folder()}",
        "data.resize=16",
        "data.batch_size=4",
        "data.workers=2",
        "data.val_fraction=0.2",
        "augment=strong",
        "train.epochs=6",
    ]
    reference_run(tuple(argv))

    def kill(pid: int) -> None:
        for _ in range(kills):
            with contextlib.suppress(OSError):
                wait_until(lambda: len(child_pids(pid)) >= 2)
                time.sleep(draws.uniform(0, 0.3))
                children = child_pids(pid)
                if children:  # empty once the run has ended
                    os.kill(draws.choice(children), signal.SIGKILL)

    result = run_command(folder, argv, meanwhile=kill)
    allowed_codes = (0,) if kills == 1 else (0, 6)
    problem = check_error(result.code, result.err, *allowed_codes)
    if problem:
        return problem
    if result.code:
        return finish(folder, argv)
    return compare_with_reference(folder, argv)


def child_pids(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


@cache
def image_folder() -> Path:
    """Returns a folder of two classes, with the same images in every process."""
    folder = Path(mkdtemp())
    draws = numpy.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for name, brightness in (("dark", 0), ("light", 127)):
            class_folder = folder / part / name
            class_folder.mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 128, (24, 20, 3)) + brightness
                image = Image.fromarray(pixels.astype("uint8"))
                image.save(class_folder / f"{index:02}.png")
    return folder


CATALOGS = {
    "data": Catalog(
        "data with a flipped bit, cut short, packed, swapped, labels out of range",
        data_cases,
        check_damaged_data,
    ),
    "downloads": Catalog(
        "20 downloads at once: whole, interrupted, wrong, slow", download_cases, check_downloads
    ),
    "commands": Catalog(
        "bad command lines; groups of 50 generated ones", command_cases, check_bad_command
    ),
    "workers": Catalog("worker processes killed", seeds(2, 40), check_killed_workers),
}
