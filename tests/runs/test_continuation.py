"""Checks by which command a run continues."""

import shlex
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.report.conftest import make_record
from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_hash
from vggexp.errors import CheckpointError
from vggexp.runs.continuation import check_states, continuation, read_command, resume_command
from vggexp.runs.records import read_run, run_dir
from vggexp.sweep.expand import compose_outline, compose_run, expand_sweep, first_words

NEVER = {"resume": "never"}
UNTIL = {"run.until": 2}


def typed(folder, overrides, **record):
    """Makes the record of a run in `folder` that was started with these overrides."""
    (folder / "overrides.txt").write_text("".join(f"{word}\n" for word in overrides))
    return make_record("a", **record)._replace(folder=folder)


def test_the_command_is_quoted_for_a_shell(tmp_path):
    overrides = ["arch.blocks=[[1,16],[2,32]]", "optimizer.lr=0.1", "run.name=it's"]
    command = read_command(typed(tmp_path, overrides))
    assert "'arch.blocks=[[1,16],[2,32]]' optimizer.lr=0.1" in command
    assert shlex.split(command) == ["python", "-m", "vggexp", *overrides]


@pytest.mark.parametrize("sweep", ["lr_depth", "lr_range", "networks"])
def test_the_command_of_a_job_of_a_sweep_file_is_one_run(sweep, tmp_path):
    command = parse_command([f"sweep={sweep}"])
    outline = compose_outline(command)
    job = expand_sweep(command, outline).jobs[-1]
    record = [*first_words(command, outline), *job.overrides]
    words = shlex.split(read_command(typed(tmp_path, record)))
    config = compose_run(parse_command(words[3:]))
    assert run_hash(config) == run_hash(job.config)


def test_the_command_of_a_job_of_version_0_1_0_is_one_run(tmp_path):
    command = read_command(typed(tmp_path, ["sweep=lr_depth", "arch=vgg11"]))
    assert command == "python -m vggexp hydra.mode=RUN sweep=lr_depth arch=vgg11"


def test_without_overrides_the_command_is_unknown(tmp_path):
    assert read_command(make_record("a")._replace(folder=tmp_path)) is None


@pytest.mark.parametrize(
    ("state", "keys", "words"),
    [
        ("finished", {}, "Add resume=never to train the finished run again."),
        ("finished", NEVER, "The same command trains the finished run again."),
        ("interrupted", {}, "The same command continues the run."),
        ("interrupted", UNTIL, "The same command continues the run."),
        ("failed", NEVER, "With run.name=a in place of resume=never the same command continues"),
        ("paused", UNTIL, "Without run.until=2 the same command continues the run."),
        (
            "paused",
            NEVER | UNTIL,
            "With run.name=a in place of resume=never and without run.until=2 the same command",
        ),
    ],
)
def test_how_a_run_continues(state, keys, words):
    assert continuation(make_record("a", state=state, keys=keys)).startswith(words)


@pytest.mark.parametrize(
    ("overrides", "keys", "expected"),
    [
        (["seed=1"], {}, ["seed=1"]),
        (["seed=1", "run.until=2"], UNTIL, ["seed=1", "run.until=null"]),
        (["resume=never", "run.name=a"], NEVER, ["resume=auto"]),
        (["+run.root=elsewhere", "seed=1"], {}, ["seed=1"]),
    ],
)
def test_the_command_that_continues_a_run(overrides, keys, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("moved/a-2")
    folder.mkdir(parents=True)
    command = resume_command(typed(folder, overrides, keys=keys, state="paused"))
    words = shlex.split(command)
    assert words == ["python", "-m", "vggexp", *expected, "run.root=moved", "run.name=a-2"]
    assert run_dir(compose_run(parse_command(words[3:]))) == folder


@pytest.mark.process
@pytest.mark.parametrize(
    ("word", "recorded"),
    [
        ("--config-dir=mine", "--config-dir=mine"),
        ("-cd=mine", "--config-dir=mine"),
        ("hydra.searchpath=[mine]", "hydra.searchpath=[mine]"),
    ],
)
def test_the_command_has_the_folder_of_own_files(word, recorded, command):
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/own.yaml").write_text("# @package _global_\nseed: 7\n")
    assert command(*TINY, "experiment=own", word, "run.until=1", "run.name=a")[0] == 0
    words = shlex.split(resume_command(read_run(Path("outputs/a"))))
    assert words[3] == recorded
    assert command(*words[3:])[0] == 0
    assert read_run(Path("outputs/a")).state == "finished"


@pytest.mark.parametrize(("place", "folder"), [(".", "runs/2024"), ("true/1e5", ".")])
def test_the_command_names_any_folder_of_simple_characters(place, folder, tmp_path, monkeypatch):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / place)
    Path(folder).mkdir(parents=True, exist_ok=True)
    command = resume_command(typed(Path(folder), ["seed=1"], state="paused"))
    config = compose_run(parse_command(shlex.split(command)[3:]))
    assert run_dir(config).resolve() == Path(folder).resolve()


def test_a_folder_whose_name_needs_quotes_gets_no_command(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    assert resume_command(typed(folder, ["seed=1"], state="paused")) is None


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (
            "interrupted",
            "; continue {folder} with: python -m vggexp seed=1 run.root={parent} run.name={name}",
        ),
        ("running", "; wait until {folder} has ended"),
        (
            "failed",
            "; {folder} failed: the loss is nan; continue {folder} with: "
            "python -m vggexp seed=1 run.root={parent} run.name={name}",
        ),
    ],
)
def test_a_run_that_is_not_finished_is_refused_with_what_to_do(state, end, tmp_path):
    run = typed(tmp_path, ["seed=1"], state=state, error="the loss is nan")
    with pytest.raises(CheckpointError) as refused:
        check_states([make_record("b"), run], "compared")
    problem = f"{tmp_path} is {state}; only finished runs can be compared"
    end = end.format(folder=tmp_path, parent=tmp_path.parent, name=tmp_path.name)
    assert str(refused.value) == problem + end


def test_without_overrides_a_refusal_names_no_command():
    run = make_record("a", state="interrupted")
    with pytest.raises(CheckpointError, match=r"only finished and paused runs can be evaluated$"):
        check_states([run], "evaluated", ("finished", "paused"))
