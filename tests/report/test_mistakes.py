"""Checks the section about the best run."""

import shlex
from html import escape

import numpy as np
import pytest

from tests.report.conftest import make_record
from vggexp.report.mistakes import best_run_section, class_names
from vggexp.report.table import build_table


def section_of(folder, *overrides, **options):
    run = make_record("a", *overrides, **options)._replace(folder=folder)
    return best_run_section(build_table([run]))


def test_the_best_run_has_its_confusions_and_mistakes(tmp_path):
    probs = np.full((4, 10), 0.01, np.float32)
    probs[range(4), [0, 2, 2, 1]] = [0.9, 0.8, 0.7, 0.6]
    np.savez(tmp_path / "predictions.npz", scores=probs, labels=np.array([0, 2, 1, 3]))
    html = section_of(tmp_path)
    assert "2 of 4 test images wrong." in html
    assert "Confusion" in html
    mistakes = html.split("Worst mistakes")[1]
    assert mistakes.index("Pullover") < mistakes.index("Dress")
    assert "0.7000" in mistakes
    assert "<img" not in mistakes


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_run_with_a_checkpoint_has_the_command_that_shows_its_mistakes(tmp_path, has_checkpoint):
    folder = tmp_path / "a run"
    folder.mkdir()
    np.savez(folder / "predictions.npz", scores=np.eye(10), labels=np.arange(10)[::-1])
    if has_checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "00000001.pt").touch()
    command = f"python -m vggexp.look {escape(shlex.quote(str(folder)))} --mistakes"
    assert (command in section_of(folder)) == has_checkpoint


def test_without_mistakes_there_is_no_list(tmp_path):
    np.savez(tmp_path / "predictions.npz", scores=np.eye(10), labels=np.arange(10))
    html = section_of(tmp_path)
    assert "0 of 10 test images wrong." in html
    assert "Worst mistakes" not in html


def test_missing_predictions_are_noted(tmp_path):
    assert "its predictions are left out: " in section_of(tmp_path)


def test_no_finished_run_has_no_section(tmp_path):
    assert section_of(tmp_path, state="failed") == ""


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"data.name": "fashion_mnist"},
        {"data.name": ["x"]},
        {"data.name": "image_folder"},
    ],
)
def test_unknown_classes_are_named_by_their_indices(config):
    assert class_names(config, 3) == ("0", "1", "2")


def test_classes_have_the_names_of_the_data_set():
    assert class_names({"data.name": "fashion_mnist"}, 10)[1] == "Trouser"


def test_classes_have_the_names_of_the_folders(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    config = {"data.name": "image_folder", "data.root": str(tmp_path)}
    assert class_names(config, 2) == ("cat", "dog")
    relative = {**config, "data.root": tmp_path.name}
    assert class_names(relative, 2, {"working_directory": str(tmp_path.parent)}) == ("cat", "dog")
    assert class_names({**config, "data.root": "gone"}, 2) == ("0", "1")
    assert class_names({**config, "data.root": "\0"}, 2) == ("0", "1")


def test_many_classes_have_a_table_of_mistakes_in_place_of_a_matrix(tmp_path):
    probs = np.eye(300, dtype=np.float32)
    labels = np.arange(300)
    labels[:2] = 299
    np.savez(tmp_path / "predictions.npz", scores=probs, labels=labels)
    html = section_of(tmp_path, "data=synthetic", "data.classes=300", "data.images=3000")
    assert "The most frequent mistakes of 300 classes." in html
    assert html.count("<td>299</td>") == 4  # the two confused pairs, and the two worst mistakes
    assert len(html) < 5000
