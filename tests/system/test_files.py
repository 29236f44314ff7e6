"""Files that others have prepared: no wait, no device, no link, no right given away."""

import contextlib
import errno
import fcntl
import os
import stat
import threading

import pytest

from tests.permissions import without_root_rights
from vggexp.errors import ConfigError, ResourceError
from vggexp.system import files

READERS = {
    "fifo": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "loop": lambda path: path.symlink_to(path.name),
    "endless": lambda path: path.symlink_to("/proc/kcore"),
}


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_only_regular_files_are_read(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(OSError, match=str(tmp_path / "a")):
        files.read_file(tmp_path / "a", 1 << 20)


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
def test_only_a_regular_file_has_a_tail(make, tmp_path):
    make(tmp_path / "a")
    assert files.read_tail(tmp_path / "a", 1 << 20) == []


def test_a_tail_begins_after_the_start_and_has_a_limit(tmp_path):
    (tmp_path / "a").write_text("one\ntwo\nthree\n")
    assert files.read_tail(tmp_path / "a", 100) == ["one", "two", "three"]
    assert files.read_tail(tmp_path / "a", 100, start=4) == ["two", "three"]
    assert files.read_tail(tmp_path / "a", 6, start=4) == ["three"]


def test_a_refusal_of_the_system_names_the_path_and_the_way_out(tmp_path):
    refusal = files.os_error_as_resource_error("x/a", "written", "choose another x")
    with pytest.raises(ResourceError, match=r"^x/a: cannot be written: .+ \(choose another x\)$"):
        with refusal:
            (tmp_path / "no" / "a").write_text("x")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gone/x", "no such directory: {}/gone"),
        ("folder", "is a directory; give a file"),
    ],
)
def test_an_output_file_is_checked_beforehand(name, problem, tmp_path):
    (tmp_path / "folder").mkdir()
    files.check_output_file("--out", tmp_path / "new")
    with pytest.raises(ConfigError) as raised:
        files.check_output_file("--out", tmp_path / name)
    assert str(raised.value) == f"--out {tmp_path / name}: {problem.format(tmp_path)}"


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    assert files.read_file(tmp_path / "b", 1) == b"x"


def test_nothing_is_read_beyond_the_limit(tmp_path):
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 1 MiB"):
        files.read_file(path, 1 << 20)


