"""A forked call dies with its parent."""

import os
import sys
import time

import pytest

from vggexp.system.processes import fork_call


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_call_dies_with_its_parent():
    reading, writing = os.pipe()

    def write_late() -> int:
        time.sleep(2)
        os.write(writing, b"late")
        return 0

    parent = os.fork()
    if not parent:
        fork_call(write_late)
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(writing)
    assert os.read(reading, 9) == b""  # the end of the pipe: nobody can write any more
    os.close(reading)
