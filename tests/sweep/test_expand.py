"""Tests the expansion of commands: what is a sweep, the jobs of a grid, and sweep files."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_name
from vggexp.errors import ConfigError
from vggexp.sweep.expand import (
    ComposedJob,
    GridSweep,
    check_command,
    compose_outline,
    compose_run,
    expand_sweep,
)

PAIRS = "sweep.pairs=[{arch:vgg11,optimizer.lr:0.05},{arch:vgg16,optimizer.lr:0.01}]"
TWO_JOBS = [["arch=vgg11", "optimizer.lr=0.05"], ["arch=vgg16", "optimizer.lr=0.01"]]
SWEEP_FILE = """\
# @package _global_
hydra: {mode: MULTIRUN}
sweep:
  repeats: 2
  where: seed < 1
  pairs:
    - {arch: vgg11, optimizer.lr: 0.05}
    - {arch: vgg16, optimizer.lr: 0.01}
"""


def expand(*argv: str) -> GridSweep:
    command = parse_command(argv)
    sweep = expand_sweep(command, compose_outline(command))
    assert isinstance(sweep, GridSweep)
    return sweep


def grid_jobs(*argv: str) -> list[ComposedJob]:
    return expand(*argv).jobs


@pytest.mark.parametrize(
    ("argv", "is_sweep"),
    [
        ([], False),
        (["-m"], True),
        (["-m", "seed=1,2"], True),
        (["seed=1,2"], False),  # the error names -m
        (["sweep=lr_depth"], True),
        (["sweep=lr_depth", "seed=1,2"], True),
        (["hydra.mode=MULTIRUN"], True),
    ],
)
def test_the_flag_or_a_file_makes_a_sweep(argv, is_sweep):
    assert compose_outline(parse_command(argv)).is_sweep == is_sweep


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([PAIRS], TWO_JOBS),
        ([PAIRS, "seed=1,2"], [[f"seed={seed}", *job] for seed in (1, 2) for job in TWO_JOBS]),
        (
            [PAIRS, "sweep.repeats=2"],
            [[*job, f"seed={seed}"] for job in TWO_JOBS for seed in (0, 1)],
        ),
        (["sweep.repeats=3", "sweep.repeats=2"], [["seed=0"], ["seed=1"]]),
        (["sweep.repeats=3", "seed=7"], [["seed=7", f"seed={seed}"] for seed in (7, 8, 9)]),
        (
            ["sweep.pairs=[{arch.blocks:[[1,8]],optimizer:{lr:0.1}}]"],
            [["arch.blocks=[[1,8]]", "optimizer.lr=0.1"]],
        ),
        (
            ["arch=vgg11,vgg13,vgg16", "sweep.where=weight_layers < 14"],
            [["arch=vgg11"], ["arch=vgg13"]],
        ),
        (
            ["arch=vgg11,lenet", "sweep.where=not macs > 1e6 or arch.name == 'vgg'"],
            [["arch=vgg11"]],
        ),
        (["++sweep.repeats=2", "++seed=7"], [["++seed=7", f"seed={seed}"] for seed in (7, 8)]),
        (["seed=1,2", "++sweep.where=seed > 1"], [["seed=2"]]),
        (["++seed=1,2", "seed=3"], [["seed=3"]]),
        (["arch=vgg13", "seed=1,2", "arch=vgg16"], [["arch=vgg16", f"seed={s}"] for s in (1, 2)]),
    ],
)
def test_the_jobs_of_a_grid(argv, expected):
    assert [job.overrides for job in grid_jobs("-m", *argv)] == expected


def test_a_file_may_hold_pairs_repeats_and_a_filter(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(SWEEP_FILE)
    jobs = grid_jobs("sweep=mine", f"--config-dir={tmp_path}")
    assert [job.overrides for job in jobs] == [["sweep=mine", *job, "seed=0"] for job in TWO_JOBS]
    assert [job.config.optimizer.lr for job in jobs] == [0.05, 0.01]


@pytest.mark.catalog
def test_a_job_is_composed_as_it_is_alone():
    axes = [
        "arch=vgg11,vgg13_bn",
        "optimizer=sgd,momentum",
        "optimizer.lr=0.1,0.2",
        "arch.blocks=[[1,8]],[[2,4]]",
    ]
    fixed = [
        "train.ema=0.5",
        "+optimizer.dampening=0.1",
        "experiment=gluon_vgg11",
        "sweep.objective=test/loss",
    ]
    jobs = grid_jobs("-m", *axes, *fixed)
    assert len(jobs) == 16
    for job in jobs[::3]:  # with every value of every axis
        alone = compose_run(parse_command(job.overrides))
        assert replace(job.config, run=alone.run) == alone  # its label shows what is swept


def test_a_job_is_called_after_its_data_file_as_a_run_alone():
    words = ["data=fashion_mnist_28", "arch=vgg8_bn"]
    job = grid_jobs("-m", *words, "seed=0,1")[0]
    alone = compose_run(parse_command([*words, "seed=0"]))
    assert run_name(job.config) == run_name(alone)


def test_a_grid_has_its_configurations_by_overrides():
    jobs = grid_jobs("-m", "seed=1,2")
    configs = GridSweep(jobs, Path("outputs"), "", jobs[0].config.sweep).configs()
    assert list(configs) == [("seed=1",), ("seed=2",)]
    assert list(configs.values()) == [job.config for job in jobs]


def write_experiment(folder: Path, text: str) -> list[str]:
    """Writes an experiment file and returns the overrides that choose it."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    return ["-m", "experiment=mine", f"--config-dir={folder}"]


