"""python -m benchmarks.gpu.parts PART DEVICE [--small]: prints a part, a JSON line for each row."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch

from benchmarks import memory
from benchmarks.gpu.loop import BenchLoop, measure_in_turn
from benchmarks.gpu.rows import Setting, print_at_least, print_at_most, print_figure
from benchmarks.peers.contender import measure
from vggexp.bench.measure import PRODUCT_DTYPES
from vggexp.config import compose
from vggexp.config.derived import layers
from vggexp.cost_plan import plan_costs
from vggexp.models.shapes import macs
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand

READ_OPERATOR = "aten._local_scalar_dense.default"  # reads a value from the device


def run_speed(setting: Setting) -> None:
    """Prints the rate of the device's matrix product, and the loop's rate beside it."""
    product = matrix_product_rate(setting)
    what = "matrix product, the best of squares of 4096 and 8192"
    print_figure(what, f"{product / 1e12:.3g} TFLOP/s")
    _run_speed_at(setting, product, 96, (128, 256, 512, 1024), 0.48)
    _run_speed_at(setting, product, 224, (128, 64, 256), 0.55)


def _run_speed_at(
    setting: Setting, product: float, size: int, batch_sizes: Sequence[int], share_goal: float
) -> None:
    rates = dict[int, float]()
    shares = dict[int, float]()
    for batch_size in batch_sizes:
        with suppress(torch.OutOfMemoryError):
            rate, flops = loop_rate(setting, f"data.resize={size}", f"data.batch_size={batch_size}")
            rates[batch_size] = rate
            shares[batch_size] = rate * flops / product
        free_memory()
    first = batch_sizes[0]
    what = f"training at {size} px, batch {first}"
    if size == 96:
        print_at_least(what, rates[first], 45_000, "{:,.0f} images/s")
    else:
        print_figure(what, f"{rates[first]:,.0f} images/s")
    print_at_least(f"its share of the product, {size} px", shares[first], share_goal, "{:.2f}")
    best = max(rates, key=rates.__getitem__)
    tried = ", ".join(map(str, sorted(rates)))
    print_figure(
        f"the fastest batch of {tried} at {size} px",
        f"{best}: {rates[best]:,.0f} images/s, {shares[best]:.2f} of the product",
    )


def free_memory() -> None:
    """Frees the device memory of earlier loops."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU


def matrix_product_rate(setting: Setting) -> float:
    """Returns FLOP/s in the number format of the run."""
    device_setup = setup_device(expand.compose_run(compose.parse_command(setting.overrides())))
    device = device_setup.device
    dtype = PRODUCT_DTYPES.get(device_setup.precision, torch.float32)
    best = 0.0
    for size in (128, 256) if setting.small else (4096, 8192):
        first = torch.randn(size, size, device=device, dtype=dtype)
        second = torch.randn(size, size, device=device, dtype=dtype)
        for _ in range(3 if setting.small else 30):
            seconds = time_product(first, second)
            best = max(best, 2 * size**3 / seconds)
    return best


def time_product(first: torch.Tensor, second: torch.Tensor) -> float:
    if first.device.type != "cuda":
        start = time.perf_counter()
        torch.matmul(first, second)
        return time.perf_counter() - start
    before = torch.cuda.Event(enable_timing=True)
    after = torch.cuda.Event(enable_timing=True)
    before.record()
    torch.matmul(first, second)
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


def loop_rate(setting: Setting, *overrides: str) -> tuple[float, float]:
    """Returns images per second and FLOP per image.

    The rate is the median of three rounds after those in which libraries tune.
    """
    loop = BenchLoop(setting.overrides(*overrides), setting.steps(80))
    rates = measure_in_turn({"loop": loop}, 3)["loop"]
    return statistics.median(rates), 3 * 2 * macs(layers(loop.config))


class Comparison(NamedTuple):
    """Median rates of two configurations, and the median of their ratio within each round."""

    first: float
    second: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.first:,.0f} and {self.second:,.0f} images/s)"


def compare_rates(setting: Setting, first: str, second: str) -> Comparison:
    """Runs the two overrides in turn."""
    loops = {}
    for override in (first, second):
        loops[override] = BenchLoop(setting.overrides(override), setting.steps(80))
    rates = measure_in_turn(loops, 5)
    ratios = []
    for first_rate, second_rate in zip(rates[first], rates[second], strict=True):
        ratios.append(first_rate / second_rate)
    return Comparison(
        statistics.median(rates[first]),
        statistics.median(rates[second]),
        statistics.median(ratios),
    )


