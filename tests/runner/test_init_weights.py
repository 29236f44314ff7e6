"""Tests runs that start from the weights of others: the paper's A to E, transfer and refusals."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import vggexp
from tests.conftest import TINY, result
from vggexp.models.torchvision import save_torchvision_weights
from vggexp.models.transfer import named_layers
from vggexp.runner import job
from vggexp.training import checkpoint
from vggexp.verify.__main__ import main as verify

pytestmark = pytest.mark.process
TRANSFERRED = [
    "block1.conv1",
    "block2.conv1",
    "block3.conv1",
    "block3.conv2",
    "hidden1",
    "hidden2",
    "output",
]
SMALL = [
    "data.resize=32",
    "data.batch_size=8",
    "data.val_fraction=0.25",
    "data.workers=0",
    "device.threads=1",
    "arch.width=0.05",
    "arch.hidden=[16,16]",
    "train.epochs=1",
]
# Everything besides gradients that moves weights.
MOVING = [
    *TINY,
    "arch.norm=batch",
    "train.ema=0.9",
    "train.clip_norm=0.1",
    "train.accumulate=2",
    "optimizer=adamw",
    "optimizer.weight_decay=1",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of three classes, with 12 images a class for training and 4 for the test.

    Two classes are cut from the photographs of scikit-learn, one has its digits.
    """
    from sklearn.datasets import load_digits, load_sample_images

    pixels = {"china": [], "flower": [], "digit": []}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for top in range(0, 256, 64):
            for left in range(0, 320, 80):
                pixels[name].append(photo[top : top + 64, left : left + 80])
    for digit in load_digits().images[:16]:
        pixels["digit"].append(numpy.kron(digit, numpy.ones((8, 8))) * 15)
    root = tmp_path_factory.mktemp("images")
    for name, arrays in pixels.items():
        for index, array in enumerate(arrays):
            path = root / ("train" if index % 4 else "test") / name / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(numpy.uint8)).convert("RGB").save(path)
    return root


@pytest.fixture
def start_weights(monkeypatch):
    """A list that receives the weights of each run before its first step."""
    recorded = []
    train = job.train

    def record_and_train(state, *arguments):
        weights = state.model.state_dict()
        recorded.append({name: tensor.clone() for name, tensor in weights.items()})
        train(state, *arguments)

    monkeypatch.setattr(job, "train", record_and_train)
    return recorded


def layers(name, weights=None):
    """Returns the layers of a finished run, with its own weights or with others."""
    model = vggexp.load_run(Path("outputs") / name).model
    model.load_state_dict(weights or model.state_dict())
    return named_layers(model)


def is_equal(first, second):
    first_state = first.state_dict()
    second_state = second.state_dict()
    return all(torch.equal(first_state[name], second_state[name]) for name in first_state)


def equal_layers(first, second):
    """Returns the names of the layers in `first` that are equal in `second`."""
    return [name for name in first if name in second and is_equal(first[name], second[name])]


def interrupt(name):
    """Leaves a run as if it had been killed after its first epoch."""
    folder = Path("outputs") / name
    (folder / "result.json").unlink()
    max((folder / "checkpoints").glob("*.pt")).unlink()


def refusal(command, expected_code, *overrides):
    """Returns the error of a command that writes nothing."""
    before = sorted(Path().rglob("*"))
    code, out, err = command(*TINY, *overrides)
    assert (code, out) == (expected_code, "")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return err.removeprefix("vggexp: error: ").rstrip()


def test_the_paper_from_a_to_e(command, images, start_weights):
    small = [*SMALL, f"data.root={images}"]
    assert command("experiment=paper_a", *small, "run.name=a")[::2] == (0, "")
    source = layers("a")
    for letter, depth in (("b", 10), ("c", 13), ("d", 13), ("e", 16)):
        code, out, err = command(
            f"experiment=paper_{letter}", *small, "train.init_from=outputs/a", f"run.name={letter}"
        )
        assert (code, err) == (0, "")
        begin = out.index("start    outputs/a  (vgg11-")
        lines = out[begin : out.index("epoch 1/1")]
        assert lines.count(" <- ") == 7
        assert lines.count(" new") == depth - 4 + 1
        assert "  block3      conv1 <- block3.conv1, conv2 <- block3.conv2" in lines
        assert lines in Path("outputs", letter, "run.log").read_text()
        first = layers(letter, start_weights[-1])
        assert equal_layers(first, source) == TRANSFERRED
        assert equal_layers(first, layers(letter)) == []  # every layer was trained
    argv = ["experiment=paper_a", *small, "arch=vgg11_lrn", "train.init_from=outputs/a"]
    assert command(*argv)[0] == 0
    first = layers("a", start_weights[-1])
    assert equal_layers(first, source) == list(first)


