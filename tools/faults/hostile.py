"""Hostile files in a run directory execute no code; secrets of the environment are not written."""

import hashlib
import itertools
import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tools.faults.catalog import SMALLEST, Catalog, check_error
from tools.faults.server import RUN_DIR, compare_with_reference, reference_run, run_command
from vggexp.training import checkpoint

TOUCH = "import pathlib; pathlib.Path('canary').touch()"
GADGETS = [  # calls that a pickle could make; each of them creates the file or folder `canary`
    (os.system, ("touch canary",)),
    (exec, (TOUCH,)),
    (eval, ("open('canary', 'w')",)),
    (open, ("canary", "w")),
    (subprocess.call, (["touch", "canary"],)),
    (subprocess.Popen, (["touch", "canary"],)),
    (os.mkdir, ("canary",)),
    (Path.touch, (Path("canary"),)),
    (os.mknod, ("canary",)),
    (map, (exec, [TOUCH])),
    (partial(exec, TOUCH), ()),
]
HOSTILE_FILES = {  # contents of each file, and the expected exit codes
    "config.yaml": [
        ("!!python/object/apply:os.system ['touch canary']", 4),
        ("a: !!python/name:os.system\n", 4),
    ],
    "overrides.txt": [("hydra.job.name=$(touch canary)\n_target_=os.system\n", 0)],
    "result.json": [("__import__('os').mkdir('canary')", 4), ("[" * 100_000, 4), ("[]", 4)],
    "env.json": [("[" * 100_000, 0), ('{"attempts": "x"}', 0)],
    "metrics.jsonl": [("no json\n" * 3, 0)],
}
SECRETS = (  # environment variables whose values must not reach a file
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "GITHUB_TOKEN",
    "PGPASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "OPENAI_API_KEY",
    "SSH_AUTH_SOCK",
    "KAGGLE_KEY",
    "http_proxy",
    "PIP_INDEX_URL",
    "SLURM_JWT",
)


class Gadget:
    """An object whose unpickling makes a call."""

    def __init__(self, call: Callable, arguments: tuple):
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


def hostile_cases(small: bool) -> Iterable[tuple[str, Any]]:
    """Returns the kind of the hostile input and the choice within this kind.

    A case is the format of a checkpoint with a gadget, a file with a content, or a secret.
    """
    gadgets = range(0, len(GADGETS), 3 if small else 1)
    yield from itertools.product(("zip", "pickle"), gadgets)
    for name, contents in HOSTILE_FILES.items():
        for index in range(len(contents)):
            yield name, index
    for name in SECRETS[:2] if small else SECRETS:
        yield "secret", name


def check_hostile_input(case: tuple[str, Any], folder: Path) -> str:
    """Plants a hostile file in a finished run, then repeats the command."""
    kind, choice = case
    if kind == "secret":
        return check_secret(choice, folder)
    reference, _ = reference_run(tuple(SMALLEST))
    shutil.copytree(reference, folder, dirs_exist_ok=True)
    run_dir = folder / RUN_DIR
    (run_dir / "result.json").unlink()
    code = 4
    if kind in HOSTILE_FILES:
        content, code = HOSTILE_FILES[kind][choice]
        (run_dir / kind).write_text(content)
    else:
        for path in (run_dir / "checkpoints").glob("*.pt"):
            plant_gadget(path, Gadget(*GADGETS[choice]), kind)
    result = run_command(folder, SMALLEST)
    if (folder / "canary").exists() or (run_dir / "canary").exists():
        return "code was executed"
    problem = check_error(result.code, result.err, code)
    if problem or code:
        return problem
    return compare_with_reference(folder, SMALLEST)


def plant_gadget(path: Path, gadget: Gadget, file_format: str) -> None:
    """Writes a checkpoint with the right trailer for its hostile content."""
    content = {"format": 1, "net": gadget}
    if file_format == "zip":
        checkpoint.save(path, content)
    else:
        pickled = pickle.dumps(content)
        path.write_bytes(pickled + checkpoint.MAGIC + hashlib.sha256(pickled).digest())


def check_secret(name: str, folder: Path) -> str:
    """Checks that the value of an environment variable stands in no file of the run."""
    letters = random.Random(name).choices("abcdefghijklmnopqrstuvwxyz", k=24)
    secret = "s3cr3t-" + "".join(letters)
    result = run_command(folder, SMALLEST, lambda: os.environ.update({name: secret}))
    files = [path for path in folder.rglob("*") if path.is_file()]
    leaks = [path for path in files if secret.encode() in path.read_bytes()]
    if leaks or result.code:
        return f"exit {result.code}, found in {leaks}"
    return ""


CATALOGS = {
    "hostile": Catalog("hostile files and planted secrets", hostile_cases, check_hostile_input),
}
