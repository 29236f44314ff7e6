"""python -m benchmarks.scaling [--rounds N] [--out FILE]: the cost of a second rank, and of many.

Each rank has one thread and 64 images a step. Without communication, two ranks would do twice the
work of one rank in the same time. Measured in turn: two runs of one rank, side by side and without
communication; one run of two ranks; and the all-reduce of the same gradients alone. Then the share
of its rate that each of 1 to 64 devices keeps is calculated. Prints and writes
benchmarks/scaling.md. About ten minutes on two cores.
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

from vggexp.config import compose
from vggexp.cost_plan import plan_costs
from vggexp.sweep import expand
from vggexp.system import cpu

TARGET = Path(__file__).parent / "scaling.md"
IMAGES = 64  # of a rank in a step
STEPS = 12  # of an epoch
NETWORKS = {
    "vgg11 at 32 px": "arch=vgg11 data.resize=32",
    "vgg11 at 96 px": "arch=vgg11 data.resize=96",
}
COLUMNS = (
    "network",
    "MB of gradients",
    "one rank",
    "all-reduce alone",
    "two ranks",
    "share kept, calculated",
    "measured",
)
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # devices
VGG11_BYTES = 4 * 44_920_074  # fp32 gradients of the source run's network


class Device(NamedTuple):
    """A device in a machine, and its link to other devices.

    Args:
        bytes_per_second: what the device sends while it receives the same amount.
        max_count: number of devices that this link connects.
    """

    name: str
    step_seconds: float
    gradient_bytes: int
    bytes_per_second: float
    max_count: int = COUNTS[-1]


class KeptShare(NamedTuple):
    """Share of its rate that a device keeps.

    The all-reduce overlaps with the backward pass, or follows the step.
    """

    overlapped: float
    sequential: float


def ring_bytes(count: int, gradient_bytes: int) -> float:
    """Returns the bytes that each of `count` devices sends in a step by a ring.

    They are less than twice the gradients.
    Source: Patarasuk and Yuan 2009.
    """
    return 2 * (count - 1) / count * gradient_bytes


def kept_share(count: int, device: Device) -> KeptShare:
    seconds = ring_bytes(count, device.gradient_bytes) / device.bytes_per_second
    backward_seconds = device.step_seconds * 2 / 3
    waiting_seconds = max(0.0, seconds - backward_seconds)
    return KeptShare(
        overlapped=device.step_seconds / (device.step_seconds + waiting_seconds),
        sequential=device.step_seconds / (device.step_seconds + seconds),
    )


def start_run(overrides: str, ranks: int, seed: int, root: str) -> subprocess.Popen[bytes]:
    batch_size = IMAGES * ranks
    command = [
        sys.executable,
        "-m",
        "vggexp",
        *overrides.split(),
        "device=cpu",
        "device.threads=1",
        f"device.processes={ranks}",
        f"seed={seed}",
        f"data.batch_size={batch_size}",
        f"data.limit={batch_size * STEPS}",
        "data.val_fraction=0",
        "train.epochs=2",
        "sweep.objective=test/accuracy",
        "run.name=run",
        f"run.root={root}",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure_step(overrides: str, ranks: int) -> float:
    """Returns the seconds of a step's forward and backward pass with its communication.

    The faster of two epochs. One rank: the slower of two runs side by side.
    """
    roots = [mkdtemp() for _ in range(2 // ranks)]
    processes = [start_run(overrides, ranks, seed, root) for seed, root in enumerate(roots)]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"failed: {overrides}; see the run.log in {' '.join(roots)}")
    seconds = []
    for root in roots:
        lines = (Path(root) / "run" / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["time/compute_seconds"] for line in lines]
        seconds.append(min(epochs) / STEPS)
    return max(seconds)


def all_reduce_rank(rank: int, port: int, gradient_bytes: int, results) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore("localhost", port, 2, rank == 0, timedelta(minutes=1))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    gradients = torch.ones(gradient_bytes // 4)
    times = []
    for _ in range(5):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(gradients)
        times.append(time.perf_counter() - start)
    if rank == 0:
        results.put(statistics.median(times))
    distributed.barrier()


def measure_all_reduce(gradient_bytes: int) -> float:
    """Returns the seconds of an all-reduce between two processes of this machine, by gloo."""
    context = get_context("spawn")
    results = context.Queue()
    port = 29_500 + os.getpid() % 1000
    ranks = []
    for rank in range(2):
        process = context.Process(
            target=all_reduce_rank, args=(rank, port, gradient_bytes, results)
        )
        process.start()
        ranks.append(process)
    seconds = results.get(timeout=120)
    for process in ranks:
        process.join()
    return seconds


class Measurement(NamedTuple):
    """Seconds of a step with one rank, with two ranks, and of the all-reduce alone, by round."""

    gradient_bytes: int
    one_rank: list[float]
    two_ranks: list[float]
    all_reduce: list[float]


def measure(overrides: str, rounds: int) -> Measurement:
    command = compose.parse_command(["device=cpu", *overrides.split()])
    gradient_bytes = 4 * plan_costs(expand.compose_run(command)).parameters
    measurement = Measurement(gradient_bytes, [], [], [])
    for turn in range(rounds):
        measurement.one_rank.append(measure_step(overrides, 1))
        measurement.two_ranks.append(measure_step(overrides, 2))
        measurement.all_reduce.append(measure_all_reduce(gradient_bytes))
        print(f"round {turn + 1}/{rounds}  {overrides}", file=sys.stderr, flush=True)
    return measurement


def measured_row(name: str, measurement: Measurement) -> str:
    one_rank = statistics.median(measurement.one_rank)
    two_ranks = statistics.median(measurement.two_ranks)
    all_reduce = statistics.median(measurement.all_reduce)
    bytes_per_second = measurement.gradient_bytes / all_reduce
    share = kept_share(2, Device("", one_rank, measurement.gradient_bytes, bytes_per_second))
    ratios = []
    for one, two in zip(measurement.one_rank, measurement.two_ranks, strict=True):
        ratios.append(one / two)
    cells = [
        name,
        f"{measurement.gradient_bytes / 1e6:.1f}",
        f"{one_rank:.3f}",
        f"{all_reduce:.3f}",
        f"{two_ranks:.3f}",
        f"{share.sequential:.2f} to {share.overlapped:.2f}",
        f"{statistics.median(ratios):.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


# Bytes a second in one direction, from NVIDIA's data sheets. NVLink of an H200: 900 GB/s in both
# directions together, between the 8 devices of a machine. InfiniBand: 400 Gbit/s for each device
# between machines. Ethernet: 10 Gbit/s.
NVLINK = 450e9
INFINIBAND = 50e9
ETHERNET = 1.25e9
# The step seconds are those of benchmarks/gpu.md (one H200, batch 128).
DEVICES = [
    Device("vgg11 at 96 px, NVLink", 128 / 46_681, VGG11_BYTES, NVLINK, 8),
    Device("vgg11 at 96 px, InfiniBand", 128 / 46_681, VGG11_BYTES, INFINIBAND),
    Device("the same, 1,024 images a device", 1024 / 66_867, VGG11_BYTES, INFINIBAND),
    Device("vgg11 at 224 px, InfiniBand", 128 / 11_413, 4 * 128_806_154, INFINIBAND),
    Device("vgg11 at 96 px, 10 Gbit/s", 128 / 46_681, VGG11_BYTES, ETHERNET),
]


def share_cells(device: Device) -> Iterator[str]:
    """Yields the share that the device keeps for each of COUNTS."""
    for count in COUNTS:
        if count > device.max_count:
            yield "-"
        else:
            share = kept_share(count, device)
            yield f"{share.sequential:.2f} to {share.overlapped:.2f}"


def format_page(measurements: dict[str, Measurement], rounds: int) -> str:
    measured_rows = [measured_row(name, value) for name, value in measurements.items()]
    measured_table = "\n".join(measured_rows)
    header = " | ".join(str(count) for count in COUNTS)
    counts = ", ".join(str(count) for count in COUNTS)
    volumes = ", ".join(f"{ring_bytes(count, VGG11_BYTES) / 1e6:.0f}" for count in COUNTS)
    device_rows = [" | ".join([device.name, *share_cells(device)]) for device in DEVICES]
    device_table = "\n".join(f"| {row} |" for row in device_rows)
    return f"""# The cost of more ranks

