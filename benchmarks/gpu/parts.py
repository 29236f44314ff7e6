"""python -m benchmarks.gpu.parts PART DEVICE [--small]: one part of `benchmarks.gpu`, a JSON line for each row."""

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
from benchmarks.gpu.loop import Loop, alternating
from benchmarks.gpu.rows import Setting, at_least, at_most, told
from benchmarks.peers.contender import measured
from vggexp import plan
from vggexp.bench.measure import PARTS_SHOWN
from vggexp.config import compose
from vggexp.config.derived import layers
from vggexp.models.shapes import macs
from vggexp.runner.hardware import setup_device
from vggexp.sweep import expand

READS = "aten._local_scalar_dense.default"


def speed(setting: Setting) -> None:
    """The device's matrix product, and the loop beside it."""
    product = matrix_rate(setting)
    told("matrix product, the best of squares of 4096 and 8192", f"{product / 1e12:.3g} TFLOP/s")
    for size, batches, share in ((96, (128, 256, 512, 1024), 0.48), (224, (128, 64, 256), 0.55)):
        rates = dict[int, float]()
        shares = dict[int, float]()
        for batch in batches:
            with suppress(torch.OutOfMemoryError):
                rates[batch], flops = loop_rate(
                    setting, f"data.resize={size}", f"data.batch_size={batch}"
                )
                shares[batch] = rates[batch] * flops / product
            emptied()
        what = f"training at {size} px, batch {batches[0]}"
        if size == 96:
            at_least(what, rates[batches[0]], 45_000, "{:,.0f} images/s")
        else:
            told(what, f"{rates[batches[0]]:,.0f} images/s")
        at_least(f"its share of the product, {size} px", shares[batches[0]], share, "{:.2f}")
        best = max(rates, key=rates.__getitem__)
        fastest = f"{best}: {rates[best]:,.0f} images/s, {shares[best]:.2f} of the product"
        told(f"the fastest batch of {', '.join(map(str, sorted(rates)))} at {size} px", fastest)


