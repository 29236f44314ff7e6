"""Checks what the panel of a run shows."""

import pytest

from tests.report.conftest import make_record
from vggexp.report.run_details import run_details, split_shared
from vggexp.report.table import build_table


def details_of(record):
    (details,) = run_details(build_table([record]))
    return details


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


def test_the_panel_has_the_command_and_how_it_continues(tmp_path):
    (tmp_path / "overrides.txt").write_text("seed=1\n")
    run = make_record("a", state="interrupted")._replace(folder=tmp_path)
    details = details_of(run)
    assert details["command"] == "python -m vggexp seed=1"
    assert details["continuation"] == "The same command continues the run."


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
