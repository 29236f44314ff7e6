"""The page of every key has each key of the schema and conf/, with value, unit and meaning."""

import runpy
from functools import cache
from pathlib import Path

import pytest
import yaml

from vggexp.config import comments
from vggexp.config.compose import parse_command
from vggexp.config.device import conf_dir
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import schema_keys
from vggexp.formatting import format_value
from vggexp.sweep.expand import compose_run

DOCS = Path(__file__).parents[2] / "docs"
KEYS = runpy.run_path(str(DOCS / "keys.py"))
FILES = [
    Path(conf_dir(), "config.yaml"),
    *(path for group in comments.GROUPS for path in comments.group_files(group)),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_values_are_those_of_the_file(path):
    node = yaml.safe_load(path.read_text("utf-8"))
    for key in ("defaults", "hydra"):
        node.pop(key, None)
    assert {key: entry.value for key, entry in comments.read_lines(path)} == flatten(node)


def test_the_page_in_the_repository_is_current():
    assert (DOCS / "keys.md").read_text("utf-8") == KEYS["page"]()


def test_every_key_has_a_comment():
    for key, entries in comments.read_entries().items():
        assert comments.meaning(entries), key


def test_every_setting_of_a_plugin_has_a_comment():
    rows = [row for _, setting_rows in KEYS["plugin_settings"]() for row in setting_rows]
    assert len(rows) >= 7
    for key, _, comment in rows:
        assert comment, key


@cache
def key_rows() -> dict[str, list[tuple[str, ...]]]:
    rows: dict[str, list[tuple[str, ...]]] = {}
    for row in KEYS["key_rows"](comments.read_entries()):
        key = row[0].split("`")[1]
        rows.setdefault(key, []).append(row)
    return rows


def test_every_key_of_the_schema_has_a_row():
    keys = set(schema_keys()) - {"data.arguments", "optimizer.arguments"}
    assert keys <= key_rows().keys()
    rows = [row for key in keys for row in key_rows()[key]]
    assert len(rows) >= 75
    text = KEYS["page"]()
    for name, allowed, default, _, meaning in rows:
        assert allowed, name
        assert default, name
        assert meaning, name
        assert f"| {name} | " in text


def test_a_key_has_the_comment_of_a_file_that_has_its_class():
    (row,) = key_rows()["arch.dropout"]
    (comment,) = {
        entry.comment for entry in comments.read_entries()["arch.dropout"] if "vgg" in entry.file
    }
    assert row[-1] == comment


def test_the_defaults_are_those_of_the_default_run():
    values = flatten(to_plain(compose_run(parse_command(["device=cpu"]))))
    for key in ("run.network", "run.label"):  # null until the configuration is composed
        del values[key]
    for key, value in values.items():
        default = key_rows()[key][0][2].split("`")[1]
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(default) == value, key
        else:
            assert default == format_value(value), key


def test_a_number_has_its_unit_or_none():
    units = {key: rows[0][3] for key, rows in key_rows().items() if "number" in rows[0][1]}
    assert {key for key, unit in units.items() if not unit} == {
        "seed",
        "optimizer.lr",
        "optimizer.weight_decay",
        "augment.scale",
        "augment.color",
        "augment.cutmix",
        "train.ema",
        "train.clip_norm",
    }
    assert units["data.resize"] == "pixels"
    assert units["train.rest_minutes"] == "minutes"
    assert units["scheduler.milestones"] == "epochs"
    assert units["data.val_fraction"] == "share"
