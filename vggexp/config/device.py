"""Which device `device=auto` means, found without importing torch."""

import ctypes
import os
import platform
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml


def conf_dir() -> str:
    """The shipped configuration: inside the package when installed from a wheel, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no configuration beside {package}")


@cache
def device_profile() -> dict[str, Any]:
    """The values of the found device's file, a user's own folder (VGGEXP_CONF_PATH) before the shipped one."""
    folders = [*filter(None, os.environ.get("VGGEXP_CONF_PATH", "").split(os.pathsep)), conf_dir()]
    files = (Path(folder, "device", f"{detect_device()}.yaml") for folder in folders)
    return yaml.safe_load(next(file for file in files if file.is_file()).read_text("utf-8"))


def detect_device() -> str:
    """cuda, mps or cpu: the first that is present and that the installed torch was built for."""
    if _torch_is_built_for_cuda() and _cuda_devices() > 0:
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


def _cuda_devices() -> int:
    """Counted by NVIDIA's management library: unlike CUDA itself it may be asked before a process forks."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return 0
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return 0
    return count.value
