"""Tests the grammar of a grid against Hydra's own sweeper and parser."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from vggexp.config.compose import hydra_session, parse_command
from vggexp.sweep.expand import compose_run
from vggexp.sweep.grid import cached_compose, expand_grid, format_override


@pytest.mark.parametrize(
    "arguments",
    [
        ["arch=vgg11,vgg13", "optimizer.lr=0.01,0.05,0.1"],
        ["seed=range(3)", "arch=glob(vgg1*,exclude=*_bn)", "data.resize=64"],
        [
            "arch.blocks=[[1,16],[1,32]],[[2,16]]",
            "run.name='a,b',c",
            "+optimizer.nesterov=true,false",
        ],
        ["optimizer.lr=choice(1e-3,1)", "train.ema=null,0.5", "seed=range(10,0,-5)", "seed=3"],
        ["optimizer.lr=range(0.1,0.5,0.2)"],
        [],
    ],
)
def test_a_grid_has_the_jobs_of_hydras_own_sweeper(arguments):
    sweep = compose_run(parse_command([])).sweep
    with hydra_session(parse_command(["-m"])):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        (expected,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        assert expand_grid(loader, arguments, {}, sweep, seed=0) == expected


@pytest.mark.parametrize(
    "value",
    [
        1,
        0.05,
        "vgg11",
        "a b",
        "x,y",
        "it's",
        'say "x"',
        [1, [2, "b"]],
        True,
        None,
        "",
        "1",
        "null",
        "é",
    ],
)
def test_hydra_reads_an_override_back(value):
    override = format_override("a.b", value)
    assert OverridesParser.create().parse_override(override).value() == value


def test_the_files_of_a_sweep_are_composed_once():
    with hydra_session(parse_command(["-m"])) as compose_fn:
        composed = []

        def compose(overrides):
            composed.append(list(overrides))
            return compose_fn(overrides)

        compose_job = cached_compose(compose)
        fixed = ["data=digits", "hydra.launcher.jobs=2"]
        nodes = [compose_job([*fixed, f"seed={seed}"]) for seed in range(3)]
    assert composed == [fixed]
    assert [node.seed for node in nodes] == [0, 1, 2]
    assert "hydra" not in nodes[0]
