"""Shared by the tests of files that survive a power failure."""

import os
import stat

import pytest


@pytest.fixture
def disk_events(monkeypatch):
    """A list that gets each synced file with its size, each synced folder, and each rename."""
    return record_disk_events(monkeypatch)


def record_disk_events(monkeypatch):
    events = []
    fsync = os.fsync
    replace = os.replace

    def record_fsync(descriptor):
        status = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    def record_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return events
