"""The page of every key: nothing of the schema or of conf/ is missing there, and nothing on it is of its own."""

import runpy
from functools import cache
from pathlib import Path

import yaml

from vggexp.config.compose import parse_command
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import schema_keys
from vggexp.formatting import format_value
from vggexp.sweep.expand import compose_run

KEYS = runpy.run_path(str(Path(__file__).parents[2] / "docs/keys.py"))


def given(path: Path) -> dict:
    node = yaml.safe_load(path.read_text("utf-8"))
    return flatten({key: value for key, value in node.items() if key not in ("defaults", "hydra")})


def test_values_of_the_page_of_keys_are_those_of_the_files():
    for path in [
        KEYS["CONF"] / "config.yaml",
        *(found for group in KEYS["GROUPS"] for found in files_of(group)),
    ]:
        assert {key: entry.value for key, entry in KEYS["lines"](path)} == given(path), path


def files_of(group: str) -> list[Path]:
    return sorted((KEYS["CONF"] / group).glob("*.yaml"))


def test_no_key_of_a_file_is_without_a_comment():
    assert [key for key, found in KEYS["entries"]().items() if not KEYS["meaning"](found)] == []
    of_plugins = [row for _, rows in KEYS["settings"]() for row in rows]
    assert [row for row in of_plugins if not row[2]] == [] and len(of_plugins) >= 7


@cache
def table() -> dict[str, list[tuple[str, ...]]]:
    rows: dict[str, list[tuple[str, ...]]] = {}
    for row in KEYS["rows"](KEYS["entries"]()):
        rows.setdefault(row[0].split("`")[1], []).append(row)
    return rows


def test_every_key_of_the_schema_has_its_row():
    keys = set(schema_keys()) - {"optimizer.arguments"}
    assert keys <= table().keys()
    rows = [row for key in keys for row in table()[key]]
    assert [row for row in rows if not (row[1] and row[2] and row[4])] == [] and len(rows) >= 75
    text = KEYS["page"]()
    assert all(f"| {row[0]} | " in text for row in rows)


def test_the_defaults_are_those_of_the_default_run():
    for key, value in flatten(to_plain(compose_run(parse_command(["device=cpu"])))).items():
        told = table()[key][0][2].split("`")[1]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        assert float(told) == value if number else told == format_value(value), key


def test_a_number_has_its_unit_or_none():
    units = {key: rows[0][3] for key, rows in table().items() if "number" in rows[0][1]}
    assert {key for key, unit in units.items() if not unit} == {
        "seed",
        "optimizer.lr",
        "optimizer.weight_decay",
        "augment.scale",
        "augment.color",
        "train.ema",
        "train.clip_norm",
    }
    assert units["data.resize"] == "pixels" and units["train.rest_minutes"] == "minutes"
    assert units["scheduler.milestones"] == "epochs" and units["data.val_fraction"] == "share"
