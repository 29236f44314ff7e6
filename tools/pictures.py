"""Makes the pictures of README and docs from a sweep: python -m tools.pictures OUTPUTS.

Starts `vggexp.tensorboard` on OUTPUTS, writes the report of its runs, opens both in Chromium, and
saves tensorboard.png, report.png and sweep.png in docs/images. The sweep must be there; `make
pictures` runs that of docs/commands.md first.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from tools import chromium
from vggexp.report.__main__ import main as write_report

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# The tab whose charts need no WebGL, without smoothing.
VIEW = "#scalars&_smoothingWeight=0&tagFilter=%5E(accuracy%7Closs)%2F(train%7Cval)"
LOAD_SECONDS = 20  # the server reads the event files


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.pictures")
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS", help="the folder of the runs")
    outputs = parser.parse_args().outputs
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_report([str(outputs), f"--out={folder}"])
        page = (Path(folder) / "report.html").as_uri()
        take_screenshot(page, IMAGES / "report.png", width=1400, height=1500)
        take_screenshot(page, IMAGES / "sweep.png", width=1200, height=1800)
    take_tensorboard(outputs)


def take_tensorboard(outputs: Path) -> None:
    command = [sys.executable, "-m", "vggexp.tensorboard", str(outputs)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = next(
            match[0] for line in server.stdout if (match := re.search(r"http://127\S+\d", line))
        )
        wait_for_runs(address)
        page = f"{address}/{VIEW}"
        take_screenshot(page, IMAGES / "tensorboard.png", width=1400, height=760)
    finally:
        server.terminate()
        server.wait()


def wait_for_runs(address: str) -> None:
    end = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < end:
        with urlopen(f"{address}/data/runs") as reply:
            if len(reply.read()) > 2:
                time.sleep(5)  # the rest of the runs follows
                return
        time.sleep(0.5)


def take_screenshot(address: str, target: Path, width: int, height: int) -> None:
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *chromium.COMMAND,
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "--virtual-time-budget=20000",
            f"--screenshot={target}",
            address,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    print(target.relative_to(IMAGES.parents[1]))


if __name__ == "__main__":
    main()
