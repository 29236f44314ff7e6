"""python -m benchmarks.startup [--rounds N]: from the command to the first training step of experiment=quickstart.

Beside it, in turn: `import torch` with the same data read by scikit-learn, which no run can do without. Prints medians
and the ratio within each round. About half a minute.
"""

import argparse
import statistics
import subprocess
import sys
import time
from tempfile import mkdtemp

# The command as it is; the process ends where its first step is done.
FIRST_STEP = """
import os, sys
import vggexp.__main__ as door
class Ends:
    def find_spec(self, name, path=None, target=None):
        if name == "vggexp.runner.run":
            import vggexp.training.loop
            update = vggexp.training.loop.optimizer_step
            vggexp.training.loop.optimizer_step = lambda *arguments: (update(*arguments), os._exit(0))
sys.meta_path.insert(0, Ends())
door.main(sys.argv[1:])
"""
NEEDED = "import torch; from sklearn.datasets import load_digits; load_digits()"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {"first step": [], "needed": []}
    for _ in range(rounds):
        seconds["needed"].append(timed(NEEDED))
        seconds["first step"].append(
            timed(FIRST_STEP, "experiment=quickstart", f"run.root={mkdtemp()}")
        )
    ratios = [
        ours / needed for ours, needed in zip(seconds["first step"], seconds["needed"], strict=True)
    ]
    for name, times in seconds.items():
        print(f"{name:<12}{statistics.median(times):6.2f} s  ({min(times):.2f}-{max(times):.2f})")
    print(f"ratio       {statistics.median(ratios):6.2f}    ({min(ratios):.2f}-{max(ratios):.2f})")


def timed(code: str, *words: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
