"""The same command has the same run name; every key that changes a result changes the name."""

import contextlib
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, write_images
from vggexp.config.compose import parse_command
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import parse_config, schema_keys
from vggexp.config.run_id import differences, identity, run_hash, run_name, sweep_name
from vggexp.runner.run import run
from vggexp.sweep.expand import compose_run

PAGE = Path(__file__).parents[2] / "docs/concepts/identity.md"


def read_decisions(title):
    """Returns the keys of a table of the page, each with the one data set that the row is about."""
    section = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    keys = set()
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        names = re.findall("`([^`]+)`", line.split("|")[1])
        data = [name.removeprefix("data=") for name in names if name.startswith("data=")]
        for name in names[len(data) :]:
            keys.add((*data, name))
    return keys


ANOTHER_RUN = read_decisions("What makes another run")
SAME_RUN = read_decisions("What leaves it the same run")


def is_same_run(key, data):
    """Returns what the page decides for a key of a configuration with this data set."""
    for decision in ((data, key), (key,)):
        if decision in ANOTHER_RUN:
            return False
        if decision in SAME_RUN:
            return True
    raise AssertionError(f"{PAGE.name} does not decide {key}")


OVERRIDES = [
    "arch=alexnet",
    "arch=lenet",
    "data=synthetic",
    "data=image_folder data.classes=3",
    "data=torchvision data.name=KMNIST data.resize=32 data.classes=3 data.train_images=600 "
    "data.test_images=100",
    "optimizer=adam",
    "scheduler=step",
    "scheduler=cosine",
    "scheduler=onecycle",
    "scheduler=plateau",
    "augment=strong",
    "",
]
# Keys of which another value requires other keys.
SELECTORS = {"arch.name", "data.name", "data.arguments", "scheduler.name", "optimizer.arguments"}
# Another value of each key that is not a number.
OTHER_VALUES = {
    "arch.blocks": [[1, 8], [1, 16, 1]],
    "arch.norm": "batch",
    "arch.hidden": [8],
    "arch.init": "paper",
    "train.keep": "all",
    "optimizer.name": "NAdam",
    "device.name": "mps",
    "data.resize": 64,
    "optimizer.betas": [0.8, 0.9],
    "scheduler.milestones": [3],
    "augment.scale": [1, 2],
    "augment.mixup": 0.5,
    "augment.cutmix": 0.5,
    "augment.flip_only_fraction": 0.2,
    "data.cache": "ram",
    "data.classes": 4,
    "data.limit": 5000,
    "data.test_limit": 500,
    "data.sha256": "0" * 64,
    "data.root": "/elsewhere",
    "data.test_fraction": 0.3,
    "device.precision": "fp32",
    "device.threads": 3,
    "device.processes": 2,
    "device.sync_batch_norm": False,
    "device.timeout_minutes": 3,
    "train.ema": 0.5,
    "train.clip_norm": 1,
    "train.patience": 2,
    "train.test_weights": "best",
    "train.test_flip": True,
    "train.test_shift": 1,
    "train.log_steps": 7,
    "train.init_from": "outputs/a",
    "train.init_sha256": "0" * 64,
    "train.freeze": 2,
    "run.root": "elsewhere",
    "run.name": "mine",
    "run.network": "mine",
    "run.label": "mine",
    "run.until": 1,
    "sweep.halving": 2,
    "sweep.halving_start": 1,
    "sweep.lr_range": True,
    "resume": "never",
    "sweep.objective": "val/loss",
    "sweep.pairs": [{"seed": 1}],
    "sweep.where": "seed < 2",
    "sweep.on_error": "stop",
}


def other_value(key, value):
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return 0.7 * value + 0.2


def load(*overrides):
    return compose_run(parse_command(overrides))


@pytest.fixture(scope="module")
def configs():
    return [to_plain(load("device=cpu", *overrides.split())) for overrides in OVERRIDES]


def parse(values):
    config, errors = parse_config(values)
    assert errors == []
    return config


def parse_changed(values, key, value):
    """Parses a copy of the plain configuration in which one key has another value."""
    values = deepcopy(values)
    section, _, name = key.rpartition(".")
    (values[section] if section else values)[name] = value
    return parse(values)