@pytest.mark.parametrize("interpolation", ["${now:%s-%f}", "${oc.env:VGGEXP_X}", "${run.name}"])
def test_the_folder_of_all_runs_is_resolved_once(interpolation, tmp_path, monkeypatch):
    monkeypatch.setenv("VGGEXP_X", "first")
    text = f'run: {{name: null, root: "{tmp_path}/{interpolation}"}}'
    command = parse_command([*write_experiment(tmp_path, text), "seed=1,2,3"])
    monkeypatch.setenv("VGGEXP_X", "second")
    sweep = expand_sweep(command, compose_outline(command))
    roots = {job.config.run.root for job in sweep.jobs}
    assert len(roots) == 1
    assert "second" not in roots.pop()
    assert str(sweep.folder).startswith(sweep.jobs[0].config.run.root)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("multirun/${now:%Y}", r"multirun/\d{4}"),
        ("${run.root}/x", "here/x"),
        ("${hydra.job.override_dirname}", "run.root=here"),
        ("'a,b $c'", r"a,b \$c"),
        ("${run.root}/sweeps/latest", "here/sweeps/seed-.*"),
    ],
)
def test_the_tables_have_the_folder_that_hydra_names(folder, expected):
    argv = ["-m", "seed=1,2", "run.root=here"]
    for sign in ("", "++"):
        found = expand(*argv, f"{sign}hydra.sweep.dir={folder}").folder
        assert re.fullmatch(expected, str(found))


def test_a_file_may_name_the_folder_of_the_tables(tmp_path):
    argv = write_experiment(tmp_path, "hydra: {sweep: {dir: 'x/${seed}'}}")
    assert expand(*argv, "arch=vgg11,vgg13").folder == Path("x/0")


@pytest.mark.parametrize(("resume", "names"), [("auto", ["{}", "{}"]), ("never", ["{}", "{}-2"])])
def test_new_runs_have_tables_of_their_own(resume, names, tmp_path):
    argv = ["-m", "seed=1,2", f"run.root={tmp_path}", f"resume={resume}"]
    folders = []
    for _ in names:
        folders.append(expand(*argv).folder)
        folders[-1].mkdir(parents=True, exist_ok=True)
    assert [folder.name for folder in folders] == [name.format(folders[0].name) for name in names]


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.job.env_set.VGGEXP_X=1",
        "hydra.launcher.jobs=2",
        "hydra/launcher=basic",
        "++hydra.sweep.dir=x",
    ],
)
def test_hydras_own_keys_are_of_no_job(override):
    assert [job.overrides for job in grid_jobs("-m", override, "seed=1,2")] == [
        ["seed=1"],
        ["seed=2"],
    ]


