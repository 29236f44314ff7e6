"""The benchmarks do what they say, at a size that says nothing of speed."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import memory, scaling
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import Setting
from benchmarks.peers.contender import contenders
from vggexp.system.cpu import supports_bf16


def page_of(tmp_path, module, *small) -> list[list[str]]:
    """The rows of the table that a benchmark writes, without its head."""
    words = [sys.executable, "-m", f"benchmarks.{module}", *small, f"--out={tmp_path / 'page.md'}"]
    end = subprocess.run(words, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    lines = [
        line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("|")
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
@pytest.mark.debian
def test_growth(tmp_path):
    rows = page_of(tmp_path, "growth", "--rounds=1", "--counts", "200", "400")
    assert [row[0] for row in rows] == ["200", "400"] and all(float(row[1]) > 0 for row in rows)


@pytest.mark.slow
def test_report(tmp_path):
    rows = page_of(tmp_path, "report", "--rounds=1", "--counts", "2", "4", "--blocks", "1")
    assert [row[0] for row in rows] == ["2", "4", "blocks", "---:", "1"] and float(rows[1][2]) > 0


@pytest.mark.slow
def test_folders(tmp_path):
    rows = page_of(tmp_path, "folders", "--rounds=1", "--images=64", "--workers=1")
    assert len(rows) == 3 and rows[1][3] == "1.00"


@pytest.mark.slow
@pytest.mark.debian
def test_every_contender_does_the_same_work(tmp_path):
    for peer in ("lightning", "timm"):
        pytest.importorskip(peer)
    rows = page_of(tmp_path, "peers", "--rounds=1", "--images=128", "--epochs=1", "--size=32")
    assert [row[0] for row in rows] == list(contenders(supports_bf16()))
    assert all(float(row[1]) > 0 for row in rows)


@pytest.mark.parametrize("bf16", [True, False])
def test_a_contender_uses_bf16_where_it_is_multiplied(bf16):
    names = list(contenders(bf16))
    assert len(names) == len(set(contenders(bf16).values())) == 7 + bf16
    assert sum("bf16" in name for name in names) == 3 * bf16


def test_the_memory_of_a_step(tmp_path):
    (row,) = page_of(tmp_path, "memory", "--case=data=synthetic arch=lenet data.batch_size=32")
    assert row[1] == "fp32" or row[1] == "bf16"


SMALL = "data=synthetic data.batch_size=16 arch.width=0.25 arch.hidden=[64]"


@pytest.mark.parametrize(
    "words",
    [
        SMALL,
        f"{SMALL} data.size=64 device.precision=fp32",
        f"{SMALL} arch=vgg16 optimizer=adam train.ema=0.9 device.precision=fp32",
        f"{SMALL} arch=vgg11_bn",
        f"{SMALL} arch=vgg11_lrn",
        f"{SMALL} train.accumulate=4",
        "data=synthetic arch=lenet",
    ],
)
def test_plan_tells_the_memory_of_a_step(words):
    assert estimate_over_measured(memory.configured(words)) == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("blocks", [1, 3, 5])
@pytest.mark.parametrize("words", ["device.precision=fp32", "arch=vgg11_bn", "arch=vgg11_lrn"])
def test_plan_bounds_the_memory_of_a_step_with_frozen_blocks(words, blocks):
    config = memory.configured(f"{SMALL} data.size=64 {words}")
    frozen = replace(config, train=replace(config.train, freeze=blocks))
    assert 0.95 < estimate_over_measured(frozen) < 1.4


def estimate_over_measured(config):
    """Without a library's workspaces."""
    step, held = memory.stepping(config)
    step()  # makes the optimizer's state
    return memory.plan.plan(config).memory_bytes["total"] / memory.of_tensors(step, held())


GPU_ROWS = {
    "speed": [
        "matrix",
        "training at 96",
        "its share",
        "the fastest",
        "training at 224",
        "its share",
        "the fastest",
    ],
    "source run": [
        f"source run: {what}"
        for what in ("5 epochs", "the first", "chec", "the whole", "share", "test acc")
    ],
    "waits": [
        "waits of the host for the device, a step",
        "waits of the host for the device, an epoch besides",
    ],
    "peer": ["vggexp over a loop with a DataLoader", "their rates"],
    "deterministic": ["runs with the same weights", "device.deterministic=true over false"],
    "memory": [
        f"memory of {model}"
        for model in ("the source run", "vgg16", "vgg11 with batch", "vgg11 with adam") * 2
    ],
    "channels_last": ["device.channels_last=true over false"],
    "compile": [
        "device.compile=true over",
        "device.compile=true: a first",
        "device.compile=true: a second",
    ],
}


def has_every_row(part: str, names: list[str]) -> bool:
    wanted = sorted(GPU_ROWS[part])
    return len(names) == len(wanted) and all(map(str.startswith, sorted(names), wanted))


@pytest.mark.slow  # minutes, most of them in torch.compile
def test_gpu_on_a_processor(tmp_path):
    rows = page_of(tmp_path, "gpu", "--device=cpu", "--small", "--seconds=2000")
    for part in PARTS:
        names, rows = rows[: len(GPU_ROWS[part])], rows[len(GPU_ROWS[part]) :]
        assert has_every_row(part, [name for name, *_ in names])
    assert not rows


@pytest.mark.parametrize("part", ["speed", "waits"])
def test_a_part_of_gpu(part, capfd):
    PARTS[part][0](Setting("cpu", small=True))
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert has_every_row(part, [name for name, *_ in rows])


def test_a_part_that_fails_and_one_without_time(monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", {**PARTS, "unknown": (None, 60)})
    setting = Setting("cpu", small=True)
    assert gpu.part("speed", setting, 3) == ([], "not run: 3 s were left")
    assert gpu.part("unknown", setting, 60) == ([], "failed: KeyError: 'unknown'")
    monkeypatch.setattr(gpu, "LEAST", 0)
    assert gpu.part("speed", setting, 0.3) == ([], "failed: stopped after 0 s")


def test_gpu_without_one(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 2 and "--device cpu --small" in capsys.readouterr().err


def test_what_more_devices_cost():
    device = scaling.Device("", step_seconds=3.0, gradient_bytes=100, bytes_per_second=100)
    assert [scaling.volume(count, 100) for count in (1, 2, 4)] == [
        0,
        100,
        150,
    ]  # each byte goes around but once
    assert scaling.left(1, device) == (1, 1)
    assert scaling.left(2, device) == (
        1,
        3 / 4,
    )  # a second hides in two of backward; or comes on top
    assert scaling.left(2, device._replace(bytes_per_second=25)) == (3 / 5, 3 / 7)
    assert list(scaling.kept(device._replace(most=2)))[1:3] == ["0.75 to 1.00", "-"]
