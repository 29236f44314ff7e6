from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.errors import ConfigError
from vggexp.system import cpu
from vggexp.training import precision


@dataclass(frozen=True)
class DeviceSetup:
    """The device and what was resolved for it; made once, before anything is built on it."""

    device: torch.device
    precision: str
    threads: int
    autocast: Callable[[], AbstractContextManager]


def is_available(device: str) -> bool:
    """Whether this machine has it: cpu, cuda or mps."""
    return {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }[device]


def setup_device(config: Config, threads: int | None = None) -> DeviceSetup:
    """Sets torch's switches. threads: of the run that is continued, where there is one.

    Raises ConfigError where this machine lacks the device or the format.
    """
    wanted = config.device
    if not is_available(wanted.name):
        raise ConfigError(
            f"device={wanted.name}: no usable device (torch {torch.__version__}); use device=cpu"
        )
    device = collectives.device(wanted.name)
    resolved = precision.resolve_precision(wanted.precision, device)
    if (
        resolved == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ConfigError("device.precision=bf16: this GPU does not multiply it; use fp16 or fp32")
    threads = precision.configure_backends(
        device, resolved, wanted.deterministic, wanted.threads or threads
    )
    return DeviceSetup(
        device, resolved, threads, partial(precision.autocast_context, resolved, device)
    )


def device_name(device: torch.device) -> str:
    """The model of what computes: `NVIDIA H100`, `AMD EPYC 9R14`, `mps`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu.cpu_model() if device.type == "cpu" else device.type
