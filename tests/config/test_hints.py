"""Advice before a run: when it is told, when it is not, and that what it advises is so."""

import dataclasses

import pytest

from vggexp.config import hints as hints_module
from vggexp.config.compose import parse_command
from vggexp.config.derived import layers, memory_bytes
from vggexp.config.hints import hints, suggested_overrides
from vggexp.models.shapes import macs
from vggexp.sweep.expand import compose_run
from vggexp.system import cpu


@pytest.fixture(autouse=True)
def large(monkeypatch):
    monkeypatch.setattr(hints_module, "ram_bytes", lambda: 10**12)


def config(*words: str):
    return compose_run(
        parse_command(["device=cpu", "device.precision=fp32", *" ".join(words).split()])
    )


@pytest.mark.parametrize(
    ("words", "keys"),
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
    ],
)
def test_when_a_hint_is_told(words, keys):
    told = hints(config(words))
    assert [hint.key for hint in told] == keys
    assert all(hint.source and len(str(hint)) <= 120 for hint in told)


def test_a_resize_that_only_costs():
    made = config()
    (hint,) = hints(made)
    share = macs(layers(config("data.resize=32"))) / macs(layers(made))
    assert str(hint) == (
        f"data.resize=96: pictures of 28 px hold no more; 32 takes {share:.2g} of the multiply-adds (arithmetic)"
    )


@pytest.mark.parametrize(
    ("arch", "key"), [("vgg16", "train.accumulate="), ("vgg16_bn", "data.batch_size=")]
)
def test_memory_that_will_not_fit(arch, key, monkeypatch):
    made = config(f"arch={arch} data.resize=64")
    needed = memory_bytes(made)["total"]
    assert hints(made) == []
    monkeypatch.setattr(hints_module, "ram_bytes", lambda: int(0.7 * needed))
    (hint,) = hints(made)
    cure = hint.text.rpartition("; ")[2]
    assert cure.startswith(key) and hints(config(f"arch={arch} data.resize=64 {cure}")) == []
    monkeypatch.setattr(hints_module, "ram_bytes", lambda: 1000)
    assert hints(made)[0].text.endswith("choose a smaller network")
    on_gpu = dataclasses.replace(made, device=dataclasses.replace(made.device, name="cuda"))
    assert hints(on_gpu) == [] and hints(on_gpu, needed) == []
    assert [hint.key for hint in hints(on_gpu, 1000)] == ["memory"]


def test_the_memory_of_a_container_is_its_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "CGROUP_LIMIT", tmp_path / "memory.max")
    there = cpu.ram_bytes()
    for text, expected in (("4096\n", 4096), ("max\n", there), (f"{2 * there}\n", there)):
        cpu.CGROUP_LIMIT.write_text(text)
        assert cpu.ram_bytes() == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["arch.norm=batch"]),
        ("optimizer.lr=0.1", ["optimizer.lr=0.01", "optimizer.lr=0.01 arch.norm=batch"]),
        ("arch.init=xavier", ["arch.norm=batch", "arch.init=kaiming"]),
        ("arch=vgg16_bn arch.init=paper", ["arch.init=kaiming"]),
        (
            "optimizer.weight_decay=1",
            ["optimizer.weight_decay=5e-4", "optimizer.weight_decay=5e-4 arch.norm=batch"],
        ),
        ("optimizer=adam optimizer.lr=0.1 arch=vgg16_bn", ["optimizer.lr=0.001"]),
        ("arch=lenet", ["optimizer.lr=0.001"]),
    ],
)
def test_cures(words, expected):
    assert suggested_overrides(config(words)) == expected
    for cure in expected:
        config(words, cure)  # each is an override that composes
