"""From configuration to objects: the one place that knows both."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vggexp import precision
from vggexp.config.rules import inputs
from vggexp.config.schema import Config, LeNet, Vgg
from vggexp.errors import ConfigError
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.vgg import vgg
from vggexp.optim import optimizer
from vggexp.schedules import schedule
from vggexp.train import Plan, State


@dataclass(frozen=True)
class Hardware:
    """The device and what was resolved for it; made once, before anything is built on it."""

    device: torch.device
    precision: str
    threads: int
    autocast: Callable[[], AbstractContextManager]


def hardware(config: Config) -> Hardware:
    """Sets torch's switches. Raises ConfigError where this machine lacks the device or the format."""
    wanted = config.device
    present = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not present[wanted.name]():
        raise ConfigError(f"device={wanted.name}: no usable device (torch {torch.__version__}); use device=cpu")
    device = torch.device(wanted.name)
    resolved = precision.resolve(wanted.precision, device)
    if resolved == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("device.precision=bf16: this GPU does not multiply it; use fp16 or fp32")
    threads = precision.prepare(device, resolved, wanted.deterministic, wanted.threads)
    return Hardware(device, resolved, threads, partial(precision.autocast, resolved, device))


def network(config: Config) -> nn.Sequential:
    """The network with its initial weights, on the CPU."""
    arch, given = config.arch, inputs(config)
    facts = {"in_channels": given.channels, "size": given.size, "classes": given.classes}
    if isinstance(arch, Vgg):
        net = vgg(arch.blocks, norm=arch.norm, hidden=arch.hidden, dropout=arch.dropout, width=arch.width, **facts)
    elif isinstance(arch, LeNet):
        net = lenet(**facts)
    else:
        net = alexnet(dropout=arch.dropout, **facts)
    initialize(net, arch.init, config.seed)
    return net


def state(config: Config, hardware: Hardware, steps_per_epoch: int) -> State:
    """Everything that changes in a run, at its start."""
    memory = torch.channels_last if config.device.channels_last else torch.contiguous_format
    net = network(config).to(hardware.device, memory_format=memory)
    ema = None
    if config.train.ema is not None:
        average = get_ema_multi_avg_fn(config.train.ema)
        ema = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
    if config.device.compile:
        net.compile()
    chosen, course = config.optimizer, config.scheduler
    own = {key: value for key, value in vars(course).items() if key not in ("name", "warmup_epochs")}
    return State(
        net=net,
        optimizer=optimizer(chosen.name, net, chosen.lr, chosen.weight_decay, chosen.arguments),
        schedule=schedule(
            course.name, chosen.lr, course.warmup_epochs,
            epochs=config.train.epochs, steps_per_epoch=steps_per_epoch, **own,
        ),
        scaler=precision.scaler(hardware.precision, hardware.device),
        ema=ema,
    )  # fmt: skip


def plan(config: Config, hardware: Hardware) -> Plan:
    train = config.train
    return Plan(
        device=hardware.device,
        seed=config.seed,
        epochs=train.epochs,
        batch_size=config.data.batch_size,
        accumulate=train.accumulate,
        label_smoothing=train.label_smoothing,
        clip_norm=train.clip_norm,
        patience=train.patience,
        rest_minutes=train.rest_minutes,
        autocast=hardware.autocast,
    )
