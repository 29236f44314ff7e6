"""The command: what it prints, and what it refuses."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import write_images
from tests.export.conftest import ROOT, SMALL, assert_refused
from vggexp.runs.directory import write_result

pytestmark = pytest.mark.process


def test_what_is_printed(exports, tmp_path, export):
    path = tmp_path / "m.pt2"
    code, out, error = export("--format", "torch", "--out", path, exports[0], "--preprocess")
    assert code == 0
    assert error == ""
    file, takes, gives, parity, *load = out.splitlines()
    assert file.startswith(f"file     {path}  (")
    assert takes == "takes    images [N, 3, 20, 20], uint8, pixels of 0..255"
    assert gives == "gives    logits [N, 10]: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert parity.startswith("parity   19 test images: maximum difference ")
    assert "from predictions.npz (cpu fp32 explains 0.0001)" in parity
    assert parity.endswith("same label for 19 (1.0000)")
    assert load[1] == f"load     net = torch.export.load('{path}').module()"


@pytest.mark.slow
@pytest.mark.parametrize(("file_format", "suffix"), [("torch", ".pt2"), ("onnx", ".onnx")])
def test_a_full_disk_leaves_no_file(file_format, suffix, exports, tmp_path):
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    script += "from vggexp.export.__main__ import main; sys.exit(main(sys.argv[1:]))"
    argv = [str(exports[0]), "--format", file_format, "--out", str(tmp_path / f"m{suffix}")]
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",  # the limit would leave truncated modules
    }
    command = [sys.executable, "-c", script, *argv]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 6
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert f"m{suffix}: cannot be written: File too large" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_image_folder_whose_data_changes_or_is_removed(train_run, export):
    images = train_run.folder / "images"
    write_images(images, {"train": 10, "test": 3}, lambda index: (40 + index, 60 - index), "png")
    run = train_run(
        "folder",
        "data=image_folder",
        f"data.root={images}",
        "data.resize=32",
        "data.batch_size=4",
        "data.workers=0",
        "device.threads=1",
        "device.precision=fp32",
        "arch=vgg_digits",
        "arch.width=0.1",
        "train.epochs=1",
    )
    code, out, _ = export(run, "--format", "torch", "--preprocess")
    assert code == 0
    assert "[N, 3, 32, 32], uint8" in out
    assert "cat, dog" in out
    assert "same label for 6 (1.0000)" in out
    (images / "test/cat/0.png").unlink()
    code, _, error = export(run, "--format", "torch")
    assert code == 4
    assert "the data has changed since this run began (test)" in error
    shutil.rmtree(images)
    code, _, error = export(run, "--format", "torch")
    assert code == 3
    assert error.endswith("(--unchecked exports without it)\n")
    code, _, _ = export(run, "--format", "torch", "--unchecked")
    assert code == 0


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["torch", "onnx"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["arch=vgg11_lrn"],
        ["arch=vgg16c"],
        ["arch=lenet"],
        ["arch=alexnet", "data.resize=64"],
        ["data.normalize=false"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_other_network(overrides, file_format, train_run, export):
    small = SMALL
    if overrides[0].endswith("net"):
        small = [override for override in SMALL if not override.startswith("arch")]
    name = overrides[0].partition("=")[2] + file_format
    run = train_run(name, *small, *overrides, "train.epochs=1")
    for flags in (["--preprocess"], []):
        code, out, error = export(run, "--format", file_format, *flags)
        assert code == 0
        assert error == ""
        assert "same label for 19 (1.0000)" in out


REFUSALS = [
    (["--format", "onnx"], 2, "the following arguments are required: RUN"),
    (["outputs/a"], 2, "the following arguments are required: --format"),
    (["outputs/a", "--format", "keras"], 2, "argument --format: invalid choice: 'keras'"),
    (["outputs/x", "--format", "onnx"], 2, "outputs/x: no such directory"),
    (["outputs", "--format", "onnx"], 4, "outputs: not the folder of a run"),
    (
        ["outputs/stopped", "--format", "torch"],
        4,
        "outputs/stopped is interrupted; only finished runs can be",
    ),
    (
        ["outputs/blind", "--format", "torch"],
        4,
        "outputs/blind/predictions.npz: missing; give the command",
    ),
    (
        ["outputs/a", "--format", "torchvision"],
        2,
        "--format torchvision: arch.width=0.05: torchvision's VGGs have",
    ),
    (
        ["outputs/a", "--format", "torchvision", "--preprocess"],
        2,
        "--preprocess: a state dict holds weights",
    ),
    (
        ["outputs/a", "--format", "torch", "--out", "m.onnx"],
        2,
        "--out m.onnx: a file of --format torch ends in .pt2",
    ),
    (
        ["outputs/a", "--format", "torch", "--out", "no/m.pt2"],
        2,
        "--out no/m.pt2: no such directory: no",
    ),
    (["outputs/a", "--format", "torch", "--out", "is.pt2"], 2, "--out is.pt2: is a directory"),
    (
        ["outputs/caf\udce9", "--format", "torch"],
        2,
        "outputs/caf\\udce9/exports/caf\\udce9.pt2: not UTF-8 text; choose another file with --out",
    ),
    (
        ["--without", "outputs/a", "--format", "onnx"],
        2,
        "--format onnx: needs onnxscript; pip install 'vggexp[export]'",
    ),
]


def test_refused_before_torch_is_imported(exports, train_run):
    outputs = exports[0].parent
    for name in ("stopped", "blind", "caf\udce9"):
        shutil.copytree(exports[0], outputs / name)
    write_result(outputs / "stopped", "interrupted")
    (outputs / "blind/predictions.npz").unlink()
    (train_run.folder / "is.pt2").mkdir()
    assert_refused("export", REFUSALS, train_run.folder, missing="onnxscript")
