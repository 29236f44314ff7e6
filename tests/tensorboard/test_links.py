"""Runs have readable names, each once; links follow the event files that come and go."""

import pytest

from tests.runs.test_records import write_run
from vggexp.errors import CheckpointError, DataError
from vggexp.runs.sweeps import SweptRun, write_runs
from vggexp.sweep.tensorboard import write_means
from vggexp.tensorboard.links import ShownRuns, check_folders, link_event_files


def write_typed_run(folder, *overrides):
    write_run(folder)
    (folder / "overrides.txt").write_text("".join(f"{text}\n" for text in overrides))
    (folder / "events.out.tfevents.1").write_text("events")
    return folder


def names(*folders):
    shown = ShownRuns(folders)
    shown.update()
    return {run.name: name for run, name in shown.names.items()}


def test_a_name_has_the_settings_in_which_the_runs_differ(tmp_path):
    write_typed_run(tmp_path / "a", "arch=vgg11", "optimizer.lr=0.01", "train.epochs=2")
    write_typed_run(tmp_path / "b", "arch=vgg11", "optimizer.lr=0.05", "train.epochs=2")
    write_typed_run(tmp_path / "c", "arch=vgg13", "+optimizer.lr=0.05", "train.epochs=2")
    assert names(tmp_path) == {
        "a": "arch=vgg11,optimizer.lr=0.01",
        "b": "arch=vgg11,optimizer.lr=0.05",
        "c": "arch=vgg13,optimizer.lr=0.05",
    }


def test_a_sweep_knows_what_was_typed_for_its_runs(tmp_path):
    run = write_typed_run(tmp_path / "a")  # was typed alone, before the sweep
    runs = [SweptRun(run, ["arch=vgg11"]), SweptRun(tmp_path / "b", ["arch=vgg13"])]
    sweep = tmp_path / "sweeps/arch-0"
    sweep.mkdir(parents=True)
    write_runs(sweep, runs)
    assert names(sweep) == {"a": "arch=vgg11", "b": "arch=vgg13"}


def test_a_sweep_with_repeats_shows_its_means(tmp_path):
    write_runs(tmp_path, [SweptRun(tmp_path / "a", ["seed=0"]), SweptRun(tmp_path / "b", [])])
    write_means(tmp_path, {"arch=vgg11": [[{"epoch": 1, "val/loss": 0.5}]]})
    mean = tmp_path / "repeats/arch=vgg11"
    shown = ShownRuns([tmp_path])
    shown.update()
    assert shown.names[mean] == "mean of arch=vgg11"
    link_event_files(shown.names, tmp_path / "target")
    links = (tmp_path / "target/mean of arch=vgg11").iterdir()
    assert [link.resolve().parent for link in links] == [mean]


def test_a_name_leaves_out_what_makes_no_other_run(tmp_path):
    write_typed_run(tmp_path / "a", "seed=1", "train.log_steps=5", "run.root=x", "hydra.x=1")
    write_typed_run(tmp_path / "b", "--config-dir=mine", "seed=2", "run.name=b")
    assert names(tmp_path) == {"a": "seed=1", "b": "seed=2"}


def test_a_run_is_shown_once(tmp_path):
    run = write_typed_run(tmp_path / "a", "seed=1")
    (tmp_path / "link").symlink_to(run)
    assert names(tmp_path, run, tmp_path / "link") == {"a": "a"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((), (), ["a", "b"]),
        (("seed=1",), (), ["a", "b"]),
        (("data.root=/x/y",), ("data.root=..",), ["data.root=_x_y", "data.root=.."]),
        (("seed=1",), (f"seed={200 * '1'}",), ["seed=1", "b"]),
        (("seed=ö",), ("seed=ä",), ["seed=_", "b"]),
    ],
)
def test_a_name_that_does_not_fit_is_that_of_the_folder(tmp_path, first, second, expected):
    write_typed_run(tmp_path / "a", *first)
    write_typed_run(tmp_path / "b", *second)
    assert list(names(tmp_path).values()) == expected


def test_folders_of_the_same_name_are_numbered(tmp_path):
    write_typed_run(tmp_path / "x/a")
    write_typed_run(tmp_path / "y/a")
    shown = ShownRuns([tmp_path])
    shown.update()
    assert list(shown.names.values()) == ["a", "a-2"]


def test_a_run_keeps_its_name_when_another_starts(tmp_path):
    write_typed_run(tmp_path / "a", "seed=1")
    shown = ShownRuns([tmp_path])
    shown.update()
    write_typed_run(tmp_path / "b", "seed=2")
    shown.update()
    assert list(shown.names.values()) == ["a", "b"]


def test_links_follow_the_event_files(tmp_path):
    run = write_typed_run(tmp_path / "a")
    evaluation = run / "evaluations/dense"
    evaluation.mkdir(parents=True)
    (evaluation / "events.out.tfevents.2").write_text("evaluated")
    target = tmp_path / "target"
    link_event_files({run: "seed=1"}, target)
    link_event_files({run: "seed=1"}, target)
    assert (target / "seed=1/events.out.tfevents.1").read_text() == "events"
    assert (target / "seed=1/evaluations/dense/events.out.tfevents.2").read_text() == "evaluated"
    # A run that continues writes a new file, and removes the old one.
    (run / "events.out.tfevents.3").write_text("continued")
    (run / "events.out.tfevents.1").unlink()
    link_event_files({run: "seed=1"}, target)
    assert [path.name for path in (target / "seed=1").glob("events*")] == ["events.out.tfevents.3"]


def test_a_folder_without_runs_is_refused(tmp_path):
    write_typed_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    check_folders([tmp_path, tmp_path / "a"])
    with pytest.raises(DataError, match=r"empty: holds no run \(a run is a folder with config"):
        check_folders([tmp_path, tmp_path / "empty"])


def test_a_damaged_sweep_is_refused(tmp_path):
    (tmp_path / "runs.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"runs\.json: not the runs of a sweep"):
        check_folders([tmp_path])
