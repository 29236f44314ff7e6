"""What is done to runs: for each catalogue its cases, and a function that says what a case has broken, if anything."""

import errno
import itertools
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import vggexp.runner.build
import vggexp.runner.run
from tests.conftest import TINY
from tests.training.test_loop import CPU, Blobs, Keeper, trained
from tools.faults.server import (
    RUN,
    awaited,
    different,
    disturb,
    finished,
    good,
    points_of,
    reference,
    run,
    start,
)
from vggexp.models.init import initialize
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.training import checkpoint, checkpoint_manager
from vggexp.training.ema import EMA
from vggexp.training.loop import TrainState
from vggexp.training.metrics import MetricSums
from vggexp.training.precision import scaler
from vggexp.training.schedules import build_schedule
from vggexp.verify.replay import bitwise_equal, named_tensors


class Catalogue(NamedTuple):
    title: str
    cases: Callable[[bool], Iterable[Any]]  # small -> cases
    problem: Callable[
        [Any, Path], str
    ]  # case, empty folder -> what went wrong, empty if the case was survived


OFTEN = "train.checkpoint_minutes=0.0003"
WHOLE = [*TINY, "run.name=a", "augment=strong", "train.epochs=4", OFTEN]
CONFIGS = [
    [
        *WHOLE,
        "arch.norm=batch",
        "train.ema=0.9",
        "scheduler=plateau",
        "scheduler.patience=0",
        "train.test_weights=best",
    ],
    [
        *WHOLE,
        "optimizer=adam",
        "optimizer.lr=0.001",
        "scheduler=cosine",
        "scheduler.warmup_epochs=0.5",
    ],
    [
        *WHOLE,
        "arch.norm=batch",
        "train.accumulate=2",
        "train.clip_norm=1",
        "train.label_smoothing=0.1",
        "train.ema=0.8",
    ],
]
SMALLEST = [
    "data=synthetic",
    "data.images=24",
    "data.classes=2",
    "data.batch_size=8",
    "data.size=8",
    "arch.blocks=[[1,4]]",
]
SMALLEST += [
    "arch.hidden=[8]",
    "train.epochs=2",
    "device.threads=1",
    "train.checkpoint_minutes=0",
    "run.name=a",
]


# 1: kills at random times


def random_kills(seed: int, folder: Path) -> str:
    draw = random.Random(seed)
    argv = CONFIGS[seed % len(CONFIGS)]
    seconds = reference(tuple(argv))[1]
    for _ in range(3):
        workers = f"data.workers={draw.randrange(4)}"  # no part of what the run is
        end = run(
            folder, [*argv, workers], meanwhile=after(draw.uniform(0, seconds), signal.SIGKILL)
        )
        if end.code == 0:
            break
    return finished(folder, argv)


def after(seconds: float, *signals: int) -> Callable[[int], None]:
    def send(pid: int) -> None:
        time.sleep(seconds)
        for number in signals:
            os.kill(pid, number)

    return send


# 2: kills at every point of writing

KEEPS = ("last", "weights", "all")


def points(small: bool) -> Iterable[tuple[str, int, bool]]:
    """keep, place among the points, and whether a checkpoint has been written before it."""
    for kept in KEEPS:
        names = list(points_of([*SMALLEST, f"train.keep={kept}"]))
        renames = [
            place
            for place, name in enumerate(names)
            if name.startswith("replace") and ".pt" in name
        ]
        writes = (
            range(renames[0], renames[1] + 1) if kept == "last" else ()
        )  # all of the second checkpoint
        places = [
            place
            for place, name in enumerate(names)
            if not name.startswith("write") or place in writes
        ]
        chosen = random.Random(kept).sample(places, 4) if small else places
        yield from ((kept, place, place > renames[0]) for place in chosen)


def kill_at_point(case: tuple[str, int, bool], folder: Path) -> str:
    kept, place, written = case

    def act(number: int, name: str) -> None:
        if number == place:
            os.kill(os.getpid(), signal.SIGKILL)

    argv = [*SMALLEST, f"train.keep={kept}"]
    end = run(folder, argv, lambda: disturb(act))
    if end.code != -signal.SIGKILL:
        return f"not killed: exit {end.code} {end.err}"
    if written and not good(folder):
        return "no checkpoint verifies"
    return finished(folder, argv)


# 3: signals

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


def signals(small: bool) -> Iterable[tuple[str, str, int]]:
    kinds = {
        "once": SIGNALS,
        "chained": SIGNALS[2:],
        "ignored": ("SIGHUP",),
        "twice": ("SIGINT",),
        "sweep": ("SIGINT",),
    }
    repeats = {"once": 1 if small else 20}
    for kind, names in kinds.items():
        yield from itertools.product([kind], names, range(repeats.get(kind, 1 if small else 4)))


