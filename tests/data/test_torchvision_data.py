"""Tests that images and labels are those of torchvision, for every data set of the table."""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy
import pytest
import torch
from torchvision import datasets

from tests.data.torchvision_files import TEST, TRAIN, WRITERS, write_torchvision
from vggexp.data import torchvision_data
from vggexp.data.fingerprint import combined_sha256
from vggexp.data.image_file import read_image
from vggexp.data.image_folder import cached_reads
from vggexp.data.torchvision_data import Source, load_torchvision, open_torchvision
from vggexp.data.torchvision_sets import ARRAY_SETS, FILE_SETS, TORCHVISION_SETS
from vggexp.errors import ConfigError, DataError, ResourceError

ARGUMENTS = {"EMNIST": {"split": "letters"}}
WITHOUT_TEST_PART = {name for name in WRITERS if TORCHVISION_SETS[name].test is None}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """source(name) -> the source of a data set whose files have been written."""

    def write(name):
        write_torchvision(name, tmp_path / "data", monkeypatch)
        return Source(name, tmp_path / "data", ARGUMENTS.get(name, {}), None)

    return write


def torchvision_items(source, part):
    """Returns what torchvision itself gives: RGB or gray pixels [C, H, W] and labels."""
    arguments = {**source.arguments, **part, "root": str(source.root)}
    if source.name == "SEMEION":
        arguments["download"] = False
    items = []
    for image, label in getattr(datasets, source.name)(**arguments):
        if source.name in FILE_SETS:
            image = image.convert("RGB")
        pixels = numpy.atleast_3d(numpy.asarray(image)).transpose(2, 0, 1)
        items.append((pixels.tobytes(), label))
    return items


def own_items(part, is_files):
    """Returns the same of a part that vggexp has read."""
    images = [read_image(path) for path in part.paths] if is_files else part.images
    labels = part.labels if is_files else part.labels.tolist()
    return [(image.numpy().tobytes(), label) for image, label in zip(images, labels, strict=True)]


def test_a_writer_for_every_set_of_files():
    without_files = {"FakeData", "PCAM"}  # PCAM needs h5py
    assert {*WRITERS} == {*TORCHVISION_SETS} - without_files


@pytest.mark.parametrize("name", sorted({*WRITERS} - WITHOUT_TEST_PART))
def test_images_and_labels_are_torchvisions(source, name):
    info = TORCHVISION_SETS[name]
    written = source(name)
    splits = open_torchvision(written, download=False)
    for part, arguments in ((splits.train, info.train), (splits.test, info.test)):
        expected = torchvision_items(written, arguments)
        own = own_items(part, name in FILE_SETS)
        if info.sorts_files:
            expected, own = sorted(expected), sorted(own)
        assert own == expected
    assert len(splits.train.labels) == TRAIN
    assert len(splits.test.labels) == TEST


@pytest.mark.parametrize("name", sorted(WITHOUT_TEST_PART - {"Omniglot"}))
def test_a_set_without_a_test_part_is_split(source, name):
    written = source(name)
    splits = open_torchvision(written, download=False)
    is_files = name in FILE_SETS
    train = own_items(splits.train, is_files)
    test = own_items(splits.test, is_files)
    assert sorted(train + test) == sorted(torchvision_items(written, {}))
    assert 0.1 < len(test) / len(train + test) < 0.3
    assert "no test part: 0.2 of each class for the test" in splits.origin


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.999, TRAIN - 1)])
def test_both_parts_of_a_split_have_an_image(source, fraction, count):
    written = source("SEMEION")._replace(test_fraction=fraction)
    splits = open_torchvision(written, download=False)
    assert len(splits.test.labels) == count


