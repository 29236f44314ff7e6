"""Tests the files of a command: what was read or looked for first is what all readers get."""

import pytest

from vggexp.config.command_files import Files


def test_a_file_has_the_text_that_was_read_first(tmp_path):
    files = Files()
    for text in ("seed: 1", "seed: 2"):
        (tmp_path / "a.yaml").write_text(text)
        assert files.read(str(tmp_path / "a.yaml")) == "seed: 1"


def test_a_file_that_was_not_there_at_first_is_not_found_later(tmp_path):
    files = Files()
    assert not files.is_file(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("seed: 1")
    assert not files.is_file(str(tmp_path / "a.yaml"))


def test_an_error_is_not_remembered(tmp_path):
    files = Files()
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("seed: 1")
    assert files.read(str(tmp_path / "a.yaml")) == "seed: 1"
