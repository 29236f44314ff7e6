"""Tests whole grids: what they print, their table, their means, and their errors."""

import csv
import json
import shlex
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.conftest import TINY, result
from vggexp.runs.continuation import read_command, resume_command
from vggexp.runs.records import read_run


def test_two_jobs_of_one_run_are_refused(command, tmp_path):
    code, _, err = command("-m", *TINY, "seed=1,1")
    assert code == 2
    assert err.endswith("seed=1,1: a value stands there twice; give each value once\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_grid_runs_every_job_and_ends_with_a_table(command, launcher):
    axes = [
        "-m",
        f"hydra/launcher={launcher}",
        "arch=vgg11,vgg13",
        "optimizer.lr=0.01,100",
        "arch.init=paper",
    ]
    code, out, err = command(*TINY, *axes)
    reason = "the loss or its gradient is not finite"
    assert code == 7
    if launcher == "local":
        assert out.count(reason) == 4  # the line of each failed job, and its row
    else:
        assert err.count(reason) == 2
    assert "2 of 4 jobs did not finish" in err
    first, *_ = out.splitlines()
    assert first.startswith("sweep    4 jobs: 0 finished, 4 to run for 8 epochs, ")
    folder = next(Path("outputs/sweeps").iterdir())
    assert out.splitlines()[-3:] == [
        f"results  {folder}/results.md",
        f"report   python -m vggexp.report {folder}",
        f"show     python -m vggexp.tensorboard {folder}",
    ]
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 6
    assert table[0].split()[1:4] == ["arch", "|", "optimizer.lr"]
    assert ["finished" in line for line in table[2:]] == [True, True, False, False]
    assert ["failed" in line for line in table[2:]] == [False, False, True, True]
    with open(next(Path("outputs/sweeps").glob("*/results.csv"))) as file:
        rows = list(csv.DictReader(file))
    settings = {(row["arch"], row["optimizer.lr"]) for row in rows}
    assert settings == {(arch, lr) for arch in ("vgg11", "vgg13") for lr in ("0.01", "100")}
    for row in rows[:2]:
        assert float(row["val/accuracy"]) == result(row["run"])["val/accuracy"]
    code, out, _ = command(*TINY, *axes)
    assert code == 7
    assert "sweep.retry_failed=true tries again" in out
    assert "sweep    4 jobs: 2 finished, 2 failed before" in out


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (["hydra/launcher=local"], "hydra: {mode: MULTIRUN}\n"),
        (["hydra/launcher=basic"], "hydra: {mode: MULTIRUN}\n"),
        (["-m"], ""),  # a run does not take sweep.repeats without the mode either
        (["-m", "sweep.repeats=1", "seed=1,2"], ""),
    ],
)
def test_the_record_of_a_job_is_the_command_of_one_run(words, mode, command):
    """Also of an own file that makes a sweep; a job that continues keeps its record."""
    Path("mine/experiment").mkdir(parents=True)
    text = f"# @package _global_\n{mode}sweep: {{repeats: 2}}\n"
    Path("mine/experiment/twice.yaml").write_text(text)
    argv = ["-cd", "mine", "-cn", "config", *TINY, "experiment=twice", "run.until=1"]
    assert command(*argv, *words)[0] == 0
    folders = sorted(path.parent for path in Path("outputs").glob("*/result.json"))
    assert len(folders) == 2
    for folder in folders:
        words = shlex.split(resume_command(read_run(folder)))
        flags = ["--config-dir=mine", "--config-name=config"]
        assert words[3:6] == [*flags, "hydra.mode=RUN"]
        assert command(*words[3:])[0] == 0
        run = read_run(folder)
        assert run.state == "finished"
        assert shlex.split(read_command(run)) == words
    assert len(list(Path("outputs").glob("*/result.json"))) == 2


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_job_under_the_name_of_another_run_is_a_failed_row(command, launcher):
    assert command(*TINY, "run.name=p")[0] == 0
    pairs = "sweep.pairs=[{run.name:p,optimizer.lr:0.1},{run.name:q,optimizer.lr:0.2}]"
    code, _, err = command("-m", *TINY, pairs, f"hydra/launcher={launcher}")
    assert code == 7
    assert "1 of 2 jobs did not finish" in err
    with open(next(Path("outputs/sweeps").glob("*/results.csv"))) as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows["p"]["state"] == "failed"
    assert rows["p"]["val/accuracy"] == ""
    assert "optimizer.lr: run has 0.01, command says 0.1" in rows["p"]["error"]
    assert float(rows["q"]["val/accuracy"]) == result("q")["val/accuracy"]


