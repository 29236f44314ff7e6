"""Each planted fault fits the code. `python -m tools.mutants` runs the tests on all of them."""

import ast
import subprocess
import sys

import pytest

from tools.mutants.__main__ import LEVELS, ROOT, read_faults

FAULTS = {fault.id: fault for fault in read_faults()}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_planted_in_one_place_and_gives_other_code(fault):
    source = (ROOT / fault.path).read_text("utf-8")
    changed = fault.plant(source)
    compile(changed, fault.file, "exec")
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_has_tests_or_a_reason_to_have_none(fault):
    paths = fault.test_paths()
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert not (fault.tests and fault.no_effect)


def test_code_that_is_not_there_once_is_an_error():
    fault = FAULTS["train03"]
    with pytest.raises(ValueError, match=r"train03: vggexp/training/loop\.py has the code 0 times"):
        fault.plant("")
    with pytest.raises(ValueError, match="2 times"):
        fault.plant(2 * fault.code)


def test_the_level_quick_runs_the_tests_of_make_quick():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile.partition("\nquick:")[2].splitlines()[1]
    assert recipe.endswith(f' -m "{LEVELS["quick"]}"')


@pytest.mark.process
def test_a_fault_is_noticed_by_its_test():
    command = [sys.executable, "-m", "tools.mutants", "--level", "quick", "rund04", "sched07"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = process.stdout.splitlines()
    assert lines[0].startswith(
        "rund04   quick        tests/runs/test_directory.py::test_mark_inter"
    )
    assert lines[1:] == [
        "1 of 1 faults are noticed (quick 1)",
        "1 faults without an effect are not planted",
    ]
    assert process.returncode == 0


FIND_NOTICE = """
import sys
from pathlib import Path
from tools.mutants.__main__ import CopiedTree, read_faults
copy = CopiedTree(Path(sys.argv[1]))
path = copy.folder / "tests/runs/test_directory.py"
path.write_text("def test_one():\\n    assert 1 == 2\\n", "utf-8")
(fault,) = [fault for fault in read_faults() if fault.id == "rund04"]
print(copy.find_notice(fault, ["quick"]))
"""


@pytest.mark.process
def test_a_test_that_fails_without_the_fault_too_notices_nothing(tmp_path):
    command = [sys.executable, "-c", FIND_NOTICE, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    reason = "tests/runs/test_directory.py::test_one fails without the fault too"
    assert process.stdout == f"{('', reason)}\n"
