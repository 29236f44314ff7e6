"""The JSON Schema accepts every shipped file and what the program accepts, and nothing else."""

import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from vggexp.__main__ import main
from vggexp.config.comments import GROUPS, read_entries
from vggexp.config.device import conf_dir
from vggexp.config.json_schema import json_schema
from vggexp.config.parse import GROUP_CLASSES, ErrorList, convert, schema_keys

CONF = Path(conf_dir())
FILES = [path for path in sorted(CONF.rglob("*.yaml")) if path.parent.parent.name != "hydra"]
SCHEMA = json_schema()
MODELINE = re.compile(r"^# yaml-language-server: \$schema=(\S+?)(?:#/definitions/(\w+))?$", re.M)
VALUES = (-1, 0, 0.25, 1, 1.5, 3, 70_000, 2**62, True, None, [], [1], [1.5], [[1, 2]], [[0, 2]], {})


def is_valid(node, definition="config"):
    part = {"$ref": f"#/definitions/{definition}", "definitions": SCHEMA["definitions"]}
    return Draft7Validator(part).is_valid(node)


def test_it_is_a_schema_of_its_draft():
    Draft7Validator.check_schema(SCHEMA)


def test_the_shipped_file_is_what_the_command_prints(capsys):
    assert main(["--schema"]) == 0
    assert capsys.readouterr().out == (CONF / "schema.json").read_text("utf-8")


def test_the_flag_stands_alone(capsys):
    assert main(["--schema", "arch=vgg13"]) == 2
    message = "vggexp: error: --schema: takes no overrides; leave out arch=vgg13\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_file_names_the_schema_that_accepts_it(path):
    ((relative_path, definition),) = MODELINE.findall(path.read_text("utf-8"))
    assert (path.parent / relative_path).resolve() == CONF / "schema.json"
    assert definition == (path.parent.name if path.parent.name in GROUPS else "")
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert is_valid(node, definition or "config")


@pytest.mark.parametrize(
    ("definition", "node"),
    [
        ("arch", {"name": "vgg", "hiden": [64]}),
        ("arch", {"name": "resnet"}),
        ("arch", {"name": "lenet", "norm": "batch"}),
        ("arch", {"blocks": [1, 2, 3]}),
        ("arch", {"blocks": [[2, 64, 1, 1]]}),
        ("arch", {"dropout": 1}),
        ("data", {"name": "synthetic", "images": 4}),
        ("data", {"name": "fashion_mnist", "cache": "none"}),
        ("data", {"name": "VOCDetection"}),
        ("data", {"name": "SVHN", "cache": "none"}),
        ("augment", {"flip": "yes"}),
        ("optimizer", {"name": "SGD", "lr": 0}),
        ("scheduler", {"gamma": 0.1}),
        ("device", {"name": "cpu", "precision": "float32"}),
        ("config", {"train": {"epochs": 1.5}}),
        ("config", {"epochs": 5}),
        ("config", {"seed": None}),
    ],
)
def test_a_wrong_file_is_rejected(definition, node):
    assert not is_valid(node, definition)


def test_a_value_may_be_an_interpolation():
    assert is_valid({"train": {"epochs": "${oc.env:EPOCHS}"}})


def accepts(key, value):
    """Returns whether a class that has the key accepts the value."""
    section, _, name = key.rpartition(".")
    hints = [get_type_hints(cls, include_extras=True) for cls in GROUP_CLASSES.get(section, ())]
    annotations = [hint[name] for hint in hints if name in hint] or [schema_keys()[key]]
    for annotation in annotations:
        errors = ErrorList()
        convert(annotation, value, key, errors)
        if not errors:
            return True
    return False


@pytest.mark.parametrize(
    "key", sorted(schema_keys().keys() - {"data.arguments", "optimizer.arguments"})
)
def test_a_value_is_valid_if_the_program_accepts_it(key):
    section, _, name = key.rpartition(".")
    for value in VALUES:
        node = {section: {name: value}} if section else {name: value}
        if key in ("data.train_images", "data.test_images"):
            node["data"]["name"] = "KMNIST"  # without it, any argument would be valid
        assert is_valid(node) == accepts(key, value), value


def test_every_description_is_a_comment_of_the_configuration():
    described = json.dumps(SCHEMA, ensure_ascii=False)
    for key, entries in read_entries().items():
        assert any(
            json.dumps(entry.comment, ensure_ascii=False) in described for entry in entries
        ), key
