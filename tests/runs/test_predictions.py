"""Predictions read back: whole, or refused in one line."""

import io
import zipfile
from pathlib import Path

import numpy
import pytest

from vggexp.errors import CheckpointError
from vggexp.runs.predictions import read

SCORES = numpy.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], numpy.float32)
LABELS = numpy.array([0, 1, 1])


def test_read(tmp_path):
    numpy.savez_compressed(tmp_path / "predictions.npz", scores=SCORES, labels=LABELS)
    assert read(tmp_path).right.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"labels": LABELS[:2]}, r"scores \[3, 2\] and labels \[2\]"),
        ({"scores": SCORES[0]}, r"scores \[2\]"),
        ({"scores": SCORES[:0], "labels": LABELS[:0]}, r"scores \[0, 2\]"),
        ({"labels": LABELS + 1}, r"labels 1\.\.2, classes are 0\.\.1"),
        ({"labels": LABELS - 1}, r"labels -1\.\.0"),
        ({"labels": LABELS * 1.0}, "labels of float64"),
        ({"scores": SCORES > 0.5}, "scores of bool"),
        ({"scores": SCORES.astype(int)}, "scores of int64"),
        ({"scores": SCORES * numpy.inf}, "not finite"),
        ({"scores": SCORES.astype(object)}, "allow_pickle=False"),
        ({"scores": None}, "scores"),
    ],
)
def test_what_no_run_writes(changed, told, tmp_path):
    kept = {"scores": SCORES, "labels": LABELS} | changed
    numpy.savez(
        tmp_path / "predictions.npz",
        **{name: value for name, value in kept.items() if value is not None},
    )
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path)


def test_damage_of_any_kind(tmp_path, monkeypatch):
    path = tmp_path / "predictions.npz"
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path)
    numpy.savez_compressed(path, scores=SCORES, labels=LABELS)
    whole, random = path.read_bytes(), numpy.random.default_rng(0)
    refused = 0
    for _ in range(300):
        place, end = random.integers(len(whole), size=2)
        bad = bytearray(whole[:end] if random.random() < 0.2 else whole)
        bad[place % max(1, len(bad)) : place % max(1, len(bad)) + 1] = random.bytes(1)
        path.write_bytes(bad)
        try:
            read(tmp_path)  # a changed date, say, does no harm
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused > 200
    path.write_bytes(whole)
    monkeypatch.setattr("vggexp.runs.predictions.MOST_BYTES", 100)
    with pytest.raises(CheckpointError, match="scores takes 152 bytes, more than 100"):
        read(tmp_path)


def _archive(path: Path, scores: bytes) -> None:
    labels = io.BytesIO()
    numpy.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", labels.getvalue())
        archive.writestr("scores.npy", scores)


def test_a_header_reserves_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("vggexp.runs.predictions.MOST_BYTES", 1 << 20)
    file = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
    )
    path = tmp_path / "predictions.npz"
    for scores in (file.getvalue(), file.getvalue()[:20], b"", bytes(1 << 21)):
        _archive(path, scores)
        with pytest.raises(CheckpointError, match=r"predictions\.npz"):
            read(tmp_path)
    for content in (b"", b"PK\x03\x04" + bytes(50), path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"predictions\.npz"):
            read(tmp_path)
