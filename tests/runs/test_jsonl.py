"""metrics.jsonl and small JSON files survive a crash at any byte."""

import json
import os

import pytest

from tests.system.conftest import record_disk_events
from vggexp.errors import CheckpointError
from vggexp.runs import jsonl

ROWS = [{"epoch": 1, "train/loss": 2.5}, {"epoch": 2, "train/loss": 1.5}]


def write(path, content):
    path.write_bytes(content)
    return path


def test_rows_come_back_and_nonfinite_numbers_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert jsonl.read(path) == []
    for row in ROWS:
        jsonl.append(path, row)
    jsonl.append(path, {"epoch": 3, "train/loss": float("nan"), "lr": float("inf")})
    assert jsonl.read(path) == [*ROWS, {"epoch": 3, "train/loss": None, "lr": None}]
    assert path.read_text().count("\n") == 3


def test_a_cut_at_any_byte_keeps_the_finished_rows_and_accepts_more(tmp_path):
    path = tmp_path / "metrics.jsonl"
    jsonl.rewrite(path, ROWS)
    content = path.read_bytes()
    first_end = content.index(b"\n")
    second_end = len(content) - 1
    for length in range(len(content) + 1):
        finished = sum(end <= length for end in (first_end, second_end))
        assert jsonl.read(write(path, content[:length])) == ROWS[:finished]
        jsonl.append(path, {"epoch": 9})
        assert jsonl.read(path) == [*ROWS[:finished], {"epoch": 9}]


def test_zeros_at_the_end_are_dropped(tmp_path):
    """A power cut can leave zeros."""
    path = tmp_path / "metrics.jsonl"
    jsonl.rewrite(path, ROWS)
    assert jsonl.read(write(path, path.read_bytes() + b"\0" * 9)) == ROWS


@pytest.mark.parametrize("damage", [b"{", b"5", b"\xff\xfe"])
def test_damage_before_the_end_is_refused_with_its_line(tmp_path, damage):
    path = write(tmp_path / "metrics.jsonl", b'{"epoch": 1}\n' + damage + b'\n{"epoch": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2: "):
        jsonl.read(path)


def test_a_failed_replacement_keeps_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no")

    path = tmp_path / "result.json"
    jsonl.write_json(path, {"state": "running"})
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        jsonl.write_json(path, {"state": "finished"})
    assert json.loads(path.read_text()) == {"state": "running"}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_replacement_ignores_the_rest_of_a_crash_and_never_follows_a_link(tmp_path):
    outside = write(tmp_path / "outside", b"mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json.tmp").symlink_to(outside)
    value = {"name": "猫", "best": (1.5, float("nan")), "error": None}
    jsonl.write_json(run / "result.json", value)
    content = json.loads((run / "result.json").read_text("utf-8"))
    assert content == {"name": "猫", "best": [1.5, None], "error": None}
    assert outside.read_bytes() == b"mine"
    assert os.listdir(run) == ["result.json"]


def test_a_path_may_hold_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "result.json"
    name = os.fsdecode(b"caf\xe9/caf\xc3\xa9")
    jsonl.write_json(path, {"error": name})
    assert path.read_text("utf-8") == '{\n  "error": "caf\\udce9/café"\n}\n'
    assert json.loads(path.read_bytes()) == {"error": name}


def test_a_row_and_a_new_file_are_on_the_disk_at_once(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    events = record_disk_events(monkeypatch)
    jsonl.append(path, {"epoch": 1})
    jsonl.append(path, {"epoch": 2})
    row_bytes = path.stat().st_size // 2
    assert events == [row_bytes, "folder", 2 * row_bytes]
