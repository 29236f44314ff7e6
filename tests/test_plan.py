"""The plan door: its numbers, its two forms, and that it stays light."""

import json
import subprocess
import sys

import pytest

from vggexp.config import compose
from vggexp.formatting import format_bytes
from vggexp.plan import CostPlan, cost_table, main, plan_costs
from vggexp.sweep import expand
from vggexp.system import cpu


def planned(*overrides: str) -> CostPlan:
    return plan_costs(
        expand.compose_run(
            compose.parse_command(["device=cpu", "device.precision=fp32", *overrides])
        )
    )


def test_the_default_run():
    made = planned()
    assert (made.parameters, made.macs, made.weight_layers, made.input) == (
        44_920_074,
        1_399_955_456,
        11,
        (1, 96, 96),
    )
    assert made.images == {"training": 54_000, "validation": 6_000, "test": 10_000}
    assert made.steps_per_epoch == 422  # the short last batch is a step
    assert made.disk_bytes == {
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
def test_memory_follows_the_configuration(overrides, key, factor):
    assert planned(*overrides).memory_bytes[key] == factor * planned().memory_bytes[key]


@pytest.mark.parametrize(
    ("words", "precision"), [("fma avx512_bf16", "bf16"), ("fma avx2", "fp32")]
)
def test_automatic_precision_is_the_processors(words, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    cpu.CPUINFO.write_text(f"flags : {words}")
    assert planned("device.precision=auto").precision == precision
    assert planned("device=cuda", "device.precision=auto").precision == "bf16"


def test_table():
    lines = cost_table(planned("arch=vgg16c", "data.resize=224", "train.ema=0.99")).splitlines()
    assert (
        lines[0]
        == "vgg, 16 weight layers, 1x224x224 -> 10 classes: 129,581,770 parameters, 11.71 GMAC an image"
    )
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[3:] if line}
    assert rows["block3"].startswith(
        "block3 2 conv 3x3, 1 conv 1x1, pool 2x2 128x56x56 -> 256x28x28 "
    )
    assert rows["hidden1"] == "hidden1 linear 512x7x7 -> 4096 102,764,544 102.76"
    assert rows["total"] == "total 129,581,770 11,709.03"
    assert all(
        f" {part} " in rows["memory"]
        for part in ("GB in fp32: parameters", "optimizer", "ema", "activations")
    )
    assert rows["disk"] == "disk 6.220 GB at most: 1.555 GB a checkpoint, 518.3 MB the weights"


def test_hints_stand_under_the_table_and_in_json(capsys):
    assert [line for line in cost_table(planned()).splitlines() if line.startswith("hint")] == [
        "hint    data.resize=96: pictures of 28 px hold no more; 32 takes 0.12 of the multiply-adds (arithmetic)"
    ]
    assert main(["device=cpu", "--json"]) == 0
    (hint,) = json.loads(capsys.readouterr().out)["hints"]
    assert hint.keys() == {"key", "text", "source"} and hint["key"] == "data.resize"


def test_what_is_not_known_is_said():
    made = planned(
        "data=image_folder", "data.classes=7", "optimizer=sgd", "optimizer.name=Adafactor"
    )
    text = cost_table(made)
    assert (
        made.memory_bytes["optimizer"] is None
        and text.count("at least ") == 2
        and "optimizer unknown" in text
    )
    assert "unknown training" in text and "unknown steps" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.000 kB"),
        (999_999, "1.000 MB"),
        (12_345, "12.35 kB"),
        (179_680_296, "179.7 MB"),
    ],
)
def test_quantity(number, text):
    assert format_bytes(number, "B") == text


def test_json_is_one_object_with_the_contract_s_keys(capsys):
    assert main(["arch=lenet", "--json", "data.resize=28"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        "parameters",
        "macs",
        "weight_layers",
        "layers",
        "memory_bytes",
        "disk_bytes",
    } <= found.keys()
    assert found["parameters"] == sum(layer["parameters"] for layer in found["layers"]) == 61_706


def test_an_error_is_one_line(capsys):
    assert main(["data.resize=16"]) == main(["arch=vgg16,vgg19"]) == main(["--jason"]) == 2
    lines = capsys.readouterr().err.splitlines()
    too_small = "data.resize=16: too small for 5 poolings (16->8->4->2->1->0); at least 32"
    assert len(lines) == 3 and lines[0] == f"vggexp: error: {too_small}"


def test_torch_and_numpy_are_not_imported():
    code = "import sys; from vggexp.plan import main; main([]); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
