"""The door: files that answer without vggexp as the run did, torchvision's twins, and what is refused."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import onnxruntime
import pytest
import torch
from torch import nn

import vggexp
from tests.conftest import TINY, write_pictures
from vggexp.config.compose import parse_command
from vggexp.export.__main__ import main
from vggexp.export.torchvision_code import torchvision_code
from vggexp.models.torchvision import save_torchvision_weights
from vggexp.runner import build
from vggexp.runs.directory import write_result
from vggexp.sweep.expand import compose_run

ROOT = Path(__file__).parents[2]
SMALL = [*TINY, "data.size=20", "data.resize=32", "device.precision=fp32"]
KINDS = [("torch", ".pt2", False), ("onnx", ".onnx", True)]
FILES = [f"a{'-preprocess' * inside}{suffix}" for _, suffix, inside in KINDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(name, "key=value", ...): a finished run in the folder that `trained.folder` names."""
    from vggexp.__main__ import main as trains

    folder = tmp_path_factory.mktemp("runs")

    def run(name, *own):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("sys.argv", ["vggexp"])
            assert trains([*own, f"run.name={name}"]) == 0
        return folder / "outputs" / name

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def exports(trained):
    """A run with batch norm, exported in two ways: its folder and what --json printed of each file."""
    run = trained("a", *SMALL, "data.channels=3", "arch.norm=batch")
    found = {}
    for kind, suffix, inside in KINDS:
        from vggexp.export.writers import export_run
        from vggexp.runs.predictions import read

        path = run / "exports" / f"a{'-preprocess' * inside}{suffix}"
        found[path.name] = export_run(run, kind, inside, path, read(run))
    return run, found


ALONE = """
import sys
sys.modules["vggexp"] = None  # importing it fails
import numpy, onnxruntime, torch
asked, given, *files = sys.argv[1:]
answers = {}
for file in files:
    if file.endswith(".pt2"):
        run = torch.export.load(file).module()
        answer = lambda images: run(torch.from_numpy(images)).detach().numpy()
    else:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        answer = lambda images: session.run(["logits"], {"images": images})[0]
    images = numpy.load(asked)["pixels" if "preprocess" in file else "normalised"]
    for count in (1, 3, 128):
        answers[f"{file} {count}"] = answer(images[:count])
numpy.savez(given, **answers)
"""


