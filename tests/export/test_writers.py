"""The exported files: what they compute without vggexp, and their metadata."""

import json
import shutil
import subprocess
import sys
import zipfile

import numpy
import onnxruntime
import pytest
import torch

import vggexp
from tests.export.conftest import FORMATS, ROOT, SMALL
from vggexp.errors import ResourceError
from vggexp.export.writers import export_run

pytestmark = pytest.mark.process

WITHOUT_VGGEXP = """
import sys
sys.modules["vggexp"] = None  # importing it fails
import numpy, onnxruntime, torch
inputs, outputs, *files = sys.argv[1:]
logits = {}
for file in files:
    if file.endswith(".pt2"):
        model = torch.export.load(file).module()
        run = lambda images: model(torch.from_numpy(images)).detach().numpy()
    else:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        run = lambda images: session.run(["logits"], {"images": images})[0]
    images = numpy.load(inputs)["pixels" if "preprocess" in file else "normalized"]
    for count in (1, 3, 128):
        logits[f"{file} {count}"] = run(images[:count])
numpy.savez(outputs, **logits)
"""


def test_each_file_works_without_vggexp(exports, tmp_path):
    folder, _ = exports
    run = vggexp.load_run(folder)
    pixels = torch.randint(0, 256, (128, 3, 20, 20), dtype=torch.uint8)
    normalized = run.preprocess(pixels)
    inputs = tmp_path / "inputs.npz"
    outputs = tmp_path / "outputs.npz"
    numpy.savez(inputs, pixels=pixels.numpy(), normalized=normalized.numpy())
    command = [sys.executable, "-c", WITHOUT_VGGEXP, str(inputs), str(outputs), *FORMATS]
    ended = subprocess.run(command, cwd=folder / "exports", env={}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    with torch.inference_mode():
        expected = run.model(normalized).numpy()
    actual = numpy.load(outputs)
    assert len(actual) == 6
    for name, logits in actual.items():
        count = int(name.split()[1])
        numpy.testing.assert_allclose(logits, expected[:count], atol=1e-5, err_msg=name)


def test_no_file_is_written_through_a_link(exports, tmp_path):
    folder, _ = exports
    mine = tmp_path / "mine"
    mine.mkdir()
    run = tmp_path / "run"
    shutil.copytree(folder, run, ignore=shutil.ignore_patterns("exports"))
    (run / "exports").symlink_to(mine)
    with pytest.raises(ResourceError, match="exports: a link, and no file is written through"):
        export_run(run, "torch", False, run / "exports" / "model.pt2", None)
    assert not list(mine.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_has_metadata_and_no_paths_of_this_machine(name, exports):
    folder, results = exports
    path = folder / "exports" / name
    if name.endswith(".onnx"):
        text = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["vggexp"]
    else:
        text = zipfile.ZipFile(path).read("archive/extra/vggexp.json")
    metadata = json.loads(text)
    preprocess = FORMATS[name][1]
    assert metadata.items() <= results[name].to_dict().items()
    assert metadata["preprocess"] == preprocess
    assert metadata["side"] == (20 if preprocess else 32)
    assert metadata["size"] == 32
    assert metadata["channels"] == 3
    assert metadata["classes"] == list(map(str, range(10)))
    assert len(metadata["mean"]) == 3
    assert len(metadata["std"]) == 3
    assert str(ROOT).encode() not in path.read_bytes()


def test_the_folder_holds_the_exported_files_only(exports):
    folder, _ = exports
    assert {path.name for path in (folder / "exports").iterdir()} == set(FORMATS)


def test_torchvision_loads_the_file_with_the_printed_code(train_run, export):
    overrides = [override for override in SMALL if "width" not in override]
    run = train_run("twin", *overrides, "arch.hidden=[8,16]", "train.epochs=1")
    code, out, _ = export(run, "--format", "torchvision")
    assert code == 0
    assert "same label for 19 (1.0000)" in out
    lines = [line for line in out.splitlines() if line.startswith("load")]
    loaded = vggexp.load_run(run)
    images = torch.randn(5, 1, 32, 32)
    scope = {"images": images}
    exec("\n".join(line.removeprefix("load     ") for line in lines), scope)
    torch.testing.assert_close(scope["logits"], loaded.model(images), atol=1e-5, rtol=1e-5)
    metadata = torch.load(run / "exports/twin.pth", weights_only=True)._metadata["vggexp"]
    assert metadata["classes"] == list(loaded.classes)
    assert metadata["mean"] == loaded.preprocess.mean.tolist()
