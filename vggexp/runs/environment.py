"""What a number depends on besides the configuration: versions, code, machine. Nothing secret is recorded."""

import hashlib
import os
import platform
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vggexp.system import cpu

PACKAGES = (
    "vggexp",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "omegaconf",
    "tensorboard",
    "scikit-learn",
)
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "SLURM_JOB_ID",
)


def collect_environment() -> dict[str, Any]:
    """versions, commit (of the package's own checkout, None outside one) and whether dirty, host, processor."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        **_commit(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": cpu.cpu_model(),
        "cores": os.cpu_count(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def code_sha256() -> str:
    """Of the package's own modules, by their names."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    package = Path(__file__).resolve().parents[2]
    if not (package / ".git").exists():
        return {"commit": None, "dirty": None}
    status = [
        "git",
        "-C",
        str(package),
        "status",
        "--porcelain",
        "--",
        "vggexp",
        "conf",
        "hydra_plugins",
    ]
    try:
        head = subprocess.run(
            ["git", "-C", str(package), "rev-parse", "HEAD"], capture_output=True, timeout=10
        )
        changed = subprocess.run(status, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None}
    if head.returncode or changed.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": head.stdout.decode().strip(), "dirty": bool(changed.stdout.strip())}
