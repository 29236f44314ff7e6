"""The benchmarks do what they say, at a size that says nothing of speed."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.debian
def test_every_contender_does_the_same_work(tmp_path):
    for peer in ("lightning", "timm"):
        pytest.importorskip(peer)
    small = ["--rounds=1", "--images=64", "--epochs=1", "--size=32", f"--out={tmp_path / 'peers.md'}"]
    end = subprocess.run([sys.executable, "-m", "benchmarks.peers", *small], capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    rows = [line for line in (tmp_path / "peers.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8 and all(float(row.split("|")[2]) > 0 for row in rows[1:])
