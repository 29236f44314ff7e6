"""Sets up the device of a run: number format, threads and torch's switches."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vggexp.config.schema import Config
from vggexp.distributed import collectives
from vggexp.errors import ConfigError
from vggexp.system import cpu
from vggexp.training import precision
from vggexp.training.step import Autocast

# Raised with a change after which the same command gives other weights. 1, which is not recorded:
# version 0.1.0. 2: one cycle ends a step earlier, cosine and one cycle start after the warm-up,
# batch norm on a processor has an exact variance, a plateau counts no epoch of the warm-up.
NUMERICS = 2


@dataclass(frozen=True)
class DeviceSetup:
    """The device of a run and the settings resolved for it, before anything is built on it."""

    device: torch.device
    precision: str  # fp32, tf32, bf16 or fp16
    threads: int  # of one operation on the CPU
    autocast: Autocast


def setup_device(config: Config, threads: int | None = None) -> DeviceSetup:
    """Resolves the section `device` and sets torch's switches for this process.

    Args:
        config: the configuration.
        threads: the threads of the run that is continued, if one is.

    Raises:
        ConfigError: this machine lacks the device or the number format.
    """
    cfg = config.device
    if not is_available(cfg.name):
        raise ConfigError(
            f"device={cfg.name}: no usable device (torch {torch.__version__}); use device=cpu"
        )
    device = collectives.device(cfg.name)
    resolved = precision.resolve_precision(cfg.precision, device)
    if resolved == "bf16" and device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ConfigError(
                "device.precision=bf16: this GPU does not multiply it; use fp16 or fp32"
            )
    return DeviceSetup(
        device=device,
        precision=resolved,
        threads=precision.configure_backends(
            device, resolved, cfg.deterministic, cfg.threads or threads
        ),
        autocast=partial(precision.autocast_context, resolved, device),
    )


def is_available(device: str) -> bool:
    """Returns whether this machine has the device: cpu, cuda or mps."""
    if device == "cuda":
        return torch.cuda.is_available()
    if device == "mps":
        return torch.backends.mps.is_available()
    return device == "cpu"


def device_name(device: torch.device) -> str:
    """Returns the model of the device: `NVIDIA H100`, `AMD EPYC 9R14`, `mps`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu.cpu_model() if device.type == "cpu" else device.type


def machine_fingerprint(device_setup: DeviceSetup) -> dict[str, Any]:
    """Returns what a result depends on besides configuration and data."""
    device = device_setup.device
    return {
        "torch": str(torch.__version__),
        "threads": device_setup.threads,
        "device": device.type,
        "device_name": device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": device_setup.precision,
        "processes": collectives.world_size(),
        "numerics": NUMERICS,
    }
