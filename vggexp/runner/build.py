"""From configuration to objects: the one place that knows both."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vggexp.config.derived import input_spec, layers, uses_triton
from vggexp.config.hints import suggested_overrides
from vggexp.config.schema import Config, ImageFolder, LeNet, Vgg
from vggexp.distributed import collectives
from vggexp.errors import CheckpointError
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.layers import synchronize
from vggexp.models.transfer import freeze
from vggexp.models.vgg import fuse, vgg
from vggexp.runner.hardware import DeviceSetup
from vggexp.training import precision
from vggexp.training.cuda_graphs import CudaGraphStep
from vggexp.training.ddp import DistributedStep
from vggexp.training.dead_layers import DeadLayerCheck
from vggexp.training.ema import EMA
from vggexp.training.loop import TrainSettings, TrainState
from vggexp.training.metrics import MetricSums
from vggexp.training.optimizers import build_optimizer
from vggexp.training.schedules import build_schedule
from vggexp.training.step import forward_backward


def with_class_count(config: Config, classes: int) -> Config:
    """The configuration of a finished run, whose folder of pictures need not be at hand to be counted."""
    if not isinstance(config.data, ImageFolder):
        return config
    return replace(config, data=replace(config.data, classes=classes))


def build_model(config: Config) -> nn.Sequential:
    """The network with its initial weights, on the CPU."""
    arch = config.arch
    given = input_spec(config)
    facts = {"in_channels": given.channels, "size": given.size, "classes": given.classes}
    if isinstance(arch, Vgg):
        model = vgg(
            arch.blocks,
            norm=arch.norm,
            hidden=arch.hidden,
            dropout=arch.dropout,
            width=arch.width,
            **facts,
        )
    elif isinstance(arch, LeNet):
        model = lenet(**facts)
    else:
        model = alexnet(dropout=arch.dropout, **facts)
    initialize(model, arch.init, config.seed)
    return model


def build_state(config: Config, hardware: DeviceSetup, steps_per_epoch: int) -> TrainState:
    """Everything that changes in a run, at its start."""
    model = _to_device(build_model(config), config, hardware)
    freeze(model, config.train.freeze or 0)
    if collectives.world_size() > 1 and config.device.sync_batch_norm is not False:
        synchronize(model)
    ema = None if config.train.ema is None else EMA(model, config.train.ema)
    if config.device.compile:
        model.compile()
    chosen = config.optimizer
    course = config.scheduler
    own = {
        key: value for key, value in vars(course).items() if key not in ("name", "warmup_epochs")
    }
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            chosen.name, model, chosen.lr, chosen.weight_decay, chosen.arguments
        ),
        schedule=build_schedule(
            course.name,
            chosen.lr,
            course.warmup_epochs,
            epochs=config.train.epochs,
            steps_per_epoch=steps_per_epoch,
            **own,
        ),
        scaler=precision.scaler(hardware.precision, hardware.device),
        ema=ema,
        sums=MetricSums(hardware.device),
        micro_batches=config.train.accumulate,
    )


def build_tested_model(
    config: Config, hardware: DeviceSetup, weights: dict[str, Tensor]
) -> nn.Sequential:
    """The network as it was when a run took its test, in eval mode. weights: of `checkpoint.weights_of`.

    Raises CheckpointError.
    """
    model = build_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoints: the weights do not fit config.yaml: {told}") from error
    model = _to_device(model, config, hardware)
    if config.device.compile and config.train.ema is None:  # the moving average is a plain copy
        model.compile()
    return model.eval()


def _to_device(model: nn.Sequential, config: Config, hardware: DeviceSetup) -> nn.Sequential:
    if uses_triton(config, hardware.precision) and precision.has_triton():
        fuse(model)
    memory = torch.channels_last if config.device.channels_last else torch.contiguous_format
    return model.to(hardware.device).to(memory_format=memory)


def train_settings(config: Config, hardware: DeviceSetup) -> TrainSettings:
    train = config.train
    return TrainSettings(
        device=hardware.device,
        seed=config.seed,
        epochs=train.epochs,
        batch_size=config.data.batch_size,
        label_smoothing=train.label_smoothing,
        clip_norm=train.clip_norm,
        patience=train.patience,
        rest_minutes=train.rest_minutes,
        autocast=hardware.autocast,
        gradients=_step_function(config),
        probe=dead_layer_check(config),
    )


def _step_function(config: Config) -> Callable[..., tuple[Tensor, Tensor]]:
    if collectives.world_size() > 1:
        return DistributedStep()
    return (
        CudaGraphStep()
        if config.device.name == "cuda" and not config.device.compile
        else forward_backward
    )


def dead_layer_check(config: Config) -> DeadLayerCheck | None:
    steps = config.train.probe_steps
    return (
        None
        if steps is None
        else DeadLayerCheck(
            steps, layers(config), suggested_overrides(config), bool(config.train.stop_if_dead)
        )
    )
