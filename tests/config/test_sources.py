"""Tests that a shipped file is read once, and again after a change."""

import os

from vggexp.config.own_files import SHIPPED
from vggexp.config.sources import FileConfigSource


def test_a_changed_file_is_read_again(tmp_path):
    source = FileConfigSource(SHIPPED, f"file://{tmp_path}")
    for value in (1, 2):
        (tmp_path / "seeds.yaml").write_text(f"seed: {value}")
        os.utime(tmp_path / "seeds.yaml", ns=(value, value))
        assert source.load_config("seeds").config.seed == value


def test_what_a_reader_changes_is_not_in_the_next_copy(tmp_path):
    (tmp_path / "seeds.yaml").write_text("seed: 1")
    source = FileConfigSource(SHIPPED, f"file://{tmp_path}")
    source.load_config("seeds").config.pop("seed")
    assert source.load_config("seeds").config.seed == 1
