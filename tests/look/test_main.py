"""The command writes one page for images, folders of classes and mistakes, or one line."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vggexp.__main__ import main as train
from vggexp.look import look
from vggexp.look.__main__ import main
from vggexp.runs.directory import write_result

pytestmark = pytest.mark.process

RUN = "data=digits arch.blocks=[[1,8],[1,8]] arch.hidden=[16] train.epochs=1 device.threads=1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("look")
    assert train([*RUN.split(), f"run.root={root}", "run.name=digits"]) == 0
    return root / "digits"


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three digits, each in the folder of its class, and a file that is no image."""
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for index in range(3):
        folder = tmp_path / "images" / str(digits.target[index])
        folder.mkdir(parents=True)
        pixels = (digits.images[index] * 15).astype("uint8")
        Image.fromarray(pixels).resize((40, 30)).save(folder / "a.png")
    return sorted((tmp_path / "images").rglob("*.png"))


class Parser(HTMLParser):
    """Collects what a browser would load."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        self.urls += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_has_every_image_and_loads_nothing(run, images, tmp_path):
    assert main([str(run), *map(str, images)]) == 0
    page = (tmp_path / "look.html").read_text()
    parser = Parser()
    parser.feed(page)
    assert parser.urls
    assert all(url.startswith("data:image/png;base64,") for url in parser.urls)
    assert len(re.findall("Most active feature maps", page)) == 3
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)


def test_files_that_are_no_images_are_reported_behind_the_page(run, images, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    assert main([str(run), "text.png", str(images[0])]) == 3
    out, error = capsys.readouterr()
    assert out == "1 image in look.html\n"
    assert error == "vggexp: error: text.png: not an image\n"
    assert (tmp_path / "look.html").exists()


def test_the_folder_of_an_image_names_its_class(run, images, capsys):
    assert main([str(run), *map(str, images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert [item["true_label"] for item in found] == ["0", "1", "2"]


def test_mistakes_are_test_images_with_another_label(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(run), "--mistakes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert 0 < len(found) <= 25
    assert all(item["label"] != item["true_label"] for item in found)


def test_a_run_without_mistakes_is_reported_behind_the_page(
    run, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(look, "worst_mistakes", lambda *_: [])
    assert main([str(run), str(images[0]), "--mistakes"]) == 3
    out, error = capsys.readouterr()
    assert out == "1 image in look.html\n"
    assert error == f"vggexp: error: {run}: no test image is classified wrongly\n"
    assert (tmp_path / "look.html").exists()


def test_an_unfinished_run_comes_with_a_warning(run, images, capsys):
    stopped = shutil.copytree(run, "stopped")
    write_result(Path(stopped), "interrupted")
    assert main([stopped, str(images[0])]) == 0
    warning = "warning: stopped is interrupted: using its newest checkpoint\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "IMAGE: none is given; name image files, or use --mistakes"),
        (["no.png"], 3, "no.png: cannot be read: No such file"),
        (["a.png", "--data", "x"], 2, "--data x: belongs with --mistakes"),
    ],
)
def test_a_wrong_command_is_one_line(run, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(run), *arguments]) == code
    assert capsys.readouterr().err.startswith(f"vggexp: error: {message}")
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_one_line(run, images, capsys):
    assert main([str(run), str(images[0]), "--out", "missing/look.html"]) == 2
    message = "--out missing/look.html: no such directory: missing"
    assert capsys.readouterr().err == f"vggexp: error: {message}\n"


def test_out_of_memory_is_one_line(run, images, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(look, "look_at", fail)
    assert main([str(run), str(images[0])]) == 6
    message = f"out of memory in looking at {run}; give fewer images"
    assert message in capsys.readouterr().err
