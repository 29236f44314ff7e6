"""Number formats and the device's switches. The loop has one path for all of them; what is off does nothing."""

import os
import shutil
from contextlib import AbstractContextManager
from importlib.util import find_spec

import torch
from torch.amp import GradScaler

from vggexp.system.cpu import default_threads, supports_bf16
from vggexp.system.memory import retain_freed_memory

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """What `auto` means here: the fastest format that the hardware multiplies and that trains without harm."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and supports_bf16() else "fp32"


def autocast_context(precision: str, device: torch.device) -> AbstractContextManager:
    """Runs matrix products and convolutions in bf16 or fp16; does nothing for fp32 and tf32. Made anew for each use."""
    kind = AUTOCAST.get(precision)
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)


def has_triton() -> bool:
    """Whether vggexp.models.triton_ops can be used: Triton asks for a C compiler too."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(
        name and shutil.which(name) for name in compilers
    )


def scaler(precision: str, device: torch.device) -> GradScaler:
    """Keeps fp16 gradients from vanishing; does nothing for the other formats."""
    return GradScaler(device.type, enabled=precision == "fp16")


def configure_backends(
    device: torch.device, precision: str, deterministic: bool, threads: int | None
) -> int:
    """Sets the process-wide switches of torch; returns the number of threads of one operation."""
    torch.set_num_threads(threads or default_threads())
    if device.type == "cpu":
        retain_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # Trying cuDNN's kernels took 4 s at the start of the source run on an H200 for 1 % of its speed, and two runs
        # could choose differently.
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        # Else every new tensor is filled first, which only tells where memory is read before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.get_num_threads()
