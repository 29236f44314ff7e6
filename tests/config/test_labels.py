"""Labels show what was typed: the file of the network, what differs from it, and the settings."""

import re

import pytest

from tests.config.test_run_id import load
from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.labels import MAX_LABEL_CHARS, network_label, read_arch_file, run_label
from vggexp.config.parse import parse_config
from vggexp.config.run_id import network_name, run_name
from vggexp.config.validate import RUN_NAME
from vggexp.sweep.expand import compose_outline, compose_run, expand_sweep

NETWORKS = {
    "arch=vgg11 arch.hidden=[128]": "vgg11-hidden128",
    "arch=vgg13 arch.hidden=[128]": "vgg13-hidden128",
    "arch=vgg11 arch.norm=batch arch.width=0.25": "vgg11_bn-w0.25",
    "arch=vgg11_bn arch.norm=none": "vgg11_bn-norm_none",
    "arch=vgg16c arch.hidden=[64,32] arch.dropout=0": "vgg16c-hidden64_32-dropout0",
    "arch=vgg16 arch.hidden=[]": "vgg16-hidden_none",
    "arch.blocks=[[1,16],[1,32]] arch.norm=lrn": "vgg5_lrn-blocks16_32",
    "arch.blocks=[[1,32],[1,64]] arch.norm=lrn": "vgg5_lrn-blocks32_64",
    "arch.blocks=[[2,16],[3,32,1]]": "vgg8c-blocks2x16_3x32c1",
    "arch=lenet data=mnist": "lenet",
    "arch=alexnet arch.dropout=0.25 data.resize=224": "alexnet-dropout0.25",
    "experiment=quickstart": "vgg_digits",
    "arch=vgg11 run.network=mine": "mine",
}


@pytest.mark.catalog
@pytest.mark.parametrize(("command", "label"), NETWORKS.items())
def test_a_network_is_its_file_and_what_differs_from_it(command, label):
    assert network_name(load(*command.split())) == label


@pytest.mark.catalog
@pytest.mark.parametrize("command", [*NETWORKS][:-1])
def test_a_network_without_a_recorded_file_is_the_closest_shipped_one(command):
    """As of a run of an earlier version."""
    config = load(*command.split())
    recorded = to_plain(config)
    del recorded["run"]["network"]
    parsed, _ = parse_config(recorded)
    if "arch.norm=none" in command:  # then vgg11 itself is the closest
        assert network_name(parsed) == "vgg11"
    else:
        assert network_name(parsed) == config.run.network


def test_a_change_during_a_command_changes_no_label(tmp_path):
    file = tmp_path / "arch/mine.yaml"
    file.parent.mkdir()
    file.write_text("blocks: [[1, 8]]")
    parse_command([])
    before = read_arch_file("mine", [str(tmp_path)])
    file.write_text("blocks: [[2, 8]]")
    assert read_arch_file("mine", [str(tmp_path)]) == before
    parse_command([])
    assert read_arch_file("mine", [str(tmp_path)]).values == {"blocks": [[2, 8]]}


def test_a_file_of_the_user_has_its_own_name(tmp_path):
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch/vgg9.yaml").write_text("defaults: [vgg11_bn]\nblocks: [[1, 64], [2, 128]]\n")

    def name(*overrides):
        command = parse_command([f"--config-dir={tmp_path}", "arch=vgg9", *overrides])
        return network_name(compose_run(command))

    assert name() == "vgg9"
    assert name("arch.hidden=[8]") == "vgg9-hidden8"
    assert name("arch.norm=none") == "vgg9-norm_none"


