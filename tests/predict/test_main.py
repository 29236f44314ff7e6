"""The command: what it prints, and what it refuses."""

import json
import shutil
import zipfile

import pytest

from tests.export.conftest import assert_refused
from tests.permissions import without_root_rights
from vggexp.runs.directory import write_result
from vggexp.training import checkpoint

pytestmark = pytest.mark.process


def test_a_line_for_each_image(predict):
    code, out, _ = predict("--top", "99", "outputs/gray", "digits/03.png", "digits/00.png")
    first, second = out.splitlines()
    assert code == 0
    assert first.startswith("digits/03.png  ")
    assert second.startswith("digits/00.png  ")
    guesses = first.partition("  ")[2].split(", ")
    probabilities = [float(guess.split()[1]) for guess in guesses]
    assert len(probabilities) == 10
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=0.001)


def test_files_that_are_no_images_are_reported_behind_the_others(predict, folder):
    (folder / "text.png").write_text("no image")
    code, out, error = predict("outputs/gray", "no.png", "digits/00.png", "text.png")
    assert code == 3
    assert out.startswith("digits/00.png  ")
    assert out.count("\n") == 1
    assert error == (
        "vggexp: error: no.png: cannot be read: No such file or directory; text.png: not an image\n"
    )


def test_an_image_without_permission_is_code_6(predict, folder):
    closed = shutil.copy(folder / "digits/00.png", folder / "closed.png")
    closed.chmod(0)
    with without_root_rights():
        code, out, error = predict("outputs/gray", "closed.png", "digits/00.png")
    assert (code, out.count("\n")) == (6, 1)
    assert error == "vggexp: error: closed.png: cannot be read: Permission denied\n"


def test_an_unfinished_run_predicts_with_a_warning(predict, folder):
    shutil.copytree(folder / "outputs/gray", folder / "outputs/stopped")
    write_result(folder / "outputs/stopped", "interrupted")
    code, out, error = predict("outputs/stopped", "digits/00.png")
    assert code == 0
    assert error == "warning: outputs/stopped is interrupted: using its newest checkpoint\n"
    assert out == predict("outputs/gray", "digits/00.png")[1]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no metadata"])
def test_a_file_that_is_not_an_export(suffix, damage, predict, folder):
    content = (folder / f"gray{suffix}").read_bytes()
    damaged = {
        "empty": b"",
        "text": b"something else",
        "cut": content[: len(content) // 2],
        "no metadata": content.replace(b"vggexp", b"other_"),
    }
    path = folder / f"other{suffix}"
    path.write_bytes(damaged[damage])
    code, out, error = predict(path, "digits/00.png")
    assert code == 4
    assert out == ""
    assert error.startswith(f"vggexp: error: {path}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_export_without_permission_is_code_6(suffix, predict, folder):
    path = folder / f"gray{suffix}"
    path.chmod(0)
    with without_root_rights():
        code, _, error = predict(path, "digits/00.png")
    path.chmod(0o600)
    assert code == 6
    assert error == f"vggexp: error: {path}: cannot be read: Permission denied\n"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("channels", "x", "channels is 'x', expected a whole number of 1..16"),
        ("side", 10**9, "side is 1000000000, expected a whole number of 1..4096"),
        ("std", [0], "std.0 is 0, expected a finite number of 1e-06 or more"),
        ("mean", [0.0, 0.0], "fails on images: "),
        ("classes", ["\n"] * 9, "gives float32 [1, 10], expected logits [1, 9]"),
    ],
)
def test_an_export_with_forged_metadata(field, value, reason, predict, folder):
    path = folder / "forged.pt2"
    with zipfile.ZipFile(folder / "gray.pt2") as source, zipfile.ZipFile(path, "w") as forged:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("vggexp.json"):
                content = json.dumps(json.loads(content) | {field: value}).encode()
            forged.writestr(entry, content)
    code, out, error = predict(path, "digits/00.png")
    assert (code, out) == (4, "")
    assert reason in error
    assert error.count("\n") == 1


REFUSALS = [
    ([], 2, "the following arguments are required: RUN, IMAGE"),
    (["outputs/gray"], 2, "the following arguments are required: IMAGE"),
    (
        ["outputs/gray", "digits", "--top", "0"],
        2,
        "argument --top: 0: expected a whole number of 1 or more",
    ),
    (["outputs/x", "digits"], 2, "outputs/x: no such run directory or exported file"),
    (["model.onnx", "digits"], 2, "model.onnx: no such run directory or exported file"),
    (
        ["digits/00.png", "digits"],
        2,
        "digits/00.png: give a run directory, or a file of vggexp.export ending in .onnx",
    ),
    (["outputs", "digits"], 4, "outputs: not the folder of a run"),
    (["outputs/bare", "digits"], 4, "outputs/bare: contains no checkpoint"),
    (
        ["outputs/gray", "no.png", "bad.png"],
        3,
        "no.png: cannot be read: No such file or directory; bad.png: not an image",
    ),
    (["outputs/gray", "nothing"], 3, "nothing: holds no images"),
    (
        ["--without", "gray.onnx", "digits"],
        2,
        "gray.onnx: needs onnxruntime; pip install 'vggexp[export]'",
    ),
]


def test_refused_before_torch_is_imported(folder):
    shutil.copytree(folder / "outputs/gray", folder / "outputs/bare")
    shutil.rmtree(folder / "outputs/bare/checkpoints")
    (folder / "bad.png").write_text("not an image")
    (folder / "nothing").mkdir()
    assert_refused("predict", REFUSALS, folder, missing="onnxruntime")


def test_class_names_do_not_reach_the_terminal_as_they_are(folder, predict):
    shutil.copytree(folder / "outputs/gray", folder / "outputs/escapes")
    for path in (folder / "outputs/escapes/checkpoints").iterdir():
        content = checkpoint.load(path)
        checkpoint.save(path, content | {"classes": ["\x1b[2J\n\udc80"] * 10})
    code, out, error = predict("outputs/escapes", "digits/00.png")
    assert (code, error) == (0, "")
    assert out.startswith(r"digits/00.png  \x1b[2J\n\udc80 0.")
    assert out.count("\n") == 1
