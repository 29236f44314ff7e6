"""Finds the device that `device=auto` means, without importing torch."""

import ctypes
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

HIDDEN_DEVICES = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide every GPU


def conf_dir() -> str:
    """Returns the shipped configuration: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no configuration beside {package}")


def detect_device() -> str:
    """Returns cuda, mps or cpu: the first that is present and supported by the installed torch."""
    if _torch_is_built_for_cuda() and count_cuda_devices() > 0:
        return "cuda"
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    return "cpu"


def _torch_is_built_for_cuda() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and "cuda: Optional[str] = '" in version.read_text(encoding="utf-8")


def count_cuda_devices() -> int:
    """Counts GPUs by NVIDIA's management library.

    Unlike CUDA itself, this library may be used before a process forks.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in HIDDEN_DEVICES:
        return 0
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0:
        return 0
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return 0
    return count.value
