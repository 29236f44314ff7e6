"""The predictions of a run, an ONNX file and a torch program are those of `load_run`."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import vggexp
from tests.predict.conftest import digits

pytestmark = pytest.mark.process


@pytest.mark.parametrize("model", ["outputs/gray", "gray.onnx", "gray.pt2"])
def test_the_probabilities_are_those_of_load_run(model, predict):
    code, out, error = predict(model, "digits", "--top", "3", "--json")
    assert code == 0
    assert error == ""
    printed = json.loads(out)
    assert printed["run"] == model
    predictions = printed["predictions"]
    images = [prediction["image"] for prediction in predictions]
    assert images == [f"digits/{index:02}.png" for index in range(70)]
    run = vggexp.load_run("outputs/gray")
    with torch.inference_mode():
        expected = run.model(run.preprocess(digits(70))).softmax(1).topk(3)
    for prediction, probs, indices in zip(
        predictions, expected.values.tolist(), expected.indices.tolist(), strict=True
    ):
        top = prediction["top"]
        assert [guess["label"] for guess in top] == [run.classes[index] for index in indices]
        assert [guess["probability"] for guess in top] == pytest.approx(probs, abs=1e-5)
        assert top[0]["label"] == prediction["label"]
        assert top[0]["probability"] == prediction["probability"]
        assert top[0].keys() == {"label", "probability"}


@pytest.mark.parametrize(
    ("model", "gray"), [("outputs/gray", True), ("outputs/color", False), ("gray.onnx", True)]
)
def test_images_of_any_mode_size_and_format(model, gray, predict, tmp_path):
    digit = Image.fromarray(digits(1)[0, 0].numpy())
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "CMYK"):
        suffix = "tif" if mode == "CMYK" else "png"
        digit.convert(mode).save(tmp_path / f"{mode}.{suffix}")
    deep = digit.convert("I").point(lambda value: value * 256)
    deep.convert("I;16").save(tmp_path / "I16.png")
    for width, height in ((1, 1), (300, 7), (50, 200)):
        digit.resize((width, height)).save(tmp_path / f"{width}.jpg")
    code, out, error = predict(model, tmp_path, "--json")
    assert code == 0
    assert error == ""
    probabilities = {}
    for prediction in json.loads(out)["predictions"]:
        probabilities[Path(prediction["image"]).name] = prediction["probability"]
    assert len(probabilities) == 11
    same = {probabilities[name] for name in ("L.png", "RGB.png", "RGBA.png", "LA.png")}
    assert len(same) <= (1 if gray else 2)


def test_damaged_images_are_reported_at_the_end(predict, folder):
    content = (folder / "digits/01.png").read_bytes()
    for name in ("cut.png", "short.png"):
        (folder / name).write_bytes(content[:60])
    code, out, error = predict(
        "outputs/gray", "cut.png", "digits/00.png", "short.png", "digits/01.png"
    )
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()] == ["digits/00.png", "digits/01.png"]
    assert error.startswith("vggexp: error: cut.png: cannot be decoded: ")
    assert "; short.png: cannot be" in error
    assert error.count("\n") == 1


def test_a_damaged_image_in_json(predict, folder):
    content = (folder / "digits/01.png").read_bytes()
    (folder / "half.png").write_bytes(content[:60])
    code, out, _ = predict("gray.onnx", "half.png", "digits/00.png", "--json")
    failed, predicted = json.loads(out)["predictions"]
    assert code == 3
    assert failed.keys() == {"image", "error"}
    assert failed["error"].startswith("half.png: ")
    assert predicted.keys() == {"image", "label", "probability", "top"}


def test_a_network_that_takes_no_images(predict):
    code, out, error = predict("outputs/five", "digits/00.png")
    assert code == 2
    assert out == ""
    assert "outputs/five: takes 5 channels; images have 3, or 1" in error