def test_a_search_path_of_the_command_has_the_files_of_a_sweep(tmp_path):
    _, experiment, _ = write_experiment(tmp_path, "seed: 7")
    jobs = grid_jobs("-m", experiment, f"hydra.searchpath=[file://{tmp_path}]", "arch=vgg11,vgg13")
    assert [job.config.seed for job in jobs] == [7, 7]


@pytest.mark.parametrize("key", ["sweep.repeats", "hydra.launcher.jobs"])
def test_a_file_sweeps_no_key_of_the_whole_sweep(key, tmp_path):
    argv = write_experiment(tmp_path, f"hydra: {{sweeper: {{params: {{{key}: 2}}}}}}")
    with pytest.raises(ConfigError, match=rf"hydra\.sweeper\.params: {key}=2: may not be swept"):
        grid_jobs(*argv)


@pytest.mark.catalog
@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("sweep: {repeats: 2}", "sweep.repeats=2"),
        ("sweep: {where: seed > 3}", "sweep.where=seed > 3"),
        ("sweep: {retry_failed: true}", "sweep.retry_failed=true"),
        ("hydra: {launcher: {jobs: 3}}", "hydra.launcher.jobs=3"),
        ("hydra: {sweep: {dir: tables}}", "hydra.sweep.dir=tables"),
        ("resume: never", "resume=never"),
        ("hydra: {mode: MULTIRUN}", "hydra.mode=MULTIRUN"),
    ],
)
@pytest.mark.parametrize(
    "axis", ["experiment=mine,mnist", "sweep.pairs=[{experiment:mine},{experiment:mnist}]"]
)
def test_a_swept_file_sets_no_key_of_the_whole_sweep(axis, text, setting, tmp_path):
    write_experiment(tmp_path, f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError, match=f"mine.yaml: {re.escape(setting)}: a file"):
        grid_jobs("-m", axis, f"--config-dir={tmp_path}")


def test_a_swept_file_leaves_the_mode_out(tmp_path):
    write_experiment(tmp_path, "hydra: {mode: MULTIRUN}")
    with pytest.raises(ConfigError, match=r"; leave it out, -m makes the sweep$"):
        grid_jobs("-m", "experiment=mine,mnist", f"--config-dir={tmp_path}")


def test_an_axis_in_a_swept_file_belongs_on_the_command_line(tmp_path):
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}\n"
    write_experiment(tmp_path, text)
    words = ["-m", "experiment=mine,mnist", f"--config-dir={tmp_path}"]
    with pytest.raises(ConfigError, match="; give seed=1,2 on the command line"):
        grid_jobs(*words)
    assert len(grid_jobs(*words, "seed=1,2")) == 4


