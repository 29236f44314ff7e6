"""python -m benchmarks.scaling [--rounds N] [--out FILE]: what a second rank costs here, and what many would elsewhere.

Each rank has one thread and 64 images a step, so that two ranks do twice the work of one in the same time, but for what
they tell one another. In turn: two runs of one rank, side by side, which tell one another nothing; one run of two
ranks; and the all-reduce of the same gradients alone. Then, by arithmetic, the share that is left of each device's rate
at 1 to 64 devices. Prints and writes benchmarks/scaling.md. About ten minutes on two cores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import torch
from torch import distributed

from vggexp import plan
from vggexp.config import compose
from vggexp.sweep import expand
from vggexp.system import cpu

TARGET = Path(__file__).parent / "scaling.md"
IMAGES = 64
STEPS = 12  # of a rank in a step; of an epoch
NETWORKS = {
    "vgg11 at 32 px": "arch=vgg11 data.resize=32",
    "vgg11 at 96 px": "arch=vgg11 data.resize=96",
}
COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Device(NamedTuple):
    """A machine and how its devices are joined."""

    name: str
    step_seconds: float
    gradient_bytes: int
    bytes_per_second: float  # that a device sends, while it receives as many
    most: int = COUNTS[-1]  # devices that are joined so


def volume(count: int, gradient_bytes: int) -> float:
    """Bytes that each of `count` devices sends in a step by a ring (Patarasuk and Yuan 2009): less than 2 gradients."""
    return 2 * (count - 1) / count * gradient_bytes


def left(count: int, device: Device) -> tuple[float, float]:
    """The share of its rate that a device keeps: where the sending hides behind the backward pass, and where it does
    not. The backward pass is two thirds of a step."""
    seconds = volume(count, device.gradient_bytes) / device.bytes_per_second
    hidden = max(0.0, seconds - device.step_seconds * 2 / 3)
    return device.step_seconds / (device.step_seconds + hidden), device.step_seconds / (
        device.step_seconds + seconds
    )


def run(words: str, ranks: int, seed: int, root: str) -> subprocess.Popen[bytes]:
    batch = IMAGES * ranks
    command = [
        sys.executable,
        "-m",
        "vggexp",
        *words.split(),
        "device=cpu",
        "device.threads=1",
        f"seed={seed}",
    ]
    command += [
        f"data.batch_size={batch}",
        f"data.limit={batch * STEPS}",
        "data.val_fraction=0",
        "train.epochs=2",
    ]
    command += [
        "sweep.objective=test/accuracy",
        "run.name=run",
        f"run.root={root}",
        f"device.processes={ranks}",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def step_seconds(words: str, ranks: int) -> float:
    """Of the faster epoch, forward and backward with what is sent. One rank: the slower of two side by side."""
    roots = [mkdtemp() for _ in range(2 // ranks)]
    processes = [run(words, ranks, seed, root) for seed, root in enumerate(roots)]
    if any([process.wait() for process in processes]):
        raise SystemExit(f"failed: {words}; {' '.join(roots)} hold why")
    seconds = []
    for root in roots:
        rows = map(json.loads, (Path(root) / "run" / "metrics.jsonl").read_text().splitlines())
        seconds.append(min(row["time/compute_seconds"] for row in rows) / STEPS)
    return max(seconds)


def reduced(rank: int, port: int, gradient_bytes: int, results) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore("localhost", port, 2, rank == 0, timedelta(minutes=1))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    gradients = torch.ones(gradient_bytes // 4)
    times = []
    for _ in range(5):
        distributed.barrier()
        begin = time.perf_counter()
        distributed.all_reduce(gradients)
        times.append(time.perf_counter() - begin)
    if rank == 0:
        results.put(statistics.median(times))
    distributed.barrier()


def reduce_seconds(gradient_bytes: int) -> float:
    """An all-reduce of so many bytes between two processes of this machine, by gloo."""
    context = get_context("spawn")
    results = context.Queue()
    port = 29_500 + os.getpid() % 1000
    ranks = [
        context.Process(target=reduced, args=(rank, port, gradient_bytes, results))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    found = results.get(timeout=120)
    for rank in ranks:
        rank.join()
    return found


class Measured(NamedTuple):
    gradient_bytes: int
    one: list[float]  # seconds of a step, each round
    two: list[float]
    reduce: list[float]


def measured(words: str, rounds: int) -> Measured:
    gradient_bytes = (
        4
        * plan.plan_costs(
            expand.compose_run(compose.parse_command(["device=cpu", *words.split()]))
        ).parameters
    )
    found = Measured(gradient_bytes, [], [], [])
    for turn in range(rounds):
        found.one.append(step_seconds(words, 1))
        found.two.append(step_seconds(words, 2))
        found.reduce.append(reduce_seconds(gradient_bytes))
        print(f"round {turn + 1}/{rounds}  {words}", file=sys.stderr, flush=True)
    return found


def rows(name: str, found: Measured) -> Iterator[str]:
    one, two, reduce = (statistics.median(times) for times in found[1:])
    share = left(2, Device("", one, found.gradient_bytes, found.gradient_bytes / reduce))
    ratio = statistics.median(
        alone / both for alone, both in zip(found.one, found.two, strict=True)
    )
    yield (
        f"| {name} | {found.gradient_bytes / 1e6:.1f} | {one:.3f} | {reduce:.3f} | {two:.3f} | {share[1]:.2f} to "
        f"{share[0]:.2f} | {ratio:.2f} |"
    )


# Figures of benchmarks/gpu.md (one H200, batch 128), and the links of NVIDIA's data sheets: NVLink of an H200, 900 GB/s
# in both directions together, between the 8 of a machine; 400 Gbit/s InfiniBand for each device between machines.
NVLINK = 450e9
INFINIBAND = 50e9
ETHERNET = 1.25e9  # bytes a second in one direction; the last is 10 Gbit/s
ELSEWHERE = [
    Device("vgg11 at 96 px, NVLink", 128 / 46_681, 4 * 44_920_074, NVLINK, 8),
    Device("vgg11 at 96 px, InfiniBand", 128 / 46_681, 4 * 44_920_074, INFINIBAND),
    Device("the same, 1,024 images a device", 1024 / 66_867, 4 * 44_920_074, INFINIBAND),
    Device("vgg11 at 224 px, InfiniBand", 128 / 11_413, 4 * 128_806_154, INFINIBAND),
    Device("vgg11 at 96 px, 10 Gbit/s", 128 / 46_681, 4 * 44_920_074, ETHERNET),
]


def kept(device: Device) -> Iterator[str]:
    for count in COUNTS:
        hidden, open_ = left(count, device)
        yield f"{open_:.2f} to {hidden:.2f}" if count <= device.most else "-"


def record(found: dict[str, Measured], rounds: int) -> str:
    here = "\n".join(row for name, many in found.items() for row in rows(name, many))
    head = " | ".join(str(count) for count in COUNTS)
    volumes = ", ".join(f"{volume(count, 4 * 44_920_074) / 1e6:.0f}" for count in COUNTS)
    table = "\n".join(f"| {device.name} | {' | '.join(kept(device))} |" for device in ELSEWHERE)
    return f"""# The cost of more ranks

