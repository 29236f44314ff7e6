"""python -m benchmarks.startup [--rounds N]: the time to the first step of experiment=quickstart.

Measures in turn: the command up to its first training step, and `import torch` with the same data
read by scikit-learn, which every run needs. Prints medians, and the ratio within each round. About
half a minute.
"""

import argparse
import statistics
import subprocess
import sys
import time
from tempfile import mkdtemp

# Runs the unchanged command; the process exits after its first step.
FIRST_STEP = """
import os, sys
import vggexp.__main__ as command
class ExitAfterFirstStep:
    def find_spec(self, name, path=None, target=None):
        if name == "vggexp.runner.run":
            from vggexp.training import loop
            update = loop.optimizer_step
            loop.optimizer_step = lambda *arguments: (update(*arguments), os._exit(0))
sys.meta_path.insert(0, ExitAfterFirstStep())
command.main(sys.argv[1:])
"""
REQUIRED = "import torch; from sklearn.datasets import load_digits; load_digits()"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    first_step = []
    required = []
    ratios = []
    for _ in range(rounds):
        required.append(time_python(REQUIRED))
        root = f"run.root={mkdtemp()}"
        first_step.append(time_python(FIRST_STEP, "experiment=quickstart", root))
        ratios.append(first_step[-1] / required[-1])
    for name, times in {"first step": first_step, "needed": required}.items():
        print(f"{name:<12}{statistics.median(times):6.2f} s  ({min(times):.2f}-{max(times):.2f})")
    print(f"ratio       {statistics.median(ratios):6.2f}    ({min(ratios):.2f}-{max(ratios):.2f})")


def time_python(code: str, *argv: str) -> float:
    """Returns the seconds of a Python process that runs the code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *argv], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
