"""A run is found by the hash of its name, whatever stands before the hash."""

import os

import pytest
import yaml

from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.run_id import run_hash, run_name
from vggexp.runs.directory import write_result
from vggexp.runs.records import finished_result, run_dir
from vggexp.sweep.expand import compose_run


@pytest.fixture
def load(tmp_path):
    def compose(*overrides):
        return compose_run(parse_command([f"run.root={tmp_path}", "device=cpu", *overrides]))

    return compose


def write_run(folder, config):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    write_result(folder, "finished", **{"test/accuracy": 0.5})
    return folder


def test_a_run_that_does_not_exist_has_its_own_name(load, tmp_path):
    config = load()
    assert run_dir(config) == tmp_path / run_name(config)
    (tmp_path / "other-run").mkdir()
    assert run_dir(config) == tmp_path / run_name(config)


def test_a_run_of_an_earlier_version_is_found(load, tmp_path):
    config = load("arch.hidden=[128]")
    folder = write_run(tmp_path / f"vgg10-fashion_mnist-96px-lr0.01-{run_hash(config)}", config)
    assert run_dir(config) == folder
    assert finished_result(config)["test/accuracy"] == 0.5


def test_a_run_that_was_typed_in_another_way_is_found(load, tmp_path):
    typed = load("optimizer.weight_decay=5e-4")
    config = load()
    assert run_name(typed) != run_name(config)
    folder = write_run(tmp_path / run_name(typed), typed)
    assert run_dir(config) == folder
    assert run_dir(load("seed=1")) != folder


def test_of_several_folders_the_exact_name_comes_first_and_then_the_first(load, tmp_path):
    config = load()
    second = write_run(tmp_path / f"b-{run_hash(config)}", config)
    assert run_dir(config) == second
    first = write_run(tmp_path / f"a-{run_hash(config)}", config)
    assert run_dir(config) == first
    exact = write_run(tmp_path / run_name(config), config)
    assert run_dir(config) == exact


def test_what_is_no_folder_of_this_run_is_passed_over(load, tmp_path):
    config = load()
    digits = run_hash(config)
    (tmp_path / f"a-{digits}").write_text("a file")
    (tmp_path / f"b-{digits}").symlink_to("nowhere")
    (tmp_path / f"c-{digits}").mkdir()
    write_run(tmp_path / f"d-{digits}", load("seed=3"))
    damaged = write_run(tmp_path / f"e-{digits}", config)
    (damaged / "config.yaml").write_text("{")
    os.mkfifo(tmp_path / f"f-{digits}")
    write_run(tmp_path / f"g-{digits}-2", config)
    write_run(tmp_path / digits, config)
    assert run_dir(config) == tmp_path / run_name(config)
    folder = write_run(tmp_path / f"h-{digits}", config)
    assert run_dir(config) == folder


def test_a_link_to_a_run_is_followed(load, tmp_path):
    config = load()
    (tmp_path / "disk").mkdir()
    target = write_run(tmp_path / "disk/moved", config)
    link = tmp_path / f"old-{run_hash(config)}"
    link.symlink_to(target)
    assert run_dir(config) == link


def test_a_copy_takes_the_first_number_that_no_label_has(load, tmp_path):
    copy = load("resume=never")
    config = load()
    name = run_name(config)
    assert run_dir(copy) == tmp_path / name
    write_run(tmp_path / f"old-{run_hash(config)}", config)
    assert run_dir(copy) == tmp_path / f"{name}-2"
    write_run(tmp_path / f"old-{run_hash(config)}-2", config)
    write_run(tmp_path / f"{name}-3", config)
    assert run_dir(copy) == tmp_path / f"{name}-4"
    assert run_dir(config) == tmp_path / f"old-{run_hash(config)}"


def test_a_name_that_is_given_is_the_folder(load, tmp_path):
    config = load()
    write_run(tmp_path / f"old-{run_hash(config)}", config)
    assert run_dir(load("run.name=mine")) == tmp_path / "mine"
    write_run(tmp_path / "mine", config)
    assert run_dir(load("run.name=mine", "resume=never")) == tmp_path / "mine-2"
