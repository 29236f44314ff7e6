"""Images read back from event files."""

import os

import numpy as np
import pytest

from vggexp.loggers.event_files import PNG, read_image_summary
from vggexp.loggers.hparams import HParamsTable
from vggexp.loggers.tensorboard import TensorBoardLogger
from vggexp.runs.directory import EVENTS_PREFIX


@pytest.fixture
def folder(tmp_path):
    """Two images of the tag a/b, with 4 and 6 pixels a side, and one of the tag c with 8."""
    logger = TensorBoardLogger(
        tmp_path, HParamsTable({"seed": 0}, ["seed"], []), [], warn=pytest.fail
    )
    for step, size in enumerate((4, 6)):
        logger.images("a/b", np.zeros((size, size, 3), np.uint8), step)
    logger.images("c", np.zeros((8, 8, 3), np.uint8), 0)
    logger.close(True)
    return tmp_path


def width(png):
    assert png.startswith(PNG)
    return int.from_bytes(png[16:20], "big")


def test_the_last_image_of_a_tag(folder):
    assert width(read_image_summary(folder, "a/b")) == 6
    assert width(read_image_summary(folder, "c")) == 8
    assert read_image_summary(folder, "d") is None


def test_a_file_that_is_cut_off_gives_its_complete_images(folder):
    (path,) = folder.glob("events*")
    content = path.read_bytes()
    widths = set()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        png = read_image_summary(folder, "a/b")
        widths.add(None if png is None else width(png))
    assert widths == {None, 4, 6}


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 100, bytes(12) + b"\xff" * 90, b"\x08" + bytes(11) + b"\xff" * 20],
)
def test_a_file_of_another_format_has_no_images(content, folder):
    (path,) = folder.glob("events*")
    path.write_bytes(content)
    assert read_image_summary(folder, "a/b") is None


def test_a_fifo_among_the_event_files_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / f"{EVENTS_PREFIX}1")
    assert read_image_summary(tmp_path, "test/worst_mistakes") is None
