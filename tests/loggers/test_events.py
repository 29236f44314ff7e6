"""Pictures read back from event files."""

import numpy as np
import pytest

from vggexp.loggers.tensorboard import TensorBoardLogger
from vggexp.report.mistakes import PNG, read_image_summary


@pytest.fixture
def folder(tmp_path):
    sink = TensorBoardLogger(tmp_path, {"seed": 0}, [], warn=pytest.fail)
    for step, side in enumerate((4, 6)):
        sink.images("a/b", np.zeros((side, side, 3), np.uint8), step)
    sink.images("c", np.zeros((8, 8, 3), np.uint8), 0)
    sink.close(True)
    return tmp_path


def side(png):
    assert png.startswith(PNG)
    return int.from_bytes(png[16:20], "big")


def test_the_last_picture_of_a_tag(folder):
    assert (
        side(read_image_summary(folder, "a/b")),
        side(read_image_summary(folder, "c")),
        read_image_summary(folder, "d"),
    ) == (6, 8, None)


def test_a_file_cut_short_gives_what_it_holds(folder):
    (path,) = folder.glob("events*")
    content = path.read_bytes()
    found = set()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        png = read_image_summary(folder, "a/b")
        found.add(png and side(png))
    assert found == {None, 4, 6}


def test_what_is_no_event_file_has_no_pictures(folder):
    (path,) = folder.glob("events*")
    for content in (b"\xff" * 100, bytes(12) + b"\xff" * 90, b"\x08" + bytes(11) + b"\xff" * 20):
        path.write_bytes(content)
        assert read_image_summary(folder, "a/b") is None