LABELS = {
    "": "vgg11-fashion_mnist-96px-lr0.01",
    "optimizer.lr=1e-3 arch=vgg16c data=cifar10": "vgg16c-cifar10-32px-lr0.001",
    "seed=0": "vgg11-fashion_mnist-96px-lr0.01-seed0",
    "device=cpu data.workers=3 data.root=/usr resume=exact": "vgg11-fashion_mnist-96px-lr0.01",
    "train.epochs=2 optimizer=adam scheduler=cosine optimizer.weight_decay=1e-5":
        "vgg11-fashion_mnist-96px-lr0.001-adam-weight_decay1e-05-cosine-epochs2",
    "optimizer=adam optimizer.betas=[0.8,0.9] augment=none train.test_each_epoch=true":
        "vgg11-fashion_mnist-96px-lr0.001-adam-betas0.8_0.9-augment_none-test_each_epoch_true",
    "arch=vgg11 arch.hidden=[4096,4096]": "vgg11-fashion_mnist-96px-lr0.01-hidden4096_4096",
    "experiment=mnist seed=7": "lenet-mnist-32px-lr0.001-mnist-seed7",
    "data=fashion_mnist_28 arch=vgg8_bn": "vgg8_bn-fashion_mnist_28-28px-lr0.01",
    "run.label=mine seed=3": "mine",
}  # fmt: skip


@pytest.mark.parametrize(("command", "label"), LABELS.items())
def test_a_label_shows_what_was_typed(command, label):
    assert load(*command.split()).run.label == label


def test_a_label_does_not_depend_on_the_order_of_the_sections():
    words = ["train.epochs=2", "optimizer=adam", "device.threads=1", "scheduler=step"]
    assert run_name(load(*words)) == run_name(load(*words[::-1]))


def test_a_long_label_leaves_out_the_hardware_first():
    words = ["optimizer.weight_decay=1e-5", "train.label_smoothing=0.1", "train.clip_norm=0.125"]
    words += ["scheduler=cosine", "train.ema=0.99", "seed=12345678901234567", "device.threads=3"]
    config = load(*words)
    assert len(config.run.label) <= MAX_LABEL_CHARS
    assert "-weight_decay1e-05-cosine-" in config.run.label
    assert "threads" not in config.run.label
    assert config.run.label.endswith("-seed12345678901234567")


def test_every_name_is_valid(tmp_path):
    (tmp_path / "arch").mkdir()
    odd = "a b$ö" + 60 * "x"
    (tmp_path / f"arch/{odd}.yaml").write_text("defaults: [vgg11]\n")
    command = parse_command([f"--config-dir={tmp_path}", f'arch="{odd}"', f"data.root={tmp_path}"])
    name = run_name(compose_run(command))
    assert re.fullmatch(RUN_NAME, name)
    assert name.startswith("a_b_x")


def sweep_labels(*overrides):
    command = parse_command(["-m", *overrides])
    return [job.config.run.label for job in expand_sweep(command, compose_outline(command)).jobs]


def test_the_labels_of_a_sweep_show_what_is_swept_and_nothing_else():
    labels = sweep_labels("optimizer.weight_decay=0,1e-3", "scheduler=step,cosine", "train.ema=0.9")
    assert labels == [
        "vgg11-fashion_mnist-96px-lr0.01-weight_decay0-step",
        "vgg11-fashion_mnist-96px-lr0.01-weight_decay0-cosine",
        "vgg11-fashion_mnist-96px-lr0.01-weight_decay0.001-step",
        "vgg11-fashion_mnist-96px-lr0.01-weight_decay0.001-cosine",
    ]


def test_a_sweep_over_devices_shows_them():
    labels = sweep_labels("device=cpu,cuda", "arch=lenet")
    assert labels == ["lenet-fashion_mnist-96px-lr0.01-cpu", "lenet-fashion_mnist-96px-lr0.01-cuda"]


def test_repeats_show_their_seed():
    labels = sweep_labels("arch=lenet,vgg11", "sweep.repeats=2")
    assert [label.rpartition("-")[2] for label in labels] == ["seed0", "seed1", "seed0", "seed1"]


def test_a_configuration_that_was_not_typed_has_a_label():
    config = load("arch=vgg13", "seed=3")
    label = run_label(config, network_label(config.arch))
    assert label == "vgg13-fashion_mnist-96px-lr0.01-seed3"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (
            "run.network=a/b",
            "run.network=a/b: must be 1..48 letters a-z A-Z, digits or _ . + = , -",
        ),
        ("run.label=-x", "run.label=-x: must be 1..100 letters a-z A-Z, digits or _ . + = , -"),
    ],
)
def test_names_that_are_given_must_be_valid(override, reason):
    with pytest.raises(Exception, match=re.escape(reason)):
        load(override)
