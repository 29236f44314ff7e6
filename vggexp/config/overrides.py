"""Parses overrides, the words of a command line that set a key: `optimizer.lr=0.1`, `arch=a,b`.

The grammar is Hydra's. All other modules take an override apart by `parse_override` only.
"""

import random
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from itertools import islice
from typing import Any, Literal, get_args, get_origin

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser import types
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions

from vggexp.config.parse import ErrorList, keys_named, schema_keys
from vggexp.config.schema import NAME_CHARACTERS, NAME_KEYS
from vggexp.config.similarity import close_matches
from vggexp.errors import ConfigError
from vggexp.formatting import format_value

SECTIONS = tuple(dict.fromkeys(["experiment", *(key.split(".")[0] for key in schema_keys())]))
NEXT_KEY = re.compile(r"[\s,;][+~]{0,2}([\w./]+)=")  # of another override behind a value
FUNCTION_CALL = re.compile(r"\w+\(.*\)", re.DOTALL)  # a value such as range(3)
ACTIONS: dict[types.OverrideType, "Action"] = {
    types.OverrideType.CHANGE: "change",
    types.OverrideType.ADD: "add",
    types.OverrideType.FORCE_ADD: "force",
    types.OverrideType.DEL: "delete",
}

Action = Literal["change", "add", "force", "delete"]


@dataclass(frozen=True)
class Override:
    """An override that follows Hydra's grammar."""

    text: str  # as typed; a value outside Hydra's grammar is in quotes
    key: str  # without + and ~: a key as optimizer.lr, or a group as hydra/launcher
    action: Action  # what the key's prefix asks for: none, +, ++ or ~
    typed_value: str  # behind the =; empty if there is none
    parsed: types.Override  # as Hydra's own functions take it
    numbers: "NumberRange | None" = None  # of a value such as range(3)

    @property
    def is_sweep(self) -> bool:
        """Whether the key has several values, or an interval."""
        return self.parsed.is_sweep_override()

    @property
    def is_hydra(self) -> bool:
        """Whether the key is one of Hydra's own."""
        return re.split("[./]", self.key)[0] == "hydra"

    @property
    def value(self) -> Any:
        """The value, or Hydra's description of several values."""
        return self.parsed.value()

    @property
    def prefixed_key(self) -> str:
        return self.parsed.get_key_element()

    def with_value(self, value: object) -> str:
        """Returns the override of a single value of this key."""
        return f"{self.prefixed_key}={value}"

    def single_values(self, limit: int) -> list[str]:
        """Returns an override for each of the values, at most `limit` overrides.

        Raises:
            ConfigError: the override is an interval, or has no value.
        """
        if not self.is_sweep:
            return [self.text]
        return [self.with_value(text) for text in self.value_texts(limit)]

    def value_texts(self, limit: int) -> list[str]:
        """Returns several values as overrides have them; see `single_values`."""
        sweep = self.value
        values: Iterable[Any]
        if isinstance(sweep, types.IntervalSweep):
            raise ConfigError(
                f"{self.text}: a grid needs single values; use a search sweeper for intervals"
            )
        if self.numbers is not None:
            values = self.numbers.first_values(limit, sweep.shuffle)
        elif isinstance(sweep, types.Glob):
            values = sweep.filter(group_options(self.key))
        else:
            values = self.parsed.sweep_string_iterator()
        texts = [str(value) for value in islice(values, limit)]
        if not texts:
            raise ConfigError(f"{self.text}: no value; a sweep of it has no job")
        if self.numbers is None and len({*texts}) < len(texts):
            raise ConfigError(f"{self.text}: a value stands there twice; give each value once")
        return texts


@dataclass(frozen=True)
class NumberRange:
    """The numbers of a range in exact decimal steps: 0.1, 0.2, 0.3 and not 0.30000000000000004."""

    numerators: range
    denominator: int | None  # a power of ten; None: the numbers are whole

    @classmethod
    def of(cls, sweep: types.RangeSweep) -> "NumberRange":
        """Raises ValueError for a step of 0, and for numbers that are not finite."""
        ends: list[Any] = [sweep.start, sweep.stop, sweep.step]
        if sweep.step == 0:
            raise ValueError("the step of a range may not be 0")
        if all(isinstance(end, int) for end in ends):
            return cls(range(*ends), None)
        decimals = [Decimal(str(end)) for end in ends]
        if not all(number.is_finite() for number in decimals):
            raise ValueError("the numbers of a range must be finite")
        places = max(0, *(-int(number.as_tuple().exponent) for number in decimals))
        return cls(range(*(int(number.scaleb(places)) for number in decimals)), 10**places)

    @property
    def step(self) -> int | float:
        """The distance between two numbers, above 0."""
        return self._number(abs(self.numerators.step))

    def __getitem__(self, index: int) -> int | float:
        return self._number(self.numerators[index])

    def _number(self, numerator: int) -> int | float:
        return numerator if self.denominator is None else numerator / self.denominator

    def first_values(self, count: int, shuffle: bool = False) -> list[int | float]:
        """Returns the first numbers. A range of more than `count` numbers is not shuffled."""
        values = [self._number(numerator) for numerator in islice(self.numerators, count)]
        if shuffle and len(values) < count:
            random.shuffle(values)
        return values

    def ordered(self, reverse: bool) -> types.RangeSweep:
        """Returns the same numbers from the smallest on, or with `reverse` from the largest."""
        numbers = self.numerators
        if (numbers.step < 0) != reverse:
            numbers = numbers[::-1]
        ends = [self._number(number) for number in (numbers.start, numbers.stop, numbers.step)]
        return types.RangeSweep(start=ends[0], stop=ends[1], step=ends[2])


