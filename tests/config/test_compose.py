"""The door to Hydra: flags anywhere, users' own files, and the jobs of a sweep."""

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from vggexp.config import device
from vggexp.config.compose import hydra_session, parse_command
from vggexp.config.run_id import run_name
from vggexp.config.schema import Config
from vggexp.errors import ConfigError
from vggexp.sweep.expand import ComposedJob, compose_run, load_command
from vggexp.sweep.grid import expand_grid


def single(*argv) -> Config:
    return compose_run(parse_command(argv))


def swept(*argv) -> list[ComposedJob]:
    made = load_command(parse_command(argv))
    assert isinstance(made, list)
    return made


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_flags_stand_anywhere_among_the_overrides(tmp_path):
    command = parse_command(
        ["arch=vgg13", "-m", "seed=1,2", "--config-dir", str(tmp_path), "arch=vgg16", "--json"],
        "--json",
    )
    assert command.overrides == ["arch=vgg13", "seed=1,2", "arch=vgg16"]
    assert command.flags == ["-m", "--config-dir", str(tmp_path), "--json"]
    assert command.arguments.json and command.arguments.multirun
    assert [job.overrides for job in load_command(command)] == [
        ["arch=vgg16", f"seed={seed}"] for seed in (1, 2)
    ]


def test_the_last_override_wins():
    config = single(
        "seed=1", "arch=lenet", "optimizer.lr=0.1", "seed=2", "arch=vgg13", "optimizer.lr=0.2"
    )
    assert (config.seed, config.arch.name, config.optimizer.lr) == (2, "vgg", 0.2)


@pytest.mark.parametrize("folder", ["mine", 'my "own" conf é'])
def test_users_add_files(folder, tmp_path):
    written(
        tmp_path / folder / "experiment/mine.yaml",
        "# @package _global_\nseed: 77\ntrain: {epochs: 3}\n",
    )
    config = single("experiment=mine", "--config-dir", str(tmp_path / folder), "train.epochs=4")
    assert (config.seed, config.train.epochs) == (77, 4)


def test_users_override_shipped_files(tmp_path, monkeypatch):
    text = "name: vgg\nblocks: [[1, 8]]\nnorm: none\nhidden: [4]\ndropout: 0\nwidth: 1\n"
    written(tmp_path / "arch/vgg11.yaml", text)
    monkeypatch.setenv("VGGEXP_CONF_PATH", str(tmp_path))
    assert single().arch.hidden == (4,) and len(single("arch=vgg13").arch.blocks) == 5


def test_a_key_that_a_users_file_lacks_is_added_with_a_plus(tmp_path):
    written(
        tmp_path / "arch/mine.yaml",
        "name: vgg\nblocks: [[1, 8]]\nnorm: none\nhidden: [4]\nwidth: 1\n",
    )
    mine = ["arch=mine", f"--config-dir={tmp_path}"]
    assert single(*mine, "+arch.dropout=0.1").arch.dropout == 0.1
    with pytest.raises(ConfigError, match="Key 'dropout' is not in struct"):
        single(*mine, "arch.dropout=0.1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: {epoch: 3}\n", "train.epoch: unknown key; nearest train.epochs; "),
        (
            "optimizer:\n  lr: [0.1]\n",
            "optimizer.lr=[0.1]: must be a finite number, > 0 and <= 100",
        ),
        ("seed: ${nosuch}\n", "seed: Interpolation key 'nosuch' not found"),
        ("a: [1\nb: 2\n", "mine.yaml, line 3: "),
        ("defaults: [override /arch: vgg12]\n", "In 'config': Could not find 'arch/vgg12'"),
        (
            "optimizer: {_target_: os.system}\n",
            "optimizer._target_=os.system: not an argument of SGD; ",
        ),
    ],
)
def test_errors_in_users_files_are_one_line(text, problem, tmp_path):
    written(tmp_path / "experiment/mine.yaml", "# @package _global_\n" + text)
    with pytest.raises(ConfigError) as caught:
        single("experiment=mine", f"--config-dir={tmp_path}")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


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
    sweep = single().sweep
    with hydra_session(parse_command(["-m"])):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        (theirs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        assert expand_grid(loader, arguments, {}, sweep, 0) == theirs


def test_a_sweep_file_starts_a_sweep_by_itself():
    made = swept("sweep=lr_depth")
    grid = [
        (f"arch=vgg{depth}", f"optimizer.lr={lr}")
        for depth in (11, 13, 16, 19)
        for lr in (0.01, 0.05)
    ]
    assert [job.overrides for job in made] == [[*axes, "sweep=lr_depth"] for axes in grid]
    assert len({run_name(job.config) for job in made}) == 8


def test_an_axis_of_the_command_replaces_that_of_the_file():
    made = swept("sweep=lr_depth", "optimizer.lr=0.1", "arch=vgg11,lenet", "seed=1,2")
    assert [(job.config.arch.name, job.config.seed) for job in made] == [
        (a, s) for a in ("vgg", "lenet") for s in (1, 2)
    ]
    assert {job.config.optimizer.lr for job in made} == {0.1}


def test_keys_need_to_fit_the_jobs_only():
    made = swept("-m", "scheduler=step,plateau", "scheduler.gamma=0.5")
    assert [job.config.scheduler.gamma for job in made] == [0.5, 0.5]


def test_most_jobs_of_a_sweep():
    assert len(swept("-m", "seed=1,2", "sweep.max_jobs=2")) == 2
    with pytest.raises(ConfigError, match=r"more than sweep\.max_jobs=2 jobs"):
        swept("-m", "seed=1,2,3", "sweep.max_jobs=2")


def test_a_door_of_one_configuration_refuses_a_sweep():
    with pytest.raises(ConfigError, match="a single configuration"):
        single("-m", "seed=1,2")


def test_auto_is_the_device_that_is_found():
    name = device.detect_device()
    assert single("device=auto") == single(f"device={name}") == single()
    assert run_name(single("device=auto")) == run_name(single(f"device={name}"))
