"""python -m tests.peak_memory OVERRIDE...: trains, then prints its resident bytes at its peak."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp.__main__ import main as vggexp_main


def main(argv: Sequence[str]) -> int:
    code = vggexp_main(argv)
    # Not ru_maxrss, which begins at that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match
    print(1024 * int(match[1]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