@pytest.mark.parametrize("flags", ["ab", "wb", "a+b", "r+b"])
def test_no_link_is_followed_on_writing(flags, tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("mine")
    (tmp_path / "a").symlink_to(notes)
    with pytest.raises(OSError, match="a link, and no file is written through links; remove it"):
        open(tmp_path / "a", flags, opener=files.open_no_follow)
    assert notes.read_text() == "mine"


def test_no_fifo_is_written(tmp_path):
    os.mkfifo(tmp_path / "a")
    reader = os.open(tmp_path / "a", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a regular file"):
        open(tmp_path / "a", "ab", opener=files.open_no_follow)
    os.close(reader)


def test_a_fifo_that_nobody_reads_is_named_as_such(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="not a regular file; remove it"):
        open(tmp_path / "a", "ab", opener=files.open_no_follow)


@pytest.mark.parametrize(("folder_mode", "expected"), [(0o755, 0o644), (0o775, 0o664)])
def test_a_library_gives_no_more_rights_than_the_folder(folder_mode, expected, tmp_path):
    tmp_path.chmod(folder_mode)
    umask = os.umask(0)
    try:
        with files.limit_umask(tmp_path):
            (tmp_path / "a").write_text("")
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected


def test_a_library_cannot_follow_a_link_in_atomic_path(tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("mine")
    (tmp_path / f"a.{os.getpid()}.tmp.npz").symlink_to(notes)
    (tmp_path / "a.npz").symlink_to(notes)
    with files.atomic_path(tmp_path / "a.npz") as part:
        part.write_text("new")
    assert notes.read_text() == "mine"
    assert (tmp_path / "a.npz").read_text() == "new"
    assert not (tmp_path / "a.npz").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "notes"]


def test_a_folder_inside_a_run_is_no_link(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "checkpoints").symlink_to("models")
    with pytest.raises(ResourceError, match="checkpoints: a link, "):
        files.make_inner_dir(tmp_path / "checkpoints")
    files.make_inner_dir(tmp_path / "exports")
    files.make_inner_dir(tmp_path / "exports")
    assert (tmp_path / "exports").is_dir()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        files.make_dir(tmp_path / "a")
    with pytest.raises(NotADirectoryError):
        files.make_dir(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("parent_mode", "folder_mode", "file_mode"),
    [
        (0o755, 0o755, 0o644),
        (0o775, 0o775, 0o664),  # shared by a group
        (0o777, 0o777, 0o666),  # shared by all
        (0o1777, 0o755, 0o644),  # as /tmp
    ],
)
def test_a_folder_gives_no_right_that_its_parent_does_not_give(
    parent_mode, folder_mode, file_mode, tmp_path, no_umask
):
    tmp_path.chmod(parent_mode)
    folder = tmp_path / "outputs" / "run"
    files.make_dir(folder)
    files.atomic_write(folder / "a", b"")
    open(folder / "b", "a", opener=files.open_no_follow).close()
    with files.atomic_path(folder / "c"):
        pass
    assert mode(folder.parent) == folder_mode
    assert mode(folder) == folder_mode
    assert {mode(folder / name) for name in "abc"} == {file_mode}


def test_the_umask_takes_more_rights(tmp_path):
    before = os.umask(0o077)
    try:
        files.make_dir(tmp_path / "a")
        files.atomic_write(tmp_path / "b", b"")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o700
    assert mode(tmp_path / "b") == 0o600


def write_to_path(path, content):
    with files.atomic_path(path) as part:
        part.write_bytes(content)


@pytest.mark.parametrize("write", [files.atomic_write, write_to_path])
def test_content_then_name_then_folder_reach_the_disk(tmp_path, disk_events, write):
    write(tmp_path / "a.json", b"12345")
    assert disk_events == [5, "rename", "folder"]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"12345"]


def test_two_writers_of_one_file_take_turns(tmp_path, monkeypatch):
    path = tmp_path / "a"
    second = threading.Thread(target=files.atomic_write, args=(path, b"second"))

    def begin_second(descriptor):
        monkeypatch.undo()
        second.start()
        second.join(0.1)

    monkeypatch.setattr(files.os, "fsync", begin_second)
    files.atomic_write(path, b"first")
    second.join()
    assert path.read_bytes() == b"second"


@pytest.fixture
def lock_holder(tmp_path, monkeypatch):
    """Another process, or one that is stopped, holds the lock of the folder."""
    monkeypatch.setattr(files, "MAX_WAIT_SECONDS", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    yield
    os.close(descriptor)


@pytest.mark.usefixtures("lock_holder")
def test_a_lock_that_is_held_for_long_stops_no_writer(tmp_path):
    files.atomic_write(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_child_that_is_forked_during_a_write_does_not_keep_the_lock(tmp_path, monkeypatch):
    inherited = []

    def inherit(descriptor):
        """Copies the descriptors of the folder, as a fork does."""
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(int(name)), os.stat(tmp_path)):
                    inherited.append(os.dup(int(name)))
        monkeypatch.undo()

    monkeypatch.setattr(files.os, "fsync", inherit)
    files.atomic_write(tmp_path / "a", b"1")
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert inherited
    for descriptor in [*inherited, other]:
        os.close(descriptor)


def test_a_folder_that_is_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotADirectoryError):
        files.atomic_write(tmp_path / "fifo" / "a", b"1")


def test_a_folder_that_may_not_be_read_can_be_written(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(0o300)
    with without_root_rights():
        files.atomic_write(folder / "a", b"1")
    folder.chmod(0o700)
    assert (folder / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("code", "is_missing"),
    [(errno.EACCES, True), (errno.EIO, True), (errno.EISDIR, False), (errno.ELOOP, False)],
)
def test_a_file_may_be_wrong_itself_or_a_resource_is_missing(code, is_missing):
    error = files.missing_resource("a/b", OSError(code, os.strerror(code)))
    assert (error is not None) == is_missing
    assert error is None or str(error) == f"a/b: cannot be read: {os.strerror(code)}"
