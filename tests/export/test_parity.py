"""The comparison of an exported file with the predictions of its run."""

import json
import shutil
from dataclasses import replace

import numpy
import pytest

from tests.export.conftest import FORMATS, SMALL
from vggexp.export.parity import ParityResult, format_parity


@pytest.mark.process
@pytest.mark.parametrize("name", FORMATS)
def test_parity_is_measured_on_the_whole_test_set(name, exports):
    parity = exports[1][name].parity
    assert parity.images == 19
    assert parity.same_labels == 19
    assert parity.max_difference < 1e-5
    assert parity.max_difference_here < 1e-5
    assert parity.tolerance == 1e-4
    assert parity.precision == "fp32"
    assert parity.device == "cpu"


@pytest.mark.process
def test_the_tolerance_of_a_run_in_bf16(train_run, export):
    run = train_run("bf16", *SMALL, "device.precision=bf16", "train.ema=0.9")
    code, out, _ = export(run, "--format", "torch", "--json")
    parity = json.loads(out)["parity"]
    assert code == 0
    assert parity["precision"] == "bf16"
    assert parity["tolerance"] == 0.1
    assert parity["max_difference"] > 1e-6
    assert parity["max_difference"] < parity["tolerance"]
    assert parity["max_difference_here"] < 1e-5


@pytest.mark.process
@pytest.mark.parametrize(
    ("shift", "options"), [("null", []), ("null", ["--preprocess"]), ("2", [])]
)
def test_a_run_tested_with_mirror_images_and_shifts(shift, options, train_run, export):
    views = ["train.test_flip=true", f"train.test_shift={shift}"]
    run = train_run(f"mirrored-{shift}", *SMALL, *views)
    code, out, _ = export(run, "--format", "torch", *options, "--json")
    parity = json.loads(out)["parity"]
    assert code == 0
    assert parity["flip"] is True
    assert parity["shift"] == (0 if shift == "null" else 2)
    assert parity["max_difference"] < 1e-5
    assert parity["max_difference_here"] < 1e-5


@pytest.mark.process
def test_a_file_that_resizes_cannot_see_shifts(train_run, export):
    run = train_run("mirrored-2", *SMALL, "train.test_flip=true", "train.test_shift=2")
    code, _, error = export(run, "--format", "torch", "--preprocess")
    assert (code, error) == (
        2,
        f"vggexp: error: --preprocess: {run} was tested with mirror images and shifts by 2 px at "
        "32 px, and the file would resize from 20 px; leave it out, or add --unchecked to export "
        "without the comparison\n",
    )
    assert export(run, "--format", "torch", "--preprocess", "--unchecked")[0] == 0


@pytest.mark.process
def test_a_file_that_does_not_predict_what_the_run_predicted_is_removed(exports, tmp_path, export):
    run = tmp_path / "a"
    shutil.copytree(exports[0], run)
    stored = dict(numpy.load(run / "predictions.npz"))
    before = (run / "exports/a.pt2").read_bytes()
    reversed_scores = stored["scores"][:, ::-1]
    numpy.savez(run / "predictions.npz", scores=reversed_scores, labels=stored["labels"])
    code, out, error = export(run, "--format", "torch")
    assert code == 4
    assert out == ""
    assert error.count("\n") == 1
    assert "the exported file does not predict what the run predicted, so it was removed" in error
    assert ": 19 test images: " in error
    assert (run / "exports/a.pt2").read_bytes() == before
    assert sorted(path.name for path in (run / "exports").iterdir()) == sorted(FORMATS)


@pytest.mark.process
def test_predictions_of_another_test_set(exports, tmp_path, export):
    run = tmp_path / "a"
    shutil.copytree(exports[0], run)
    stored = dict(numpy.load(run / "predictions.npz"))
    numpy.savez(run / "predictions.npz", scores=stored["scores"], labels=stored["labels"][::-1])
    code, _, _ = export(run, "--format", "torch")
    assert code == 4
    code, out, _ = export(run, "--format", "torch", "--unchecked")
    assert code == 0
    assert "parity   not compared (--unchecked)" in out


@pytest.mark.slow
@pytest.mark.debian
def test_fashion_mnist(train_run, export):
    run = train_run(
        "fashion",
        "data.resize=48",
        "data.limit=1280",
        "arch.width=0.125",
        "arch.hidden=[64]",
        "train.epochs=1",
    )
    probs = numpy.sort(numpy.load(run / "predictions.npz")["scores"], 1)
    margins = probs[:, -1] - probs[:, -2]
    for file_format in ("torch", "onnx"):
        for flags in ([], ["--preprocess"]):
            code, out, _ = export(run, "--format", file_format, *flags, "--json")
            parity = json.loads(out)["parity"]
            assert code == 0
            assert parity["images"] == 10_000
            assert parity["max_difference_here"] < 1e-5
            certain = margins > 2 * parity["max_difference"]  # rounding cannot change these
            assert parity["same_labels"] >= certain.sum()
            assert certain.mean() > 0.5


NAN = float("nan")
SAME = ParityResult(
    images=19,
    max_difference=0,
    same_labels=19,
    max_difference_here=0,
    tolerance=0.1,
    precision="bf16",
    device="cpu",
    flip=False,
    shift=0,
)


@pytest.mark.parametrize(
    ("max_difference", "max_difference_here", "passed"),
    [
        (0.1, 1e-4, True),
        (0.11, 1e-4, False),
        (0.1, 1.1e-4, False),  # the tolerance of bf16 is for the run's own predictions only
        (NAN, 0, False),
        (0, NAN, False),
    ],
)
def test_a_file_has_to_agree_with_the_run_and_with_its_network(
    max_difference, max_difference_here, passed
):
    result = replace(SAME, max_difference=max_difference, max_difference_here=max_difference_here)
    assert result.passed == passed


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({}, ": "),
        ({"flip": True}, " with mirror images: "),
        ({"shift": 3}, " with shifts by 3 px: "),
    ],
)
def test_the_line_says_of_which_views_the_probabilities_are(views, words):
    line = format_parity(replace(SAME, **views))
    assert line.startswith(f"19 test images{words}maximum difference 0 from predictions.npz (cpu ")
