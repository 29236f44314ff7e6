"""Tests the grammar of a grid against Hydra's own sweeper and parser."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vggexp.config.compose import hydra_session, own_keys, parse_command
from vggexp.config.overrides import parse_override
from vggexp.errors import ConfigError
from vggexp.sweep.expand import check_command, compose_run
from vggexp.sweep.grid import (
    cached_compose,
    common_overrides,
    expand_grid,
    job_overrides,
    without_related,
)


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
        ["optimizer.lr=range(0.5,2,0.5)"],
        [],
    ],
)
def test_a_grid_has_the_jobs_of_hydras_own_sweeper(arguments):
    sweep = compose_run(parse_command([])).sweep
    with hydra_session(parse_command(["-m"])):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        (expected,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        overrides = job_overrides([*map(parse_override, arguments)], {})
        assert expand_grid(overrides, sweep, seed=0) == expected


def test_the_files_of_a_sweep_are_composed_once():
    with hydra_session(parse_command(["-m"])) as compose_fn:
        composed = []

        def compose(overrides):
            composed.append(list(overrides))
            return compose_fn(overrides)

        hydras = [parse_override("hydra.launcher.jobs=2")]
        compose_job = cached_compose(compose, hydras)
        fixed = ["data=digits"]
        nodes = [compose_job([*fixed, f"seed={seed}"]) for seed in range(3)]
    assert composed == [["hydra.launcher.jobs=2", *fixed]]
    assert [node.seed for node in nodes] == [0, 1, 2]
    assert nodes[0].hydra.keys() == {"runtime", "job"}


def test_a_job_composes_to_what_hydra_composes():
    """Values that all jobs have, references to swept keys, and a swept key inside a common one."""
    jobs = []
    for batch_size in (32, 64):
        for ema in (0.5, 0.9):
            job = ["data=digits", "optimizer.lr=0.3", "train.epochs=${data.batch_size}"]
            job += ["scheduler={warmup_epochs:2}", f"data.batch_size={batch_size}"]
            jobs.append([*job, f"train.ema={ema}", f"scheduler.warmup_epochs={ema}"])
    with hydra_session(parse_command(["-m"])) as compose_fn:
        compose_job = cached_compose(compose_fn, [], without_related(common_overrides(jobs), jobs))
        for job in jobs:
            expected = OmegaConf.to_container(own_keys(compose_fn(job)), resolve=True)
            actual = OmegaConf.to_container(own_keys(compose_job(job)), resolve=True)
            assert actual == expected


def test_overrides_of_keys_that_contain_swept_keys_are_not_applied_first():
    jobs = [
        ["seed=1", "train={epochs:3}", "train.epochs=1"],
        ["seed=1", "train={epochs:3}", "train.epochs=2"],
    ]
    assert common_overrides(jobs) == {"seed=1", "train={epochs:3}"}
    assert without_related(common_overrides(jobs), jobs) == {"seed=1"}


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("backend=nosuch", "null or loky; each job has a process of its own"),
        ("backend=threading", "null or loky; each job has a process of its own"),
        ("prefer=threads", "processes; each job has a process of its own"),
        ("require=sharedmem", "null; each job has a process of its own"),
        ("verbose=-1", "0..9999"),
        ("pre_dispatch=n_jobs**9", "all, N, n_jobs or N*n_jobs"),
        ("batch_size=0", "auto or 1..999999"),
        ("max_nbytes=x", "null or a size, as 10M"),
        ("mmap_mode=x", "r, r+, w+ or c"),
        ("n_jobs=4097", "a number of jobs at a time, at most 4096, or -1 for every core"),
    ],
)
def test_what_joblib_does_not_take_is_refused_before_the_sweep_has_a_folder(setting, expected):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "seed=1,2", "hydra/launcher=joblib", f"hydra.launcher.{setting}"]
    with pytest.raises(ConfigError) as caught:
        check_command(parse_command(words))
    assert str(caught.value) == f"hydra.launcher.{setting}: must be {expected}"


@pytest.mark.catalog
@pytest.mark.parametrize(
    "setting",
    "backend=loky pre_dispatch=all pre_dispatch=4 pre_dispatch=n_jobs batch_size=2 max_nbytes=1M "
    "mmap_mode=c n_jobs=-2 verbose=10".split(),
)
def test_what_joblib_takes(setting):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "seed=1,2", "hydra/launcher=joblib", f"hydra.launcher.{setting}"]
    check_command(parse_command(words))
