"""Whatever stands in a run directory, readers return a value or raise the one error."""

import importlib
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.permissions import without_root_rights
from tools.faults import run_files
from tools.faults.catalog import SMALLEST
from vggexp.errors import CheckpointError, ResourceError
from vggexp.runs import directory, jsonl, schema

RENDERED_SHARE = 25  # of the damages, one of so many goes through report and compare


@pytest.fixture
def run(tmp_path):
    run_files.make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.catalog
def test_every_damage_is_a_value_or_the_one_error(run, tmp_path):
    """Thousands of damages. An exception of another type ends the test, and names its damage."""
    good = tmp_path / "good"
    run_files.make_run(good)
    contents = {path.name: path.read_bytes() for path in run.iterdir()}
    damages = list(run_files.damages(run))
    assert len(damages) > 3_000
    for index, damage in enumerate(damages):
        damage.apply(run)
        try:
            run_files.read_file(run, damage.name)
            if index % RENDERED_SHARE == 0:
                run_files.render_commands(run, good)
        except Exception as error:
            error.add_note(f"{damage.name}: {damage.text}")
            raise
        damage.revert(run, contents[damage.name])


CHOSEN = ("FIFO", "folder", "brackets")
READERS = {
    "config.yaml": directory.read_config,
    "result.json": directory.read_result,
    "env.json": directory.read_environment,
    "metrics.jsonl": lambda folder: jsonl.read(folder / "metrics.jsonl"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["FIFO", "folder", "endless device", "link to itself", "huge"])
def test_other_kinds_of_files_are_refused_with_a_way_out(name, kind, run):
    (run / name).unlink()
    run_files.FILE_KINDS[kind](run / name)
    with pytest.raises(CheckpointError, match=f"{name}: .*; move it away and {schema.REPAIR}"):
        READERS[name](run)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"test/accuracy": "x"}, "test/accuracy is x, expected 0..1"),
        ({"test/accuracy": 1.5}, "test/accuracy is 1.5, expected 0..1"),
        ({"val/loss": []}, r"val/loss is \[\], expected a number"),
        ({"val/loss": float("nan")}, "val/loss is nan, expected a number"),
        ({"val/loss": 1e308}, r"val/loss is 1e\+308, expected a number"),
        ({"seconds": True}, "seconds is true, expected a number"),
        ({"epoch": -1}, "epoch is -1, expected a whole number"),
        ({"weights_step": 2.0}, r"weights_step is 2\.0, expected a whole number"),
        ({"parameters": 10**30}, "expected a whole number"),
        ({"state": None}, "state is null, expected text"),
        ({"error": "\x1b[2J" * 99, "weights_sha256": 7}, "weights_sha256 is 7, expected text"),
        ({"state": {"\n": 1}}, r"state is {\\n:1}, expected text"),
    ],
)
def test_wrong_types_in_result_json_are_named(content, problem):
    with pytest.raises(ValueError, match=problem):
        schema.check_result(content)


def test_keys_of_other_versions_are_left_alone():
    schema.check_result({"state": "finished", "error": None, "later": [{"a": 1}], "val/loss": None})
    schema.check_environment({"later": [1]})


@pytest.mark.parametrize("row", [{}, {"epoch": "1"}, {"epoch": 1, "lr": "0.1"}])
def test_an_epoch_has_numbers(row):
    with pytest.raises(ValueError, match="expected a"):
        schema.check_epoch(row)


def test_a_missing_permission_is_no_damage(run):
    (run / "result.json").chmod(0)
    with (
        without_root_rights(),
        pytest.raises(ResourceError, match=r"result\.json: cannot be read: Permission denied"),
    ):
        directory.read_result(run)
    run.chmod(0o600)
    with (
        without_root_rights(),
        pytest.raises(ResourceError, match="run: cannot be read: Permission denied"),
    ):
        directory.require_run(run)
    run.chmod(0o700)


COMMANDS = {
    "report": ["outputs"],
    "compare": ["outputs/a", "outputs/good"],
    "evaluate": ["outputs/a"],
    "export": ["outputs/a", "--format=torch"],
    "predict": ["outputs/a", "image.png"],
    "verify": ["outputs/a"],
}


@pytest.mark.process
def test_every_command_ends_in_one_line(command, capfd, monkeypatch):
    command(*SMALLEST)
    shutil.copytree("outputs/a", "outputs/good")
    Image.new("L", (8, 8)).save("image.png")
    run = Path("outputs/a")
    contents = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    damages = [damage for damage in run_files.damages(run) if damage.text in CHOSEN]
    assert len(damages) == len(CHOSEN) * len(READERS) + 3  # predictions.npz
    for damage in damages:
        damage.apply(run)
        for name, argv in COMMANDS.items():
            module = importlib.import_module(f"vggexp.{name}.__main__")
            code = module.main(argv)
            error = capfd.readouterr().err
            assert code in (0, 4), (damage.name, damage.text, name, error)
            assert "Traceback" not in error
            if code:
                assert error.startswith("vggexp: error: outputs/a"), error
                assert error.count("\n") == 1
        damage.revert(run, contents[damage.name])


@pytest.mark.process
def test_a_closed_checkpoint_is_code_6_for_every_reader(command, capfd):
    command(*SMALLEST)
    Image.new("L", (8, 8)).save("image.png")
    for path in Path("outputs/a/checkpoints").iterdir():
        path.chmod(0)
    with without_root_rights():
        codes = {"train": command(*SMALLEST, "train.epochs=3")[0]}
        for name in ("evaluate", "export", "predict", "verify"):
            module = importlib.import_module(f"vggexp.{name}.__main__")
            codes[name] = module.main(COMMANDS[name])
            assert capfd.readouterr().err.endswith(".pt: cannot be read: Permission denied\n")
    assert set(codes.values()) == {6}, codes


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "report"])
def test_a_closed_folder_is_code_6_for_every_command(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir(mode=0)
    Image.new("L", (8, 8)).save("image.png")
    module = importlib.import_module(f"vggexp.{name}.__main__")
    with without_root_rights():
        assert module.main(COMMANDS[name]) == 6
    Path("outputs").chmod(0o700)
    assert capfd.readouterr().err.endswith(": cannot be read: Permission denied\n")
