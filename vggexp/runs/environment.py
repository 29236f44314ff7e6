"""Collects what a result depends on besides the configuration: versions, code, machine.

Nothing secret is recorded.
"""

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
SOURCE_FOLDERS = ("vggexp", "conf", "hydra_plugins")
GIT_TIMEOUT = 10  # seconds
WORKING_DIRECTORY = "working_directory"  # key of the folder that a relative data.root is of


def collect_environment() -> dict[str, Any]:
    """Returns the fields of env.json that hold for the whole process.

    `commit` and `dirty` describe the checkout that the package lies in; None outside a checkout.
    """
    versions = {"python": platform.python_version()}
    return {
        "versions": versions | {name: _version(name) for name in PACKAGES},
        **_commit(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": cpu.cpu_model(),
        "cores": os.cpu_count(),
        WORKING_DIRECTORY: os.getcwd(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def code_sha256() -> str:
    """Returns the SHA-256 of the package's modules, in the order of their paths."""
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
    unknown = {"commit": None, "dirty": None}
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return unknown
    head = _git_output(checkout, "rev-parse", "HEAD")
    changes = _git_output(checkout, "status", "--porcelain", "--", *SOURCE_FOLDERS)
    if head is None or changes is None:
        return unknown
    return {"commit": head, "dirty": bool(changes)}


def _git_output(checkout: Path, *arguments: str) -> str | None:
    """Returns what git prints; None if git is missing, fails or takes too long."""
    command = ["git", "-C", str(checkout), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if process.returncode else process.stdout.decode(errors="replace").strip()
