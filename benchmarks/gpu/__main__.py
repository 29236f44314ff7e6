"""python -m benchmarks.gpu [--out FILE] [--only PART]...: all measurements on a CUDA device.

At most eight minutes. Needs no network: the data is Fashion-MNIST if Debian's
dataset-fashion-mnist is installed, otherwise generated images of the same number and shape. Every
part is a process of its own, so a part that fails or hangs does not stop another part. A part
without time is reported as not run. Prints a table at the end, each figure with its goal. The exit
code is 1 if a part failed. `--device cpu --small` tests the command on a machine without a GPU.
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
from typing import NamedTuple

import torch

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import SYSTEM, Row, Setting
from vggexp.runner.hardware import device_name
from vggexp.system import cpu

DEADLINE_SECONDS = 460  # for all parts; start and end take a little more
MIN_SECONDS = 15  # a part with less time does not start


class PartResult(NamedTuple):
    """Rows of a part. problem: why the part failed or did not run, or an empty string."""

    rows: list[Row]
    problem: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes that do not measure speed")
    parser.add_argument("--seconds", type=int, default=DEADLINE_SECONDS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; test the command with --device cpu --small", file=sys.stderr)
        return 2
    deadline = time.monotonic() + arguments.seconds
    setting = Setting(arguments.device, arguments.small)
    rows = []
    failed = False
    for name in arguments.only or PARTS:
        result = run_part(name, setting, deadline - time.monotonic())
        rows += result.rows
        if result.problem:
            rows.append(Row(name, result.problem))
            failed = failed or result.problem.startswith("failed")
    page = format_page(rows, arguments)
    print(page)
    if arguments.out:
        arguments.out.write_text(page)
    return int(failed)


def run_part(
    name: str, setting: Setting, remaining: float, min_seconds: float = MIN_SECONDS
) -> PartResult:
    """Runs a part in a process of its own, for at most `remaining` seconds."""
    limit = min(remaining, PARTS[name].max_seconds)
    if limit < min_seconds:
        return PartResult([], f"not run: {max(0, remaining):.0f} s were left")
    message = f"{name}: at most {limit:.0f} s, {remaining:.0f} s left for all"
    print(message, file=sys.stderr, flush=True)
    argv = [name, setting.device]
    if setting.small:
        argv.append("--small")
    return run_process("benchmarks.gpu.parts", argv, limit)


def run_process(module: str, argv: list[str], limit: float) -> PartResult:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the child processes of the part too
        out, error = process.communicate()
        return PartResult(list(parse_rows(out)), f"failed: stopped after {limit:.0f} s")
    problem = ""
    if process.returncode:
        print(error, file=sys.stderr)
        problem = f"failed: {last_error(error)}"
    return PartResult(list(parse_rows(out)), problem)


def last_error(text: str) -> str:
    """Returns the last line with an error, or the last line."""
    lines = text.strip().splitlines() or ["no message"]
    errors = [line for line in lines if "Error" in line]
    return errors[-1] if errors else lines[-1]


def parse_rows(out: str) -> Iterator[Row]:
    for line in out.splitlines():
        if line.startswith("["):
            yield Row(*json.loads(line))


def format_page(rows: list[Row], arguments: argparse.Namespace) -> str:
    lines = []
    for row in rows:
        if arguments.small:
            row = row._replace(verdict="")
        cells = [cell.replace("|", "/") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    library = ""
    if arguments.device == "cuda":
        library = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    data = "generated images, with Fashion-MNIST's number and shape"
    if SYSTEM.is_dir() and not arguments.small:
        data = "Fashion-MNIST"
    note = ""
    if arguments.small:
        note = "\n**Small sizes: none of these figures is a measure of speed.**\n"
    device = device_name(torch.device(arguments.device))
    return f"""# On a GPU

{device}, {os.cpu_count()} virtual cores of {cpu.cpu_model()};
Python {platform.python_version()}, torch {torch.__version__}{library}.
{data}; VGG-11, plain SGD, batch 128 unless the row says otherwise.
{note}
| what | figure | goal | |
|---|---:|---:|---|
{table}

`python -m benchmarks.gpu` ({date.today()}). Rates are of the whole loop with its data, guard and
timer. A share is the rate times three times the multiply-adds of the forward pass, divided by the
matrix product in the same format. The data time of a run is the time that the device waits and
works until a batch is ready.
"""


if __name__ == "__main__":
    sys.exit(main())
