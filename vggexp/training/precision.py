"""Number formats and switches of the device.

The training loop has one path for all formats: a switched-off format does nothing.
"""

import os
import shutil
from contextlib import AbstractContextManager
from importlib.util import find_spec

import torch
from torch.amp import GradScaler

from vggexp.system.cpu import default_threads, supports_bf16
from vggexp.system.memory import retain_freed_memory

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """Returns the format that `auto` means on this device.

    This is the fastest format that the hardware multiplies and that trains without harm.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if has_bf16 else "fp16"
    if device.type == "cpu" and supports_bf16():
        return "bf16"
    return "fp32"


def autocast_context(precision: str, device: torch.device) -> AbstractContextManager:
    """Returns a new context in which matrix products and convolutions run in bf16 or fp16.

    For fp32 and tf32 the context does nothing.
    """
    dtype = AUTOCAST_DTYPES.get(precision)
    if dtype is None:
        return torch.autocast(device.type, torch.bfloat16, enabled=False)
    return torch.autocast(device.type, dtype)


def has_triton() -> bool:
    """Returns whether vggexp.models.triton_ops works here. Triton needs a C compiler too."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    has_compiler = any(name and shutil.which(name) for name in compilers)
    return has_compiler and find_spec("triton") is not None


def build_scaler(precision: str, device: torch.device) -> GradScaler:
    """Returns a scaler that keeps fp16 gradients from vanishing, and does nothing for the rest."""
    return GradScaler(device.type, enabled=precision == "fp16")


def configure_backends(
    device: torch.device, precision: str, deterministic: bool, threads: int | None
) -> int:
    """Sets the process-wide switches of torch. Returns the number of threads of one operation."""
    torch.set_num_threads(threads or default_threads())
    if device.type == "cpu":
        retain_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        # Trying cuDNN's kernels took 4 s at the start of the source run on an H200 for 1 % of its
        # speed. Two runs could also choose different kernels.
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        # The default fills every new tensor first. The fill only shows where a program reads memory
        # before it writes to it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.get_num_threads()
