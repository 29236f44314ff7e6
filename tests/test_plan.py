"""The numbers of vggexp.plan, its table and its JSON. It imports neither torch nor numpy."""

import json
import subprocess
import sys

import pytest

from vggexp.config import compose
from vggexp.formatting import format_bytes
from vggexp.plan import CostPlan, cost_table, main, plan_costs
from vggexp.sweep import expand
from vggexp.system import cpu


def plan(*overrides: str) -> CostPlan:
    command = compose.parse_command(["device=cpu", "device.precision=fp32", *overrides])
    return plan_costs(expand.compose_run(command))


def test_the_default_run():
    costs = plan()
    assert costs.parameters == 44_920_074
    assert costs.macs == 1_399_955_456
    assert costs.weight_layers == 11
    assert costs.input == (1, 96, 96)
    assert costs.images == {"training": 54_000, "validation": 6_000, "test": 10_000}
    assert costs.steps_per_epoch == 422  # the short last batch is a step
    assert costs.disk_bytes == {
        "checkpoint": 8 * 44_920_074,
        "weights": 4 * 44_920_074,
        "run": 32 * 44_920_074,
    }


@pytest.mark.parametrize(
    ("overrides", "key", "factor"),
    [
        (["data.batch_size=256"], "activations", 2),
        (["train.ema=0.9"], "parameters", 1),
        (["optimizer=sgd"], "optimizer", 0),
        (["optimizer=adamw"], "optimizer", 2),
    ],
)
def test_memory_depends_on_the_configuration(overrides, key, factor):
    assert plan(*overrides).memory_bytes[key] == factor * plan().memory_bytes[key]


@pytest.mark.parametrize(
    ("flags", "precision"), [("fma avx512_bf16", "bf16"), ("fma avx2", "fp32")]
)
def test_auto_precision_depends_on_the_processor(flags, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    cpu.CPUINFO.write_text(f"flags : {flags}")
    assert plan("device.precision=auto").precision == precision
    assert plan("device=cuda", "device.precision=auto").precision == "bf16"


def test_table():
    lines = cost_table(plan("arch=vgg16c", "data.resize=224", "train.ema=0.99")).splitlines()
    network = "vgg, 16 weight layers, 1x224x224 -> 10 classes"
    assert lines[0] == f"{network}: 129,581,770 parameters, 11.71 GMAC an image"
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[3:] if line}
    block3 = "block3 2 conv 3x3, 1 conv 1x1, pool 2x2 128x56x56 -> 256x28x28 "
    assert rows["block3"].startswith(block3)
    assert rows["hidden1"] == "hidden1 linear 512x7x7 -> 4096 102,764,544 102.76"
    assert rows["total"] == "total 129,581,770 11,709.03"
    for part in ("GB in fp32: parameters", "optimizer", "ema", "activations"):
        assert f" {part} " in rows["memory"]
    assert rows["disk"] == "disk 6.220 GB at most: 1.555 GB a checkpoint, 518.3 MB the weights"


def test_hints_follow_the_table_and_are_in_json(capsys):
    hints = [line for line in cost_table(plan()).splitlines() if line.startswith("hint")]
    assert hints == [
        "hint    data.resize=96: images of 28 px hold no more; "
        "32 takes 0.12 of the multiply-adds (arithmetic)"
    ]
    assert main(["device=cpu", "--json"]) == 0
    (hint,) = json.loads(capsys.readouterr().out)["hints"]
    assert hint.keys() == {"key", "text", "source"}
    assert hint["key"] == "data.resize"


def test_unknown_counts_are_reported():
    costs = plan("data=image_folder", "data.classes=7", "optimizer=sgd", "optimizer.name=Adafactor")
    text = cost_table(costs)
    assert costs.memory_bytes["optimizer"] is None
    assert text.count("at least ") == 2
    assert "optimizer unknown" in text
    assert "unknown training" in text
    assert "unknown steps" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.000 kB"),
        (999_999, "1.000 MB"),
        (12_345, "12.35 kB"),
        (179_680_296, "179.7 MB"),
    ],
)
def test_format_bytes(size, text):
    assert format_bytes(size, "B") == text


def test_json_is_one_object_with_the_documented_keys(capsys):
    assert main(["arch=lenet", "--json", "data.resize=28"]) == 0
    costs = json.loads(capsys.readouterr().out)
    keys = {"parameters", "macs", "weight_layers", "layers", "memory_bytes", "disk_bytes"}
    assert keys <= costs.keys()
    assert costs["parameters"] == 61_706
    assert sum(layer["parameters"] for layer in costs["layers"]) == 61_706


def test_an_error_is_one_line(capsys):
    assert main(["data.resize=16"]) == 2
    assert main(["arch=vgg16,vgg19"]) == 2
    assert main(["--jason"]) == 2
    lines = capsys.readouterr().err.splitlines()
    too_small = "data.resize=16: too small for 5 poolings (16->8->4->2->1->0); at least 32"
    assert len(lines) == 3
    assert lines[0] == f"vggexp: error: {too_small}"


@pytest.mark.process
def test_torch_and_numpy_are_not_imported():
    code = (
        "import sys; from vggexp.plan import main; main([]); "
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"
