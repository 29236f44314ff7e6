import json
import os

import pytest

from vggexp.errors import CheckpointError
from vggexp.runs import jsonl

ROWS = [{"epoch": 1, "train/loss": 2.5}, {"epoch": 2, "train/loss": 1.5}]


def filled(path, content):
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


def test_every_cut_of_the_file_keeps_the_finished_rows_and_accepts_more(tmp_path):
    path = tmp_path / "metrics.jsonl"
    jsonl.rewrite(path, ROWS)
    content = path.read_bytes()
    first = content.index(b"\n")
    for length in range(len(content) + 1):
        kept = ROWS[: (length >= first) + (length >= len(content) - 1)]
        assert jsonl.read(filled(path, content[:length])) == kept
        jsonl.append(path, {"epoch": 9})
        assert jsonl.read(path) == [*kept, {"epoch": 9}]
    assert jsonl.read(filled(path, content + b"\0" * 9)) == ROWS  # as a power cut leaves it


@pytest.mark.parametrize("bad", [b"{", b"5", b"\xff\xfe"])
def test_damage_before_the_end_is_refused_with_its_line(tmp_path, bad):
    path = filled(tmp_path / "metrics.jsonl", b'{"epoch": 1}\n' + bad + b'\n{"epoch": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 "):
        jsonl.read(path)


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    jsonl.write_json(path, {"state": "running"})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        jsonl.write_json(path, {"state": "finished"})
    assert json.loads(path.read_text()) == {"state": "running"}
    assert os.listdir(tmp_path) == ["result.json"]


def test_replacement_passes_over_a_crash_and_never_through_a_link(tmp_path):
    outside = filled(tmp_path / "outside", b"mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json.tmp").symlink_to(outside)
    jsonl.write_json(
        run / "result.json", {"name": "猫", "best": (1.5, float("nan")), "error": None}
    )
    assert json.loads((run / "result.json").read_text("utf-8")) == {
        "name": "猫",
        "best": [1.5, None],
        "error": None,
    }
    assert outside.read_bytes() == b"mine" and os.listdir(run) == ["result.json"]
