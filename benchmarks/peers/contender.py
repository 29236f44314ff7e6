"""Lists the contenders that a machine can run, and measures one in a process of its own."""

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple


class Work(NamedTuple):
    """The same for all contenders."""

    parameters: int
    steps: int


class Result(NamedTuple):
    images_per_second: float
    first_step_seconds: float
    total_seconds: float
    peak_bytes: int
    work: Work


def contenders(bf16: bool) -> dict[str, tuple[str, ...]]:
    """Returns module and arguments of each contender.

    Args:
        bf16: whether the machine has bf16 instructions. Without them, bf16 is slow for everyone.
    """
    flags = "bf16, channels_last" if bf16 else "channels_last"
    lightning_flags = flags.replace("bf16", "bf16-mixed")
    commands: dict[str, tuple[str, ...]] = {"vggexp": ("with_vggexp", "--best")}
    if bf16:
        commands["vggexp, fp32"] = ("with_vggexp",)
    commands |= {
        "plain loop": ("plain",),
        f"plain loop, {flags}": ("plain", "--best"),
        "Lightning": ("with_lightning",),
        f"Lightning, {lightning_flags}": ("with_lightning", "--best"),
        "timm's parts": ("with_timm",),
        f"timm's parts, {flags}": ("with_timm", "--best"),
    }
    return commands


def measure(module: str, *argv: str) -> Result:
    """Runs a contender. Raises RuntimeError with the end of stderr if the contender fails."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", *argv]
    start = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    out = process.stdout.read()
    error = process.stderr.read()  # the output is too short to fill a pipe
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{module}: {error[-2000:]}")
    report = {}
    for line in out.splitlines():
        if line.startswith("{"):
            report |= json.loads(line)
    return Result(
        images_per_second=report["images_per_second"],
        first_step_seconds=report["first_step"] - start,
        total_seconds=time.time() - start,
        peak_bytes=usage.ru_maxrss * 1024,
        work=Work(report["parameters"], report["steps"]),
    )
