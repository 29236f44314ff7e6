"""A file is on the disk before it gets its name, and the name before the call returns."""

import pytest

from vggexp.system.files import atomic_path, atomic_write


def write_to_path(path, content):
    with atomic_path(path) as part:
        part.write_bytes(content)


@pytest.mark.parametrize("write", [atomic_write, write_to_path])
def test_content_then_name_then_folder_reach_the_disk(tmp_path, disk_events, write):
    write(tmp_path / "a.json", b"12345")
    assert disk_events == [5, "rename", "folder"]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"12345"]
