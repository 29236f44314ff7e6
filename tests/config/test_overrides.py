"""Tests the one parser of overrides: keys, actions, several values, exact ranges, quoting."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vggexp.config.compose import hydra_session, parse_command
from vggexp.config.overrides import (
    format_override,
    last_of_each_key,
    parse_override,
    parse_overrides,
    quote_filter,
)
from vggexp.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "key", "action", "typed_value"),
    [
        ("optimizer.lr=1e-2", "optimizer.lr", "change", "1e-2"),
        ("+optimizer.foreach=true", "optimizer.foreach", "add", "true"),
        ("++seed=1,2", "seed", "force", "1,2"),
        ("~optimizer.nesterov", "optimizer.nesterov", "delete", ""),
        ("hydra/launcher=joblib", "hydra/launcher", "change", "joblib"),
        ("run.root='a=b'", "run.root", "change", "'a=b'"),
        ("data.resize=a=b", "data.resize", "change", "a=b"),  # text, which the key refuses
    ],
)
def test_an_override_has_a_key_an_action_and_the_typed_value(text, key, action, typed_value):
    override = parse_override(text)
    assert override.key == key
    assert override.action == action
    assert override.typed_value == typed_value


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("range(0.1,0.4,0.1)", "0.1 0.2 0.3"),
        ("range(0,1,0.25)", "0.0 0.25 0.5 0.75"),
        ("range(1,0.1,-0.3)", "1.0 0.7 0.4"),
        ("range(1e-5,4e-5,1e-5)", "1e-05 2e-05 3e-05"),
        ("sort(range(1.3,0,-0.5))", "0.3 0.8 1.3"),
        ("sort(range(0.1,0.4,0.1),reverse=true)", "0.3 0.2 0.1"),
        ("sort(range(1,10,2),reverse=true)", "9 7 5 3 1"),
        ("sort(range(10,1,-2))", "2 4 6 8 10"),
        ("sort(sweep=range(3,0,-1))", "1 2 3"),
        ("sort(3,1,2)", "1 2 3"),
        ("sort(shuffle(9,1,5,3,7))", "1 3 5 7 9"),
        ("sort(shuffle(range(5)))", "0 1 2 3 4"),
        ("range(3)", "0 1 2"),
        ("choice(a,b)", "a b"),
        ("'a,b',c", "'a,b' c"),
    ],
)
def test_an_axis_has_exact_values_in_order(axis, values):
    expected = [f"+a.b={value}" for value in values.split()]
    assert parse_override(f"+a.b={axis}").single_values(100) == expected


def test_a_range_is_shuffled_but_only_as_a_whole():
    values = parse_override("seed=shuffle(range(1000))").value_texts(1001)
    assert values != sorted(values, key=int)
    assert sorted(values, key=int) == [str(number) for number in range(1000)]
    endless = parse_override("seed=shuffle(range(1000000000000))")
    assert endless.value_texts(3) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "value",
    [
        1,
        0.05,
        "vgg11",
        "a b",
        "x,y",
        "it's",
        'say "x"',
        "back\\slash",
        'both\\"',
        "tab\there",
        [1, [2, "b"]],
        {"a": "x,y"},
        True,
        None,
        "",
        "1",
        "null",
        "é",
    ],
)
def test_hydra_reads_an_override_back(value):
    override = format_override("a.b", value)
    assert OverridesParser.create().parse_override(override).value() == value


@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("sweep.where=a < b", 'sweep.where="a < b"'),
        ("++sweep.where=a < b", '++sweep.where="a < b"'),
        ("sweep.where=a == 'x'", "sweep.where=\"a == 'x'\""),
        ("sweep.where='a < b'", "sweep.where='a < b'"),
        ("sweep.where=null", "sweep.where=null"),
        ("run.name=a < b", "run.name=a < b"),
    ],
)
def test_an_expression_is_quoted_for_hydra(typed, quoted):
    assert quote_filter(typed) == quoted


def test_each_wrong_override_has_its_own_problem():
    with hydra_session(parse_command([])):
        texts = ["seed=1", "=3", "~seed", "optimizer.lr=0.1", "train"]
        overrides, problems = parse_overrides(texts)
    assert [override.text for override in overrides] == ["seed=1", "optimizer.lr=0.1"]
    assert [problem.partition(":")[0] for problem in problems] == ["=3", "~seed", "train"]


def test_the_last_override_of_a_key_counts():
    overrides = map(parse_override, ["seed=1", "optimizer.lr=0.1", "++seed=2", "arch=vgg11"])
    texts = {override.key: override.text for override in last_of_each_key(overrides)}
    assert texts == {"seed": "++seed=2", "optimizer.lr": "optimizer.lr=0.1", "arch": "arch=vgg11"}


def test_an_interval_has_no_single_values():
    with pytest.raises(ConfigError, match="a grid needs single values"):
        parse_override("optimizer.lr=interval(0,1)").single_values(3)
