"""Decides how many jobs of a sweep run at a time on this host. Needs no torch."""

import os
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from vggexp.config.device import count_cuda_devices
from vggexp.config.hydra_safety import plugin_name, resolve_section
from vggexp.config.schema import Config
from vggexp.system.cpu import default_threads

CORES_PER_JOB = 4  # jobs=auto: with more threads a job gains little
HOST_LAUNCHERS = ("basic", "local", "joblib")  # whose jobs share this host


def jobs_at_a_time(jobs: Any, per_gpu: int, gpu_groups: int) -> int:
    """Returns the number of jobs at a time.

    Args:
        jobs: the number, or "auto".
        per_gpu: jobs that share a GPU.
        gpu_groups: how many jobs find GPUs of their own.
    """
    if jobs != "auto":
        return int(jobs)
    return gpu_groups * per_gpu or max(1, default_threads() // CORES_PER_JOB)


def gpu_names(gpus: Sequence[Any] | None, device: str) -> list[str]:
    """Returns the GPUs that the jobs may use, as CUDA_VISIBLE_DEVICES names them.

    Args:
        gpus: hydra.launcher.gpus; None or [] for all visible GPUs.
        device: the device of the jobs.
    """
    if not gpus and device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else range(count_cuda_devices())
    return [str(gpu) for gpu in gpus or ()]


def planned_jobs_at_a_time(node: DictConfig, config: Config) -> int:
    """Returns how many jobs the launcher will run at a time on this host.

    That is 1 if the launcher is neither `local` nor `joblib`.

    Args:
        node: the composed outline of the command.
        config: of a job.
    """
    name = plugin_name(node.hydra, "launcher")
    launcher = resolve_section(node, "hydra.launcher")
    if name == "joblib":
        count: int = launcher["n_jobs"]
        return count if count > 0 else max(1, (os.cpu_count() or 1) + 1 + count)  # -1: every core
    if name != "local":
        return 1
    gpus = gpu_names(launcher["gpus"], config.device.name)
    groups = len(gpus) // (config.device.processes or 1)
    return jobs_at_a_time(launcher["jobs"], launcher["slots_per_gpu"], groups)