## Measured: one and two ranks

Each rank has {IMAGES} images a step and one thread; the gradients are fp32, by gloo. "One rank" is
the slower of two ranks that run side by side without communication. Medians of {rounds} rounds in
turn; seconds of a step's forward and backward pass.

| network | MB of gradients | one rank | all-reduce alone | two ranks | share kept, calculated | measured |
|---|---:|---:|---:|---:|---:|---:|
{here}

`python -m benchmarks.scaling --rounds {rounds}` ({date.today()}), {os.cpu_count()} virtual cores of
{cpu.cpu_model()}; Python {platform.python_version()}, torch {version("torch")}. The calculated
range: at the lower end the whole all-reduce follows the step. At the upper end it overlaps with
the backward pass, which is two thirds of the step.

## Calculated: 1 to {COUNTS[-1]} devices

Each device has 128 images a step unless the row says otherwise, so the global batch grows. MB that a
device sends in a step of the source run's network (44.9 million
parameters, fp32), by a ring: {volumes} at {head.replace(" | ", ", ")} devices.

The table shows the share of its rate that a device keeps. It is calculated from the step of one
H200 in gpu.md and the link speeds of the manufacturer's data sheets (NVLink 450 GB/s in each
direction between 8 devices, InfiniBand 400 Gbit/s for each device). **None of it was measured.**

| | {head} |
|---|{"---:|" * len(COUNTS)}
{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TARGET)
    asked = parser.parse_args()
    page = record(
        {name: measured(words, asked.rounds) for name, words in NETWORKS.items()}, asked.rounds
    )
    print(page)
    asked.out.write_text(page)


if __name__ == "__main__":
    main()
