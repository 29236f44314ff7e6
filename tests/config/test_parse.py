"""YAML containers become schema classes; every invalid key is reported and left empty."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from vggexp.config.compose import parse_command
from vggexp.config.keys import to_plain
from vggexp.config.parse import ErrorList, close_matches, parse_config, parse_partial, parse_section
from vggexp.sweep.expand import compose_run


@pytest.fixture
def values():
    return to_plain(compose_run(parse_command(["device=cpu"])))


def test_a_valid_configuration_has_no_error(values):
    config, errors = parse_config(values)
    assert errors == []
    assert to_plain(config) == values


def test_an_invalid_configuration_is_none_and_all_errors(values):
    values["seed"] = -1
    values["train"]["epochs"] = "x"
    config, errors = parse_config(values)
    assert config is None
    assert errors == [
        "train.epochs=x: not a whole number; must be 1..100000",
        "seed=-1: must be 0..9223372036854775807",
    ]
    assert errors.paths == {"train.epochs", "seed"}


def test_invalid_keys_are_none_and_the_others_keep_their_values(values):
    values["data"]["resize"] = 0
    values["arch"]["blocks"] = [[1, 64], [1, 0]]
    values["augment"] = 3
    config, errors = parse_partial(values)
    assert errors.paths == {"data.resize", "arch.blocks[1]", "augment"}
    assert config.data.resize is None
    assert config.augment is None
    assert config.data.batch_size == values["data"]["batch_size"]


def test_an_unknown_key_leaves_no_value_invalid(values):
    values["train"]["epoch"] = 3
    config, errors = parse_partial(values)
    assert len(errors) == 1
    assert errors.paths == set()
    assert to_plain(config.train) == {
        key: value for key, value in values["train"].items() if key != "epoch"
    }


def test_a_wrong_name_leaves_the_whole_group_invalid(values):
    values["data"]["name"] = "fashion"
    config, errors = parse_partial(values)
    assert errors[0].startswith("data.name=fashion: nearest fashion_mnist; allowed ")
    assert errors.paths == {"data"}
    assert config.data is None


def test_a_run_of_an_earlier_version_is_read(values):
    """It lacks the options that were added since with the value null."""
    known = {key: value for key, value in values["train"].items() if value is not None}
    config, errors = parse_config(values | {"train": known})
    assert errors == []
    assert to_plain(config) == values


def test_a_rest_field_holds_the_keys_without_a_field():
    @dataclass
    class Section:
        name: str
        others: dict[str, Any] = field(metadata={"rest": True})

    errors = ErrorList()
    section = parse_section(Section, {"momentum": 0.9, "name": "SGD"}, "optimizer", errors)
    assert section == Section("SGD", {"momentum": 0.9})
    assert to_plain(section) == {"name": "SGD", "momentum": 0.9}
    assert errors == []


def test_at_most_two_similar_words_are_suggested():
    words = ["vgg11", "vgg13", "vgg16", "lenet"]
    assert close_matches("vgg12", words) == ["vgg11", "vgg13"]
    assert close_matches("VGG16", words) == ["vgg16", "vgg11"]
    assert close_matches("transformer", words) == []


def test_all_convolutions_of_a_block_may_be_1x1(values):
    values["arch"]["blocks"] = [[1, 64, 1], [2, 64, 2]]
    config, errors = parse_config(values)
    assert errors == []
    assert config.arch.blocks[1].pointwise == 2