def signalled(case: tuple[str, str, int], folder: Path) -> str:
    kind, name, seed = case
    number = getattr(signal, name)
    draw = random.Random(repr(case))
    argv = CONFIGS[seed % len(CONFIGS)]
    if kind == "sweep":
        argv = [
            "-m",
            *(word for word in argv if word != "run.name=a"),
            "optimizer.lr=0.001,0.002,0.003",
        ]

    def before() -> None:
        slow(0.3 if kind == "twice" else 0.02)
        signal.signal(number, handlers[kind])

    handlers: dict[str, Any] = dict.fromkeys(("once", "twice", "sweep"), signal.default_int_handler)
    if number != signal.SIGINT:
        handlers["once"] = signal.SIG_DFL
    handlers |= {"ignored": signal.SIG_IGN, "chained": lambda *_: Path("called").touch()}
    pause = draw.uniform(0, 0.2)

    def send(pid: int) -> None:
        until(lambda: list(folder.glob("outputs/*/result.json")))
        if kind == "twice":
            until(lambda: list(folder.glob("outputs/*/checkpoints/*.pt")))
        time.sleep(pause)
        os.kill(pid, number)
        if kind == "twice":
            time.sleep(0.05)
            os.kill(pid, number)

    end = run(folder, argv, before, send)
    expected = 0 if kind == "ignored" else 128 + number
    if end.code != expected or len(end.err.splitlines()) != bool(expected):
        return f"exit {end.code}, not {expected}: {end.err}"
    if kind == "chained" and not (folder / "called").exists():
        return "the earlier handler was not called"
    if not list(folder.glob("outputs/*/checkpoints/*.pt")):
        return "no checkpoint"
    if kind == "sweep" and len(list(folder.glob("outputs/*/checkpoints"))) != 1:
        return "another job started"
    return finished(folder, argv)


def slow(seconds: float) -> None:
    """Makes every batch last, so that a signal comes while the run trains."""
    real = vggexp.build.gradients
    vggexp.build.gradients = lambda *a, **k: (time.sleep(seconds), real(*a, **k))[1]


def until(there: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.002)


# 4: exactness

AXES = [
    ("none", "batch"),
    (0, 0.3),
    ("sgd", "adam"),
    ("step", "cosine", "plateau"),
    (None, 0.8),
    range(1, 9),
]
COURSES = {"step": {"milestones": [1, 2], "gamma": 0.5}, "cosine": {"final_factor": 0}}
COURSES |= {"plateau": {"gamma": 0.5, "patience": 0, "threshold": 0}}
CONTROL = ("batch", 0.3, "sgd", "cosine", 0.8)


def matrix(small: bool) -> Iterable[tuple]:
    yield from list(itertools.product(*AXES))[:: 13 if small else 1]
    yield from ((*CONTROL, at, "control") for at in ((4,) if small else range(1, 9)))


def fresh(norm: str, dropout: float, optimizer: str, course: str, ema: float | None) -> TrainState:
    model = vgg(
        [Block(1, 8)],
        norm=norm,
        hidden=(16,),
        dropout=dropout,
        width=1,
        in_channels=1,
        size=4,
        classes=4,
    )
    initialize(model, "kaiming", 0)
    kinds = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam}
    average = EMA(model, ema) if ema else None
    times = build_schedule(course, 0.02, 0.5, epochs=3, steps_per_epoch=3, **COURSES[course])
    return TrainState(
        model,
        kinds[optimizer](model.parameters(), 0.02, fused=True),
        times,
        scaler("fp32", CPU),
        average,
        MetricSums(CPU),
    )


def inexact(case: tuple, folder: Path) -> str:
    """A control case switches derived randomness off, and is survived if the comparison then sees it."""
    *own, at = case[:6]
    torch.set_num_threads(1)
    real = vggexp.train.seed_step
    control = "control" in case
    if control:
        vggexp.train.seed_step = lambda *words: None
    try:
        whole = fresh(*own)
        continued = fresh(*own)
        keeper = Keeper(whole, at)
        torch.manual_seed(0)
        trained(whole, epochs=3, keeper=keeper)
        checkpoint.save(folder / "1.pt", keeper.saved[at])
        torch.manual_seed(at)
        continued.restore(checkpoint.load(folder / "1.pt"))
        trained(continued, epochs=3, batches=Blobs())
    finally:
        vggexp.train.seed_step = real
    one, other = (dict(named_tensors(state.capture())) for state in (whole, continued))
    scores = [
        [value for key, value in row.items() if key.startswith(("train/", "val/", "lr"))]
        for state in (whole, continued)
        for row in state.history
    ]
    equal = scores[:3] == scores[3:] and all(
        bitwise_equal(one[name], other.get(name)) for name in one
    )
    return (
        ""
        if equal != control
        else "the comparison sees nothing"
        if control
        else "not the same bits"
    )


