"""Tests that the contents of an image folder decide, also if names, sizes and times agree."""

import os
import pwd
import shutil

import pytest

from vggexp.data import fingerprint
from vggexp.data.fingerprint import combined_sha256, contents_sha256, list_files

FILES = {"cat/1.png": b"one", "cat/2.png": b"two", "dog/1.png": b"three"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/vggexp/image_folders"


@pytest.fixture
def settled(monkeypatch):
    """Takes files for settled at once, which else takes two seconds."""
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", -60)


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "train"


def sha256(folder):
    files = sorted(str(path) for path in folder.rglob("*.*"))
    return contents_sha256(folder, files, list_files(folder, files))


def rewrite(path, content):
    """Replaces the content; the size and the time of modification stay."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_copy_has_the_same_hash(folder, tmp_path, settled):
    shutil.copytree(folder, tmp_path / "copy")
    assert sha256(tmp_path / "copy") == sha256(folder)
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert sha256(tmp_path / "moved") == sha256(folder)


def test_equal_names_sizes_and_times_do_not_hide_other_contents(folder, settled):
    before = sha256(folder)
    rewrite(folder / "cat/1.png", b"eno")
    assert sha256(folder) != before
    rewrite(folder / "cat/1.png", b"one")
    assert sha256(folder) == before


def test_two_files_that_exchange_their_contents_are_another_folder(folder):
    before = sha256(folder)
    (folder / "cat/1.png").write_bytes(b"two")
    (folder / "cat/2.png").write_bytes(b"one")
    assert sha256(folder) != before


def test_a_renamed_class_is_another_folder(folder):
    before = sha256(folder)
    (folder / "dog").rename(folder / "cow")
    assert sha256(folder) != before


def test_an_unchanged_folder_is_not_read_again(folder, cache, settled):
    digest = sha256(folder)
    (kept,) = cache.iterdir()
    assert kept.read_text() == digest
    kept.write_text("0" * 64)
    assert sha256(folder) == "0" * 64
    rewrite(folder / "cat/1.png", b"one")
    assert sha256(folder) == digest


def test_a_folder_that_was_just_written_is_read_again(folder, cache):
    sha256(folder)
    assert not cache.exists()


def test_a_damaged_cache_is_ignored(folder, cache, settled):
    digest = sha256(folder)
    (kept,) = cache.iterdir()
    for content in (b"", b"\xff" * 64, b"0" * 63):
        kept.write_bytes(content)
        assert sha256(folder) == digest
        assert kept.read_text() == digest


def test_a_hash_needs_no_cache(folder, tmp_path, settled):
    digest = sha256(folder)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    assert sha256(folder) == digest


def test_a_user_without_a_home_folder_needs_no_cache(folder, tmp_path, settled, monkeypatch):
    digest = sha256(folder)
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # this user is in no list
    monkeypatch.chdir(tmp_path)
    assert sha256(folder) == digest
    assert not (tmp_path / "~").exists()


def test_only_regular_files_are_read(folder):
    os.mkfifo(folder / "cat/3.png")
    with pytest.raises(OSError, match="not a regular file"):
        sha256(folder)


def test_the_name_of_the_test_part_does_not_count():
    hashes = {"train": "a", "test": "b"}
    assert combined_sha256(hashes) == combined_sha256({"train": "a", "val": "b"})
    assert combined_sha256(hashes) != combined_sha256({"train": "b", "test": "a"})