@pytest.mark.process
def test_a_job_that_ends_before_its_run_begins_is_a_failed_row(command):
    missing = ["data=mnist", "data.root=empty", "data.download=false", "data.batch_size=32"]
    Path("empty").mkdir()
    code, out, _ = command("-m", *missing, "arch=lenet", "optimizer.lr=1,2", "device.threads=1")
    assert code == 7
    rows = [line for line in out.splitlines() if line.startswith(("| 1 ", "| 2 "))]
    assert ["| failed | " in row for row in rows] == [True, True]
    assert ["empty" in row for row in rows] == [True, True]
    assert not Path("outputs").joinpath(rows[0].split("|")[-2].strip()).exists()


@pytest.mark.process
def test_repeats_have_a_mean_and_are_runs_in_tensorboard(tmp_path, fork_command):
    argv = ["-m", *TINY, "train.epochs=1", "optimizer.lr=0.01,0.02", "sweep.repeats=2"]
    process = fork_command(tmp_path, *argv)
    assert process.returncode == 0
    assert "val/accuracy mean ± sd" in process.stdout
    (folder,) = tmp_path.glob("outputs/sweeps/*")
    losses = []
    for path in tmp_path.glob("outputs/*lr0.01*/result.json"):
        losses.append(json.loads(path.read_text())["val/loss"])
    assert len(losses) == 2
    mean = f"{sum(losses) / 2:.4f}"
    assert mean in process.stdout
    assert mean in (folder / "results.md").read_text()
    settings = sorted(path.name for path in folder.glob("repeats/*"))
    assert settings == ["optimizer.lr=0.01", "optimizer.lr=0.02"]
    runs = [path.parent for path in tmp_path.glob("outputs/*/result.json")]
    assert [table_columns(path) for path in runs] == [["optimizer.lr", "seed"]] * 4


def table_columns(folder: Path) -> list[str]:
    """Returns the hyperparameters that are columns of TensorBoard's HParams table."""
    metadata = EventAccumulator(str(folder)).Reload().SummaryMetadata("_hparams_/experiment")
    experiment = HParamsPluginData.FromString(metadata.plugin_data.content).experiment
    return [info.name for info in experiment.hparam_infos]


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_jobs_and_tables_share_a_folder_with_the_time(command, launcher, tmp_path):
    """Hydra's keys are applied once, also those that are added."""
    (tmp_path / "experiment").mkdir()
    # The processes of joblib stay in the folder of the test that started them.
    text = f"# @package _global_\nrun: {{root: '{tmp_path}/runs/${{now:%S-%f}}'}}\n"
    (tmp_path / "experiment" / "timed.yaml").write_text(text)
    argv = ["experiment=timed", f"--config-dir={tmp_path}", "train.epochs=1", "seed=0,1", "-m"]
    code, _, err = command(
        *TINY, *argv, f"hydra/launcher={launcher}", "+hydra.job.env_set.VGGEXP_X=1"
    )
    assert (code, err) == (0, "")
    (root,) = Path("runs").iterdir()
    assert len(list(root.glob("*/result.json"))) == 2
    assert len(list(root.glob("sweeps/*/results.csv"))) == 1


@pytest.mark.process
def test_a_value_that_a_launcher_refuses_is_one_line(command):
    joblib = ["-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.batch_size=x"]
    code, _, err = command(*TINY, *joblib)
    assert code == 2
    assert err == "vggexp: error: hydra.launcher.batch_size=x: must be auto or 1..999999\n"