# 5: damage


def damage(small: bool) -> Iterable[tuple[str, int]]:
    for kind, count in (("flip", 1000), ("cut", 200)):
        yield from ((kind, seed) for seed in range(count // 20 if small else count))


def damaged(case: tuple[str, int], folder: Path) -> str:
    """The newest of two checkpoints is damaged: it is set aside with one warning, and the older is taken."""
    kind, _ = case
    draw = random.Random(repr(case))
    told = list[str]()
    state = fresh(*CONTROL)
    for step in (1, 2):
        checkpoint.save(folder / f"{step}.pt", {"format": 1, **state.capture(), "step": step})
    raw = bytearray((folder / "2.pt").read_bytes())
    if kind == "flip":
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    else:
        del raw[draw.randrange(len(raw)) :]
    (folder / "2.pt").write_bytes(raw)
    found = checkpoint_manager.load_latest(folder, told.append)
    left = sorted(path.name for path in folder.iterdir())
    return (
        ""
        if found and found["step"] == 1 and len(told) == 1 and left == ["1.pt", "2.corrupt"]
        else f"{left} {told}"
    )


# 6: no room, no permission, no descriptors


def resources(small: bool) -> Iterable[tuple[str, int]]:
    count = len(list(points_of(SMALLEST)))
    some = {
        "full": range(0, count, count // (8 if small else 100)),
        "limit": range(500, 24_000, 4000 if small else 500),
        "readonly": range(0, count, count // (3 if small else 20)),
        "descriptors": range(0, 6, 3 if small else 1),
    }
    if os.geteuid() == 0:
        some["tmpfs"] = range(16, 160, 48 if small else 8)
    return [(kind, number) for kind, numbers in some.items() for number in numbers]


def refused(case: tuple[str, int], folder: Path) -> str:
    kind, number = case
    codes = {"full": errno.ENOSPC, "readonly": errno.EROFS}

    def act(count: int, name: str) -> None:
        if count >= number and name != "unlink":
            raise OSError(codes[kind], os.strerror(codes[kind]))

    def before() -> None:
        checkpoint_manager.check_disk_space = lambda *_: None  # which would refuse at the start
        if kind in codes:
            disturb(act)
        elif kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))
        elif kind == "descriptors":
            real = vggexp.run.build.state  # everything has been loaded then
            vggexp.run.build.state = lambda *words: (real(*words), scarce(number))[0]

    (disk := folder / "outputs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={number}k", "none", disk]
    mounted = kind == "tmpfs" and not subprocess.run(mount, capture_output=True).returncode
    try:
        end = run(folder, SMALLEST, before)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        if end.code not in (0, 6) or len(end.err.splitlines()) != bool(end.code):
            return f"exit {end.code} {end.err[-400:]}"
        if list(folder.glob("outputs/**/*.pt")) and not good(folder):
            return "no checkpoint verifies"
        return finished(
            folder, SMALLEST, events=end.code != 0
        )  # a run without its pictures has ended well
    finally:
        if mounted:
            subprocess.run(["umount", "-l", disk], check=True)


def scarce(number: int) -> None:
    """Leaves `number` more descriptors to the process."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (highest + number, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


# 7: hostile files and secrets

TOUCH = "import pathlib; pathlib.Path('canary').touch()"
GADGETS = [
    (os.system, ("touch canary",)),
    (exec, (TOUCH,)),
    (eval, ("open('canary', 'w')",)),
    (open, ("canary", "w")),
    (subprocess.call, (["touch", "canary"],)),
    (subprocess.Popen, (["touch", "canary"],)),
    (os.mkdir, ("canary",)),
    (Path.touch, (Path("canary"),)),
    (os.mknod, ("canary",)),
    (map, (exec, [TOUCH])),
    (partial(exec, TOUCH), ()),
]
FILES = {  # what is put there, and the exit code
    "config.yaml": [
        ("!!python/object/apply:os.system ['touch canary']", 4),
        ("a: !!python/name:os.system\n", 4),
    ],
    "overrides.txt": [("hydra.job.name=$(touch canary)\n_target_=os.system\n", 0)],
    "result.json": [("__import__('os').mkdir('canary')", 4), ("[" * 100_000, 4), ("[]", 4)],
    "env.json": [("[" * 100_000, 0), ('{"attempts": "x"}', 0)],
    "metrics.jsonl": [("no json\n" * 3, 0)],
}
SECRETS = (
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "GITHUB_TOKEN",
    "PGPASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
SECRETS += (
    "OPENAI_API_KEY",
    "SSH_AUTH_SOCK",
    "KAGGLE_KEY",
    "http_proxy",
    "PIP_INDEX_URL",
    "SLURM_JWT",
)


class Gadget:
    def __init__(self, call: Callable, arguments: tuple):
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


def hostile(small: bool) -> Iterable[tuple[str, Any]]:
    yield from itertools.product(("zip", "pickle"), range(len(GADGETS)))
    yield from (
        (name, number) for name, contents in FILES.items() for number in range(len(contents))
    )
    yield from (("secret", name) for name in (SECRETS[:2] if small else SECRETS))


def harmed(case: tuple[str, Any], folder: Path) -> str:
    kind, which = case
    if kind == "secret":
        return leaked(which, folder)
    run(folder, SMALLEST)
    (folder / RUN / "result.json").unlink()
    if kind in FILES:
        content, code = FILES[kind][which]
        (folder / RUN / kind).write_text(content)
    else:
        code = 4
        for path in (folder / RUN / "checkpoints").glob("*.pt"):
            plant(path, Gadget(*GADGETS[which]), kind)
    end = run(folder, SMALLEST)
    if (folder / "canary").exists() or (folder / RUN / "canary").exists():
        return "code was executed"
    if end.code != code or len(end.err.splitlines()) != bool(code):
        return f"exit {end.code}, not {code}: {end.err[-300:]}"
    return "" if code else different(folder, reference(tuple(SMALLEST))[0])


def plant(path: Path, gadget: Gadget, kind: str) -> None:
    """A file with the trailer that its content should have."""
    if kind == "zip":
        checkpoint.save(path, {"format": 1, "net": gadget})
    else:
        path.write_bytes(raw := pickle.dumps({"format": 1, "net": gadget}))
        with open(path, "ab") as file:
            file.write(checkpoint.MAGIC + checkpoint.hashlib.sha256(raw).digest())


def leaked(name: str, folder: Path) -> str:
    secret = "s3cr3t-" + "".join(random.Random(name).choices("abcdefghijklmnopqrstuvwxyz", k=24))
    end = run(folder, SMALLEST, lambda: os.environ.update({name: secret}))
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]
    return f"exit {end.code}, found in {files}" if files or end.code else ""


# 8: many at once


def crowd(seed: int, folder: Path, size: int = 20) -> str:
    """Exactly one of them trains; to the others the run is in use, or has ended."""
    argv = CONFIGS[seed % len(CONFIGS)]
    ready, go = os.pipe()

    def wait() -> None:
        os.close(go)
        os.read(ready, 1)
        time.sleep(random.Random(repr((seed, os.getpid()))).uniform(0, 0.5))

    pids = [start(folder, argv, wait, f"-{number}") for number in range(size)]
    os.close(go)
    os.close(ready)
    codes = [awaited(pid) for pid in pids]
    outs, errs = (
        [(folder / f"{name}-{number}").read_text() for number in range(size)]
        for name in ("out", "err")
    )
    trained_by = [number for number, out in enumerate(outs) if "\ntraining " in out]
    attempts = json.loads((folder / RUN / "env.json").read_text())["attempts"]
    wrong = [
        err
        for code, err in zip(codes, errs, strict=True)
        if code not in (0, 8) or len(err.splitlines()) != (code == 8)
    ]
    if len(trained_by) != 1 or attempts != 1 or wrong:
        return f"trained by {trained_by}, {attempts} attempts, codes {codes}, {wrong[:1]}"
    return different(folder, reference(tuple(argv))[0])


def seeds(some: int, many: int) -> Callable[[bool], range]:
    return lambda small: range(some if small else many)


CATALOGUES = {
    "kills": Catalogue("SIGKILL at up to three random times", seeds(6, 200), random_kills),
    "points": Catalogue("SIGKILL at each write, fsync, rename and unlink", points, kill_at_point),
    "signals": Catalogue("stop signals", signals, signalled),
    "exactness": Catalogue(
        "continued from a checkpoint, tolerance 0, and controls", matrix, inexact
    ),
    "damage": Catalogue("checkpoints with a flipped bit or cut short", damage, damaged),
    "resources": Catalogue("disk full, read-only, file size, descriptors", resources, refused),
    "hostile": Catalogue("hostile files and planted secrets", hostile, harmed),
    "crowds": Catalogue("20 starts of one command at once", seeds(1, 10), crowd),
}
