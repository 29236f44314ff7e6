"""Every YAML file under conf/ says what it is, composes, passes the rules and gives a network."""

import re
from pathlib import Path

import pytest
import yaml

from vggexp.config.compose import parse_command
from vggexp.config.derived import layers
from vggexp.config.device import conf_dir
from vggexp.models.shapes import parameters
from vggexp.sweep.expand import GridSweep, compose_outline, compose_run, expand_sweep

pytestmark = pytest.mark.catalog

CONF = Path(conf_dir())
FILES = {str(path.relative_to(CONF).with_suffix("")): path for path in sorted(CONF.rglob("*.yaml"))}
GROUPS = [name for name in FILES if "/" in name and not name.startswith("hydra/")]
PACKAGED = ("experiment/", "sweep/")  # files that set keys of several groups
EXPERIMENTS = [Path(name).name for name in GROUPS if name.startswith("experiment/")]
# What each of these files requires in order to be a whole configuration.
REQUIRED = {
    "data/digits": ["arch=vgg_digits"],
    "data/image_folder": ["data.classes=10"],
    "data/torchvision": [
        "data.name=SVHN",
        "data.classes=10",
        "data.train_images=73257",
        "data.test_images=26032",
    ],
    "data/fashion_mnist_28": ["arch=vgg8_bn"],  # too small for five poolings
}
REQUIRED |= {f"experiment/paper_{letter}": ["data.classes=1000"] for letter in "abcde"}


def contents(name):
    return yaml.safe_load(FILES[name].read_text("utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_what_it_is(name):
    lines = FILES[name].read_text("utf-8").splitlines()
    if name.startswith(PACKAGED):
        assert lines[0] == "# @package _global_"
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]
    first_line = lines[1] if "@package" in lines[0] else lines[0]
    assert comments[0] == first_line
    assert len(comments[0].split()) > 3
    if name.startswith(PACKAGED):
        override = name.replace("/", "=")
        assert any(override in comment for comment in comments), "the command is missing"
    if name.startswith("arch/"):
        assert any(comment.startswith("# Source: ") for comment in comments)


@pytest.mark.parametrize("name", [*GROUPS, "config"])
def test_a_file_composes_and_gives_a_network(name):
    overrides = [*REQUIRED.get(name, [])]
    if name in GROUPS:
        overrides.append(name.replace("/", "="))
    command = parse_command(overrides)
    outline = compose_outline(command)
    if not outline.is_sweep:
        configs = [compose_run(command)]
    else:
        sweep = expand_sweep(command, outline)
        jobs = sweep.jobs if isinstance(sweep, GridSweep) else [sweep]
        configs = [job.config for job in jobs]
    assert configs
    for config in configs:
        assert parameters(layers(config)) > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_the_choice_of_a_network_open(name):
    required = REQUIRED.get(f"experiment/{name}", [])
    overrides = [f"experiment={name}", "arch=vgg16", "data.resize=32", *required]
    arch = compose_run(parse_command(overrides)).arch
    expected = compose_run(parse_command(["arch=vgg16", f"arch.init={arch.init}"])).arch
    assert arch == expected
    assert sum(block.convs for block in arch.blocks) == 13


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_sets_no_key_that_a_file_of_the_group_sets(name):
    group_keys = {}
    for path in GROUPS:
        if not path.startswith(PACKAGED):
            group_keys.setdefault(path.split("/")[0], set()).update(contents(path))
    for section, values in contents(f"experiment/{name}").items():
        if section in group_keys:
            assert set(values) & group_keys[section] == set()


def test_every_key_of_the_default_run_has_a_comment():
    lines = (CONF / "config.yaml").read_text("utf-8").partition("\nhydra:")[0].splitlines()
    values = [line for line in lines if re.match(r"\s*(- )?\w+: ", line)]
    assert len(values) > 25
    assert [line for line in values if "  # " not in line] == []