def test_each_file_answers_where_vggexp_is_not(exports, tmp_path):
    folder, _ = exports
    run = vggexp.load_run(folder)
    pixels = torch.randint(0, 256, (128, 3, 20, 20), dtype=torch.uint8)
    numpy.savez(
        tmp_path / "asked.npz", pixels=pixels.numpy(), normalised=run.preprocess(pixels).numpy()
    )
    command = [
        sys.executable,
        "-c",
        ALONE,
        str(tmp_path / "asked.npz"),
        str(tmp_path / "given.npz"),
        *FILES,
    ]
    ended = subprocess.run(command, cwd=folder / "exports", env={}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answers = numpy.load(tmp_path / "given.npz")
    with torch.inference_mode():
        wanted = run.model(run.preprocess(pixels)).numpy()
    assert len(answers) == 6
    for name, logits in answers.items():
        count = int(name.split()[1])
        numpy.testing.assert_allclose(logits, wanted[:count], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", FILES)
def test_parity_is_measured_on_the_whole_test_set(name, exports):
    found = exports[1][name]["parity"]
    assert found["images"] == found["same_labels"] == 19
    assert found["max_difference"] < 1e-5 and found["max_difference_here"] < 1e-5
    assert (found["tolerance"], found["precision"], found["device"]) == (1e-4, "fp32", "cpu")


def test_a_file_says_what_it_is_and_nothing_of_this_machine(exports):
    folder, found = exports
    for name in FILES:
        path = folder / "exports" / name
        if name.endswith(".onnx"):
            text = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["vggexp"]
        else:
            text = zipfile.ZipFile(path).read("archive/extra/vggexp.json")
        facts = json.loads(text)
        inside = "preprocess" in name
        assert facts.items() <= found[name].items() and facts["preprocess"] == inside
        assert (facts["side"], facts["size"], facts["channels"]) == (20 if inside else 32, 32, 3)
        assert (
            facts["classes"] == list(map(str, range(10)))
            and len(facts["mean"]) == len(facts["std"]) == 3
        )
        assert str(ROOT).encode() not in path.read_bytes()
    assert {path.name for path in (folder / "exports").iterdir()} == set(FILES)


def told(capfd, *argv):
    capfd.readouterr()  # what training said
    code = main([str(word) for word in argv])
    return code, *capfd.readouterr()


def test_what_is_printed(exports, tmp_path, capfd):
    code, out, error = told(
        capfd, "--format", "torch", "--out", tmp_path / "m.pt2", exports[0], "--preprocess"
    )
    assert (code, error) == (0, "")
    first, takes, gives, parity, *load = out.splitlines()
    assert load[1] == f"load     net = torch.export.load('{tmp_path / 'm.pt2'}').module()"
    assert first.startswith(f"file     {tmp_path / 'm.pt2'}  (")
    assert takes == "takes    images [N, 3, 20, 20], uint8, pixels of 0..255"
    assert gives == "gives    logits [N, 10]: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert parity.startswith("parity   19 test images: maximum difference ")
    assert "from predictions.npz (cpu fp32 explains 0.0001)" in parity and parity.endswith(
        "same label for 19 (1.0000)"
    )


def test_a_run_in_bf16_is_told_what_its_rounding_explains(trained, capfd):
    run = trained("bf16", *SMALL, "device.precision=bf16", "train.ema=0.9")
    code, out, _ = told(capfd, run, "--format", "torch", "--json")
    found = json.loads(out)["parity"]
    assert (
        code == 0
        and found["precision"] == "bf16"
        and 1e-6 < found["max_difference"] < found["tolerance"] == 0.1
    )
    assert found["max_difference_here"] < 1e-5


def test_a_file_that_does_not_answer_as_the_run_did_is_removed(exports, tmp_path, capfd):
    run = tmp_path / "a"
    shutil.copytree(exports[0], run)
    kept = dict(numpy.load(run / "predictions.npz"))
    before = (run / "exports/a.pt2").read_bytes()
    numpy.savez(run / "predictions.npz", scores=kept["scores"][:, ::-1], labels=kept["labels"])
    code, out, error = told(capfd, run, "--format", "torch")
    assert (code, out) == (
        4,
        "",
    ) and "the file does not answer as the run did, and was removed: 19 test" in error
    assert error.count("\n") == 1 and (run / "exports/a.pt2").read_bytes() == before
    assert sorted(path.name for path in (run / "exports").iterdir()) == sorted(FILES)
    numpy.savez(run / "predictions.npz", scores=kept["scores"], labels=kept["labels"][::-1])
    assert told(capfd, run, "--format", "torch")[0] == 4
    code, out, _ = told(capfd, run, "--format", "torch", "--unchecked")
    assert code == 0 and "parity   not compared (--unchecked)" in out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_full_disk_leaves_no_file(kind, exports, tmp_path):
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[kind]
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    script += "from vggexp.export import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        script,
        str(exports[0]),
        "--format",
        kind,
        "--out",
        str(tmp_path / f"m{suffix}"),
    ]
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # Python would leave cut modules behind
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (6, "", 1)
    assert f"m{suffix}: cannot be written: File too large" in ended.stderr and not list(
        tmp_path.iterdir()
    )


@pytest.mark.slow
def test_a_folder_of_pictures_whose_data_changes_or_goes(trained, capfd):
    pictures = trained.folder / "pictures"
    write_pictures(
        pictures, {"train": 10, "test": 3}, lambda index: (40 + index, 60 - index), "png"
    )
    own = [
        "data=image_folder",
        f"data.root={pictures}",
        "data.resize=32",
        "data.batch_size=4",
        "device.threads=1",
    ]
    own += [
        "data.workers=0",
        "arch=vgg_digits",
        "arch.width=0.1",
        "train.epochs=1",
        "device.precision=fp32",
    ]
    run = trained("folder", *own)
    code, out, _ = told(capfd, run, "--format", "torch", "--preprocess")
    assert (
        code == 0
        and "[N, 3, 32, 32], uint8" in out
        and "cat, dog" in out
        and "same label for 6 (1.0000)" in out
    )
    (pictures / "test/cat/0.png").unlink()
    code, _, error = told(capfd, run, "--format", "torch")
    assert code == 4 and "the data has changed since this run began (test)" in error
    shutil.rmtree(pictures)
    code, _, error = told(capfd, run, "--format", "torch")
    assert code == 3 and error.endswith("(--unchecked exports without it)\n")
    assert told(capfd, run, "--format", "torch", "--unchecked")[0] == 0


def test_torchvision_by_the_lines_that_are_printed(trained, capfd):
    run = trained(
        "twin",
        *[key for key in SMALL if "width" not in key],
        "arch.hidden=[8,16]",
        "train.epochs=1",
    )
    code, out, _ = told(capfd, run, "--format", "torchvision")
    assert code == 0 and "same label for 19 (1.0000)" in out
    code = [line.removeprefix("load     ") for line in out.splitlines() if line.startswith("load")]
    loaded, images = vggexp.load_run(run), torch.randn(5, 1, 32, 32)
    scope = {"images": images}
    exec("\n".join(code), scope)
    torch.testing.assert_close(scope["logits"], loaded.model(images), atol=1e-5, rtol=1e-5)
    facts = torch.load(run / "exports/twin.pth", weights_only=True)._metadata["vggexp"]
    assert (
        facts["classes"] == list(loaded.classes)
        and facts["mean"] == loaded.preprocess.mean.tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "own"),
    [
        ("vgg11", ["data=fashion_mnist", "arch.dropout=0"]),
        ("vgg11_bn", ["data=cifar10", "data.resize=64", "arch.hidden=[64,4096]"]),
        ("vgg13", ["data=cifar100", "data.resize=32", "arch.dropout=0.2"]),
        ("vgg13_bn", ["data=digits", "data.resize=32"]),
        ("vgg16", ["data=cifar10", "data.resize=224"]),
        ("vgg16_bn", ["data=fashion_mnist", "data.resize=32"]),
        ("vgg19", ["data=mnist", "data.resize=32"]),
        ("vgg19_bn", ["data=image_folder", "data.classes=1000", "data.resize=null"]),
    ],
)
def test_the_twin_has_the_same_logits(arch, own, tmp_path):
    config = compose_run(parse_command([f"arch={arch}", *own]))
    model = build.build_model(config).eval()
    for module in model.modules():  # a batch norm at its start could be any
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(save_torchvision_weights(model), tmp_path / "twin.pth")
    code, scope = torchvision_code(config, str(tmp_path / "twin.pth")), {}
    exec("\n".join(code), scope)
    plain = arch in ("vgg16", "vgg19_bn")  # colour at 224 px: torchvision's network as it is
    assert len(code) == 4 if plain else len(code) > 4
    given = build.input_spec(config)
    images = torch.randn(2, given.channels, given.size, given.size)
    with torch.inference_mode():
        torch.testing.assert_close(scope["net"](images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize(
    "own",
    [
        ["arch=vgg11_lrn"],
        ["arch=vgg16c"],
        ["arch=lenet"],
        ["arch=alexnet", "data.resize=64"],
        ["data.normalize=false"],
    ],
    ids=lambda own: own[0],
)
def test_every_other_network(own, kind, trained, capfd):
    small = [key for key in SMALL if not key.startswith("arch")] if own[0][-3:] == "net" else SMALL
    run = trained(own[0].partition("=")[2] + kind, *small, *own, "train.epochs=1")
    for inside in (["--preprocess"], []):
        code, out, error = told(capfd, run, "--format", kind, *inside)
        assert (code, error) == (0, "") and "same label for 19 (1.0000)" in out


@pytest.mark.slow
@pytest.mark.debian
def test_fashion_mnist(trained, capfd):
    own = [
        "data.resize=48",
        "data.limit=1280",
        "arch.width=0.125",
        "arch.hidden=[64]",
        "train.epochs=1",
    ]
    run = trained("fashion", *own)
    scores = numpy.sort(numpy.load(run / "predictions.npz")["scores"], 1)
    margins = scores[:, -1] - scores[:, -2]
    for kind, inside in (
        ("torch", []),
        ("torch", ["--preprocess"]),
        ("onnx", []),
        ("onnx", ["--preprocess"]),
    ):
        code, out, _ = told(capfd, run, "--format", kind, *inside, "--json")
        found = json.loads(out)["parity"]
        assert code == 0 and found["images"] == 10_000 and found["max_difference_here"] < 1e-5
        certain = margins > 2 * found["max_difference"]  # rounding cannot turn these
        assert certain.sum() <= found["same_labels"] and certain.mean() > 0.5


REFUSED = [
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
    (["outputs/blind", "--format", "torch"], 4, "outputs/blind/predictions.npz: cannot be read"),
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
        ["--without", "outputs/a", "--format", "onnx"],
        2,
        "--format onnx: needs onnxscript; pip install 'vggexp[export]'",
    ),
]
IN_TURN = """
import contextlib, importlib.util, io, json, sys
from vggexp.{door} import main
found, there = [], importlib.util.find_spec
for argv in json.loads(sys.argv[1]):
    error = io.StringIO()
    without = "--without" in argv
    import vggexp.{door} as door
    door.find_spec = (lambda name: None if name.startswith("onnx{missing}") else there(name)) if without else there
    with contextlib.redirect_stderr(error):
        code = main([word for word in argv if word != "--without"])
    found.append([code, error.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""


def in_turn(door, missing, cases, folder):
    """Each command in one process: its exit code, what it said, and whether torch had been imported."""
    command = [
        sys.executable,
        "-c",
        IN_TURN.format(door=door, missing=missing),
        json.dumps([case[0] for case in cases]),
    ]
    ended = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_refused_before_torch_is_imported(exports, trained):
    outputs = exports[0].parent
    for name in ("stopped", "blind"):
        shutil.copytree(exports[0], outputs / name)
    write_result(outputs / "stopped", "interrupted")
    (outputs / "blind/predictions.npz").unlink()
    (trained.folder / "is.pt2").mkdir()
    for (argv, code, told), found in zip(
        REFUSED, in_turn("export", "script", REFUSED, trained.folder), strict=True
    ):
        assert (found[0], found[2]) == (code, False), argv
        assert (
            found[1].startswith("vggexp: error: ")
            and found[1].count("\n") == 1
            and told in found[1]
        ), found[1]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (["arch=vgg11_lrn"], "no local response normalisation"),
        (["arch=vgg16c"], "no 1x1 convolutions (configuration C)"),
        (["arch=vgg_digits"], "arch.blocks: not those of torchvision's"),
        (
            ["arch=vgg11", "arch.hidden=[64]"],
            "arch.hidden=[64]: torchvision's VGGs have two hidden layers",
        ),
        (["arch=lenet"], "arch=lenet: "),
        (["arch=alexnet"], "arch=alexnet: "),
        (["arch=vgg11", "arch.blocks=[[1,64],[1,128],[2,256],[2,512]]"], "arch.blocks: not those"),
    ],
)
def test_networks_that_torchvision_does_not_have(own, why):
    from vggexp.export.torchvision_code import unsupported_reason

    assert why in unsupported_reason(compose_run(parse_command(own)).arch)
