"""The door: a run, an ONNX file and a torch program name pictures as `load_run` does, whatever the files are like."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import vggexp
from tests.conftest import TINY
from tests.export.test_export import in_turn
from vggexp.data.datasets import load_dataset
from vggexp.export.__main__ import main as export
from vggexp.predict.__main__ import main
from vggexp.runs.directory import write_result

GREY = ["data=digits", *[key for key in TINY if not key.startswith("data")], "data.resize=32"]
COLOUR = [*TINY, "data.channels=3", "arch.norm=batch"]
MODELS = ["outputs/grey", "grey.onnx", "grey.pt2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a grey run, in colour one and one of neither, exported files and 70 digits as pictures."""
    from vggexp.__main__ import main as trains

    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["vggexp"])
        for name, own in (("grey", GREY), ("colour", COLOUR), ("five", [*TINY, "data.channels=5"])):
            assert trains([*own, "train.epochs=1", f"run.name={name}"]) == 0
        assert (
            export(["outputs/grey", "--format", "onnx", "--preprocess", "--out", "grey.onnx"]) == 0
        )
        assert export(["outputs/grey", "--format", "torch", "--out", "grey.pt2"]) == 0
    (folder / "digits").mkdir()
    for number, image in enumerate(_digits(70)):
        Image.fromarray(image[0].numpy()).save(folder / f"digits/{number:02}.png")
    return folder


def _digits(count):
    return load_dataset("digits", None, False).test.images[:count]