def test_other_classes_get_a_new_output_layer(command, start_weights):
    assert command(*TINY, "data.classes=3", "run.name=a")[0] == 0
    overrides = ["data.classes=4", "run.name=b", "train.init_from=outputs/a", "train.freeze=5"]
    code, out, _ = command(*TINY, *overrides)
    assert code == 0
    assert "  block5      frozen: conv1 <- block5.conv1, conv2 <- block5.conv2\n" in out
    assert "hidden1 <- hidden1, output new (weight 3x16 there (output), 4x16 here)" in out
    first = layers("b", start_weights[-1])
    trained = set(first) - set(equal_layers(layers("b"), first))
    assert trained == {"hidden1", "output"}


def test_frozen_blocks_keep_their_weights(command):
    assert command(*TINY, "arch.norm=batch", "run.name=a")[0] == 0
    argv = [*MOVING, "train.init_from=outputs/a", "train.freeze=2", "run.name=b"]
    assert command(*argv)[0] == 0
    last = layers("b")
    frozen = {name for name in last if name < "block3"}
    assert set(equal_layers(last, layers("a"))) == frozen
    weights_sha256 = result("b")["weights_sha256"]
    interrupt("b")
    assert command(*argv)[0] == 0
    assert result("b")["weights_sha256"] == weights_sha256
    assert verify(["outputs/b"]) == 0


def test_the_name_depends_on_the_weights_and_not_on_the_path(command, tmp_path):
    assert command(*TINY, "run.name=a")[0] == 0
    assert command(*TINY, "seed=1", "run.name=other")[0] == 0
    assert command(*TINY, "train.init_from=outputs/a")[0] == 0
    for path in ("./outputs/../outputs/a/", tmp_path / "outputs" / "a"):
        assert command(*TINY, f"train.init_from={path}")[1].startswith("already finished")
    argv = [*TINY, "train.init_from=outputs/a"]
    code = (
        "import sys; from vggexp.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(vggexp.__file__).parents[1])}
    process = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment
    )
    assert process.stdout.startswith("already finished")
    assert process.stderr == ""
    _, out, _ = command(*TINY, "train.init_from=outputs/other")
    assert not out.startswith("already finished")
    assert len(list(Path("outputs").glob("vgg11-*"))) == 2
    assert command(*TINY, "run.name=b", "train.init_from=outputs/a")[0] == 0
    code, _, err = command(*TINY, "run.name=b", "train.init_from=outputs/other")
    assert code == 4
    assert "train.init_sha256: run has" in err


@pytest.mark.parametrize("name", [[], ["run.name=b"]])
def test_a_started_run_continues_without_its_source(command, name):
    argv = [*TINY, *name, "train.init_from=outputs/a"]
    assert command(*TINY, "run.name=a")[0] == 0
    assert command(*argv)[0] == 0
    (folder,) = [path for path in Path("outputs").iterdir() if path.name != "a"]
    weights_sha256 = result(folder.name)["weights_sha256"]
    Path("outputs/a").rename("elsewhere")
    assert command(*argv)[1].startswith("already finished")
    interrupt(folder.name)
    code, out, _ = command(*argv)
    assert code == 0
    assert "continued after step 3" in out
    assert result(folder.name)["weights_sha256"] == weights_sha256
    interrupt(folder.name)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    code, _, err = command(*argv)
    assert code == 2
    assert "train.init_from=outputs/a: has gone, and this run has no checkpoint yet" in err


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 2020"])
def test_a_file_in_torchvisions_naming(command, start_weights, legacy):
    assert command(*TINY, "data.channels=3", "run.name=a")[0] == 0
    model = vggexp.load_run("outputs/a").model
    weights = save_torchvision_weights(model)
    torch.save(weights, "w.pth", _use_new_zipfile_serialization=not legacy)
    code, out, err = command(*TINY, "train.init_from=w.pth", "run.name=b")
    assert (code, err) == (0, "")
    assert "start    w.pth  (torchvision's naming, SHA-256 " in out
    assert "  block1      conv1 <- features.0 (its input channels summed)\n" in out
    assert "  classifier  hidden1 <- classifier.0, output <- classifier.3\n" in out
    actual = start_weights[-1]
    expected = model.state_dict()
    summed = expected.pop("0.0.0.weight").sum(1, keepdim=True)
    torch.testing.assert_close(actual.pop("0.0.0.weight"), summed)
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name])


