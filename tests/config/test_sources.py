"""Tests that a command reads each file once, here and in the processes of its launchers."""

import pickle
import shutil
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from vggexp.config import command_files, own_files
from vggexp.config.compose import hydra_session, parse_command
from vggexp.config.device import conf_dir
from vggexp.config.own_files import SHIPPED
from vggexp.config.sources import FileConfigSource

FILE = "optimizer/mine.yaml"


@pytest.fixture
def source(tmp_path):
    command_files.use_files(command_files.Files())
    return FileConfigSource(SHIPPED, f"file://{tmp_path}")


def test_another_command_reads_a_changed_file_again(tmp_path, source):
    for value in (1, 2):
        command_files.use_files(command_files.Files())
        (tmp_path / "seeds.yaml").write_text(f"seed: {value}")
        assert source.load_config("seeds").config.seed == value


def test_what_a_reader_changes_is_not_in_the_next_copy(tmp_path, source):
    (tmp_path / "seeds.yaml").write_text("seed: 1")
    source.load_config("seeds").config.pop("seed")
    assert source.load_config("seeds").config.seed == 1


def test_a_file_that_was_not_there_at_first_is_not_found_later(tmp_path, source):
    assert not source.is_config("seeds")
    (tmp_path / "seeds.yaml").write_text("seed: 1")
    assert not source.is_config("seeds")


def write_optimizer(folder, lr):
    (folder / "optimizer").mkdir(exist_ok=True)
    (folder / FILE).write_text(f"name: SGD\nlr: {lr}\n")


@pytest.mark.parametrize("change", ["another value", "deleted"])
def test_a_change_during_a_command_reaches_no_job(change, tmp_path):
    write_optimizer(tmp_path, 0.5)
    with hydra_session(parse_command([f"--config-dir={tmp_path}"])) as compose_fn:
        master = compose_fn(["optimizer=mine"])
        loader = GlobalHydra.instance().config_loader()
        write_optimizer(tmp_path, 0.25)
        if change == "deleted":
            (tmp_path / FILE).unlink()
        job = loader.load_sweep_config(master, ["optimizer=mine", "seed=1"])
    assert job.optimizer.lr == 0.5


def test_the_process_of_a_launcher_reads_what_the_command_has_read(tmp_path):
    write_optimizer(tmp_path, 0.5)
    with hydra_session(parse_command([f"--config-dir={tmp_path}"])) as compose_fn:
        master = compose_fn(["optimizer=mine"])
        pickled = pickle.dumps(GlobalHydra.instance().config_loader())
    parse_command([])  # another process knows no files
    write_optimizer(tmp_path, 0.25)
    job = pickle.loads(pickled).load_sweep_config(master, ["optimizer=mine", "seed=1"])
    assert job.optimizer.lr == 0.5


def test_a_process_that_works_for_a_second_command_reads_the_files_again(tmp_path):
    rates = []
    for lr in (0.5, 0.25):
        write_optimizer(tmp_path, lr)
        with hydra_session(parse_command([f"--config-dir={tmp_path}"])) as compose_fn:
            master = compose_fn(["optimizer=mine"])
            pickled = pickle.dumps(GlobalHydra.instance().config_loader())
        loader = pickle.loads(pickled)
        rates.append(loader.load_sweep_config(master, ["optimizer=mine", "seed=1"]).optimizer.lr)
    assert rates == [0.5, 0.25]


def test_a_shipped_file_that_completes_an_own_one_is_read_once(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    (shipped / "optimizer").mkdir(parents=True)
    for name in ("config.yaml", "optimizer/momentum.yaml"):
        shutil.copy(Path(conf_dir(), name), shipped / name)
    monkeypatch.setattr(own_files, "conf_dir", lambda: str(shipped))
    own = tmp_path / "own"
    (own / "optimizer").mkdir(parents=True)
    (own / FILE).write_text("lr: 0.5\n")
    with hydra_session(parse_command([f"--config-dir={own}"])) as compose_fn:
        master = compose_fn(["optimizer=mine"])
        file = shipped / "optimizer" / "momentum.yaml"
        file.write_text(file.read_text().replace("momentum: 0.9", "momentum: 0.5"))
        loader = GlobalHydra.instance().config_loader()
        job = loader.load_sweep_config(master, ["optimizer=mine", "seed=1"])
    assert job.optimizer.momentum == 0.9


def test_a_worker_that_composes_nothing_uses_the_files_of_the_command(tmp_path):
    write_optimizer(tmp_path, 0.5)
    with hydra_session(parse_command([f"--config-dir={tmp_path}"])) as compose_fn:
        compose_fn(["optimizer=mine"])
        pickled = pickle.dumps(GlobalHydra.instance().config_loader())
    parse_command([])
    write_optimizer(tmp_path, 0.25)
    pickle.loads(pickled)
    assert "lr: 0.5" in command_files.current_files().read(str(tmp_path / FILE))
