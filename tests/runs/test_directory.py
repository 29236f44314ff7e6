"""Files of a run directory: what is written comes back, and every other content is refused."""

import contextlib
import os
import resource

import pytest

from vggexp.config.yaml_limits import MAX_BYTES
from vggexp.errors import CheckpointError, ConfigError, ResourceError
from vggexp.runs import directory


def test_require_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"not the folder of a run, it has no config\.yaml"):
        directory.require_run(tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path}/a, {tmp_path}/b: no such directory"):
        directory.require_run(tmp_path / "a", tmp_path, tmp_path / "b")
    (tmp_path / "config.yaml").write_text("seed: 0")
    directory.require_run(tmp_path)
    with pytest.raises(ConfigError, match=r"yaml: not a directory; .*/a: no such directory;"):
        directory.require_run(tmp_path / "config.yaml", tmp_path, tmp_path / "a")


def test_unused_name(tmp_path):
    (tmp_path / "run-4").write_text("a file takes a name too")
    names = []
    for _ in range(4):
        names.append(directory.unused_name(tmp_path, "run"))
        (tmp_path / names[-1]).mkdir()
    assert names == ["run", "run-2", "run-3", "run-5"]


def test_metadata_and_result_come_back(tmp_path):
    config = {
        "seed": 0,
        "data": {"root": None, "name": "größe"},
        "arch": {"blocks": [[1, 64], [2, 8, 1]]},
        "lr": 1e-05,
    }
    directory.write_metadata(tmp_path, config, ["arch=vgg11", "data.root='a b'"], {"attempts": 2})
    assert directory.read_config(tmp_path) == config
    assert list(directory.read_config(tmp_path)) == list(config)
    assert (tmp_path / "overrides.txt").read_text() == "arch=vgg11\ndata.root='a b'\n"
    assert directory.count_attempts(tmp_path) == 3
    assert directory.read_result(tmp_path) == {}
    directory.write_result(tmp_path, "failed", error="x", **{"val/loss": float("nan")})
    assert directory.read_result(tmp_path) == {"state": "failed", "error": "x", "val/loss": None}


@pytest.mark.parametrize(
    ("state", "states", "is_changed"),
    [
        ("running", ("running",), True),
        ("interrupted", ("running",), False),
        ("interrupted", ("running", "interrupted"), True),
        ("finished", ("running", "interrupted"), False),
    ],
)
def test_mark_interrupted_writes_only_over_the_given_states(tmp_path, state, states, is_changed):
    before = directory.write_result(tmp_path, state)
    directory.mark_interrupted(tmp_path, "killed", 9, states=states)
    interrupted = {"state": "interrupted", "error": "killed", "exit_code": 9}
    assert directory.read_result(tmp_path) == (interrupted if is_changed else before)


def test_mark_interrupted_expects_a_running_run(tmp_path):
    directory.write_result(tmp_path, "running")
    directory.mark_interrupted(tmp_path, "killed", 9)
    assert directory.read_result(tmp_path)["state"] == "interrupted"


def test_mark_interrupted_makes_no_folder(tmp_path):
    directory.mark_interrupted(tmp_path / "a", "killed", 9)
    assert not (tmp_path / "a").exists()


def test_mark_interrupted_reads_the_state_once_it_has_the_lock(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def lock_after_another_process(folder):
        directory.write_result(folder, "finished")
        yield

    directory.write_result(tmp_path, "running")
    monkeypatch.setattr(directory, "lock_run_dir", lock_after_another_process)
    directory.mark_interrupted(tmp_path, "killed", 9)
    assert directory.read_result(tmp_path)["state"] == "finished"


REFUSED_CONFIGS = {
    "tag": (b"!!python/object/apply:os.system ['touch planted']", "not a configuration: "),
    "name": (b"seed: !!python/name:os.system", "not a configuration: "),
    "bomb": (b"a: &a [1, *a]", "stands for more than 100000 values"),
    "list": (b"[1, 2]", "not a configuration"),
    "empty": (b"", "not a configuration"),
    "cut": (b"a: [", "not a configuration: "),
    "bytes": (b"\xff\xfe\x00", "not a configuration: "),
    "deep": (b"[" * 60_000, "more than 100 sections inside each other"),
    "date": (b"seed: 2020-01-01", "2020-01-01 is no plain value"),
    "key": (b"1: 2", "the key 1 is not text"),
    "large": (b"#" * (MAX_BYTES + 1), "larger than 1 MiB"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_another_config_yaml_is_refused_and_not_executed(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="it has no config"):
        directory.read_config(tmp_path)
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*{message}[^\n]*; move it away[^\n]*\Z"):
        directory.read_config(tmp_path)
    assert not (tmp_path / "planted").exists()


def test_aliases_are_read_within_the_limits(tmp_path):
    (tmp_path / "config.yaml").write_text("a: &a [1]\nb: *a")
    assert directory.read_config(tmp_path) == {"a": [1], "b": [1]}


@pytest.mark.parametrize("content", [b'{"state": ', b"", b"\xff", b"[]", b"null", b"[" * 10_000])
def test_another_result_json_is_refused(tmp_path, content):
    for name in (directory.RESULT, directory.ENVIRONMENT):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"result\.json: "):
        directory.read_result(tmp_path)
    assert directory.count_attempts(tmp_path) == 1


def test_no_descriptor_left_is_no_damaged_file(tmp_path):
    (tmp_path / directory.RESULT).write_text("{}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.dup(0)  # the next free number is the limit
    os.close(taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"result\.json: cannot be read: Too many open"):
            directory.read_result(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