def _sort(*args: Any, **kwargs: Any) -> Any:
    """Replaces the function `sort` of the grammar, which gives other numbers for some ranges."""
    sweep = kwargs.get("sweep", args[0] if len(args) == 1 else None)
    if isinstance(sweep, types.RangeSweep):
        ordered = NumberRange.of(sweep).ordered(kwargs.get("reverse", False))
        ordered.tags = sweep.tags
        return ordered
    choices = _HYDRA_SORT(*args, **kwargs)
    if isinstance(choices, types.ChoiceSweep):
        choices.shuffle = False  # sort(shuffle(...)) is sorted
    return choices


_FUNCTIONS = create_functions()
_HYDRA_SORT: Callable[..., Any] = _FUNCTIONS.functions["sort"]
_FUNCTIONS.functions["sort"] = _sort
_PARSER = OverridesParser(_FUNCTIONS)


@cache
def parse_override(text: str) -> Override:
    """Parses an override.

    Raises:
        ConfigError: the override does not follow Hydra's grammar. A value that does not is text
            if the key takes no text: the checks of the key then refuse the value.
    """
    key, _, value = text.partition("=")
    if not __debug__ and re.search("[({]", value):
        raise ConfigError(
            f"{text}: not possible with python -O, because Hydra reads brackets in assert "
            "statements; leave out -O and the environment variable PYTHONOPTIMIZE"
        )
    try:
        parsed = _PARSER.parse_override(text)
    except Exception as error:  # Hydra's parser raises many types, all because of the text
        problem = _grammar_problem(text, error)
        if problem is None:
            return replace(parse_override(f"{key}={quoted(value)}"), typed_value=value)
        raise ConfigError(f"{text}: {problem}") from error
    override = Override(text, parsed.key_or_group, ACTIONS[parsed.type], value, parsed)
    sweep = override.value
    if _has_several_values([sweep.list if isinstance(sweep, types.ChoiceSweep) else sweep]):
        raise ConfigError(f"{text}: several values inside another value")
    if not isinstance(sweep, types.RangeSweep):
        return override
    try:
        return replace(override, numbers=NumberRange.of(sweep))
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{text}: {error}") from error


def _has_several_values(items: Iterable[Any], depth: int = 0) -> bool:
    """Returns whether a range, choice or glob stands inside a list or a dictionary."""
    for item in items:
        if depth and isinstance(item, types.Sweep | types.Glob):
            return True
        inner = item.values() if isinstance(item, dict) else item
        if isinstance(item, list | dict) and _has_several_values(inner, depth + 1):
            return True
    return False


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], ErrorList]:
    """Parses each override by itself.

    Returns:
        The allowed overrides, and an error for each override that is forbidden or does not
        follow Hydra's grammar.
    """
    parsed = []
    errors = ErrorList()
    for text in texts:
        try:
            override = parse_override(text)
        except ConfigError as error:
            errors.extend(error.problems)
            continue
        problem = _policy_problem(override)
        if problem is None:
            parsed.append(override)
        else:
            errors.append(f"{text}: {problem}")
    return parsed, errors


def last_of_each_key(overrides: Iterable[Override]) -> list[Override]:
    """Returns the overrides of which there is no later one of the same key."""
    return list({override.key: override for override in overrides}.values())


def typed_values(overrides: Iterable[Override]) -> dict[str, str]:
    """Returns the value of each key as typed."""
    return {override.key: override.typed_value for override in overrides}


def quote_filter(text: str) -> str:
    """Puts the value of `sweep.where=a < b` into the quotes that Hydra's grammar needs for `<`."""
    match = re.fullmatch(r"(\+{0,2}sweep\.where)=(.+)", text, re.DOTALL)
    if match is None or match[2] == "null":
        return text
    key, value = match.groups()
    quote = value[0]
    if quote in ("'", '"') and value.count(quote) == 2 and value.endswith(quote):
        return text  # already in quotes
    return f"{key}={quoted(value)}"


