"""Every YAML file under conf/ opens with what it is, composes, passes the rules and describes a network."""

import re
from pathlib import Path

import pytest
import yaml

from vggexp.config.compose import parse_command
from vggexp.config.derived import layers
from vggexp.config.device import conf_dir
from vggexp.models.shapes import parameters
from vggexp.sweep.expand import compose_run, load_command

CONF = Path(conf_dir())
FILES = {str(path.relative_to(CONF).with_suffix("")): path for path in sorted(CONF.rglob("*.yaml"))}
GROUPS = {
    name: path for name, path in FILES.items() if "/" in name and not name.startswith("hydra/")
}
EXPERIMENTS = [Path(name).name for name in GROUPS if name.startswith("experiment/")]
NEEDS = {
    "data/digits": ["arch=vgg_digits"],
    "data/image_folder": ["data.classes=10"],
}  # to be a whole configuration
NEEDS["data/fashion_mnist_28"] = ["arch=vgg8_bn"]  # too small for five poolings
NEEDS |= {f"experiment/paper_{letter}": ["data.classes=1000"] for letter in "abcde"}


def contents(name):
    return yaml.safe_load(FILES[name].read_text("utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_opens_with_what_it_is(name):
    lines = FILES[name].read_text("utf-8").splitlines()
    whole = [line for line in lines if line.startswith("#") and not line.startswith("# @package")]
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ") and len(first) > 20
    if name.startswith(("experiment/", "sweep/")):
        assert lines[0] == "# @package _global_"
        assert any(f"{name.replace('/', '=')}" in line for line in whole), "the command is not told"
    if name.startswith("arch/"):
        assert any(line.startswith("# Source: ") for line in whole)


@pytest.mark.parametrize("name", [*GROUPS, "config"])
def test_composes_and_describes_a_network(name):
    chosen = [name.replace("/", "=")] if name in GROUPS else []
    loaded = load_command(parse_command([*chosen, *NEEDS.get(name, [])]))
    jobs = (
        [job.config for job in loaded]
        if isinstance(loaded, list)
        else [getattr(loaded, "config", loaded)]
    )
    assert jobs and all(parameters(layers(config)) > 0 for config in jobs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_the_choice_of_a_network_open(name):
    needs = NEEDS.get(f"experiment/{name}", [])
    there = compose_run(
        parse_command([f"experiment={name}", "arch=vgg16", "data.resize=32", *needs])
    ).arch
    alone = compose_run(parse_command(["arch=vgg16", f"arch.init={there.init}"])).arch
    assert there == alone and sum(block.convs for block in there.blocks) == 13


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_sets_no_key_that_a_file_of_the_group_sets(name):
    taken = {}
    for other in GROUPS:
        if not other.startswith(("experiment/", "sweep/")):
            taken.setdefault(other.split("/")[0], set()).update(contents(other))
    sections = {
        key: set(value) for key, value in contents(f"experiment/{name}").items() if key in taken
    }
    assert {key: there & taken[key] for key, there in sections.items() if there & taken[key]} == {}


def test_every_key_of_the_default_run_has_a_comment():
    lines = (CONF / "config.yaml").read_text("utf-8").partition("\nhydra:")[0].splitlines()
    values = [line for line in lines if re.match(r"\s*(- )?\w+: ", line)]
    assert len(values) > 25
    assert [line for line in values if "  # " not in line] == []
