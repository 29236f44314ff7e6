"""Checks the structure: the order of imports, what must stay out, the shape of the code."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A package imports from the lines above its own, and from itself. Names on one line are
# independent of each other, except in the first line, whose modules are single files.
ORDER = [
    ["errors", "rng", "formatting"],
    ["system"],
    ["distributed"],
    ["models"],
    ["data"],
    ["training"],
    ["config"],
    ["runs"],
    ["loggers"],
    ["cli"],
    ["runner"],
    ["sweep"],
    ["cost_plan"],
    ["api", "plan", "bench", "verify", "tensorboard"],
    ["check"],
    ["export"],
    ["evaluate"],
    ["predict"],
    ["compare"],
    ["report"],
    ["look"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}

# Imports against the order, each with its reason.
EXCEPTIONS = {
    ("vggexp", "vggexp.api"): "functions are imported on first use",
    ("vggexp", "vggexp.runner.load"): "functions are imported on first use",
}

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("vggexp", "hydra_plugins")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
PACKAGE = {name: tree for name, tree in TREES.items() if name.split(".")[0] == "vggexp"}
COMMANDS = sorted(path.parent.name for path in (ROOT / "vggexp").glob("*/__main__.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """`from a import b` yields a, and a.b if that is a module of this project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if name in SOURCES]
            yield from modules if len(modules) == len(names) else [str(node.module), *modules]


def top(name: str) -> str:
    """vggexp.data.split -> data."""
    return name.split(".")[1] if "." in name else "vggexp"


def internal_imports(name: str) -> set[str]:
    """Modules of the package that `name` imports; the package itself only lends its version."""
    return {other for other in imports(PACKAGE[name]) if other in PACKAGE} - {"vggexp"}


def importers(*packages: str) -> set[str]:
    return {
        name
        for name, tree in TREES.items()
        if {module.split(".")[0] for module in imports(tree)} & set(packages)
    }


def test_the_order_names_exactly_what_is_there():
    assert {top(name) for name in PACKAGE} - {"vggexp"} == LEVEL.keys()


@pytest.mark.parametrize("name", [name for name in PACKAGE if name != "vggexp"])
def test_imports_follow_the_order(name):
    wrong = [
        other
        for other in internal_imports(name)
        if top(other) != top(name)
        and LEVEL[top(other)] >= LEVEL[top(name)]
        and (name, other) not in EXCEPTIONS
    ]
    assert not wrong


def test_exceptions_are_in_use():
    unused = [pair for pair in EXCEPTIONS if pair[1] not in internal_imports(pair[0])]
    assert not unused


def test_imports_make_no_circle():
    assert list(
        TopologicalSorter({name: internal_imports(name) for name in PACKAGE}).static_order()
    )


def test_only_configuration_and_sweeps_know_hydra():
    allowed = ("vggexp.config.", "vggexp.sweep.", "hydra_plugins.", "vggexp.__main__")
    assert not [name for name in importers("hydra", "omegaconf") if not name.startswith(allowed)]


def test_only_one_logger_and_one_command_know_tensorboard():
    users = {
        name
        for name, tree in TREES.items()
        if "tensorboard" in {m.split(".")[0] for m in imports(tree)}
    }
    assert users == {"vggexp.loggers.event_files", "vggexp.tensorboard.server"}


def test_only_data_unpickles_and_few_modules_start_programs():
    assert importers("pickle") <= {"vggexp.data.datasets"}
    assert importers("subprocess") <= {"vggexp.runs.environment", "vggexp.sweep.task"}


def test_only_few_modules_know_torch_distributed():
    pattern = re.compile(
        r"^from torch import .*\bdistributed\b|^(from|import) torch\.distributed", re.MULTILINE
    )
    users = {name for name, path in SOURCES.items() if pattern.search(path.read_text("utf-8"))}
    assert users == {
        "vggexp.distributed.collectives",
        "vggexp.distributed.stop",
        "vggexp.training.ddp",
        "vggexp.runner.launch",
    }


@pytest.mark.parametrize("path", SOURCES.values(), ids=str)
def test_no_configuration_can_run_code(path):
    forbidden = r"weights_only\s*=\s*False|hydra\.utils|(?<![.\w])(eval|exec)\((?!\"\"\))"
    assert not re.search(forbidden, path.read_text("utf-8"))


def test_no_target_outside_the_plugins():
    shipped = [path for path in SOURCES.values() if "hydra_plugins" not in path.parts]
    shipped += (ROOT / "conf").rglob("*.yaml")
    assert not [path for path in shipped if "_target_" in path.read_text("utf-8")]


@pytest.mark.parametrize("command", ["__main__", *COMMANDS])
def test_a_command_starts_without_torch(command):
    module = f"vggexp.{command}"
    if f"{module}.__main__" in SOURCES:
        module += ".__main__"
    heavy = "{'torch', 'torchvision', 'tensorboard', 'sklearn', 'scipy'}"
    code = f"import sys, {module}; print(*{heavy} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-c", code]
    process = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    assert (process.stdout, process.stderr) == ("\n", "")


def functions() -> dict[str, ast.FunctionDef]:
    return {
        f"{name}.{node.name}": node
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def documentation_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            lines |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def code_lines(name: str) -> int:
    """Lines that are neither blank, nor a comment, nor documentation."""
    documentation = documentation_lines(PACKAGE[name])
    lines = SOURCES[name].read_text("utf-8").splitlines()
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documentation
        for number, line in enumerate(lines, 1)
    )


def test_no_file_is_longer_than_a_sitting():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in SOURCES.items()}
    assert not {name: length for name, length in lengths.items() if length > 450}


def test_no_function_is_longer_than_a_screen():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions().items()}
    assert not {name: length for name, length in lengths.items() if length > 60}


def test_no_line_is_longer_than_110_characters():
    long = [
        f"{path}:{number}"
        for path in SOURCES.values()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > 110
    ]
    assert not long


def test_lines_carry_little_syntax():
    nodes = sum(len(list(ast.walk(tree))) for tree in PACKAGE.values())
    assert nodes / sum(map(code_lines, PACKAGE)) <= 9


def test_few_assignments_pack_several_values():
    assignments = [
        node for tree in PACKAGE.values() for node in ast.walk(tree) if isinstance(node, ast.Assign)
    ]
    packed = [
        node
        for node in assignments
        if isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)
    ]
    assert len(packed) / len(assignments) < 0.03
