"""Hints before a run: which configuration gets which hint, and that the advice is right."""

import dataclasses

import pytest

from vggexp.config.compose import parse_command
from vggexp.config.derived import layers, memory_bytes
from vggexp.config.hints import hints, smaller_steps, suggested_overrides
from vggexp.models.shapes import macs
from vggexp.sweep.expand import compose_run

PLENTY = 10**12  # bytes of memory


def load(overrides=""):
    return compose_run(parse_command(["device=cpu", "device.precision=fp32", *overrides.split()]))


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ("", ["data.resize"]),
        ("experiment=gluon_vgg11", ["data.resize"]),
        ("experiment=quickstart", []),
        ("data.resize=64", []),
        ("data.resize=64 optimizer.lr=0.05", []),
        ("data.resize=64 optimizer.lr=0.1", ["optimizer.lr"]),
        ("data.resize=64 optimizer.lr=0.1 arch=vgg16_bn", []),
        ("data.resize=64 optimizer.lr=0.1 optimizer=sgd", []),
        ("data.resize=64 optimizer.lr=1 optimizer=sgd", ["optimizer.lr"]),
        ("data.resize=64 optimizer=adam", []),
        ("data.resize=64 optimizer=adam optimizer.lr=0.01", ["optimizer.lr"]),
        (
            "data.resize=64 optimizer=adam optimizer.name=Adadelta optimizer.lr=1 ~optimizer.betas",
            [],
        ),
        ("data.resize=96 arch=lenet optimizer.lr=0.1", ["data.resize"]),
        ("data=cifar10", ["dense"]),
        ("data=cifar10 data.resize=64 arch=vgg19", []),
        ("data=synthetic data.size=32 data.resize=65", ["data.resize"]),
        ("data=image_folder data.classes=3", []),
        ("arch=lenet data.resize=28", []),
        (
            "data.resize=64 train.epochs=4 augment.flip_only_fraction=0.1",
            ["augment.flip_only_fraction"],
        ),
        ("data.resize=64 train.epochs=5 augment.flip_only_fraction=0.2", []),
    ],
)
def test_a_configuration_gets_these_hints(overrides, keys):
    configuration_hints = hints(load(overrides), host_bytes=PLENTY)
    assert [hint.key for hint in configuration_hints] == keys
    assert [hint for hint in configuration_hints if not hint.source] == []
    assert [hint for hint in configuration_hints if len(str(hint)) > 120] == []


def test_a_share_of_the_epochs_that_is_none():
    config = load("data.resize=64 train.epochs=4 augment.flip_only_fraction=0.1")
    (hint,) = hints(config, host_bytes=PLENTY)
    share = "augment.flip_only_fraction=0.1 of 4 epochs"
    assert str(hint) == f"{share}: rounded to no epoch (docs/keys.md)"


def test_a_resize_that_only_costs():
    config = load()
    (hint,) = hints(config, host_bytes=PLENTY)
    share = macs(layers(load("data.resize=32"))) / macs(layers(config))
    cost = f"32 takes {share:.2g} of the multiply-adds"
    assert str(hint) == f"data.resize=96: images of 28 px hold no more; {cost} (arithmetic)"


@pytest.mark.parametrize(
    ("arch", "key"), [("vgg16", "train.accumulate="), ("vgg16_bn", "data.batch_size=")]
)
def test_memory_that_will_not_fit(arch, key):
    config = load(f"arch={arch} data.resize=64")
    needed = memory_bytes(config)["total"]
    available = int(0.9 * needed)
    assert hints(config, host_bytes=PLENTY) == []
    (hint,) = hints(config, host_bytes=available)
    override = hint.text.rpartition("; ")[2]
    assert override.startswith(key)
    smaller = load(f"arch={arch} data.resize=64 {override}")
    assert hints(smaller, host_bytes=available) == []
    assert hints(config, host_bytes=1000)[0].text.endswith("choose a smaller network")


def test_ranks_share_the_memory_of_a_machine():
    overrides = "arch=vgg16 data.resize=64 device.processes=2"
    needed = memory_bytes(load(overrides))["total"]
    assert hints(load(overrides), host_bytes=2 * needed) == []
    (hint,) = hints(load(overrides), host_bytes=2 * needed - 1)
    assert hint.key == "memory"


def test_on_a_gpu_its_own_memory_counts():
    config = load("arch=vgg16 data.resize=64")
    on_gpu = dataclasses.replace(config, device=dataclasses.replace(config.device, name="cuda"))
    needed = memory_bytes(on_gpu)["total"]
    assert hints(on_gpu, host_bytes=1000) == []
    assert hints(on_gpu, gpu_bytes=needed, host_bytes=1000) == []
    assert [hint.key for hint in hints(on_gpu, gpu_bytes=1000)] == ["memory"]


def assert_suggests(suggest, overrides, expected):
    assert suggest(load(overrides)) == expected
    for suggestion in expected:
        load(f"{overrides} {suggestion}")


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", ["arch.norm=batch"]),
        ("optimizer.lr=0.1", ["optimizer.lr=0.01", "optimizer.lr=0.01 arch.norm=batch"]),
        ("arch.init=xavier", ["arch.norm=batch", "arch.init=kaiming"]),
        ("arch=vgg16_bn arch.init=paper", ["arch.init=kaiming"]),
        ("arch=vgg16 arch.init=dirac", ["arch.norm=batch", "arch.init=kaiming"]),
        ("arch=vgg16_bn arch.init=dirac", ["optimizer.lr=0.001"]),
        (
            "optimizer.weight_decay=1",
            ["optimizer.weight_decay=5e-4", "optimizer.weight_decay=5e-4 arch.norm=batch"],
        ),
        ("optimizer=adam optimizer.lr=0.1 arch=vgg16_bn", ["optimizer.lr=0.001"]),
        ("arch=lenet", ["optimizer.lr=0.001"]),
    ],
)
def test_suggested_overrides_compose(overrides, expected):
    assert_suggests(suggested_overrides, overrides, expected)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", ["optimizer.lr=0.003"]),
        ("arch.norm=batch", ["optimizer.lr=0.003", "train.clip_norm=1"]),
        ("arch.norm=batch train.clip_norm=1", ["optimizer.lr=0.003"]),
        (
            "arch.norm=batch optimizer.lr=0.1 train.clip_norm=5",
            ["optimizer.lr=0.003", "train.clip_norm=1"],
        ),
        ("arch.norm=batch optimizer.lr=0.2", ["optimizer.lr=0.003"]),
        ("optimizer.lr=5e-4", ["optimizer.lr=0.00015"]),
        ("optimizer=sgd optimizer.lr=25", ["optimizer.lr=0.03"]),
        ("optimizer.weight_decay=1", ["optimizer.weight_decay=5e-4 optimizer.lr=0.003"]),
        ("optimizer=adam arch.norm=batch", ["optimizer.lr=0.0003"]),
        ("~optimizer.momentum optimizer.name=Adagrad optimizer.lr=25", ["optimizer.lr=7.5"]),
    ],
)
def test_smaller_steps_compose(overrides, expected):
    assert_suggests(smaller_steps, overrides, expected)