def test_the_page_decides_each_key_once():
    decided = [decision[0] for decision in ANOTHER_RUN | SAME_RUN if len(decision) == 1]
    assert sorted(decided) == sorted(schema_keys())


@pytest.mark.catalog
def test_each_key_is_decided_as_on_the_page(configs):
    seen = set()
    for values in configs:
        digits = run_hash(parse(values))
        for key, value in flatten(values).items():
            if key in SELECTORS:
                continue
            seen.add(key)
            changed = parse_changed(values, key, other_value(key, value))
            known = key if key in schema_keys() else "optimizer.arguments"
            is_same = is_same_run(known, values["data"]["name"])
            same_identity = identity(to_plain(changed)) == identity(values)
            assert same_identity == is_same, key
            assert (run_hash(changed) == digits) == is_same, key
    assert set(schema_keys()) - SELECTORS - seen == set()


TINY_RUN = [*TINY, "seed=1"]
SAME_BITS = [
    "data.cache=ram",
    "data.workers=3",
    "data.download=false",
    "device.timeout_minutes=3",
    "train.checkpoint_minutes=0.0001",
    "train.keep=weights",
    "train.rest_minutes=0.0001",
    "train.probe_steps=1",
    "train.probe_steps=null",
    "train.stop_if_dead=true",
    "train.log_steps=1",
    "run.root=elsewhere",
    "resume=exact",
    "sweep.objective=val/loss",
]


@pytest.fixture(scope="module")
def tiny_sha256(tmp_path_factory):
    return train(tmp_path_factory.mktemp("base"))


def train(folder, *overrides):
    """Trains a tiny run and returns the hash of its weights."""
    root = folder / "outputs"
    command = [*TINY_RUN, f"run.root={root}", *overrides, "run.name=tiny"]
    with contextlib.chdir(folder):
        fields = run(load(*command), command)
    return fields["weights_sha256"]


@pytest.mark.process
@pytest.mark.parametrize("override", SAME_BITS)
def test_a_key_of_the_same_run_changes_no_bit(override, tmp_path, tiny_sha256):
    assert is_same_run(override.partition("=")[0], "synthetic")
    assert train(tmp_path, override) == tiny_sha256


@pytest.mark.process
def test_the_views_of_the_test_leave_the_weights(tmp_path, tiny_sha256):
    assert train(tmp_path, "train.test_flip=true", "train.test_shift=1") == tiny_sha256


@pytest.mark.process
@pytest.mark.parametrize("augment", ["none", "strong"])
def test_how_a_folder_is_decoded_changes_bits_only_as_decided(augment, tmp_path):
    write_images(tmp_path / "a", {"train": 8, "test": 2}, lambda index: (40 + index, 36), "png")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folder = ["data=image_folder", "data.resize=32", "data.batch_size=8", "arch=lenet"]
    folder += ["device.threads=1", "device=cpu", "train.epochs=1", f"augment={augment}"]
    digests = {}
    for change in ("data.root=a", "data.root=b", "data.workers=0", "data.cache=ram"):
        name = change.replace("=", "-")
        command = [*folder, "data.root=a", change, f"run.name={name}"]
        with contextlib.chdir(tmp_path):
            digests[change] = run(load(*command), command)["weights_sha256"]
    decoded_once = digests.pop("data.cache=ram")
    assert len(set(digests.values())) == 1
    assert (decoded_once in digests.values()) == (augment == "none")


def test_files_with_other_keys_have_another_name(configs):
    assert len({run_name(parse(values)) for values in configs}) == len(configs)


def test_a_configuration_survives_yaml(configs):
    for values in configs:
        read_back = yaml.safe_load(yaml.safe_dump(values))
        assert read_back == values
        assert to_plain(parse(read_back)) == values
        assert parse(to_plain(parse(values))) == parse(values)


def test_the_same_values_are_the_same_run():
    blocks = "arch.blocks=[[1,64],[1,128],[2,256],[2,512],[2,512,0]]"
    typed = load(blocks, "optimizer.lr=1e-2", "arch.width=1.0")
    assert run_hash(typed) == run_hash(load())


