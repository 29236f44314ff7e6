"""predictions.npz is read completely or refused in one line; counts made from it."""

import io
import zipfile
from pathlib import Path

import numpy
import pytest

from vggexp.errors import CheckpointError
from vggexp.runs.predictions import Mistake, Predictions, read, worst_mistakes

PROBS = numpy.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], numpy.float32)
LABELS = numpy.array([0, 1, 1])


def save(folder: Path, probs=PROBS, labels=LABELS) -> Path:
    path = folder / "predictions.npz"
    numpy.savez_compressed(path, scores=probs, labels=labels)
    return path


def test_read(tmp_path):
    save(tmp_path)
    predictions = read(tmp_path)
    assert predictions.probs.tolist() == PROBS.tolist()
    assert predictions.labels.tolist() == LABELS.tolist()
    assert predictions.predicted.tolist() == [0, 1, 0]
    assert predictions.correct.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:2]}, "scores of 3 images and labels of 2"),
        ({"scores": PROBS[0]}, r"scores are float32 \[2\], expected floats \[N, K\]"),
        ({"scores": PROBS[:0], "labels": LABELS[:0]}, r"scores are float32 \[0, 2\]"),
        ({"labels": LABELS + 1}, r"labels 1\.\.2, classes are 0\.\.1"),
        ({"labels": LABELS - 1}, r"labels -1\.\.0"),
        ({"labels": LABELS * 1.0}, r"labels are float64 \[3\], expected integers \[N\]"),
        ({"scores": PROBS > 0.5}, "scores are bool"),
        ({"scores": PROBS.astype(int)}, "scores are int64"),
        ({"scores": PROBS * numpy.inf}, "not finite"),
        ({"scores": PROBS.astype(object)}, "scores are object"),
        ({"scores": None}, "scores"),
    ],
)
def test_arrays_that_no_run_writes_are_refused(changes, message, tmp_path):
    arrays = {"scores": PROBS, "labels": LABELS} | changes
    present = {name: array for name, array in arrays.items() if array is not None}
    numpy.savez(tmp_path / "predictions.npz", **present)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="missing; give the command of the run again"):
        read(tmp_path)


def test_a_damaged_file_never_raises_another_error(tmp_path):
    path = save(tmp_path)
    content = path.read_bytes()
    random = numpy.random.default_rng(0)
    refused = 0
    for _ in range(300):
        position, end = random.integers(len(content), size=2)
        damaged = bytearray(content[:end] if random.random() < 0.2 else content)
        index = position % max(1, len(damaged))
        damaged[index : index + 1] = random.bytes(1)
        path.write_bytes(damaged)
        try:
            read(tmp_path)  # a changed date, for example, does no harm
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


def test_a_large_array_is_refused_by_its_size(tmp_path):
    save(tmp_path)
    with pytest.raises(CheckpointError, match="scores takes 24 bytes, more than 20"):
        read(tmp_path, max_bytes=20)


def write_archive(path: Path, scores: bytes) -> None:
    labels = io.BytesIO()
    numpy.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", labels.getvalue())
        archive.writestr("scores.npy", scores)


def test_a_header_reserves_no_memory(tmp_path):
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
    numpy.lib.format.write_array_header_1_0(file, header)
    path = tmp_path / "predictions.npz"
    for scores in (file.getvalue(), file.getvalue()[:20], b"", bytes(1 << 21)):
        write_archive(path, scores)
        with pytest.raises(CheckpointError, match=r"predictions\.npz"):
            read(tmp_path, max_bytes=1 << 20)
    for content in (b"", b"PK\x03\x04" + bytes(50), path.read_bytes()[:-30]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"predictions\.npz"):
            read(tmp_path, max_bytes=1 << 20)


@pytest.fixture
def predictions():
    probs = [[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]
    return Predictions(numpy.array(probs, numpy.float32), numpy.array([0, 2, 2, 1]))


def test_worst_mistakes_are_the_most_confident(predictions):
    worst = worst_mistakes(predictions)
    assert [(mistake.index, mistake.label, mistake.predicted) for mistake in worst] == [
        (1, 2, 1),
        (3, 1, 0),
    ]
    assert [mistake.prob for mistake in worst] == pytest.approx([0.9, 0.6])
    assert worst[0] == Mistake(1, 2, 1, pytest.approx(0.9), pytest.approx(0.0))
    assert worst[1].label_prob == pytest.approx(0.3)
    assert worst_mistakes(predictions, 1) == worst[:1]
