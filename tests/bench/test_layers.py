"""The layers in turn are the network, and each has a time of its own."""

import json
from collections import Counter

import pytest
import torch

from tests.conftest import TINY
from vggexp.bench.__main__ import format_layers, main
from vggexp.bench.layers import TRACED_STEPS, group_modules, split_into_parts, time_layers
from vggexp.config.compose import parse_command
from vggexp.config.derived import layers
from vggexp.models.shapes import macs
from vggexp.runner.build import build_model
from vggexp.runner.hardware import setup_device
from vggexp.sweep.expand import compose_run

ARCHS = ["arch=vgg11", "arch=vgg11_bn", "arch=vgg11_lrn", "arch=lenet", "arch=alexnet"]


def config_of(*overrides):
    words = [word for word in TINY if not word.startswith("arch.")]
    return compose_run(parse_command([*words, "device.precision=fp32", *overrides]))


@pytest.fixture(params=ARCHS)
def subject(request):
    vgg = ["arch.hidden=[16]", "arch.width=0.05"] if "vgg" in request.param else ["data.size=64"]
    config = config_of(request.param, *vgg)
    return config, build_model(config)


@pytest.mark.catalog
def test_the_groups_in_turn_are_the_network(subject):
    config, model = subject
    images = torch.randn(2, 1, config.data.size, config.data.size)
    expected = model.eval()(images)
    values = images
    for group in group_modules(model):
        values = group(values)
    assert torch.equal(values, expected)


@pytest.mark.catalog
def test_a_part_gets_what_reaches_it_in_the_network(subject):
    config, model = subject
    images = torch.randn(2, 1, config.data.size, config.data.size)
    parts = list(split_into_parts(model, images, layers(config), setup_device(config)))
    rows = [row for row in layers(config) if row.kind in ("conv", "linear")]
    assert [part.name for part in parts] == [row.name for row in rows]
    for part, row in zip(parts, rows, strict=True):
        assert part.inputs.shape[1] == row.in_channels
    assert sum(part.macs for part in parts) == 2 * macs(layers(config))


def test_every_layer_takes_time():
    speeds = time_layers(config_of("arch.width=0.05", "arch.hidden=[16]"), 64, rounds=1)
    assert len(speeds) == 10
    assert min(min(speed.forward_ms, speed.backward_ms) for speed in speeds) > 0
    table = format_layers(speeds).splitlines()
    assert table[0].split()[0] == "layer"
    assert len(table) == 12


@pytest.mark.parametrize("flag", ["--layers", "--json"])
def test_a_trace_prints_no_figures(tmp_path, capsys, flag):
    assert main([*TINY, f"--trace={tmp_path}/trace.json", flag]) == 2
    message = "--trace: prints no figures; leave out --layers and --json"
    assert capsys.readouterr().err == f"vggexp: error: {message}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_trace_is_a_file_of_events_of_several_steps(tmp_path, capsys):
    one_batch = ["data.batch_size=96", "data.val_fraction=0"]  # of each epoch
    path = tmp_path / "trace.json"
    assert main([*TINY, *one_batch, f"--trace={path}"]) == 0
    events = Counter(event["name"] for event in json.loads(path.read_text())["traceEvents"])
    for name in ("data", "forward and backward", "optimizer"):
        assert events[name] == TRACED_STEPS
    assert capsys.readouterr().out == f"trace {path}\n"


def test_out_of_memory_is_one_line(monkeypatch, capsys):
    def fail(config):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("vggexp.bench.layers.time_layers", fail)
    assert main([*TINY, "--layers"]) == 6
    message = "out of memory in timing; a smaller data.batch_size needs less"
    assert capsys.readouterr().err == f"vggexp: error: {message}\n"