## Measured: one and two ranks

Each rank has {IMAGES} images a step and one thread; the gradients are fp32, by gloo. "One rank" is
the slower of two ranks that run side by side without communication. Medians of {rounds} rounds in
turn; seconds of a step's forward and backward pass.

| {" | ".join(COLUMNS)} |
|---|---:|---:|---:|---:|---:|---:|
{measured_table}

`python -m benchmarks.scaling --rounds {rounds}` ({date.today()}), {os.cpu_count()} virtual cores of
{cpu.cpu_model()}; Python {platform.python_version()}, torch {version("torch")}. The calculated
range: at the lower end the whole all-reduce follows the step. At the upper end it overlaps with
the backward pass, which is two thirds of the step.

## Calculated: 1 to {COUNTS[-1]} devices

Each device has 128 images a step unless the row says otherwise, so the global batch grows. MB that
a device sends in a step of the source run's network (44.9 million
parameters, fp32), by a ring: {volumes} at {counts} devices.

The table shows the share of its rate that a device keeps. It is calculated from the step of one
H200 in gpu.md and the link speeds of the manufacturer's data sheets (NVLink 450 GB/s in each
direction between 8 devices, InfiniBand 400 Gbit/s for each device). **None of it was measured.**

| | {header} |
|---|{"---:|" * len(COUNTS)}
{device_table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    measurements = {}
    for name, overrides in NETWORKS.items():
        measurements[name] = measure(overrides, arguments.rounds)
    page = format_page(measurements, arguments.rounds)
    print(page)
    arguments.out.write_text(page)


if __name__ == "__main__":
    main()
