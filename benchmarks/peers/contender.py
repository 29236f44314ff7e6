"""A contender is a process of its own, from its start to its end; and which contenders a machine has."""

import json
import os
import subprocess
import sys
import time
from typing import NamedTuple


class Result(NamedTuple):
    images_per_second: float
    first_step_seconds: float
    total_seconds: float
    peak_bytes: int
    work: tuple[int, int]  # parameters, steps: the same for all


def contenders(bf16: bool) -> dict[str, tuple[str, ...]]:
    """Module and words of each. bf16: whether the machine multiplies it; emulated, it would be slow for everyone."""
    best = "bf16, channels_last" if bf16 else "channels_last"
    return {
        "vggexp": ("with_vggexp", "--best"),
        **({"vggexp, fp32": ("with_vggexp",)} if bf16 else {}),
        "plain loop": ("plain",),
        f"plain loop, {best}": ("plain", "--best"),
        "Lightning": ("with_lightning",),
        f"Lightning, {best.replace('bf16', 'bf16-mixed')}": ("with_lightning", "--best"),
        "timm's parts": ("with_timm",),
        f"timm's parts, {best}": ("with_timm", "--best"),
    }


def measured(module: str, *words: str) -> Result:
    """Raises RuntimeError, with its last words, where it fails."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", *words]
    begin = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out = process.stdout.read()
    err = process.stderr.read()  # neither fills a pipe
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{module}: {err[-2000:]}")
    told = {}
    for line in out.splitlines():
        told |= json.loads(line) if line.startswith("{") else {}
    work = (told["parameters"], told["steps"])
    return Result(
        told["images_per_second"],
        told["first_step"] - begin,
        time.time() - begin,
        used.ru_maxrss * 1024,
        work,
    )
