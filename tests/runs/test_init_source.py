"""The hash of the initial weights: the name of a run follows from it and not from the path."""

import hashlib
import json

import pytest
import yaml

from tests.permissions import without_root_rights
from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.run_id import run_hash, run_name
from vggexp.errors import CheckpointError, ConfigError, ResourceError
from vggexp.sweep.expand import compose_run

HASH = "5f" * 32
OTHER_HASH = "60" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Makes a finished run outputs/a and a file w.pth, and enters their folder."""
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "outputs" / "a")
    (tmp_path / "w.pth").write_bytes(b"weights")
    return tmp_path


def write_source(path, sha256=HASH, state="finished"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text("seed: 0")
    (path / "result.json").write_text(json.dumps({"state": state, "weights_sha256": sha256}))


def write_started_run(folder, config):
    path = folder / "outputs" / run_name(config)
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))


def load(*overrides):
    return compose_run(parse_command(["device=cpu", *overrides]))


def test_a_closed_source_is_a_missing_permission(folder):
    (folder / "outputs").chmod(0)
    with (
        without_root_rights(),
        pytest.raises(ResourceError, match="=outputs/a: cannot be read: Permission denied"),
    ):
        load("train.init_from=outputs/a")
    (folder / "outputs").chmod(0o700)


def test_the_hash_of_a_run_and_of_a_file():
    assert load("train.init_from=outputs/a").train.init_sha256 == HASH
    digest = hashlib.sha256(b"weights").hexdigest()
    assert load("train.init_from=w.pth").train.init_sha256 == digest
    assert load().train.init_sha256 is None


def test_the_name_follows_from_the_weights(folder):
    name = run_hash(load("train.init_from=outputs/a"))
    assert name != run_hash(load())
    (folder / "elsewhere").symlink_to(folder / "outputs")
    for path in ("./outputs/a/", folder / "outputs" / "a", "elsewhere/a"):
        config = load(f"train.init_from={path}", f"train.init_sha256={HASH}")
        assert run_hash(config) == name
    write_source(folder / "outputs" / "a", OTHER_HASH)
    assert run_hash(load("train.init_from=outputs/a")) != name
    name_of_file = run_hash(load("train.init_from=w.pth"))
    (folder / "w.pth").write_bytes(b"weight s")
    assert run_hash(load("train.init_from=w.pth")) not in (name_of_file, name)


def test_a_started_run_provides_the_hash_of_a_missing_source(folder):
    override = "train.init_from=outputs/a"
    config = load(override)
    write_started_run(folder, config)
    (folder / "outputs" / "a").rename(folder / "gone")
    assert run_hash(load(override)) == run_hash(config)
    with pytest.raises(ConfigError, match="no such run directory or file"):
        load(override, "run.name=other")


def test_a_given_hash_replaces_a_missing_source():
    name = run_hash(load("train.init_from=outputs/a"))
    config = load("train.init_from=nowhere", f"train.init_sha256={HASH}")
    assert run_hash(config) == name


def test_started_runs_that_disagree_provide_no_hash(folder):
    override = "train.init_from=outputs/a"
    write_started_run(folder, load(override))
    write_source(folder / "outputs" / "a", OTHER_HASH)
    write_started_run(folder, load(override))
    (folder / "outputs" / "a").rename(folder / "gone")
    with pytest.raises(ConfigError, match="no such run directory or file"):
        load(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["train.init_from=nowhere"],
            "train.init_from=nowhere: no such run directory or file of weights",
        ),
        (["train.init_from=."], ".: not the folder of a run, it has no config.yaml"),
        (
            ["train.init_from=w.pth", f"train.init_sha256={'0' * 64}"],
            "train.init_from=w.pth: its SHA-256 is ",
        ),
        (
            ["train.init_from=outputs/b"],
            "outputs/b is interrupted; only finished runs can be taken for train.init_from",
        ),
        (
            ["train.init_from=outputs/c"],
            "outputs/c/result.json: has no weights_sha256; move it away and ",
        ),
    ],
)
def test_a_wrong_source_is_refused(folder, overrides, expected):
    write_source(folder / "outputs" / "b", state="running")
    write_source(folder / "outputs" / "c", sha256=None)
    with pytest.raises((ConfigError, CheckpointError)) as refused:
        load(*overrides)
    assert str(refused.value).startswith(expected)