def test_omniglots_classes_do_not_depend_on_the_order_of_folders(source):
    splits = open_torchvision(source("Omniglot"), download=False)
    names = ("Greek/character01", "Greek/character02", "Zulu/character01")
    assert splits.train.classes == names
    for path, label in zip(splits.train.paths, splits.train.labels, strict=True):
        assert names[label] == "/".join(path.parts[-3:-1])


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("SVHN", tuple("0123456789")),
        ("KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
        ("EMNIST", ("N/A", *"abcdefghijklmnopqrstuvwxyz")),
        ("STL10", ("airplane", "bird", "car", "cat", "deer", "dog")),
        ("Food101", ("apple_pie", "waffles")),
        ("ImageNet", ("tench, Tinca tinca", "English springer")),
        ("GTSRB", ("0", "1")),
        ("OxfordIIITPet", ("Abyssinian", "Great Pyrenees")),
        ("LFWPeople", ("Ann_Lee", "Bo_Ek")),
    ],
)
def test_the_names_of_the_classes(source, name, classes):
    assert open_torchvision(source(name), download=False).train.classes == classes


def test_generated_images_are_torchvisions():
    arguments = {"size": 20, "image_size": [3, 8, 8], "num_classes": 4, "random_offset": 5}
    splits = open_torchvision(Source("FakeData", None, arguments, 0.25), download=False)
    own = own_items(splits.train, False) + own_items(splits.test, False)
    expected = []
    for image, label in datasets.FakeData(**arguments):
        expected.append((numpy.asarray(image).transpose(2, 0, 1).tobytes(), label))
        if len(expected) == 20:  # an iteration over FakeData ends in an IndexError
            break
    assert sorted(own) == sorted(expected)
    assert splits.test.labels.bincount(minlength=4).sum() == 5


@pytest.mark.parametrize("name", ["KMNIST", "Food101"])
def test_a_moved_copy_has_the_same_hashes(source, name, tmp_path):
    first = load_torchvision(source(name), download=False).fingerprint
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    moved = load_torchvision(Source(name, tmp_path / "copy", {}, None), download=False).fingerprint
    assert moved == first
    assert first.keys() == {"train", "test"}


def test_another_label_makes_another_hash(source, tmp_path):
    before = combined_sha256(load_torchvision(source("Food101"), download=False).fingerprint)
    lists = tmp_path / "data/food-101/meta/test.json"
    lists.write_text(lists.read_text().replace('waffles/test1"', 'apple_pie/test0"'))
    after = load_torchvision(Source("Food101", tmp_path / "data", {}, None), download=False)
    assert combined_sha256(after.fingerprint) != before


def test_a_block_reads_a_set_once(source, monkeypatch):
    opened = []
    monkeypatch.setattr(
        torchvision_data, "_open_or_download", lambda *call: opened.append(call) or "splits"
    )
    kmnist = source("KMNIST")
    with cached_reads():
        assert open_torchvision(kmnist, False) == open_torchvision(kmnist, False) == "splits"
    assert len(opened) == 1


@pytest.mark.parametrize("name", sorted({*ARRAY_SETS, *FILE_SETS} - {"FakeData", "PCAM"}))
def test_an_empty_folder_is_one_line(tmp_path, name):
    empty = Source(name, tmp_path / "empty", ARGUMENTS.get(name, {}), None)
    with pytest.raises(DataError, match=f"{name}: .*empty does not hold its files") as caught:
        open_torchvision(empty, download=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("name", ["SVHN", "STL10", "KMNIST", "USPS", "SEMEION", "FER2013"])
def test_a_truncated_file_is_one_line(source, tmp_path, name):
    written = source(name)
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=f"^{name}: .*data.root=FOLDER") as caught:
        open_torchvision(written, download=False)
    assert "\n" not in str(caught.value)


def test_a_file_outside_of_the_root_is_refused(source, tmp_path):
    written = source("Food101")
    lists = tmp_path / "data/food-101/meta/train.json"
    lists.write_text('{"a": ["../../../../etc/x"], "b": ["b/1"]}')
    with pytest.raises(DataError, match="not below"):
        open_torchvision(written, download=False)


