"""Builds the objects of training from a configuration: model, state, settings."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vggexp.config.derived import input_spec, layers, uses_triton
from vggexp.config.hints import smaller_steps, suggested_overrides
from vggexp.config.schema import Config, ImageFiles, LeNet, Vgg
from vggexp.distributed import collectives
from vggexp.errors import CheckpointError
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.layers import synchronize
from vggexp.models.transfer import freeze
from vggexp.models.vgg import fuse, vgg
from vggexp.runner.hardware import DeviceSetup
from vggexp.training import checkpoint_schema, precision
from vggexp.training.cuda_graphs import CudaGraphStep
from vggexp.training.ddp import DistributedStep
from vggexp.training.dead_layers import DeadLayerCheck
from vggexp.training.ema import EMA
from vggexp.training.loop import TrainSettings, TrainState
from vggexp.training.metrics import MetricSums
from vggexp.training.optimizers import build_optimizer
from vggexp.training.schedules import Schedule, build_schedule
from vggexp.training.step import ForwardBackward, forward_backward


def build_model(config: Config) -> nn.Sequential:
    """Returns the network with its initial weights, on the CPU."""
    arch = config.arch
    spec = input_spec(config)
    sizes = {"in_channels": spec.channels, "size": spec.size, "classes": spec.classes}
    if isinstance(arch, Vgg):
        model = vgg(
            arch.blocks,
            norm=arch.norm,
            hidden=arch.hidden,
            dropout=arch.dropout,
            width=arch.width,
            **sizes,
        )
    elif isinstance(arch, LeNet):
        model = lenet(**sizes)
    else:
        model = alexnet(dropout=arch.dropout, **sizes)
    initialize(model, arch.init, config.seed)
    return model


def build_state(config: Config, device_setup: DeviceSetup, steps_per_epoch: int) -> TrainState:
    """Returns everything that changes during a run, as it is at the start."""
    train = config.train
    optimizer = config.optimizer
    model = _to_device(build_model(config), config, device_setup)
    freeze(model, train.freeze or 0)
    if collectives.world_size() > 1 and config.device.sync_batch_norm is not False:
        synchronize(model)
    ema = None if train.ema is None else EMA(model, train.ema)
    if config.device.compile:
        model.compile()
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            optimizer.name, model, optimizer.lr, optimizer.weight_decay, optimizer.arguments
        ),
        schedule=_build_schedule(config, steps_per_epoch),
        scaler=precision.build_scaler(device_setup.precision, device_setup.device),
        ema=ema,
        sums=MetricSums(device_setup.device),
        micro_batches=train.accumulate,
    )


def _build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    arguments = dict(vars(config.scheduler))  # the keys besides these two are the schedule's own
    name = arguments.pop("name")
    warmup_epochs = arguments.pop("warmup_epochs")
    return build_schedule(
        name,
        config.optimizer.lr,
        warmup_epochs,
        epochs=config.train.epochs,
        steps_per_epoch=steps_per_epoch,
        **arguments,
    )


def build_tested_model(
    config: Config, device_setup: DeviceSetup, weights: dict[str, Tensor], folder: Path
) -> nn.Sequential:
    """Returns the network with the weights of a checkpoint, in eval mode, as a run tests it.

    Args:
        config: the configuration of the run.
        device_setup: the device.
        weights: the result of `checkpoint.select_eval_weights`.
        folder: the run directory, for messages.

    Raises:
        CheckpointError: the weights do not fit the network, or are not finite.
    """
    model = build_model(config)
    load_weights(model, weights, folder)
    model = _to_device(model, config, device_setup)
    if config.device.compile and config.train.ema is None:  # a run does not compile its average
        model.compile()
    return model.eval()


def load_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Takes over the weights of a checkpoint.

    Args:
        model: the network that config.yaml describes.
        weights: the result of `checkpoint.select_eval_weights`.
        folder: the run directory, for messages.

    Raises:
        CheckpointError: the weights do not fit the network, or are not finite.
    """
    try:
        checkpoint_schema.check_weights(weights, model.state_dict(), "weights")
    except ValueError as error:
        raise CheckpointError(f"{folder}: does not fit its config.yaml: {error}") from error
    model.load_state_dict(weights)


def _to_device(model: nn.Sequential, config: Config, device_setup: DeviceSetup) -> nn.Sequential:
    if uses_triton(config, device_setup.precision) and precision.has_triton():
        fuse(model)
    memory_format = torch.contiguous_format
    if config.device.channels_last:
        memory_format = torch.channels_last
    return model.to(device_setup.device).to(memory_format=memory_format)


def train_settings(config: Config, device_setup: DeviceSetup) -> TrainSettings:
    """Returns everything of the training loop that stays the same during a run."""
    train = config.train
    return TrainSettings(
        device=device_setup.device,
        seed=config.seed,
        epochs=train.epochs,
        batch_size=config.data.batch_size,
        label_smoothing=train.label_smoothing,
        clip_norm=train.clip_norm,
        patience=train.patience,
        rest_minutes=train.rest_minutes,
        autocast=device_setup.autocast,
        forward_backward=_step_function(config),
        dead_layer_check=dead_layer_check(config),
        log_steps=train.log_steps,
    )


def _step_function(config: Config) -> ForwardBackward:
    if collectives.world_size() > 1:
        return DistributedStep()
    if config.device.name == "cuda" and not config.device.compile:
        return CudaGraphStep()
    return forward_backward


def dead_layer_check(config: Config) -> DeadLayerCheck | None:
    """Returns the check of `train.probe_steps`; None if it is off."""
    steps = config.train.probe_steps
    if steps is None:
        return None
    return DeadLayerCheck(
        steps,
        layers(config),
        remedies=suggested_overrides(config),
        smaller_steps=smaller_steps(config),
        stop=bool(config.train.stop_if_dead),
    )


def with_class_count(config: Config, classes: int) -> Config:
    """Returns a run's configuration with its number of classes.

    A folder of images, which may be gone, then need not be counted.
    """
    if not isinstance(config.data, ImageFiles):
        return config
    return replace(config, data=replace(config.data, classes=classes))