def quoted(value: Any) -> str:
    """Returns a value as Hydra's grammar has it, with each text in double quotes."""
    if isinstance(value, str):
        return types.QuotedString(value, types.Quote.double).with_quotes()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quoted(item)}" for key, item in value.items()) + "}"
    return format_value(value)


def format_override(key: str, value: Any) -> str:
    """Returns an override that `parse_override` reads back as the same value."""
    text = f"{key}={format_value(value)}"
    if _follows_grammar(text) and parse_override(text).value == value:
        return text
    return f"{key}={quoted(value)}"


def group_options(group: str) -> list[str]:
    """Returns the files of a group; [] if `group` is not a group."""
    if group == "hydra":
        return []
    return _read_group_options(GlobalHydra.instance().config_loader(), group)


@cache
def _read_group_options(config_loader: Any, group: str) -> list[str]:
    """Lists a group once for each loader: Hydra copies all files that it has read each time."""
    options: list[str] = config_loader.get_group_options(group)
    return options


def _policy_problem(override: Override) -> str | None:
    """Returns why vggexp refuses an override that Hydra accepts.

    Hydra's own keys keep Hydra's semantics.
    """
    parts = override.key.split(".")
    if not parts[0]:
        return "key missing (no spaces around =)"
    if override.is_hydra:
        return None
    if any(re.fullmatch(r"_\w+_", part) for part in parts):
        return "not allowed in a configuration"
    if "${" in override.typed_value:
        return "interpolations are not allowed on the command line; write the value"
    is_optimizer_argument = parts[0] == "optimizer" and len(parts) == 2
    if override.action == "delete" and not is_optimizer_argument:
        return "may not be removed" if parts[0] in SECTIONS else "no such key"
    return None


def _grammar_problem(text: str, error: Exception) -> str | None:
    """Returns why `text` does not follow Hydra's grammar, and what to write instead.

    Returns None if only the value does not, and the key takes no text.

    Args:
        error: what the parser has raised.
    """
    key, equals, value = text.partition("=")
    plain_key = key.lstrip("+")
    if not text.strip():
        return "an empty word; leave it out"
    if not equals:
        return _missing_equals_problem(text)
    if value.startswith("="):
        return "one = only"
    if not re.fullmatch(r"[+~]{0,2}[\w./@-]+", key, re.ASCII) or not _follows_grammar(f"{key}=1"):
        return "not a key; keys are words with dots between them"
    if any(ord(character) < 32 for character in value):
        return "has a line break or another control character; leave it out"
    if value.endswith(","):
        return "ends in a comma"
    if value.startswith("~"):
        return "~ is not expanded here; write $HOME or the whole path"
    if any(name in schema_keys() or group_options(name) for name in NEXT_KEY.findall(value)):
        return "several overrides in one text; give each one separately"
    annotation = schema_keys().get(plain_key)
    kinds = (annotation, *get_args(annotation))  # the parts of a union, as str | None
    if plain_key in NAME_KEYS:
        return f"must be {NAME_CHARACTERS}"
    if str in kinds or key.startswith("hydra."):
        return f"put the value into quotes: {shlex.quote(f'{plain_key}={quoted(value)}')}"
    brackets = key + "=" + value.replace("(", "[").replace(")", "]")
    takes_list = annotation is None or any(get_origin(kind) is tuple for kind in kinds)
    if value.startswith("(") and takes_list and _follows_grammar(brackets):
        return f"no tuples here; write {shlex.quote(brackets)}"
    for opening, closing in ("[]", "{}", "()"):
        surplus = value.count(opening) - value.count(closing)
        if surplus > 0:
            return f"{opening} is not closed"
        if surplus < 0:
            return f"stray {closing}"
    if value[:1] in ("[", "{"):
        return "cannot be read; a list is [a,b], and keys and values are {key:value,key:value}"
    return str(error).splitlines()[0] if FUNCTION_CALL.fullmatch(value) else None


def _follows_grammar(text: str) -> bool:
    try:
        _PARSER.parse_override(text)
    except Exception:  # Hydra's parser raises many types, all because of the text
        return False
    return True


def _missing_equals_problem(text: str) -> str:
    key, colon, value = text.partition(":")
    if colon and (key in schema_keys() or group_options(key)):
        return f"= missing; write {shlex.quote(f'{key}={value}')}"
    inside = [known for known in schema_keys() if known.startswith(f"{text}.")]
    if inside and not group_options(text):
        return f"= missing; write {inside[0]}=VALUE"
    for group in SECTIONS:
        if text in group_options(group):
            return f"= missing; write {group}={text}"
    keys = (
        [text] if text in schema_keys() else keys_named(text) or close_matches(text, schema_keys())
    )
    if keys:
        return f"= missing; write {' or '.join(f'{known}=VALUE' for known in keys)}"
    return "= missing; see --help"
