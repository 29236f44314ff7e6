"""python -m tools.mutants [--level LEVEL] [ID...]: plants faults in the code, counts those noticed.

Each fault of faults.toml is planted alone, in a copy of the tree, and the test files of the changed
module run. The result is 0 if they notice at least 95 % of the faults.
"""

import argparse
import compileall
import gc
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("vggexp", "hydra_plugins", "conf", "docs", "tests", "tools", "pyproject.toml")
LEVELS = {  # in this order, until a level notices the fault; the values are markers of pytest
    "quick": "not slow and not process and not catalog",  # the tests of make quick
    "test": "not slow and (process or catalog)",  # the further tests of make test
    "suite": "",  # the fault suite, tools.faults --small, in place of tests
}
LEAST_NOTICED = 0.95  # share of the faults
WORKERS = 2  # processes that plant faults at the same time, each in its own copy
TIMEOUT_SECONDS = 300  # of a test file; a fault that keeps the tests from ending is noticed
PRELOADED = (  # imported once, for all forks
    "torch",
    "torch.utils.tensorboard",
    "scipy.stats",
    "hydra.main",
    "hydra.core.override_parser.overrides_parser",
    "hypothesis",
    "PIL.Image",
)
FAILURE = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)


class Fault(NamedTuple):
    """A fault of faults.toml, which says what the attributes mean."""

    id: str
    file: str
    code: str
    planted: str
    tests: tuple[str, ...]
    no_effect: str

    @property
    def path(self) -> Path:
        """The changed file, relative to the root of the tree."""
        return Path("vggexp", self.file)

    def test_paths(self) -> list[Path]:
        folder, _, name = self.file.rpartition("/")
        return [Path("tests", test) for test in self.tests or [f"{folder}/test_{name}"]]

    def plant(self, source: str) -> str:
        """Returns the changed source. Raises ValueError unless `code` is there exactly once."""
        count = source.count(self.code)
        if count != 1:
            raise ValueError(f"{self.id}: {self.path} has the code {count} times:\n{self.code}")
        return source.replace(self.code, self.planted)


def read_faults() -> list[Fault]:
    table = tomllib.loads(Path(__file__).with_name("faults.toml").read_text("utf-8"))
    faults = []
    for name, row in table.items():
        tests = tuple(row.pop("tests", ()))
        no_effect = row.pop("no_effect", "")
        faults.append(Fault(id=name, tests=tests, no_effect=no_effect, **row))
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=__doc__)
    parser.add_argument("--level", choices=LEVELS, default="test", help="the last level to run")
    parser.add_argument("ids", nargs="*", metavar="ID", help="faults to plant; all without one")
    arguments = parser.parse_args()
    faults = read_faults()
    unknown = sorted(set(arguments.ids) - {fault.id for fault in faults})
    if unknown:
        parser.error(f"{', '.join(unknown)}: not in faults.toml")
    faults = [fault for fault in faults if not arguments.ids or fault.id in arguments.ids]
    effective = [fault for fault in faults if not fault.no_effect]
    levels = list(LEVELS)[: list(LEVELS).index(arguments.level) + 1]
    for module in PRELOADED:  # vggexp itself is imported by each fork, with its fault
        importlib.import_module(module)
    gc.freeze()  # pytest collects garbage at its end: 0.9 s a fork over all these modules
    parts = [effective[number::WORKERS] for number in range(WORKERS)]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as pool:
        counts = sum(pool.map(count_noticed, parts, repeat(levels)), Counter())
    summary = ", ".join(f"{level} {counts[level]}" for level in levels)
    print(f"{counts.total()} of {len(effective)} faults are noticed ({summary})")
    print(f"{len(faults) - len(effective)} faults without an effect are not planted")
    return int(counts.total() < LEAST_NOTICED * len(effective))


def count_noticed(faults: Sequence[Fault], levels: Sequence[str]) -> Counter[str]:
    """Prints a line for each fault; returns how many of them each level notices."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = CopiedTree(Path(folder))
        for fault in faults:
            level, test = copy.find_notice(fault, levels)
            print(f"{fault.id:8} {level or 'NOT NOTICED':12} {test}", flush=True)
            if level:
                counts[level] += 1
    return counts


class CopiedTree:
    """A copy of the tree, in which faults are planted."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.without_fault: dict[str, str] = {}  # the results of tests that noticed a fault
        for name in COPIED:
            source = ROOT / name
            if source.is_file():
                shutil.copy(source, folder)
            else:
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / name, ignore=ignored)
        # Bytecode is checked by the hash of its source. The default, time and size, would miss a
        # fault of the same length.
        compileall.compile_dir(
            folder / "vggexp", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH
        )

    def find_notice(self, fault: Fault, levels: Sequence[str]) -> tuple[str, str]:
        """Returns the first level that notices a fault, and the test.

        Returns an empty level if none does, and a reason if a test hides the tests after it.
        """
        path = self.folder / fault.path
        source = path.read_text("utf-8")
        for level in levels:
            path.write_text(fault.plant(source), "utf-8")
            try:
                failed = self._run_level(fault, level)
            finally:
                path.write_text(source, "utf-8")
            if failed and self._run_again(fault, level, failed):
                return "", f"{failed} fails without the fault too"
            if failed:
                return level, failed
        return "", ""

    def _run_level(self, fault: Fault, level: str) -> str:
        if level == "suite":
            return self._run_suite()
        paths = [str(path) for path in fault.test_paths() if (self.folder / path).exists()]
        return self.run_tests(paths, LEVELS[level]) if paths else ""

    def _run_again(self, fault: Fault, level: str, failed: str) -> str:
        """Runs the failed test without the fault: a test that fails anyway has noticed nothing."""
        if "::" not in failed:
            return self._run_level(fault, level)
        if failed not in self.without_fault:
            self.without_fault[failed] = self.run_tests([failed])
        return self.without_fault[failed]

    def _run_suite(self) -> str:
        command = [sys.executable, "-m", "tools.faults", "--small"]
        environment = os.environ | self.variables()
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True)
        return "tools.faults --small" if ended.returncode else ""

    def variables(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # pytest refuses plugins that are PRELOADED
        }

    def run_tests(self, names: Sequence[str], markers: str = "") -> str:
        """Runs tests in a fork of this process; returns the name of the first that fails."""
        log = self.folder / "log"
        child = multiprocessing.get_context("fork").Process(
            target=self._run_pytest, args=(names, markers, log)
        )
        child.start()
        child.join(TIMEOUT_SECONDS)
        if child.exitcode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.join()
            return f"no end within {TIMEOUT_SECONDS} seconds"
        if child.exitcode in (0, 5):  # 5: none of the tests has these markers
            return ""
        failure = FAILURE.search(log.read_text("utf-8", "replace"))
        return failure[1] if failure else f"pytest ended with {child.exitcode}"

    def _run_pytest(self, names: Sequence[str], markers: str, log: Path) -> None:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(self.folder)
        os.environ.update(self.variables())
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.folder))
        options = ["-x", "-rfE", "-p", "no:cacheprovider", "-m", markers]
        sys.exit(pytest.main([*options, *names]))


if __name__ == "__main__":
    sys.exit(main())
