"""Fences of the house: imports go down the floors, what is kept out stays out, and things stay small."""

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
FLOORS = {
    "ground": ["errors", "files", "shapes", "costs", "rng", "metrics", "precision", "clock", "signals", "memory",
               "processor", "process", "significance", "scores", "tabular", "place", "dist"],
    "nouns": ["models", "data", "optim", "schedules", "ema"],
    "doing": ["step", "graphs", "ddp", "probe", "train", "scoring", "views", "checkpoint"],
    "watching": ["sinks", "rundir", "environment", "watch", "keep", "predictions"],
    "assembly": ["config", "build", "summary", "job", "run", "ranks", "runs", "search", "seeds", "table", "forecast",
                 "pool", "notebook", "start", "evaluation", "exporting", "exported",
                 "parity", "predicting", "speed", "repeat", "differing", "comparison", "verdict",
                 "reporting", "slurm"],
    "doors": ["__main__", "plan", "bench", "verify", "evaluate", "export", "predict", "compare", "report",
              "__init__"],
}  # fmt: skip
FLOOR = {name: floor for floor, names in enumerate(FLOORS.values()) for name in names}
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("vggexp", "hydra_plugins")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
OURS = {name: tree for name, tree in TREES.items() if name.startswith("vggexp")}


def imported(tree: ast.AST) -> Iterator[str]:
    """`from a import b` gives a, and a.b where that is a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            inside = [name for name in modules if name in SOURCES]
            yield from inside if len(inside) == len(modules) else [str(node.module), *inside]


def within(name: str) -> str:
    """vggexp.data.split -> data; vggexp itself -> __init__."""
    return name.partition(".")[2].split(".")[0] or "__init__"


def below(name: str) -> set[str]:
    """Our modules that it imports; the package itself only lends its version."""
    return {other for other in imported(OURS[name]) if other in OURS} - {"vggexp"}


def users(*packages: str) -> set[str]:
    return {name for name, tree in TREES.items() if {p.split(".")[0] for p in imported(tree)} & set(packages)}


def test_every_module_has_a_floor():
    assert {within(name) for name in OURS} <= FLOOR.keys()


@pytest.mark.parametrize("name", OURS)
def test_imports_go_down(name):
    here = FLOOR[within(name)]
    assert not [other for other in below(name) if FLOOR[within(other)] > here]


def test_imports_make_no_circle():
    assert list(TopologicalSorter({name: below(name) for name in OURS}).static_order())
    config = {within(other) for name in OURS if name.startswith("vggexp.config") for other in below(name)}
    assert not config & {"build", "run", "notebook"}  # which make things from it


def test_who_imports_what():
    door = {"vggexp.__main__"}
    hydra = users("hydra", "omegaconf")
    assert {name for name in hydra if not name.startswith(("vggexp.config.", "hydra_plugins."))} == door
    tensorboard = {name for name, tree in TREES.items() if any("tensorboard" in p.split(".") for p in imported(tree))}
    assert tensorboard - {"vggexp.loggers.run_logger", "vggexp.sweep.pool"} <= {
        f"vggexp.sinks.{sink}" for sink in ("tensorboard", "means", "evaluations", "events")
    }
    assert users("pickle", "subprocess") <= {"vggexp.data.datasets", "vggexp.runs.environment", "vggexp.sweep.task"}
    lines = {name: path.read_text("utf-8") for name, path in SOURCES.items()}
    apart = {name for name, text in lines.items() if re.search(r"^(from|import) .*\bdistributed\b", text, re.MULTILINE)}
    assert apart == {"vggexp.distributed.collectives", "vggexp.training.ddp", "vggexp.runner.launch"}
    for name, tree in TREES.items():
        assert not [p for p in imported(tree) if p.startswith("hydra.utils")], name


def test_what_stays_out():
    texts = {path: path.read_text("utf-8") for path in SOURCES.values()}
    for path, text in texts.items():
        assert not re.search(r"weights_only\s*=\s*False|hydra\.utils|(?<![.\w])(eval|exec)\((?!\"\"\))", text), path
    shipped = [path for path in texts if "hydra_plugins" not in path.parts] + list((ROOT / "conf").rglob("*.yaml"))
    assert not [path for path in shipped if "_target_" in path.read_text("utf-8")]


@pytest.mark.parametrize("door", ["__main__", "plan", "evaluate", "export", "predict", "compare", "report"])
def test_a_door_opens_without_torch(door):
    code = f"import sys, vggexp.{door}; print(*{{'torch', 'torchvision', 'tensorboard', 'sklearn'}} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (ended.stdout, ended.stderr) == ("\n", "")


def test_things_stay_small():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in SOURCES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > 300}
    functions = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert not {name: lines for name, lines in functions.items() if lines > 40}
    short = sum(lines <= 15 for lines in functions.values())
    assert short > 0.7 * len(functions), f"only {short} of {len(functions)} functions have at most 15 lines"
