"""Runs that begin from the weights of others: the paper's A to E on real pictures, transfer, names, refusals."""

import json
import os
import pickle
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

PAPER = [
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
]
SMALL += ["arch.width=0.05", "arch.hidden=[16,16]", "train.epochs=1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Cuts of the two photographs that scikit-learn carries, and its digits: 12 a class to train, 4 to test."""
    from sklearn.datasets import load_digits, load_sample_images

    china, flower = load_sample_images().images
    cuts = {
        name: [
            photo[row : row + 64, column : column + 80]
            for row in range(0, 256, 64)
            for column in range(0, 320, 80)
        ]
        for name, photo in (("china", china), ("flower", flower))
    }
    cuts["digit"] = [
        numpy.kron(digit, numpy.ones((8, 8))) * 15 for digit in load_digits().images[:16]
    ]
    root = tmp_path_factory.mktemp("pictures")
    for name, images in cuts.items():
        for index, pixels in enumerate(images):
            path = root / ("train" if index % 4 else "test") / name / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(numpy.uint8)).convert("RGB").save(path)
    return root


@pytest.fixture
def beginnings(monkeypatch):
    """The weights of each run before its first step."""
    seen, real = [], job.train

    def spy(state, *others):
        seen.append({name: tensor.clone() for name, tensor in state.model.state_dict().items()})
        real(state, *others)

    monkeypatch.setattr(job, "train", spy)
    return seen


def layers(name, weights=None):
    """The layers of a finished run, or of its network with other weights."""
    model = vggexp.load_run(Path("outputs") / name).model
    model.load_state_dict(weights or model.state_dict())
    return named_layers(model)


def same(one, other):
    mine, its = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], its[name]) for name in mine)


def test_the_paper_from_a_to_e(command, pictures, beginnings):
    small = [*SMALL, f"data.root={pictures}"]
    assert command("experiment=paper_a", *small, "run.name=a")[::2] == (0, "")
    source = layers("a")
    for letter, depth in (("b", 10), ("c", 13), ("d", 13), ("e", 16)):
        code, out, err = command(
            f"experiment=paper_{letter}", *small, "train.init_from=outputs/a", f"run.name={letter}"
        )
        assert (code, err) == (0, "")
        start = out[
            out.index("start    outputs/a  (vgg11-w0.05, SHA-256 ") : out.index("epoch 1/1")
        ]
        assert start.count(" <- ") == 7 and f"{start.count(' new')} new" == f"{depth - 4 + 1} new"
        assert "  block3      conv1 <- block3.conv1, conv2 <- block3.conv2" in start
        assert start in Path("outputs", letter, "run.log").read_text()
        begun = layers(letter, beginnings[-1])
        assert [
            name for name in begun if name in source and same(begun[name], source[name])
        ] == PAPER
        assert not any(
            same(begun[name], layer) for name, layer in layers(letter).items()
        )  # and then all learnt
    assert (
        command("experiment=paper_a", *small, "arch=vgg11_lrn", "train.init_from=outputs/a")[0] == 0
    )
    assert all(same(layer, source[name]) for name, layer in layers("a", beginnings[-1]).items())


def test_another_head_for_other_classes(command, beginnings):
    assert command(*TINY, "data.classes=3", "run.name=a")[0] == 0
    code, out, _ = command(
        *TINY, "data.classes=4", "run.name=b", "train.init_from=outputs/a", "train.freeze=5"
    )
    assert (
        code == 0 and "  block5      frozen: conv1 <- block5.conv1, conv2 <- block5.conv2\n" in out
    )
    assert "hidden1 <- hidden1, output new (weight 3x16 there (output), 4x16 here)" in out
    kept, ends = layers("b", beginnings[-1]), layers("b")
    assert [name for name, layer in ends.items() if not same(layer, kept[name])] == [
        "hidden1",
        "output",
    ]


HARD = [
    *TINY,
    "arch.norm=batch",
    "train.ema=0.9",
    "train.clip_norm=0.1",
    "train.accumulate=2",
    "optimizer=adamw",
]


def test_frozen_blocks_stay_as_they_came(command):
    """Whatever else moves weights: decay, momentum, averages, statistics; and also once the run was continued."""
    assert command(*TINY, "arch.norm=batch", "run.name=a")[0] == 0
    begin = [
        *HARD,
        "optimizer.weight_decay=1",
        "train.init_from=outputs/a",
        "train.freeze=2",
        "run.name=b",
    ]
    assert command(*begin)[0] == 0
    there, here = layers("a"), layers("b")
    assert {name for name in here if same(here[name], there[name])} == {
        n for n in here if n < "block3"
    }
    whole = result("b")["weights_sha256"]
    interrupted("b")
    assert command(*begin)[0] == 0 and result("b")["weights_sha256"] == whole
    from vggexp.verify.__main__ import main

    assert main(["outputs/b"]) == 0


def interrupted(name):
    """As if it had been killed after its first epoch."""
    folder = Path("outputs") / name
    (folder / "result.json").unlink()
    max((folder / "checkpoints").glob("*.pt")).unlink()