def test_a_swept_file_chooses_no_launcher(tmp_path):
    text = "# @package _global_\ndefaults: [{override /hydra/launcher: basic}]\n"
    write_experiment(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        grid_jobs("-m", "experiment=mine,mnist", f"--config-dir={tmp_path}")
    assert re.findall(r"[\w/.]+=[^:]*", str(raised.value)) == ["hydra/launcher=basic"]


def test_a_part_of_a_section_on_the_command_line_does_not_hide_the_others(tmp_path):
    write_experiment(tmp_path, "# @package _global_\nsweep: {where: seed > 3}\n")
    words = ["experiment=mine,mnist", "sweep={repeats:2}", f"--config-dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"mine\.yaml: sweep\.where=seed > 3: a file"):
        grid_jobs("-m", *words)


def test_the_command_wins_over_what_a_swept_file_says_of_the_sweep(tmp_path):
    write_experiment(tmp_path, "# @package _global_\nsweep: {repeats: 3}\n")
    folder = f"--config-dir={tmp_path}"
    assert len(grid_jobs("-m", "experiment=mine,mnist", "sweep.repeats=2", folder)) == 4


def test_a_launcher_keeps_its_rules_under_another_name(tmp_path):
    (tmp_path / "hydra/launcher").mkdir(parents=True)
    (tmp_path / "hydra/launcher/mine.yaml").write_text("defaults: [local, _self_]\njobs: 0\n")
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.jobs=0: must be auto or"):
        grid_jobs("-m", "hydra/launcher=mine", f"--config-dir={tmp_path}", "seed=1,2")


def test_a_sweep_file_starts_a_sweep_without_a_flag():
    jobs = grid_jobs("sweep=lr_depth")
    expected = []
    for depth in (11, 13, 16, 19):
        for lr in (0.01, 0.05):
            expected.append([f"arch=vgg{depth}", f"optimizer.lr={lr}", "sweep=lr_depth"])
    assert [job.overrides for job in jobs] == expected
    assert len({run_name(job.config) for job in jobs}) == 8


def test_an_axis_of_the_command_replaces_that_of_the_file():
    jobs = grid_jobs("sweep=lr_depth", "optimizer.lr=0.1", "arch=vgg11,lenet", "seed=1,2")
    settings = [(job.config.arch.name, job.config.seed) for job in jobs]
    assert settings == [("vgg", 1), ("vgg", 2), ("lenet", 1), ("lenet", 2)]
    assert {job.config.optimizer.lr for job in jobs} == {0.1}


def test_the_flag_contradicts_the_mode_of_a_single_run():
    with pytest.raises(ConfigError, match="RUN: does not go with -m"):
        grid_jobs("-m", "seed=1,2", "hydra.mode=RUN")


def test_a_file_that_sets_the_mode_of_a_single_run_is_named(tmp_path):
    write_experiment(tmp_path, "# @package _global_\nhydra: {mode: RUN}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: hydra\.mode=RUN: does not go with -m"):
        grid_jobs("-m", "seed=1,2", "experiment=mine", f"--config-dir={tmp_path}")


def test_a_key_needs_to_fit_only_the_jobs():
    jobs = grid_jobs("-m", "scheduler=step,plateau", "scheduler.gamma=0.5")
    assert [job.config.scheduler.gamma for job in jobs] == [0.5, 0.5]


def test_the_number_of_jobs_is_limited():
    assert len(grid_jobs("-m", "seed=1,2", "sweep.max_jobs=2")) == 2
    with pytest.raises(ConfigError, match=r"more than sweep\.max_jobs=2 jobs"):
        grid_jobs("-m", "seed=1,2,3", "sweep.max_jobs=2")


def test_a_command_for_one_configuration_refuses_a_sweep():
    with pytest.raises(ConfigError, match="a single configuration"):
        compose_run(parse_command(["-m", "seed=1,2"]))
    with pytest.raises(ConfigError, match="--info: not a flag of this command"):
        compose_run(parse_command(["--info"]))


@pytest.mark.catalog
@pytest.mark.parametrize("argv", [[], ["-m", "seed=1,2"]])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1: 2", "1: unknown key; keys: arch, "),
        ("optimizer: {1: 2}", r"optimizer\.1=2: not an argument of SGD; "),
        ("seed: !!bool x", r"mine\.yaml: cannot be read as YAML \('x'\)"),
        ("hydra: {mode: x}", "experiment/mine: hydra.mode: Invalid value 'x', expected one of"),
        ("hydra: {callbacks: '${run.root}'}", "hydra.callbacks=outputs: must have keys"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(text, problem, argv, tmp_path):
    command = write_experiment(tmp_path, text)
    with pytest.raises(ConfigError, match=problem):
        check_command(parse_command([*command, *argv]))
