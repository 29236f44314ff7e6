"""Limits of users' YAML files: values are counted with every alias written out."""

import os

import pytest

from vggexp.config.yaml_limits import LimitError, load, read_checked
from vggexp.errors import ConfigError


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for number in range(1, 10):
        lines.append(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (bomb(), "stands for more than 100000 values"),
        ("a: &a [1, *a]", "stands for more than 100000 values"),
        ("a: &a {<<: *a}", "stands for more than 100000 values"),
        ("[" * 60_000, "more than 100 sections inside each other"),
        ("a: " + "{a: " * 200 + "}" * 200, "more than 100 sections inside each other"),
        (f"size: {'1:' * 3000}1", "a value of more than 2000 characters; quote a text"),
        (f"size: !!int '0x{'F' * 5000}'", "a value of more than 2000 characters; quote a text"),
        ("\ufeffseed: 1", "begins with a byte order mark; save it as UTF-8 without one"),
        ("#" * (1 << 20) + "\n", "larger than 1 MiB, not a configuration"),
    ],
)
def test_refused(text, problem, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_checked(path)
    assert str(caught.value) == f"{path}: {problem}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed: 1",
        "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}",
        "a: [1\nb: 2",
        "a: *unknown",
        "\x00",
        f"a: '{'x' * 5000}'",
    ],
)
def test_left_to_the_reader(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert read_checked(path) == text


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(ConfigError, match=r"mine\.yaml: cannot be read as YAML \('utf-8' codec"):
        read_checked(tmp_path / "mine.yaml")


def test_a_fifo_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not a regular file, not a configuration"):
        read_checked(tmp_path / "mine.yaml")


def test_load_builds_plain_data_within_the_limits():
    assert load("a: &a {x: 1}\nb: *a") == {"a": {"x": 1}, "b": {"x": 1}}
    for text in (bomb(), "- " * 60_000, "? " * 60_000):
        with pytest.raises(LimitError):
            load(text)
