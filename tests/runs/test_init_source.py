"""Which weights a run begins from, as the door sees it: by what they are and not by where they lie."""

import hashlib
import json

import pytest
import yaml

from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.parse import ErrorList, parse_config
from vggexp.config.run_id import run_name
from vggexp.errors import CheckpointError, ConfigError
from vggexp.sweep.expand import compose_run

HASH = "5f" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A finished run in outputs/a, a file w.pth."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "outputs" / "a")
    (tmp_path / "w.pth").write_bytes(b"weights")
    return tmp_path


def finished(path, sha256=HASH, state="finished"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text("seed: 0")
    (path / "result.json").write_text(json.dumps({"state": state, "weights_sha256": sha256}))


def loaded(*words):
    return compose_run(parse_command(["device=cpu", *words]))


def test_the_hash_of_a_run_and_of_a_file():
    assert loaded("train.init_from=outputs/a").train.init_sha256 == HASH
    assert (
        loaded("train.init_from=w.pth").train.init_sha256 == hashlib.sha256(b"weights").hexdigest()
    )
    assert loaded().train.init_sha256 is None


def test_the_name_is_that_of_the_weights(folder):
    name = run_name(loaded("train.init_from=outputs/a"))
    assert name != run_name(loaded())
    (folder / "elsewhere").symlink_to(folder / "outputs")
    for path in ("./outputs/a/", folder / "outputs" / "a", "elsewhere/a"):
        assert run_name(loaded(f"train.init_from={path}", f"train.init_sha256={HASH}")) == name
    finished(folder / "outputs" / "a", "60" * 32)
    assert run_name(loaded("train.init_from=outputs/a")) != name
    file = run_name(loaded("train.init_from=w.pth"))
    (folder / "w.pth").write_bytes(b"weight s")
    assert run_name(loaded("train.init_from=w.pth")) not in (file, name)


def begun(folder, name, config):
    path = folder / "outputs" / name
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))


def test_where_the_source_has_gone_the_run_that_was_begun_tells(folder):
    begin = "train.init_from=outputs/a"
    config = loaded(begin)
    begun(folder, run_name(config), config)
    (folder / "outputs" / "a").rename(folder / "gone")
    assert run_name(loaded(begin)) == run_name(config)
    with pytest.raises(ConfigError, match="no such run directory or file"):
        loaded(begin, "run.name=other")
    assert run_name(loaded("train.init_from=nowhere", f"train.init_sha256={HASH}")) == run_name(
        config
    )
    finished(folder / "outputs" / "a", "60" * 32)
    other = loaded(begin)
    begun(folder, run_name(other), other)
    (folder / "outputs" / "a").rename(folder / "gone_too")
    with pytest.raises(
        ConfigError, match="no such run directory or file"
    ):  # two runs tell different things
        loaded(begin)


@pytest.mark.parametrize(
    ("words", "expected"),
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
            "train.init_from=outputs/b: this run has not finished (result.json: running)",
        ),
    ],
)
def test_what_is_refused(folder, words, expected):
    finished(folder / "outputs" / "b", state="running")
    with pytest.raises((ConfigError, CheckpointError)) as refused:
        loaded(*words)
    assert str(refused.value).startswith(expected)


def test_a_run_of_an_earlier_version_is_read():
    """It has not heard of options that were born null since."""
    values = to_plain(loaded())
    old = values | {
        "train": {key: value for key, value in values["train"].items() if value is not None}
    }
    problems = ErrorList()
    assert parse_config(old, problems) == loaded() and not problems
