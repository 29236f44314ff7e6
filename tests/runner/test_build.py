"""Tests that every file of conf/ becomes objects that train."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import TINY
from vggexp.config.compose import parse_command
from vggexp.config.device import conf_dir
from vggexp.runner.build import build_model, build_state, train_settings
from vggexp.runner.hardware import setup_device
from vggexp.sweep.expand import compose_run


def choices(group):
    """Returns an override for each file of a group."""
    return [f"{group}={path.stem}" for path in sorted((Path(conf_dir()) / group).glob("*.yaml"))]


def combined_choices():
    """Returns commands that together choose each file of four groups."""
    groups = [choices(group) for group in ("arch", "augment", "optimizer", "scheduler")]
    longest = max(map(len, groups))
    return [[group[index % len(group)] for group in groups] for index in range(longest)]


@pytest.mark.process
@pytest.mark.parametrize("chosen", combined_choices(), ids=" ".join)
def test_every_choice_trains_an_epoch(command, chosen):
    overrides = [*chosen, *TINY]
    if {"arch=lenet", "arch=alexnet"} & {*chosen}:  # have no keys of their own
        overrides = [text for text in overrides if not text.startswith("arch.")]
    if "arch=alexnet" in chosen:
        overrides.append("data.resize=64")
    code, _, err = command(*overrides, "train.epochs=1")
    assert (code, err) == (0, "")


@cache
def make_config(*overrides):
    return compose_run(parse_command([*TINY, "device=cpu", "arch.norm=batch", *overrides]))


def make_state(*overrides):
    config = make_config(*overrides)
    return build_state(config, setup_device(config), steps_per_epoch=4)


def same_weights(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "override", ["seed=1", "arch.init=xavier", "arch.init=paper", "arch.init=dirac"]
)
def test_seed_and_init_give_the_first_weights(override):
    assert same_weights(build_model(make_config()), build_model(make_config()))
    assert not same_weights(build_model(make_config()), build_model(make_config(override)))


@pytest.mark.parametrize("rate", [0, 0.25])
def test_the_dropout_of_the_configuration(rate):
    modules = build_model(make_config(f"arch.dropout={rate}")).modules()
    assert {module.p for module in modules if isinstance(module, nn.Dropout)} == {rate}


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_of_the_configuration(channels_last):
    model = make_state(f"device.channels_last={channels_last}").model
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    for weight in weights[1:]:  # the first has one channel, and with it both formats
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_run_begins_with_the_micro_batches_of_the_configuration():
    assert make_state("train.accumulate=3").micro_batches == 3


def test_the_average_has_the_decay_of_the_configuration():
    state = make_state("train.ema=0.25")
    for weight in (1.0, 5.0):
        nn.init.constant_(state.model[2][0].weight, weight)
        state.ema.update(state.model)
    assert (state.ema.module[2][0].weight == 4).all()


def test_the_warm_up_of_the_configuration():
    schedule = make_state("scheduler.warmup_epochs=2", "optimizer.lr=0.8").schedule
    assert [schedule.at(step) for step in (0, 3, 7, 8)] == pytest.approx([0.1, 0.4, 0.8, 0.8])


def test_the_loop_has_the_settings_of_the_configuration():
    values = {"label_smoothing": 0.1, "clip_norm": 2.5, "patience": 7, "rest_minutes": 1.5}
    overrides = [f"train.{key}={value}" for key, value in values.items()]
    config = make_config("seed=5", "data.batch_size=24", *overrides)
    settings = vars(train_settings(config, setup_device(config)))
    assert settings.items() >= {**values, "seed": 5, "batch_size": 24, "epochs": 2}.items()
    assert train_settings(make_config(), setup_device(make_config())).clip_norm is None