def run_channels_last(setting: Setting) -> None:
    comparison = compare_rates(setting, "device.channels_last=true", "device.channels_last=false")
    print_figure("device.channels_last=true over false", str(comparison))


class EndedRun(NamedTuple):
    result: dict[str, Any]
    epochs: list[dict[str, Any]]
    seconds: float  # of the command


def run_command(setting: Setting, *overrides: str) -> EndedRun:
    """Trains as a user does, in a process of its own."""
    root = Path(mkdtemp())
    folder = root / "a"
    command = [
        sys.executable,
        "-m",
        "vggexp",
        *setting.overrides(*overrides),
        f"run.root={root}",
        "run.name=a",
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - start
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return EndedRun(json.loads((folder / "result.json").read_text()), epochs, seconds)


def run_source_run(setting: Setting) -> None:
    """Trains five epochs at 96 px with a test evaluation after each."""
    ended = run_command(setting)
    seconds = []
    for epoch in ended.epochs:
        seconds.append(epoch["time/epoch_seconds"] - epoch["time/checkpoint_seconds"])
    checkpoint_seconds = sum(epoch["time/checkpoint_seconds"] for epoch in ended.epochs)
    data_seconds = sum(epoch["time/data_seconds"] for epoch in ended.epochs)
    what = "source run: 5 epochs with their tests, without checkpoints"
    print_at_most(what, sum(seconds), 10, "{:.1f} s")
    print_figure(
        "source run: the first epoch, and the others' median",
        f"{seconds[0]:.1f} s, {statistics.median(seconds[1:]):.1f} s",
    )
    print_figure("source run: checkpoints", f"{checkpoint_seconds:.1f} s")
    print_figure("source run: the whole command", f"{ended.seconds:.1f} s")
    data_percent = 100 * (data_seconds / sum(seconds))
    print_at_most("source run: share of the data", data_percent, 2, "{:.1f} %")
    print_figure("source run: test accuracy", f"{ended.result['test/accuracy']:.4f}")


def run_waits(setting: Setting) -> None:
    """Prints how often the host waits for the device: in a step, and in an epoch apart from steps.

    Both are calculated from epochs of two lengths.
    """
    short = setting.steps(20)
    long = 5 if setting.small else 40
    short_waits = count_waits(BenchLoop(setting.overrides(), short))
    long_waits = count_waits(BenchLoop(setting.overrides(), long))
    step_waits = (long_waits - short_waits) / (long - short)
    what = "waits of the host for the device, a step"
    if setting.device == "cuda":
        print_at_most(what, step_waits, 0, "{:.2f}")
    else:
        print_figure(what, f"{step_waits:.2f}")
    epoch_waits = short_waits - step_waits * short
    print_figure("waits of the host for the device, an epoch besides", f"{epoch_waits:.0f}")


def count_waits(loop: BenchLoop) -> int:
    loop.run_epoch()  # creates the optimizer's state
    if loop.device.type != "cuda":
        with memory.TensorTracker() as tracker:
            loop.run_epoch()
        return tracker.calls[READ_OPERATOR]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.run_epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def run_deterministic(setting: Setting) -> None:
    overrides = ["device.deterministic=true", "train.epochs=1"]
    if not setting.small:
        overrides.append("data.limit=12800")
    first = run_command(setting, *overrides).result["weights_sha256"]
    second = run_command(setting, *overrides).result["weights_sha256"]
    what = "runs with the same weights, of two with device.deterministic=true"
    print_at_least(what, 2 if first == second else 1, 2, "{:.0f}")
    comparison = compare_rates(setting, "device.deterministic=true", "device.deterministic=false")
    print_figure("device.deterministic=true over false", str(comparison))


def run_peer(setting: Setting) -> None:
    """Compares with a loop with a DataLoader and its best flags, in processes that take turns."""
    workers = min(16, os.cpu_count() or 1)
    words = [f"--device={setting.device}", "--best"]
    if setting.small:
        words += ["--workers=1", "--images=32", "--size=32", "--batch-size=16"]
    else:
        words += [f"--workers={workers}", "--images=30000", "--size=96"]
    rates = []
    peer_rates = []
    ratios = []
    max_rounds = 1 if setting.small else 3
    start = time.monotonic()
    while not ratios or (len(ratios) < max_rounds and time.monotonic() < start + 60):
        rates.append(measure("with_vggexp", *words).images_per_second)
        peer_rates.append(measure("plain", *words).images_per_second)
        ratios.append(rates[-1] / peer_rates[-1])
    print_at_least(
        f"vggexp over a loop with a DataLoader of {workers} workers",
        statistics.median(ratios),
        5,
        "{:.1f}",
    )
    rate = statistics.median(rates)
    peer_rate = statistics.median(peer_rates)
    figure = f"{len(ratios)} rounds, {rate:,.0f} and {peer_rate:,.0f} images/s"
    print_figure("their rates", figure)


def run_memory(setting: Setting) -> None:
    """Prints the peak, and the plan's estimate, which omits data and library workspaces."""
    cases = {
        "the source run": [],
        "vgg16": ["arch=vgg16"],
        "vgg11 with batch norm": ["arch=vgg11_bn"],
        "vgg11 with adam": ["optimizer=adam"],
    }
    for name, overrides in cases.items():
        estimate, peak = measure_peak(setting, overrides)
        error = 100 * (estimate / peak - 1)
        print_at_most(f"memory of {name}: plan is off by", abs(error), 15, "{:.0f} %")
        figure = f"{estimate / 1e6:,.0f}, {peak / 1e6:,.0f} MB"
        print_figure(f"memory of {name}: estimate, peak", figure)


def measure_peak(setting: Setting, overrides: list[str]) -> tuple[int, int]:
    """Returns bytes: the plan's estimate, and the peak of the tensors.

    The peak is that of the first steps, because later steps are replayed.
    """
    if setting.device != "cuda":
        config = memory.compose_config(" ".join(setting.overrides(*overrides)))
        measured = memory.measure(config)
        return measured.estimate, measured.tensors
    free_memory()
    allocated = torch.cuda.memory_allocated()
    loop = BenchLoop(setting.overrides(*overrides), setting.steps(5))
    data_bytes = 0
    for loader in (loop.data.train, loop.data.val, loop.data.test):
        if loader is not None:
            data_bytes += loader.images.nbytes + loader.labels.nbytes  # type: ignore[union-attr]
    torch.cuda.reset_peak_memory_stats()
    loop.run_epoch()
    peak = torch.cuda.max_memory_allocated() - allocated - data_bytes
    return plan_costs(loop.config).memory_bytes["total"] or 0, peak


def run_compile(setting: Setting) -> None:
    """Prints the rate with device.compile beside eager, and what compilation costs at the start.

    The cost is the difference of the first rounds, without and with a cache.
    """
    cache = mkdtemp()
    eager = run_loop_process(setting, "device.compile=false", cache)
    first = run_loop_process(setting, "device.compile=true", cache)
    second = run_loop_process(setting, "device.compile=true", cache)
    ratio = first["rate"] / eager["rate"]
    rates = f"({first['rate']:,.0f} and {eager['rate']:,.0f} images/s)"
    first_cost = first["first"] - eager["first"]
    second_cost = second["first"] - eager["first"]
    print_figure("device.compile=true over false", f"{ratio:.2f} {rates}")
    print_figure("device.compile=true: a first start costs", f"{first_cost:.1f} s")
    print_figure("device.compile=true: a second start costs", f"{second_cost:.1f} s")


def run_loop_process(setting: Setting, override: str, cache: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.loop",
        str(setting.steps(80)),
        *setting.overrides(override),
    ]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    ended = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    return json.loads(ended.stdout)


class Part(NamedTuple):
    run: Callable[[Setting], None]
    max_seconds: int


# The most important parts come first.
PARTS = {
    "speed": Part(run_speed, 120),
    "source run": Part(run_source_run, 150),
    "waits": Part(run_waits, 45),
    "peer": Part(run_peer, 120),
    "deterministic": Part(run_deterministic, 75),
    "memory": Part(run_memory, 60),
    "channels_last": Part(run_channels_last, 45),
    "compile": Part(run_compile, 150),
}


if __name__ == "__main__":
    PARTS[sys.argv[1]].run(Setting(sys.argv[2], "--small" in sys.argv))
