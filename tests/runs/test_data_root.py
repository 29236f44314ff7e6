"""The data of a run is found where it was, where the run was started, or where --data says."""

import importlib
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import write_images
from vggexp.config.compose import parse_command
from vggexp.errors import ConfigError
from vggexp.runs.data_root import locate_data
from vggexp.runs.directory import read_result
from vggexp.sweep.expand import compose_run

SMALL = ["data=image_folder", "data.root=images", "data.resize=32", "data.batch_size=8"]
SMALL += ["arch.width=0.05", "arch.hidden=[16]", "train.epochs=2", "device.threads=1"]


@pytest.fixture
def run(tmp_path):
    """run(start, "key=value", ...) -> (config, run directory) of a run that was started there."""

    def make(start, *overrides):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text("{}")
        (folder / "env.json").write_text(json.dumps({"working_directory": start}))
        return compose_run(parse_command(list(overrides))), folder

    return make


def test_a_relative_root_belongs_to_where_the_run_was_started(run, tmp_path):
    (tmp_path / "images").mkdir()
    config, folder = run(str(tmp_path), "data.root=images")
    assert locate_data(config, folder, None).data.root == str(tmp_path / "images")


@pytest.mark.parametrize("start", ["/nowhere", None, 7])
def test_a_relative_root_that_is_not_there_belongs_to_the_working_directory(run, start):
    config, folder = run(start, "data.root=images")
    assert locate_data(config, folder, None) == config


def test_the_given_folder_is_the_only_place(run, tmp_path):
    data = locate_data(*run(str(tmp_path), "data.root=images"), tmp_path).data
    assert data.root == str(tmp_path)
    assert not data.download


@pytest.mark.parametrize(
    ("overrides", "name", "reason"),
    [
        (["data=synthetic"], ".", "data=synthetic reads no folder; leave it out"),
        (["data=digits", "data.resize=32"], ".", "data=digits reads no folder; leave it out"),
        ([], "none", "no such directory"),
    ],
)
def test_a_folder_that_cannot_hold_the_data_is_refused(run, tmp_path, overrides, name, reason):
    with pytest.raises(ConfigError, match=f"^--data {tmp_path / name}: {reason}$"):
        locate_data(*run(None, *overrides), tmp_path / name)


@pytest.mark.process
def test_commands_find_moved_images(command, capfd, monkeypatch, tmp_path):
    write_images(Path("images"), {"train": 10, "test": 3}, lambda index: (40, 36), "png")
    assert command(*SMALL, "run.name=a")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = str(tmp_path / "outputs/a")
    commands = {"evaluate": [], "export": ["--format", "torch"], "verify": []}

    def codes_and_errors(*options):
        capfd.readouterr()
        for name, argv in commands.items():
            main = importlib.import_module(f"vggexp.{name}.__main__").main
            yield main([folder, *argv, *options]), capfd.readouterr().err

    assert [code for code, _ in codes_and_errors()] == [0, 0, 0]
    shutil.move(tmp_path / "images", tmp_path / "moved")
    for code, error in codes_and_errors():
        assert code == 3
        assert "(--data FOLDER gives the place of moved data)" in error
    assert [code for code, _ in codes_and_errors("--data", "../moved")] == [0, 0, 0]
    (tmp_path / "moved/test/cat/0.png").write_bytes(b"")
    for code, error in codes_and_errors("--data", "../moved"):
        assert code in (3, 4)
        assert error.count("\n") == 1
    assert read_result(Path(folder))["state"] == "finished"