def emptied() -> None:
    """Nothing of an earlier loop is left on the device."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing without a GPU


def matrix_rate(setting: Setting) -> float:
    """FLOP/s in the format of the run."""
    hardware = setup_device(expand.compose_run(compose.parse_command(setting.words())))
    kind = PARTS_SHOWN.get(hardware.precision, torch.float32)
    best = 0.0
    for side in (128, 256) if setting.small else (4096, 8192):
        one, other = (torch.randn(side, side, device=hardware.device, dtype=kind) for _ in range(2))
        for _ in range(3 if setting.small else 30):
            best = max(
                best,
                2 * side**3 / seconds(lambda one=one, other=other: one @ other, hardware.device),
            )
    return best


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


def loop_rate(setting: Setting, *words: str) -> tuple[float, float]:
    """Images a second, the median of three rounds after those in which libraries tune; and FLOP an image."""
    loop = Loop(setting.words(*words), setting.steps(80))
    (rates,) = alternating({"": loop}, 3).values()
    return statistics.median(rates), 3 * 2 * macs(layers(loop.config))


def ratio(setting: Setting, one: Sequence[str], other: Sequence[str]) -> tuple[float, float, float]:
    """The median rates of two configurations that take turns, and of the ratio within each round."""
    loops = {
        name: Loop(setting.words(*words), setting.steps(80))
        for name, words in (("one", one), ("other", other))
    }
    first, second = alternating(loops, 5).values()
    parted = statistics.median(a / b for a, b in zip(first, second, strict=True))
    return statistics.median(first), statistics.median(second), parted


def channels_last(setting: Setting) -> None:
    on, off, times = ratio(setting, ["device.channels_last=true"], ["device.channels_last=false"])
    told("device.channels_last=true over false", f"{times:.2f} ({on:,.0f} and {off:,.0f} images/s)")


class Ended(NamedTuple):
    result: dict[str, Any]
    rows: list[dict[str, Any]]
    seconds: float  # of the command


def command(setting: Setting, *words: str) -> Ended:
    """A run as a user starts it."""
    root = Path(mkdtemp())
    begin = time.perf_counter()
    full = [
        sys.executable,
        "-m",
        "vggexp",
        *setting.words(*words),
        f"run.root={root}",
        "run.name=a",
    ]
    subprocess.run(full, check=True, stdout=sys.stderr)
    took = time.perf_counter() - begin
    rows = [json.loads(line) for line in (root / "a" / "metrics.jsonl").read_text().splitlines()]
    return Ended(json.loads((root / "a" / "result.json").read_text()), rows, took)


def source_run(setting: Setting) -> None:
    """Five epochs at 96 px with a test after each."""
    ended = command(setting)
    epochs = [row["time/epoch_seconds"] - row["time/checkpoint_seconds"] for row in ended.rows]
    at_most(
        "source run: 5 epochs with their tests, without checkpoints", sum(epochs), 10, "{:.1f} s"
    )
    told(
        "source run: the first epoch, and the others' median",
        f"{epochs[0]:.1f} s, {statistics.median(epochs[1:]):.1f} s",
    )
    told(
        "source run: checkpoints",
        f"{sum(row['time/checkpoint_seconds'] for row in ended.rows):.1f} s",
    )
    told("source run: the whole command", f"{ended.seconds:.1f} s")
    waited = sum(row["time/data_seconds"] for row in ended.rows) / sum(epochs)
    at_most("source run: share of the data", 100 * waited, 2, "{:.1f} %")
    told("source run: test accuracy", f"{ended.result['test/accuracy']:.4f}")


def waits(setting: Setting) -> None:
    """How often the host waits for the device: a step, and an epoch besides, from epochs of two lengths."""
    short = setting.steps(20)
    long = 5 if setting.small else 40
    few, many = (waits_of(Loop(setting.words(), steps)) for steps in (short, long))
    each = (many - few) / (long - short)
    if setting.device == "cuda":
        at_most("waits of the host for the device, a step", each, 0, "{:.2f}")
    else:
        told("waits of the host for the device, a step", f"{each:.2f}")
    told("waits of the host for the device, an epoch besides", f"{few - each * short:.0f}")


def waits_of(loop: Loop) -> int:
    loop.epoch()  # makes the optimizer's state
    if loop.device.type != "cuda":
        with memory.Tensors() as followed:
            loop.epoch()
        return followed.calls[READS]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            loop.epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in heard)


def deterministic(setting: Setting) -> None:
    words = [
        "device.deterministic=true",
        "train.epochs=1",
        *([] if setting.small else ["data.limit=12800"]),
    ]
    one, other = (command(setting, *words).result["weights_sha256"] for _ in range(2))
    at_least(
        "runs with the same weights, of two with device.deterministic=true",
        1 + (one == other),
        2,
        "{:.0f}",
    )
    on, off, times = ratio(setting, ["device.deterministic=true"], ["device.deterministic=false"])
    told("device.deterministic=true over false", f"{times:.2f} ({on:,.0f} and {off:,.0f} images/s)")


def peer(setting: Setting) -> None:
    """A loop with a DataLoader and its best flags, processes in turn."""
    workers = min(16, os.cpu_count() or 1)
    words = [f"--device={setting.device}", "--best", f"--workers={1 if setting.small else workers}"]
    words += (
        ["--images=32", "--size=32", "--batch-size=16"]
        if setting.small
        else ["--images=30000", "--size=96"]
    )
    pairs = []
    begin = time.monotonic()
    while not pairs or (not setting.small and len(pairs) < 3 and time.monotonic() < begin + 60):
        pairs.append(
            [measured(module, *words).images_per_second for module in ("with_vggexp", "plain")]
        )
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    times = statistics.median(one / other for one, other in pairs)
    at_least(f"vggexp over a loop with a DataLoader of {workers} workers", times, 5, "{:.1f}")
    told("their rates", f"{len(pairs)} rounds, {ours:,.0f} and {theirs:,.0f} images/s")


def memory_of_step(setting: Setting) -> None:
    """The peak beside plan's estimate, which leaves out the data and the libraries' workspaces."""
    for name, words in {
        "the source run": [],
        "vgg16": ["arch=vgg16"],
        "vgg11 with batch norm": ["arch=vgg11_bn"],
        "vgg11 with adam": ["optimizer=adam"],
    }.items():
        estimate, found = peaks(setting, words)
        off = 100 * (estimate / found - 1)
        at_most(f"memory of {name}: plan is off by", abs(off), 15, "{:.0f} %")
        told(f"memory of {name}: estimate, peak", f"{estimate / 1e6:,.0f}, {found / 1e6:,.0f} MB")


def peaks(setting: Setting, words: list[str]) -> tuple[int, int]:
    """Bytes: plan's estimate, and the peak of the tensors, which is that of the first steps: later ones are played."""
    if setting.device != "cuda":
        peak = memory.measured(memory.configured(" ".join(setting.words(*words))))
        return peak.estimate, peak.tensors
    emptied()
    before = torch.cuda.memory_allocated()
    loop = Loop(setting.words(*words), setting.steps(5))
    parts = [part for part in (loop.data.train, loop.data.val, loop.data.test) if part is not None]
    data = sum(part.images.nbytes + part.labels.nbytes for part in parts)  # type: ignore[union-attr]
    torch.cuda.reset_peak_memory_stats()
    loop.epoch()
    found = torch.cuda.max_memory_allocated() - before - data
    return plan.plan_costs(loop.config).memory_bytes["total"] or 0, found


def compiled(setting: Setting) -> None:
    """device.compile beside eager; its cost from the difference of the first rounds, without and with a cache."""
    cache = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": mkdtemp()}
    found = []
    for on in ("false", "true", "true"):
        words = setting.words(f"device.compile={on}")
        full = [sys.executable, "-m", "benchmarks.gpu.loop", str(setting.steps(80)), *words]
        found.append(
            json.loads(subprocess.run(full, check=True, env=cache, stdout=subprocess.PIPE).stdout)
        )
    eager, cold, warm = found
    rates = f"({cold['rate']:,.0f} and {eager['rate']:,.0f} images/s)"
    told("device.compile=true over false", f"{cold['rate'] / eager['rate']:.2f} {rates}")
    told("device.compile=true: a first start costs", f"{cold['first'] - eager['first']:.1f} s")
    told("device.compile=true: a second start costs", f"{warm['first'] - eager['first']:.1f} s")


# In the order of their weight. The most seconds that each may take.
PARTS: dict[str, tuple[Callable[[Setting], None], int]] = {
    "speed": (speed, 120),
    "source run": (source_run, 150),
    "waits": (waits, 45),
    "peer": (peer, 120),
    "deterministic": (deterministic, 75),
    "memory": (memory_of_step, 60),
    "channels_last": (channels_last, 45),
    "compile": (compiled, 150),
}


if __name__ == "__main__":
    PARTS[sys.argv[1]][0](Setting(sys.argv[2], "--small" in sys.argv))
