"""Trained networks, exported files and image files to classify."""

import pytest
from PIL import Image

from tests.conftest import TINY
from vggexp.data.datasets import load_dataset
from vggexp.export.__main__ import main as export
from vggexp.predict.__main__ import main

GRAY = [
    "data=digits",
    "data.resize=32",
    *[override for override in TINY if not override.startswith("data")],
]
COLOR = [*TINY, "data.channels=3", "arch.norm=batch"]
FIVE_CHANNELS = [*TINY, "data.channels=5"]


def digits(count):
    return load_dataset("digits", None, False).test.images[:count]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with runs on 1, 3 and 5 channels, two exported files and 70 digits as images."""
    from vggexp.__main__ import main as train

    folder = tmp_path_factory.mktemp("predict")
    runs = {"gray": GRAY, "color": COLOR, "five": FIVE_CHANNELS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["vggexp"])
        for name, overrides in runs.items():
            assert train([*overrides, "train.epochs=1", f"run.name={name}"]) == 0
        onnx = ["--format", "onnx", "--preprocess", "--out", "gray.onnx"]
        assert export(["outputs/gray", *onnx]) == 0
        assert export(["outputs/gray", "--format", "torch", "--out", "gray.pt2"]) == 0
    (folder / "digits").mkdir()
    for index, image in enumerate(digits(70)):
        Image.fromarray(image[0].numpy()).save(folder / f"digits/{index:02}.png")
    return folder


@pytest.fixture
def predict(folder, monkeypatch, capfd):
    """predict("outputs/gray", "a.png", ...) -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def run(*argv):
        code = main([str(argument) for argument in argv])
        out, error = capfd.readouterr()
        return code, out, error

    return run
