"""python -m benchmarks.gpu [--out FILE] [--only PART]...: all that a CUDA device is to show, at most eight minutes.

Needs no network: Fashion-MNIST where Debian's dataset-fashion-mnist is installed, else pictures of the same number and
shape, made by arithmetic. Every part is a process of its own, so that one that fails or hangs takes no other with it;
one for which no time is left is told as not run. Prints a table last, each figure with its goal; the exit code is 1
where a part failed. `--device cpu --small` tries the command itself on a machine without a GPU.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import SYSTEM, Row, Setting
from vggexp.runner.hardware import device_name
from vggexp.system import cpu

DEADLINE = 460  # seconds of the parts; a little is spent before and after
LEAST = 15  # a part is not begun in less


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", action="append", choices=PARTS, help="may be given again")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes that say nothing of speed")
    parser.add_argument("--seconds", type=int, default=DEADLINE)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --small tries the command itself", file=sys.stderr)
        return 2
    end = time.monotonic() + asked.seconds
    setting = Setting(asked.device, asked.small)
    rows = []
    failed = 0
    for name in asked.only or PARTS:
        found, problem = part(name, setting, end - time.monotonic())
        rows += [*found, *([Row(name, problem)] if problem else [])]
        failed += problem.startswith("failed")
    page = record(rows, asked)
    print(page)
    if asked.out:
        asked.out.write_text(page)
    return int(failed > 0)


def part(name: str, setting: Setting, left: float) -> tuple[list[Row], str]:
    """Its rows, and what went wrong, or nothing."""
    limit = min(left, PARTS[name][1])
    if limit < LEAST:
        return [], f"not run: {max(0, left):.0f} s were left"
    print(f"{name}: at most {limit:.0f} s, {left:.0f} s left for all", file=sys.stderr, flush=True)
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu.parts",
        name,
        setting.device,
        *(["--small"] * setting.small),
    ]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own processes too
        out, err = process.communicate()
        return list(parsed(out)), f"failed: stopped after {limit:.0f} s"
    if process.returncode:
        print(err, file=sys.stderr)
        lines = err.strip().splitlines() or ["without a word"]
        return list(
            parsed(out)
        ), f"failed: {next((line for line in reversed(lines) if 'Error' in line), lines[-1])}"
    return list(parsed(out)), ""


def parsed(out: str) -> Iterator[Row]:
    for line in out.splitlines():
        if line.startswith("["):
            yield Row(*json.loads(line))


def record(rows: list[Row], asked: argparse.Namespace) -> str:
    rows = [row._replace(verdict="") for row in rows] if asked.small else rows
    table = "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows
    )
    device = torch.device(asked.device)
    library = (
        f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        if asked.device == "cuda"
        else ""
    )
    data = (
        "Fashion-MNIST"
        if SYSTEM.is_dir() and not asked.small
        else "generated images, with Fashion-MNIST's number and shape"
    )
    kind = (
        "\n**Small sizes: none of these figures is a measure of speed.**\n" if asked.small else ""
    )
    return f"""# On a GPU

{device_name(device)}, {os.cpu_count()} virtual cores of {cpu.cpu_model()}; Python {platform.python_version()}, torch
{torch.__version__}{library}. {data}; VGG-11, plain SGD, batch 128 unless the row says otherwise.
{kind}
| what | figure | goal | |
|---|---:|---:|---|
{table}

`python -m benchmarks.gpu` ({date.today()}). Rates are of the whole loop with its data, guard and timer. A
share is the rate times three times the multiply-adds of the forward pass, divided by the matrix
product in the same format. The data time of a run is the time that the device waits and works
until a batch is ready.
"""


if __name__ == "__main__":
    sys.exit(main())
