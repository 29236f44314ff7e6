"""Damaged files of a run directory: every reader returns a value or raises the one error."""

import contextlib
import io
import json
import os
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import yaml

from tools.faults.catalog import SMALLEST, Catalog
from vggexp.compare import comparison, render
from vggexp.config import compose
from vggexp.config.keys import flatten, to_plain
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError, ResourceError, VggexpError
from vggexp.report.__main__ import read_runs
from vggexp.report.page import render_page
from vggexp.report.selection import Selection
from vggexp.report.table import build_sections, to_csv, to_markdown
from vggexp.runs import directory, jsonl, predictions, records
from vggexp.sweep import expand

IMAGES = 4
CLASSES = 2
CONFIG = directory.CONFIG
RESULT = directory.RESULT
ENVIRONMENT = directory.ENVIRONMENT
METRICS = directory.METRICS
PREDICTIONS = directory.PREDICTIONS
TEXT_FILES = (CONFIG, RESULT, ENVIRONMENT, METRICS)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


WRONG_VALUES: list[Any] = [  # takes the place of every value
    None,
    True,
    -1,
    10**15,
    10**400,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\x1b[2J\n",
    "\ud800",
    [],
    [[1, "x"], {}],
    {},
    {"": {"a.b": None}},
    nested(90),
    nested(500),
]
WRONG_CONTENTS = {  # takes the place of a whole file
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(100),
    "brackets": b"[" * 60_000,
    "braces": b'{"a":' * 60_000,
    "dashes": b"- " * 60_000,
    "questions": b"? " * 60_000,
    "aliases": b"a: &a [1, *a]",
    "tag": b"!!python/object/apply:os.system ['true']",
    "whole number": b'seed: !!int ""',
    "truth": b"seed: !!bool x",
    "time": b"seed: !!timestamp x",
    "keys": b"1: 2\nnull: 3\n[1, 2]: 4\n2020-01-01: 5",
    "duplicate": b'{"state": "finished", "state": 1, "epoch": 1, "epoch": []}',
    "digits": b'{"epoch": ' + b"1" * 5_000 + b"}",
    "constants": b'{"epoch": NaN, "seconds": -Infinity}',
    "surrogate": b'{"epoch": 1, "\\ud800": "\\udfff"}',
}
FILE_KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "FIFO": os.mkfifo,
    "folder": os.mkdir,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "full device": lambda path: path.symlink_to("/dev/full"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to("."),
    "kernel file": lambda path: path.symlink_to("/proc/kmsg"),
    "huge": lambda path: make_sparse(path, 1 << 40),
}


class Damage(NamedTuple):
    """A damage of one file: new bytes, or another kind of file."""

    name: str
    text: str
    content: bytes | None
    make: Callable[[Path], object] | None = None

    def apply(self, folder: Path) -> None:
        path = folder / self.name
        path.unlink(missing_ok=True)
        if self.content is not None:
            path.write_bytes(self.content)
        elif self.make is not None:
            self.make(path)

    def revert(self, folder: Path, content: bytes) -> None:
        path = folder / self.name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def make_sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


@cache
def make_config() -> Config:
    return expand.compose_run(compose.parse_command(["run.root=runs", *SMALLEST]))


def make_run(folder: Path) -> None:
    """Writes a finished run as the command writes it, without checkpoints and events."""
    folder.mkdir(parents=True)
    environment = {
        "versions": {"python": "3.11", "torch": "2.14"},
        "commit": "0" * 40,
        "dirty": True,
        "host": "x",
        "cores": 2,
        "attempts": 1,
        "data": {"train": "1", "test": "2"},
    }
    directory.write_metadata(folder, to_plain(make_config()), [], environment)
    rows = []
    for epoch in (1, 2):
        metrics = {"train/loss": 1.5, "val/accuracy": 0.5, "time/epoch_seconds": 2.0}
        rows.append({"epoch": epoch, "step": 3 * epoch, "lr": 0.01, **metrics})
    jsonl.rewrite(folder / METRICS, rows)
    labels = numpy.arange(IMAGES) % CLASSES
    probs = numpy.eye(CLASSES, dtype="float32")[labels]
    predictions.write(folder, probs, labels)
    fields = {"epoch": 2, "step": 6, "weights_step": 6, "parameters": 10, "seconds": 4.0}
    accuracies = {"val/accuracy": 0.5, "test/accuracy": 1.0}
    texts = {"test_weights": "last", "weights_sha256": "0" * 64}
    directory.write_result(folder, "finished", **fields, **accuracies, **texts)


def damages(run: Path) -> Iterator[Damage]:
    """Yields every damage of the files of a run."""
    for name in (*TEXT_FILES, PREDICTIONS):
        content = (run / name).read_bytes()
        for text, make in FILE_KINDS.items():
            yield Damage(name, text, None, make)
        for text, other in WRONG_CONTENTS.items():
            yield Damage(name, text, other)
        for end in range(0, len(content), max(1, len(content) // 60)):
            yield Damage(name, f"cut at {end}", content[:end])
        draws = random.Random(name)
        for index in range(100):
            changed = bytearray(content)
            changed[draws.randrange(len(changed))] = draws.randrange(256)
            yield Damage(name, f"byte {index}", bytes(changed))
    config = yaml.safe_load((run / CONFIG).read_bytes())
    for text, value in wrong_values(config):
        yield Damage(CONFIG, text, dump_yaml(value))
    for name in (RESULT, ENVIRONMENT):
        for text, value in wrong_values(json.loads((run / name).read_bytes())):
            yield Damage(name, text, json.dumps(value).encode())
    first, second = (run / METRICS).read_bytes().splitlines()
    for text, value in wrong_values(json.loads(first)):
        yield Damage(METRICS, text, json.dumps(value).encode() + b"\n" + second + b"\n")
    for text, arrays in wrong_arrays().items():
        yield Damage(PREDICTIONS, text, arrays)


def dump_yaml(value: Any) -> bytes:
    """Returns YAML; JSON for what YAML cannot write."""
    with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
        return yaml.dump(value, Dumper=yaml.CSafeDumper).encode()
    return json.dumps(value).encode()


def wrong_values(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields copies of nested mappings in which one value is removed or replaced."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        rest = {other: item for other, item in content.items() if other != key}
        yield f"{path} removed", rest
        for index, wrong in enumerate(WRONG_VALUES):
            yield f"{path}: value {index}", {**content, key: wrong}
        items = value
        if isinstance(value, list):
            items = dict(enumerate(value))
        if isinstance(items, Mapping):
            for text, changed in wrong_values(items, f"{path}."):
                if isinstance(value, list):
                    changed = list(changed.values())
                yield text, {**content, key: changed}


def wrong_arrays() -> dict[str, bytes]:
    """Returns files of predictions that no run writes."""
    floats = numpy.zeros((IMAGES, CLASSES), "float32")
    labels = numpy.arange(IMAGES) % CLASSES
    files = {}
    for text, scores in {
        "many classes": numpy.zeros((1, 100_000)),
        "many images": numpy.zeros((100_000, CLASSES)),
        "other classes": numpy.zeros((IMAGES, 3)),
        "no images": floats[:0],
        "one dimension": floats[0],
        "no dimension": floats[0, 0],
        "whole numbers": floats.astype(int),
        "text": floats.astype(str),
        "objects": floats.astype(object),
        "records": numpy.zeros(IMAGES, "f4,i4"),
        "not finite": floats + numpy.inf,
        "long floats": floats.astype(numpy.longdouble),
    }.items():
        stream = io.BytesIO()
        numpy.savez_compressed(stream, scores=scores, labels=labels)
        files[text] = stream.getvalue()
    for shape in ((10**12, CLASSES), (-1, -8), (IMAGES, 10**30), (True, CLASSES), ()):
        files[f"declares {shape}"] = declare_shape(shape)
    return files


def declare_shape(shape: tuple[int, ...]) -> bytes:
    """Returns an archive whose header declares a shape and that has no content."""
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    numpy.lib.format.write_array_header_1_0(header, fields)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("scores.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    return stream.getvalue()


def read_file(run: Path, name: str) -> None:
    """Calls what reads a file of a run, and what looks at the whole run."""
    readers: dict[str, Callable[[], object]] = {
        CONFIG: lambda: records.load_config(run),
        RESULT: lambda: directory.read_result(run),
        ENVIRONMENT: lambda: directory.read_environment(run),
        METRICS: lambda: jsonl.read(run / METRICS),
        PREDICTIONS: lambda: predictions.read(run, flatten(to_plain(make_config()))),
    }
    with contextlib.suppress(CheckpointError, ResourceError):
        readers[name]()
    with contextlib.suppress(CheckpointError):
        directory.require_run(run)
    records.lost_files(run, {"state": "finished"})


def render_commands(run: Path, good: Path) -> None:
    """Renders what `report` and `compare` print, of this run beside a good one.

    Also decides whether the command of the run has something to do.
    """
    place = replace(make_config().run, root=str(run.parent), name=run.name)
    with contextlib.suppress(VggexpError):
        config = replace(make_config(), run=place)
        records.done_line(config, records.done_result(config) or {"test/accuracy": 1})
    with contextlib.suppress(VggexpError), contextlib.redirect_stderr(io.StringIO()):
        sections = build_sections(read_runs([run, good]))
        render_page(sections, Selection([run], found=2))
        to_csv([section.listed for section in sections])
        for section in sections:
            to_markdown(section.listed.columns, section.listed.rows)
            json.dumps([section.listed.rows, section.repeats], default=str)
    with contextlib.suppress(VggexpError):
        tested = comparison.read_tested_runs([good, run])
        result = comparison.compare(tested, different_data=True)
        render.format_comparison(result)
        json.dumps(render.to_dict(result), default=str)


@cache
def template() -> Path:
    folder = Path(tempfile.mkdtemp()) / "run"
    make_run(folder)
    return folder


@cache
def all_damages() -> list[Damage]:
    return list(damages(template()))


def file_cases(small: bool) -> Iterable[int]:
    """Returns the indices of the damages."""
    return range(0, len(all_damages()), 50 if small else 1)


def check_files(case: int, folder: Path) -> str:
    """Damages a run, and reads and renders it beside a good run."""
    damage = all_damages()[case]
    run = folder / "run"
    good = folder / "good"
    for copy in (run, good):
        shutil.copytree(template(), copy)
    damage.apply(run)
    try:
        read_file(run, damage.name)
        render_commands(run, good)
    except Exception as error:
        return f"{damage.name}, {damage.text}: {type(error).__name__}: {error}"
    return ""


CATALOGS = {
    "files": Catalog("damaged fields and files of a run", file_cases, check_files),
}
