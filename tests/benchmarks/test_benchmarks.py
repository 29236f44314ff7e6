"""The benchmarks measure what they say, at sizes that do not measure speed."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import halving, memory, scaling
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.rows import Setting
from benchmarks.peers.common import build_network
from benchmarks.peers.contender import contenders
from benchmarks.peers.networks import NETWORKS
from vggexp.config.derived import expected_precision, input_spec, tensor_bytes
from vggexp.runner.build import build_model
from vggexp.system.cpu import supports_bf16


def run_benchmark(tmp_path, module, *argv) -> list[list[str]]:
    """Returns the rows of the table that a benchmark writes, without its header."""
    path = tmp_path / "page.md"
    command = [sys.executable, "-m", f"benchmarks.{module}", *argv, f"--out={path}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
@pytest.mark.debian
def test_growth(tmp_path):
    rows = run_benchmark(tmp_path, "growth", "--rounds=1", "--counts", "200", "400")
    assert [row[0] for row in rows] == ["200", "400"]
    assert all(float(row[1]) > 0 for row in rows)


def test_halving_counts_the_epochs_of_each_run():
    accuracies = {
        "slow": [0.1, 0.2, 0.3, 0.4, 0.9],
        "early": [0.5, 0.6, 0.7, 0.8, 0.8],
        "found": [0.4, 0.7, 0.7, 0.7, 0.7],
        "bad": [0.3, 0.1, 0.1, 0.1, 0.1],
    }
    grid = {}
    for name, values in accuracies.items():
        grid[name] = [{"val/accuracy": value, "time/epoch_seconds": 2.0} for value in values]
    assert halving.simulate(grid, 2) == halving.Outcome("found", epochs=9, seconds=18.0)


@pytest.mark.slow
def test_report(tmp_path):
    rows = run_benchmark(tmp_path, "report", "--rounds=1", "--counts", "2", "4", "--blocks", "1")
    assert [row[0] for row in rows] == ["2", "4", "blocks", "---:", "1"]
    assert float(rows[1][2]) > 0


@pytest.mark.slow
def test_folders(tmp_path):
    rows = run_benchmark(tmp_path, "folders", "--rounds=1", "--images=64", "--workers=1")
    assert len(rows) == 3
    assert rows[1][3] == "1.00"


@pytest.mark.slow
@pytest.mark.debian
@pytest.mark.parametrize("options", ["--size=32", "--network=fast"])
def test_every_contender_does_the_same_work(tmp_path, options):
    for peer in ("lightning", "timm"):
        pytest.importorskip(peer)
    rows = run_benchmark(tmp_path, "peers", "--rounds=1", "--images=128", "--epochs=1", options)
    assert [row[0] for row in rows] == list(contenders(supports_bf16()))
    assert all(float(row[1]) > 0 for row in rows)


@pytest.mark.parametrize(("bf16", "count", "bf16_count"), [(True, 8, 3), (False, 7, 0)])
def test_a_contender_uses_bf16_if_the_cpu_supports_it(bf16, count, bf16_count):
    commands = contenders(bf16)
    assert len(commands) == count
    assert len(set(commands.values())) == count
    assert sum("bf16" in name for name in commands) == bf16_count


@pytest.mark.parametrize(("name", "size"), [("source", 32), ("fast", 28)])
def test_the_peers_train_the_network_of_the_experiment(name, size):
    network = NETWORKS[name]
    config = memory.compose_config(f"experiment={network.experiment} data.resize={size}")
    model = build_model(config).eval()
    peer = build_network(network, size).eval()
    copy_weights(model, peer)
    images = torch.rand(2, 1, size, size)
    with torch.no_grad():
        torch.testing.assert_close(peer(images), model(images))


def copy_weights(model, peer):
    """Copies by order. Gives every batch norm statistics that change the logits."""
    values = model.state_dict().values()
    for value, peer_value in zip(values, peer.state_dict().values(), strict=True):
        if value.ndim == 1:
            value.uniform_(0.5, 1.5)
        peer_value.copy_(value)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_peers_have_the_settings_of_the_experiment(network):
    config = memory.compose_config(f"experiment={network.experiment}")
    optimizer = config.optimizer
    assert optimizer.name == "SGD"
    defaults = {"momentum": 0, "nesterov": False}
    rates = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    assert network.sgd == defaults | optimizer.arguments | rates
    assert network.label_smoothing == config.train.label_smoothing
    assert network.shift == config.augment.crop
    assert (0.5 if network.shift else 0) == config.augment.flip
    assert (network.normalization is not None) == config.data.normalize
    assert network.size == input_spec(config).size


@pytest.mark.process
def test_the_memory_of_a_step(tmp_path):
    overrides = "data=synthetic arch=lenet data.batch_size=32"
    (row,) = run_benchmark(tmp_path, "memory", f"--case={overrides}")
    config = memory.compose_config(overrides)
    assert row[0] == overrides
    assert row[1] == expected_precision(config.device)
    assert row[2] == f"{tensor_bytes(config)['total'] / 1e6:,.0f}"


@pytest.mark.process
def test_the_cost_of_the_curves():
    overrides = "data=synthetic data.images=96 data.batch_size=32 arch=lenet device=cpu"
    command = [sys.executable, "-m", "benchmarks.curves", *overrides.split()]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"share of the training   [+-][\d.]+ %\n$", process.stdout)


SMALL = "data=synthetic data.batch_size=16 arch.width=0.25 arch.hidden=[64]"


@pytest.mark.catalog
@pytest.mark.parametrize(
    "overrides",
    [
        SMALL,
        f"{SMALL} data.size=64 device.precision=fp32",
        f"{SMALL} arch=vgg16 optimizer=adam train.ema=0.9 device.precision=fp32",
        f"{SMALL} arch=vgg11_bn",
        f"{SMALL} arch=vgg11_lrn",
        f"{SMALL} train.accumulate=4",
        "data=synthetic arch=lenet device.precision=bf16",
    ],
)
def test_plan_estimates_the_memory_of_a_step(overrides):
    ratio = estimate_over_measured(memory.compose_config(overrides))
    assert ratio == pytest.approx(1, rel=0.06)


@pytest.mark.catalog
@pytest.mark.parametrize("blocks", [1, 3, 5])
@pytest.mark.parametrize("overrides", ["device.precision=fp32", "arch=vgg11_bn", "arch=vgg11_lrn"])
def test_plan_bounds_the_memory_of_a_step_with_frozen_blocks(overrides, blocks):
    config = memory.compose_config(f"{SMALL} data.size=64 {overrides}")
    frozen = replace(config, train=replace(config.train, freeze=blocks))
    ratio = estimate_over_measured(frozen)
    assert ratio > 0.95
    assert ratio < 1.4


def estimate_over_measured(config):
    """Returns the ratio without the workspaces of libraries."""
    step, allocated_bytes = memory.make_step(config)
    step()  # creates the optimizer's state
    estimate = tensor_bytes(config)["total"]
    return estimate / memory.tensor_peak(step, allocated_bytes())


CASES = ("the source run", "vgg16", "vgg11 with batch", "vgg11 with adam")
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
        "source run: 5 epochs",
        "source run: the first",
        "source run: chec",
        "source run: the whole",
        "source run: share",
        "source run: test acc",
    ],
    "waits": [
        "waits of the host for the device, a step",
        "waits of the host for the device, an epoch besides",
    ],
    "peer": ["vggexp over a loop with a DataLoader", "their rates"],
    "deterministic": ["runs with the same weights", "device.deterministic=true over false"],
    "memory": [f"memory of {name}" for name in CASES for _ in range(2)],
    "channels_last": ["device.channels_last=true over false"],
    "compile": [
        "device.compile=true over",
        "device.compile=true: a first",
        "device.compile=true: a second",
    ],
}


def assert_has_every_row(part: str, names: list[str]) -> None:
    """Asserts that the names start as the rows of the part do, in any order."""
    for name, start in zip(sorted(names), sorted(GPU_ROWS[part]), strict=True):
        assert name.startswith(start)


@pytest.mark.slow  # minutes, most of them in torch.compile
def test_gpu_on_a_cpu(tmp_path):
    rows = run_benchmark(tmp_path, "gpu", "--device=cpu", "--small", "--seconds=2000")
    names = [row[0] for row in rows]
    for part in PARTS:
        count = len(GPU_ROWS[part])
        assert_has_every_row(part, names[:count])
        names = names[count:]
    assert not names


@pytest.mark.process
@pytest.mark.parametrize("part", ["speed", "waits"])
def test_a_part_of_gpu(part, capfd):
    PARTS[part].run(Setting("cpu", small=True))
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert_has_every_row(part, [row[0] for row in rows])


def test_a_part_without_time_does_not_run():
    result = gpu.run_part("speed", Setting("cpu", small=True), 3)
    assert result == ([], "not run: 3 s were left")


@pytest.mark.process
def test_a_part_that_takes_too_long_is_stopped():
    result = gpu.run_part("speed", Setting("cpu", small=True), 0.3, min_seconds=0)
    assert result == ([], "failed: stopped after 0 s")


@pytest.mark.process
def test_a_part_that_fails():
    result = gpu.run_process("benchmarks.gpu.parts", ["unknown", "cpu"], 60)
    assert result == ([], "failed: KeyError: 'unknown'")


def test_gpu_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 2
    assert "--device cpu --small" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "sent"), [(1, 0), (2, 100), (4, 150)])
def test_a_ring_sends_each_byte_around_once(count, sent):
    assert scaling.ring_bytes(count, 100) == sent


def test_the_share_that_a_device_keeps():
    device = scaling.Device("", step_seconds=3.0, gradient_bytes=100, bytes_per_second=100)
    assert scaling.kept_share(1, device) == (1, 1)
    # One second of communication overlaps with two seconds of the backward pass, or follows.
    assert scaling.kept_share(2, device) == (1, 3 / 4)
    slow = device._replace(bytes_per_second=25)
    assert scaling.kept_share(2, slow) == (3 / 5, 3 / 7)
    cells = list(scaling.share_cells(device._replace(max_count=2)))
    assert cells[1] == "0.75 to 1.00"
    assert cells[2] == "-"
