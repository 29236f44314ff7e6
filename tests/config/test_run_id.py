"""The same command is the same run, and whatever changes a result is another one."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from vggexp.config.compose import parse_command
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import ErrorList, parse_config, schema_keys
from vggexp.config.run_id import identity, run_name, sweep_name
from vggexp.sweep.expand import compose_run

ASIDE = {"run.root", "run.name", "resume", "train.rest_minutes"} | {
    key for key in schema_keys() if "sweep." in key
}
ASIDE |= {
    "train.checkpoint_minutes",
    "train.keep",
    "train.init_from",
    "train.probe_steps",
    "train.stop_if_dead",
}
ASIDE |= {"device.timeout_minutes", "data.root", "data.download", "data.workers", "data.cache"}
FILES = [
    "arch=alexnet",
    "arch=lenet",
    "data=synthetic",
    "data=image_folder data.classes=3",
    "optimizer=adam",
]
FILES += [
    "scheduler=step",
    "scheduler=cosine",
    "scheduler=onecycle",
    "scheduler=plateau",
    "augment=strong",
    "",
]
CLASSES = {
    "arch.name",
    "data.name",
    "scheduler.name",
    "optimizer.arguments",
}  # another value takes other keys
# Another value of each key that is not a number.
OTHER = {
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
    "data.cache": "ram",
    "data.classes": 4,
    "data.limit": 5000,
    "data.root": "/elsewhere",
    "device.precision": "fp32",
    "device.threads": 3,
    "device.processes": 2,
    "device.sync_batch_norm": False,
    "device.timeout_minutes": 3,
    "train.ema": 0.5,
    "train.clip_norm": 1,
    "train.patience": 2,
    "train.test_weights": "best",
    "train.init_from": "outputs/a",
    "train.init_sha256": "0" * 64,
    "train.freeze": 2,
    "run.root": "elsewhere",
    "run.name": "mine",
    "resume": "never",
    "sweep.objective": "val/loss",
    "sweep.pairs": [{"seed": 1}],
    "sweep.where": "seed < 2",
    "sweep.on_error": "stop",
}


def other(key, value):
    if key in OTHER:
        return OTHER[key]
    return (
        not value
        if isinstance(value, bool)
        else value + 1
        if isinstance(value, int)
        else 0.7 * value + 0.2
    )


@pytest.fixture(scope="module")
def configs():
    return [
        to_plain(compose_run(parse_command(["device=cpu", *overrides.split()])))
        for overrides in FILES
    ]


def made(config):
    problems = ErrorList()
    config = parse_config(config, problems)
    assert not problems
    return config


def changed(config, key, value):
    copy, (*sections, leaf) = deepcopy(config), key.split(".")
    (copy[sections[0]] if sections else copy)[leaf] = value
    return made(copy)


def test_each_key_that_changes_a_result_changes_the_name(configs):
    seen = set()
    for config in configs:
        keys = {key: value for key, value in flatten(config).items() if key not in CLASSES}
        for key, value in keys.items():
            there = changed(config, key, other(key, value))
            assert (identity(to_plain(there)) == identity(config)) == (key in ASIDE), key
            assert key == "run.name" or (run_name(there) == run_name(made(config))) == (
                key in ASIDE
            ), key
        seen |= keys.keys()
    assert seen >= set(schema_keys()) - CLASSES


def test_files_that_differ_in_their_class_differ_in_name(configs):
    assert len({run_name(made(config)) for config in configs}) == len(configs)


def test_a_configuration_survives_yaml(configs):
    for config in configs:
        read_back = yaml.safe_load(yaml.safe_dump(config))
        assert to_plain(made(read_back)) == config == read_back
        assert made(to_plain(made(config))) == made(config)


def test_the_same_values_are_the_same_run():
    typed = compose_run(
        parse_command(
            [
                "arch.blocks=[[1,64],[1,128],[2,256],[2,512],[2,512,0]]",
                "optimizer.lr=1e-2",
                "arch.width=1.0",
            ]
        )
    )
    assert run_name(typed) == run_name(compose_run(parse_command([])))
    assert run_name(typed).startswith("vgg11-fashion_mnist-96px-lr0.01-")


def test_an_upgrade_keeps_the_name():
    assert run_name(compose_run(parse_command(["experiment=quickstart", "device=cpu"]))) == (
        "vgg8_bn-digits-16px-lr0.001-91840403"  # as the README has it
    )


def test_keys_that_are_null_do_not_enter(configs):
    here = identity(configs[-1])
    assert "train.ema" not in here and None not in here.values()
    assert (
        identity({**configs[-1], "new": None, "train": {**configs[-1]["train"], "new": None}})
        == here
    )


@pytest.mark.parametrize(
    ("overrides", "beginning"),
    [
        (
            ["arch=vgg16_bn", "arch.width=0.25", "seed=3"],
            "vgg16_bn-w0.25-fashion_mnist-96px-lr0.01-seed3-",
        ),
        (["arch=vgg16c", "data=cifar10", "optimizer.lr=1e-3"], "vgg16c-cifar10-32px-lr0.001-"),
        (
            ["arch.blocks=[[1,16],[1,32]]", "data.resize=64", "arch.norm=lrn"],
            "vgg5_lrn-fashion_mnist-64px-lr0.01-",
        ),
        (["arch=lenet", "data=mnist"], "lenet-mnist-32px-lr0.01-"),
        (["run.name=mine", "seed=3"], "mine"),
    ],
)
def test_names_can_be_read(overrides, beginning):
    name = run_name(compose_run(parse_command(overrides)))
    assert name.startswith(beginning) and len(name) == len(beginning) + 8 * beginning.endswith("-")
    assert Path(name).name == name


def test_the_name_of_a_sweep_does_not_depend_on_its_order():
    sweep = [["arch=vgg11", "optimizer.lr=0.1"], ["arch=vgg13", "optimizer.lr=0.1"]]
    assert sweep_name(sweep) == sweep_name(sweep[::-1]) != sweep_name(sweep[:1])
    assert sweep_name(sweep).startswith("arch-")
