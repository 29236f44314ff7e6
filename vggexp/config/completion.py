"""Completes the values of keys that have a fixed set of choices, in Hydra's tab completion."""

from typing import Any, Literal, get_args, get_origin

from hydra.plugins.completion_plugin import CompletionPlugin

from vggexp.config.parse import schema_keys

_original_matches = CompletionPlugin._get_matches


def choices(key: str) -> list[str]:
    """Returns the values that a key can have, as typed; [] if they are not a fixed set."""
    annotation: Any = schema_keys().get(key)
    found: list[str] = []
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            found += get_args(kind)
        if kind is bool:
            found += ["true", "false"]
        if kind is type(None) and found:
            found.append("null")
    return list(dict.fromkeys(found))  # the files of a group may share a value


def matches(config: Any, word: str) -> list[str]:
    """Returns the completions of a word; of `key=a,` those of the next value of a sweep."""
    key, equals, value = word.partition("=")
    options = choices(key.lstrip("+")) if equals else []
    if not options:
        return _original_matches(config, word)
    earlier, comma, last = value.rpartition(",")
    begin = f"{key}={earlier}{comma}"
    return [f"{begin}{option}" for option in options if option.startswith(last)]


def install() -> None:
    """Makes Hydra complete by `matches`. Hydra itself completes the value that a key has now."""
    CompletionPlugin._get_matches = staticmethod(matches)  # type: ignore[method-assign]
