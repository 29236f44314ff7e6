"""Checks what the panel of a run shows."""

import shlex

import pytest

from tests.report.conftest import make_record
from vggexp.config.compose import parse_command
from vggexp.config.run_id import run_hash
from vggexp.report.run_details import read_command, run_details, split_shared
from vggexp.report.table import build_table
from vggexp.sweep.expand import compose_outline, compose_run, expand_sweep

NEVER = {"resume": "never"}
UNTIL = {"run.until": 2}


def details_of(record):
    (details,) = run_details(build_table([record]))
    return details


def test_the_command_is_quoted_for_a_shell(tmp_path):
    overrides = ["arch.blocks=[[1,16],[2,32]]", "optimizer.lr=0.1", "run.name=it's"]
    (tmp_path / "overrides.txt").write_text("".join(f"{word}\n" for word in overrides))
    command = read_command(make_record("a")._replace(folder=tmp_path))
    assert "'arch.blocks=[[1,16],[2,32]]' optimizer.lr=0.1" in command
    assert shlex.split(command) == ["python", "-m", "vggexp", *overrides]


@pytest.mark.parametrize("sweep", ["lr_depth", "lr_range", "networks"])
def test_the_command_of_a_job_of_a_sweep_file_is_one_run(sweep, tmp_path):
    command = parse_command([f"sweep={sweep}"])
    job = expand_sweep(command, compose_outline(command)).jobs[-1]
    (tmp_path / "overrides.txt").write_text("".join(f"{word}\n" for word in job.overrides))
    words = shlex.split(read_command(make_record("a")._replace(folder=tmp_path)))
    config = compose_run(parse_command(words[3:]))
    assert run_hash(config) == run_hash(job.config)


def test_without_overrides_the_command_is_unknown(tmp_path):
    assert read_command(make_record("a")._replace(folder=tmp_path)) is None


def test_the_time_has_the_longest_part_first_and_the_rest():
    parts = {"time/data_seconds": 1.0, "time/compute_seconds": 6.0, "time/copy_seconds": 0.0}
    record = make_record("a", seconds=10.0)
    record.result.update(parts)
    assert details_of(record)["time"] == [("compute", 6.0), ("other", 3.0), ("data", 1.0)]


def test_the_test_counts_once_and_start_and_rest_stand_beside_the_parts():
    parts = {"compute": 6.0, "evaluation": 3.0, "test": 2.0, "startup": 50.0, "rest": 300.0}
    record = make_record("a", seconds=10.0)
    record.result.update({f"time/{part}_seconds": value for part, value in parts.items()})
    details = details_of(record)
    assert details["time"] == [("compute", 6.0), ("test", 2.0), ("evaluation", 1.0), ("other", 1.0)]
    assert details["added_time"] == "and 50.0 s of start-up, 5.0 min of rest"
    assert details_of(make_record("a", seconds=10.0))["added_time"] == ""


def test_the_time_of_an_unfinished_run_is_that_of_its_epochs():
    epoch = {"epoch": 1, "time/epoch_seconds": 3.0, "time/compute_seconds": 3.0}
    record = make_record("a", rows=[epoch, epoch], state="paused")
    assert details_of(record)["time"] == [("compute", 6.0)]


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
    assert details_of(make_record("a", state=state, keys=keys))["continuation"].startswith(words)


def test_a_huge_loss_has_four_digits():
    scores = details_of(make_record("a", val_loss=2.44123e13, test_loss=1.5))["scores"]
    assert scores["val/loss"] == "2.441e+13"
    assert scores["test/loss"] == "1.5000"


def test_a_run_that_failed_before_its_first_epoch_has_details():
    details = details_of(make_record("a", state="failed", epoch=None, error="no memory"))
    assert details["error"] == "no memory"
    assert details["scores"] == {}
    assert details["time"] == []


@pytest.mark.parametrize("key", ["run.root", "sweep.objective", "resume"])
def test_where_a_run_is_stored_is_no_setting(key):
    assert key not in details_of(make_record("a"))["settings"]


def test_the_network_is_the_first_setting():
    settings = details_of(make_record("a"))["settings"]
    assert next(iter(settings.items())) == ("network", "vgg11")
    assert settings["optimizer.lr"] == "0.01"


def test_what_all_have_in_common_is_split_off():
    shared, own = split_shared([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1"}])
    assert shared == {"a": "1"}
    assert own == [{"b": "2"}, {"b": "3"}, {}]