@pytest.fixture
def asked(place, monkeypatch, capfd):
    """asked("outputs/grey", "a.png", ...) -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(place)

    def run(*argv):
        code = main([str(word) for word in argv])
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize("model", MODELS)
def test_the_probabilities_are_those_of_load_run(model, asked):
    code, out, error = asked(model, "digits", "--top", "3", "--json")
    found = json.loads(out)
    assert (code, error, found["run"]) == (0, "", model)
    run = vggexp.load_run("outputs/grey")
    with torch.inference_mode():
        best = run.model(run.preprocess(_digits(70))).softmax(1).topk(3)
    assert [one["image"] for one in found["predictions"]] == [
        f"digits/{number:02}.png" for number in range(70)
    ]
    for one, values, places in zip(
        found["predictions"], best.values.tolist(), best.indices.tolist(), strict=True
    ):
        assert [guess["label"] for guess in one["top"]] == [run.classes[place] for place in places]
        assert [guess["probability"] for guess in one["top"]] == pytest.approx(values, abs=1e-5)
        assert one["top"][0] == {"label": one["label"], "probability": one["probability"]}


def test_a_line_for_each_picture(asked):
    code, out, _ = asked("--top", "99", "outputs/grey", "digits/03.png", "digits/00.png")
    first, second = out.splitlines()
    assert (
        code == 0 and first.startswith("digits/03.png  ") and second.startswith("digits/00.png  ")
    )
    numbers = [float(part.split()[1]) for part in first.partition("  ")[2].split(", ")]
    assert (
        len(numbers) == 10
        and numbers == sorted(numbers, reverse=True)
        and abs(sum(numbers) - 1) < 0.001
    )


@pytest.mark.parametrize(
    ("model", "probable"), [("outputs/grey", True), ("outputs/colour", False), ("grey.onnx", True)]
)
def test_pictures_of_any_mode_size_and_format(model, probable, asked, tmp_path):
    grey = Image.fromarray(_digits(1)[0, 0].numpy())
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16", "CMYK"):
        picture = (
            grey.convert("I").point(lambda value: value * 256).convert("I;16")
            if mode == "I;16"
            else grey.convert(mode)
        )
        picture.save(tmp_path / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}")
    for size in ((1, 1), (300, 7), (50, 200)):
        grey.resize(size).save(tmp_path / f"{size[0]}.jpg")
    code, out, error = asked(model, tmp_path, "--json")
    found = {Path(one["image"]).name: one["probability"] for one in json.loads(out)["predictions"]}
    assert (code, error, len(found)) == (0, "", 11)
    same = {found[name] for name in ("L.png", "RGB.png", "RGBA.png", "LA.png")}
    assert len(same) == 1 if probable else len(same) <= 2


def test_damaged_pictures_are_all_named_at_the_end(asked, place):
    whole = (place / "digits/01.png").read_bytes()
    for name in ("cut.png", "short.png"):
        (place / name).write_bytes(whole[:60])
    code, out, error = asked(
        "outputs/grey", "cut.png", "digits/00.png", "short.png", "digits/01.png"
    )
    assert code == 3 and [line.split()[0] for line in out.splitlines()] == [
        "digits/00.png",
        "digits/01.png",
    ]
    assert (
        error.startswith("vggexp: error: cut.png: cannot be decoded: ")
        and "; short.png: cannot be" in error
    )
    assert error.count("\n") == 1
    code, out, _ = asked("grey.onnx", "cut.png", "digits/00.png", "--json")
    first, second = json.loads(out)["predictions"]
    assert (
        code == 3
        and first["error"].startswith("cut.png: ")
        and first.keys() == {"image", "error"} != second.keys()
    )


def test_an_unfinished_run_is_asked_with_a_warning(asked, place):
    shutil.copytree(place / "outputs/grey", place / "outputs/stopped")
    write_result(place / "outputs/stopped", "interrupted")
    code, out, error = asked("outputs/stopped", "digits/00.png")
    assert (
        code == 0
        and error == "warning: outputs/stopped is interrupted: its newest checkpoint is asked\n"
    )
    assert out == asked("outputs/grey", "digits/00.png")[1]


def test_a_network_that_takes_no_pictures(asked):
    code, out, error = asked("outputs/five", "digits/00.png")
    assert (code, out) == (
        2,
        "",
    ) and "outputs/five: takes 5 channels; pictures have 3, or 1" in error


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_that_is_not_an_export(suffix, asked, place):
    path, whole = place / f"other{suffix}", (place / f"grey{suffix}").read_bytes()
    for content in (
        b"",
        b"something else",
        whole[: len(whole) // 2],
        whole.replace(b"vggexp", b"other_"),
    ):
        path.write_bytes(content)
        code, out, error = asked(path, "digits/00.png")
        assert (code, out, error.count("\n")) == (4, "", 1) and error.startswith(
            f"vggexp: error: {path}: "
        )


REFUSED = [
    ([], 2, "the following arguments are required: RUN, IMAGE"),
    (["outputs/grey"], 2, "the following arguments are required: IMAGE"),
    (
        ["outputs/grey", "digits", "--top", "0"],
        2,
        "argument --top: 0: wanted a whole number of 1 or more",
    ),
    (["outputs/x", "digits"], 2, "outputs/x: no such run directory or exported file"),
    (["model.onnx", "digits"], 2, "model.onnx: no such run directory or exported file"),
    (
        ["digits/00.png", "digits"],
        2,
        "digits/00.png: give a run directory, or a file of vggexp.export that ends in .onnx",
    ),
    (["outputs", "digits"], 4, "outputs: not the folder of a run"),
    (["outputs/bare", "digits"], 4, "outputs/bare: holds no checkpoint"),
    (
        ["outputs/grey", "no.png", "digits/00.png", "bad.png"],
        3,
        "no.png: cannot be read: No such file or directory; bad",
    ),
    (["outputs/grey", "bad.png"], 3, "bad.png: not a picture"),
    (["outputs/grey", "nothing"], 3, "nothing: holds no pictures"),
    (
        ["--without", "grey.onnx", "digits"],
        2,
        "grey.onnx: needs onnxruntime; pip install 'vggexp[export]'",
    ),
]


def test_refused_before_torch_is_imported(place):
    shutil.copytree(place / "outputs/grey", place / "outputs/bare")
    shutil.rmtree(place / "outputs/bare/checkpoints")
    (place / "bad.png").write_text("not a picture")
    (place / "nothing").mkdir()
    for (argv, code, told), found in zip(
        REFUSED, in_turn("predict", "runtime", REFUSED, place), strict=True
    ):
        assert (found[0], found[2]) == (code, False), argv
        assert (
            found[1].startswith("vggexp: error: ")
            and found[1].count("\n") == 1
            and told in found[1]
        ), found[1]