class Planted:
    """Creates the file `planted` when it is unpickled by unsafe means."""

    def __reduce__(self):
        return open, ("planted", "w")


INIT_A = "train.init_from=outputs/a"


@pytest.mark.parametrize(
    ("code", "overrides", "expected"),
    [
        (
            2,
            ["train.init_from=nowhere"],
            "train.init_from=nowhere: no such run directory or file of weights",
        ),
        (
            2,
            ["train.init_from=/dev/null"],
            "train.init_from=/dev/null: neither a run directory nor a file of weights",
        ),
        (2, ["train.freeze=2"], "train.freeze=2: needs train.init_from, which names the weights"),
        (2, [INIT_A, "train.freeze=6"], "train.freeze=6: more than the network's 5 blocks"),
        (
            2,
            [INIT_A, "train.init_sha256=abc"],
            "train.init_sha256=abc: must be 64 digits 0..9 a..f",
        ),
        (
            2,
            [INIT_A, "arch=vgg13", "train.freeze=2"],
            "train.freeze=2: the source has nothing for block1.conv2, block2",
        ),
        (4, [INIT_A, f"train.init_sha256={'0' * 64}"], f"{INIT_A}: its SHA-256 is "),
        (4, ["train.init_from=empty"], "empty: not the folder of a run, it has no config.yaml"),
        (4, [INIT_A, "arch.width=0.1"], f"{INIT_A}: block1.conv1: weight 3x1x3x3 there"),
        (4, ["train.init_from=text.pth"], "train.init_from=text.pth: cannot be read: "),
        (
            4,
            ["train.init_from=planted.pth"],
            "train.init_from=planted.pth: cannot be read: not tensors and",
        ),
        (
            4,
            ["train.init_from=planted_too.pth"],
            "train.init_from=planted_too.pth: cannot be read: ",
        ),
        (
            4,
            ["train.init_from=sparse.pth"],
            "train.init_from=sparse.pth: holds no weights in torchvision's naming",
        ),
        (
            4,
            ["train.init_from=outputs/a/checkpoints/00000006.pt"],
            "train.init_from=outputs/a/checkpoints/00000006.pt: "
            "'format' is no tensor of torchvision's VGG",
        ),
    ],
)
def test_a_source_is_refused_in_one_line(code, overrides, expected, command, trained_run):
    assert refusal(command, code, *overrides).startswith(expected)
    assert not Path("planted").exists()


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory):
    """A folder that holds the run `outputs/a`."""
    from vggexp.__main__ import main

    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["vggexp"])
        assert main([*TINY, "run.name=a"]) == 0
    return folder / "outputs"


@pytest.fixture
def trained_run(tmp_path, stored_run, capfd):
    """Puts the run `outputs/a`, and unusable sources, into the folder of the test."""
    shutil.copytree(stored_run, tmp_path / "outputs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"features.0.weight": Planted()}, tmp_path / "planted.pth")
    (tmp_path / "planted_too.pth").write_bytes(pickle.dumps(Planted()))
    torch.save(torch.zeros(3).to_sparse(), tmp_path / "sparse.pth")
    capfd.readouterr()


def test_a_source_that_has_changed_is_refused(command):
    assert command(*TINY, "run.name=a", "train.keep=weights")[0] == 0
    path = Path("outputs/a/checkpoints/00000006.pt")
    content = checkpoint.load(path)
    content["weights"]["2.0.bias"] += 1
    checkpoint.save(path, content)
    assert "has changed since this command began" in refusal(command, 4, INIT_A)
    path = Path("outputs/a/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "interrupted"}))
    error = refusal(command, 4, INIT_A)
    problem = "outputs/a is interrupted; only finished runs can be taken for train.init_from"
    assert error.startswith(f"{problem}; continue outputs/a with: python -m vggexp ")


def test_a_sweep_over_sources(command):
    for seed in (0, 1):
        assert command(*TINY, f"seed={seed}", f"run.name=s{seed}")[0] == 0
    sources = "train.init_from=outputs/s0,outputs/s1"
    code, out, err = command("-m", *TINY, "hydra/launcher=basic", sources)
    assert (code, err) == (0, "")
    assert out.count("start    outputs/s") == 2