def test_the_name_follows_from_the_weights_and_not_from_the_path(command, tmp_path):
    assert command(*TINY, "run.name=a")[0] == command(*TINY, "seed=1", "run.name=other")[0] == 0
    assert command(*TINY, "train.init_from=outputs/a")[0] == 0
    for path in ("./outputs/../outputs/a/", tmp_path / "outputs" / "a"):
        assert command(*TINY, f"train.init_from={path}")[1].startswith("already finished")
    words = [*TINY, "train.init_from=outputs/a"]
    text = "import sys; from vggexp.__main__ import main; end = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    here = {**os.environ, "PYTHONPATH": str(Path(vggexp.__file__).parents[1])}
    again = subprocess.run(
        [sys.executable, "-c", text, *words], capture_output=True, text=True, env=here
    )
    assert (again.stdout[:16], again.stderr) == ("already finished", "")
    assert not command(*TINY, "train.init_from=outputs/other")[1].startswith("already finished")
    assert len(list(Path("outputs").glob("vgg10-*"))) == 2
    assert command(*TINY, "run.name=b", "train.init_from=outputs/a")[0] == 0
    code, _, err = command(*TINY, "run.name=b", "train.init_from=outputs/other")
    assert code == 4 and "train.init_sha256: run has" in err


@pytest.mark.parametrize("name", [[], ["run.name=b"]])
def test_a_run_that_was_begun_needs_its_source_no_more(command, name):
    assert command(*TINY, "run.name=a")[0] == 0
    assert command(*TINY, *name, "train.init_from=outputs/a")[0] == 0
    folder = next(path for path in Path("outputs").iterdir() if path.name != "a")
    whole = result(folder.name)["weights_sha256"]
    Path("outputs/a").rename("elsewhere")
    assert command(*TINY, *name, "train.init_from=outputs/a")[1].startswith("already finished")
    interrupted(folder.name)
    code, out, _ = command(*TINY, *name, "train.init_from=outputs/a")
    assert (
        code == 0
        and "continued after step 3" in out
        and result(folder.name)["weights_sha256"] == whole
    )
    interrupted(folder.name)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    code, _, err = command(*TINY, *name, "train.init_from=outputs/a")
    assert (
        code == 2
        and "train.init_from=outputs/a: has gone, and this run has no checkpoint yet" in err
    )


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
def test_a_file_in_torchvisions_naming(command, beginnings, old):
    assert command(*TINY, "data.channels=3", "run.name=a")[0] == 0
    model = vggexp.load_run("outputs/a").model
    torch.save(save_torchvision_weights(model), "w.pth", _use_new_zipfile_serialization=not old)
    code, out, err = command(*TINY, "train.init_from=w.pth", "run.name=b")
    assert (code, err) == (0, "") and "start    w.pth  (torchvision's naming, SHA-256 " in out
    assert "  block1      conv1 <- features.0 (its input channels summed)\n" in out
    assert "  classifier  hidden1 <- classifier.0, output <- classifier.3\n" in out
    begun = beginnings[-1]
    torch.testing.assert_close(
        begun.pop("0.0.0.weight"), model.state_dict()["0.0.0.weight"].sum(1, keepdim=True)
    )
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in begun.items())


class Planted:
    def __reduce__(self):
        return open, ("planted", "w")


def refused(command, code, *words):
    """The error of a command that writes nothing."""
    before = sorted(Path().rglob("*"))
    ended, out, err = command(*TINY, *words)
    assert (ended, out, err.count("\n")) == (code, "", 1) and sorted(Path().rglob("*")) == before
    return err.removeprefix("vggexp: error: ").rstrip()


def test_what_is_refused(command, tmp_path):
    assert command(*TINY, "run.name=a")[0] == 0
    Path("empty").mkdir()
    Path("text.pth").write_text("no weights")
    torch.save({"features.0.weight": Planted()}, "planted.pth")
    Path("planted_too.pth").write_bytes(pickle.dumps(Planted()))
    torch.save(torch.zeros(3).to_sparse(), "sparse.pth")
    own, a = max(Path("outputs/a/checkpoints").glob("*.pt")), "train.init_from=outputs/a"
    for code, words, expected in (
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
        (2, [a, "train.freeze=6"], "train.freeze=6: more than the network's 5 blocks"),
        (2, [a, "train.init_sha256=abc"], "train.init_sha256=abc: must be 64 digits 0..9 a..f"),
        (
            2,
            [a, "arch=vgg13", "train.freeze=2"],
            "train.freeze=2: the source has nothing for block1.conv2, block2",
        ),
        (4, [a, f"train.init_sha256={'0' * 64}"], f"{a}: its SHA-256 is "),
        (4, ["train.init_from=empty"], "empty: not the folder of a run, it has no config.yaml"),
        (4, [a, "arch.width=0.1"], f"{a}: block1.conv1: weight 3x1x3x3 there"),
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
            [f"train.init_from={own}"],
            f"train.init_from={own}: 'format' is no tensor of torchvision's VGG",
        ),
    ):
        assert refused(command, code, *words).startswith(expected), words
    assert not Path("planted").exists()


def test_a_source_that_is_not_whole_is_refused(command):
    assert command(*TINY, "run.name=a", "train.keep=weights")[0] == 0
    path = Path("outputs/a/checkpoints/00000006.pt")
    saved = checkpoint.load(path)
    saved["weights"]["2.0.bias"] += 1
    checkpoint.save(path, saved)
    assert "has changed since this command began" in refused(
        command, 4, "train.init_from=outputs/a"
    )
    content = json.loads(Path("outputs/a/result.json").read_text())
    Path("outputs/a/result.json").write_text(json.dumps(content | {"state": "interrupted"}))
    assert "this run has not finished (result.json: interrupted)" in refused(
        command, 4, "train.init_from=outputs/a"
    )


def test_a_sweep_over_sources(command):
    for seed in (0, 1):
        assert command(*TINY, f"seed={seed}", f"run.name=s{seed}")[0] == 0
    code, out, err = command(
        "-m", *TINY, "hydra/launcher=basic", "train.init_from=outputs/s0,outputs/s1"
    )
    assert (code, err) == (0, "") and out.count("start    outputs/s") == 2