@pytest.mark.parametrize(
    "override", ["device.processes=1", "device.sync_batch_norm=true", "train.test_flip=false"]
)
def test_the_value_that_null_means_is_the_same_run(override):
    assert run_hash(load(override)) == run_hash(load())


def test_an_upgrade_keeps_the_hash():
    name = run_name(load("experiment=quickstart", "device=cpu"))
    assert name.endswith("-91840403")  # as in version 0.1.0


def test_keys_that_are_null_do_not_enter(configs):
    values = configs[-1]
    keys = identity(values)
    assert "train.ema" not in keys
    assert None not in keys.values()
    with_new_options = {**values, "new": None, "train": {**values["train"], "new": None}}
    assert identity(with_new_options) == keys


def test_a_name_is_the_label_and_the_hash():
    config = load("arch=vgg16_bn", "seed=3")
    assert run_name(config) == f"vgg16_bn-fashion_mnist-96px-lr0.01-seed3-{run_hash(config)}"
    assert run_name(load("run.label=mine")) == f"mine-{run_hash(load())}"
    assert run_name(load("run.name=mine", "seed=3")) == "mine"


def test_differences_name_each_key_with_both_values():
    recorded = {"scheduler.name": "cosine", "train.epochs": 5, "optimizer.lr": 0.1}
    current = {"scheduler.name": "cosine", "train.epochs": 6, "train.ema": 0.9}
    assert differences(recorded, current) == [
        "optimizer.lr: run has 0.1, command says null",
        "train.ema: run has null, command says 0.9",
        "train.epochs: run has 5, command says 6",
    ]


def test_contents_differ_by_their_first_digits_and_only_if_they_were_recorded():
    base = {"scheduler.name": "constant", "train.epochs": 5}
    current = {**base, "data.sha256": "a" * 64, "data.cache": "ram"}
    assert differences(base, current) == []
    assert differences({**current, "data.sha256": "b" * 64}, current) == [
        "data.sha256: run has bbbbbbbb, command says aaaaaaaa"
    ]


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("constant", 6, []),
        ("constant", 4, ["train.epochs: run has 5, command says 4"]),
        ("cosine", 6, ["train.epochs: run has 5, command says 6"]),
    ],
)
def test_more_epochs_are_no_difference_for_an_open_ended_schedule(schedule, epochs, expected):
    recorded = {"scheduler.name": schedule, "train.epochs": 5}
    assert differences(recorded, {**recorded, "train.epochs": epochs}) == expected


def test_more_epochs_are_a_difference_if_the_last_ones_only_flip():
    recorded = {
        "scheduler.name": "constant",
        "train.epochs": 5,
        "augment.flip_only_fraction": 0.2,
    }
    assert differences(recorded, {**recorded, "train.epochs": 6}) == [
        "train.epochs: run has 5, command says 6"
    ]


def name_sweep(jobs, configs):
    return sweep_name(jobs, configs, map(run_hash, configs))


def test_the_name_of_a_sweep_is_that_of_its_runs():
    jobs = [["arch=vgg11", "optimizer.lr=0.1"], ["arch=vgg13", "optimizer.lr=1e-1"]]
    runs = [load(*job) for job in jobs]
    name = name_sweep(jobs, runs)
    assert name.startswith("arch-optimizer.lr-")
    assert name_sweep(jobs[::-1], runs[::-1]) == name
    assert name_sweep(jobs, [replace(run, resume="exact") for run in runs]) == name
    new_runs = [replace(run, resume="never") for run in runs]
    named = [load(*job, "run.name=mine") for job in jobs]
    for changed in (runs[:1], [load("seed=1"), runs[1]], named, new_runs):
        assert name_sweep(jobs, changed)[-8:] != name[-8:]


def test_a_recorded_meaning_of_null_is_no_difference():
    current = {"scheduler.name": "constant", "train.epochs": 5}
    assert differences(current | {"device.sync_batch_norm": True}, current) == []
    assert len(differences(current | {"device.sync_batch_norm": False}, current)) == 1