def test_a_missing_package_is_named_with_its_command(source, monkeypatch):
    written = source("SVHN")
    monkeypatch.setattr(
        torchvision_data, "find_spec", lambda name: None if name == "scipy" else "found"
    )
    with pytest.raises(ConfigError, match=r"^data\.name=SVHN: needs scipy; pip install scipy$"):
        open_torchvision(written, download=False)


def test_a_label_outside_of_the_classes_is_refused(source, tmp_path):
    written = source("KMNIST")
    path = tmp_path / "data/KMNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(DataError, match=r"KMNIST: label 10 at row 23, classes are 0\.\.9"):
        open_torchvision(written, download=False)


def test_the_split_of_generated_images_is_the_same_on_every_call():
    source = Source("FakeData", None, {"size": 30, "image_size": [1, 4, 4]}, None)
    first, second = (open_torchvision(source, download=False) for _ in range(2))
    assert torch.equal(first.test.images, second.test.images)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """USPS, which is not there yet, on a server of this machine."""
    write_torchvision("USPS", tmp_path / "server", monkeypatch)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "server")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    split_list = {}
    for part, (_, file, md5) in datasets.USPS.split_list.items():
        split_list[part] = [f"http://127.0.0.1:{server.server_port}/{file}", file, md5]
    monkeypatch.setattr(datasets.USPS, "split_list", split_list)
    yield Source("USPS", tmp_path / "fetched", {}, None)
    server.shutdown()
    server.server_close()


def test_a_download_is_torchvisions(served, tmp_path):
    with pytest.raises(DataError):
        open_torchvision(served, download=False)
    fetched = load_torchvision(served, download=True)
    expected = load_torchvision(Source("USPS", tmp_path / "server", {}, None), download=False)
    assert fetched.fingerprint == expected.fingerprint
    names = sorted(path.name for path in (tmp_path / "fetched").iterdir())
    assert names == [".download.lock", "test.bz2", "train.bz2"]


def test_the_remains_of_a_killed_download_are_removed(served, tmp_path):
    (tmp_path / "fetched/.USPS.part-x").mkdir(parents=True)
    open_torchvision(served, download=True)
    assert not (tmp_path / "fetched/.USPS.part-x").exists()


def test_a_download_with_another_checksum_leaves_nothing(served, tmp_path):
    (tmp_path / "server/test.bz2").write_bytes(b"other")
    with pytest.raises(DataError, match=r"^USPS: cannot be downloaded: File not found or corru"):
        open_torchvision(served, download=True)
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [".download.lock"]


def test_a_server_that_does_not_answer(served, tmp_path):
    (tmp_path / "server/train.bz2").unlink()
    with pytest.raises(DataError, match=r"^USPS: cannot be downloaded: (Not Found|File not found)"):
        open_torchvision(served, download=True)


def test_a_folder_that_cannot_be_written(served, tmp_path):
    (tmp_path / "fetched").write_text("a file")
    with pytest.raises(ResourceError, match="fetched: cannot be written: "):
        open_torchvision(served, download=True)


def test_what_is_in_the_place_of_a_download_stays(served, tmp_path):
    (tmp_path / "fetched/train.bz2").mkdir(parents=True)
    (tmp_path / "fetched/train.bz2/mine").write_text("kept")
    with pytest.raises(DataError, match=r"train\.bz2: in the place of the download; move it away"):
        open_torchvision(served, download=True)
    assert (tmp_path / "fetched/train.bz2/mine").read_text() == "kept"


def test_a_set_that_torchvision_cannot_download(tmp_path):
    with pytest.raises(DataError, match=r"torchvision\.datasets\.FER2013 says what the folder"):
        open_torchvision(Source("FER2013", tmp_path, {}, None), download=True)


def test_the_files_are_in_the_users_cache_without_a_root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_torchvision("KMNIST", tmp_path / "vggexp/torchvision/KMNIST", monkeypatch)
    assert len(open_torchvision(Source("KMNIST", None, {}, None), False).train.labels) == TRAIN
