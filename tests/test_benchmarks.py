"""The benchmarks do what they say, at a size that says nothing of speed."""

import subprocess
import sys

import pytest

from benchmarks import memory


def page_of(tmp_path, module, *small) -> list[list[str]]:
    """The rows of the table that a benchmark writes, without its head."""
    words = [sys.executable, "-m", f"benchmarks.{module}", *small, f"--out={tmp_path / 'page.md'}"]
    end = subprocess.run(words, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    lines = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
@pytest.mark.debian
def test_growth(tmp_path):
    rows = page_of(tmp_path, "growth", "--rounds=1", "--counts", "200", "400")
    assert [row[0] for row in rows] == ["200", "400"] and all(float(row[1]) > 0 for row in rows)


@pytest.mark.slow
def test_folders(tmp_path):
    rows = page_of(tmp_path, "folders", "--rounds=1", "--images=64", "--workers=1")
    assert len(rows) == 3 and rows[1][3] == "1.00"


@pytest.mark.slow
@pytest.mark.debian
def test_every_contender_does_the_same_work(tmp_path):
    for peer in ("lightning", "timm"):
        pytest.importorskip(peer)
    rows = page_of(tmp_path, "peers", "--rounds=1", "--images=64", "--epochs=1", "--size=32")
    assert len(rows) == 8 and all(float(row[1]) > 0 for row in rows)


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
    config = memory.configured(words)
    step, held = memory.stepping(config)
    step()  # makes the optimizer's state
    estimate = memory.plan.plan(config).memory_bytes["total"]
    assert estimate == pytest.approx(memory.of_tensors(step, held()), rel=0.15)  # without a library's workspaces
