"""Why Hydra does not compose a command, told override by override."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from vggexp.config.parse import ErrorList, did_you_mean, schema_keys
from vggexp.config.schema import Config
from vggexp.config.torch_optim import arguments, optimizers
from vggexp.formatting import format_value

ComposeFn = Callable[[Sequence[str]], DictConfig]

SECTIONS = ("experiment", *(field.name for field in dataclasses.fields(Config)))
LAUNCHERS = {
    "joblib": "joblib",
    "ray": "ray",
    "slurm": "slurm",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
}
NEEDS_SWEEP = "a list of values needs -m (a sweep)"


def one_line(error: Exception) -> str:
    """What matters of an error of Hydra, OmegaConf or YAML, whose texts have several lines."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    while isinstance(error.__cause__, Exception) and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None)
    return (f"{key}: " if key else "") + re.sub(
        r"\s+", " ", lines[0] if lines else type(error).__name__
    )


def parse_overrides(overrides: Sequence[str]) -> tuple[list[Override], ErrorList]:
    """Parses each override by itself; the problems are of those outside Hydra's grammar and of forbidden ones."""
    parser = OverridesParser.create()
    parsed = []
    problems = ErrorList()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except Exception:  # Hydra's parser fails in many ways, and only on the text it is given
            problems.append(f"{text}: {_grammar_problem(text)}")
            continue
        problem = _forbidden(override)
        problems.append(f"{text}: {problem}") if problem else parsed.append(override)
    return parsed, problems


def _forbidden(override: Override) -> str | None:
    """What Hydra would take and vggexp does not. Hydra's own keys keep Hydra's semantics."""
    _key, _, value = (override.input_line or "").partition("=")
    parts = override.key_or_group.split(".")
    if not parts[0]:
        return "key missing (no spaces around =)"
    if override.key_or_group in ("hydra.run.dir", "hydra.output_subdir"):
        return "not allowed, a run has a folder of its own; write run.root=FOLDER or run.name=NAME"
    if re.split("[./]", parts[0])[0] == "hydra":
        return None
    if any(re.fullmatch(r"_\w+_", part) for part in parts):
        return "not allowed in a configuration"
    if "${" in value:
        return "interpolations are not allowed on the command line; write the value"
    if override.is_delete() and not (parts[0] == "optimizer" and len(parts) == 2):
        return "may not be removed" if parts[0] in SECTIONS else "no such key"
    return None


def _grammar_problem(text: str) -> str:
    key, equals, value = text.partition("=")
    if not text.strip():
        return "an empty word; leave it out"
    if not equals:
        return _without_equals(text)
    if value.startswith("="):
        return "one = only"
    if value.startswith("("):
        return f"no tuples here; write {key}={value.replace('(', '[').replace(')', ']')}"
    for opening, closing in ("[]", "{}", "()"):
        if value.count(opening) != value.count(closing):
            return (
                f"{opening} is not closed"
                if value.count(opening) > value.count(closing)
                else f"stray {closing}"
            )
    if value.endswith(","):
        return "ends in a comma"
    if value.startswith("~"):
        return "~ is not expanded here; write $HOME or the whole path"
    if not re.fullmatch(r"[+~]{0,2}[\w./@-]+", key, re.ASCII):
        return "not a key; keys are words with dots between them"
    return f"put the value into quotes: '{key}=\"{value}\"'"


def _without_equals(text: str) -> str:
    key, colon, value = text.partition(":")
    if colon:
        return f"= missing; write {key}={value}"
    inside = [known for known in schema_keys() if known.startswith(f"{text}.")]
    if inside and not _options(text):
        return f"= missing; write {inside[0]}=VALUE"
    groups = [group for group in SECTIONS if text in _options(group)]
    return (
        f"= missing; write {groups[0]}={text}"
        if groups
        else f"= missing; write {text}=VALUE, or see --help"
    )


def _options(group: str) -> list[str]:
    return (
        [] if group == "hydra" else GlobalHydra.instance().config_loader().get_group_options(group)
    )


def diagnose(
    parsed: Sequence[Override], composed: ComposeFn
) -> tuple[DictConfig | None, ErrorList]:
    """What is wrong with each override, and what the others compose to, so that its problems can be told as well.

    An unknown key is put in by force: `read` tells it, as it tells one in a file. What depends on an unknown file is
    not judged.
    """
    groups = {override.key_or_group for override in parsed if _options(override.key_or_group)}
    chosen = [override for override in parsed if override.key_or_group in groups]
    unfit = {
        override.key_or_group: problem
        for override in chosen
        if (problem := _group_problem(override))
    }
    good = [override.input_line or "" for override in chosen if override.key_or_group not in unfit]
    problems = ErrorList(unfit.values())
    try:
        before = composed(good)
    except Exception:  # as the whole command does; its error is told by the caller
        return None, problems
    known = set(_keys(before))
    for override in parsed:
        key = override.key_or_group
        text = override.input_line or ""
        if (
            key in groups
            or key.split(".")[0] in unfit
            or ("experiment" in unfit and key not in known)
        ):
            continue
        new = key not in known and override.type == OverrideType.CHANGE
        problem = _value_problem(override, known, before)
        problems.append(problem) if problem else good.append(f"++{text}" if new else text)
    return _compose_leniently(good, composed, problems), problems


def _compose_leniently(
    overrides: Sequence[str], composed: ComposeFn, problems: ErrorList
) -> DictConfig:
    """Composes; an override that Hydra refuses for a reason not foreseen here is told in Hydra's words and left out."""
    try:
        return composed(overrides)
    except Exception:  # Hydra fails in many ways, and here only on what it is given
        kept: list[str] = []
    for text in overrides:
        try:
            composed([*kept, text])
            kept.append(text)
        except Exception as error:
            problems.append(f"{text.removeprefix('++')}: {one_line(error)}")
    return composed(kept)


def _group_problem(override: Override) -> str | None:
    text = override.input_line or ""
    group = override.key_or_group
    options = _options(override.key_or_group)
    if override.is_sweep_override():
        return f"{text}: {NEEDS_SWEEP}"
    value = override.value()
    if override.package is not None:
        return f"{text}: @ is not needed; write {group}={format_value(value)}"
    if override.is_add() and group in SECTIONS:
        return f"{text}: {group} is already set; write {group}={format_value(value)}"
    if isinstance(value, dict):
        return f"{text}: set one key at a time, as {group}.{next(iter(value), 'KEY')}=VALUE"
    unknown = [
        name
        for name in map(format_value, value if isinstance(value, list) else [value])
        if name not in options
    ]
    if group == "hydra/launcher" and (extra := _missing_extra(value, options)):
        return f"{text}: needs another package: pip install -e '.[{extra}]'"
    if unknown:
        return f"{group}={unknown[0]}: unknown; {did_you_mean(unknown[0], options)}allowed {', '.join(options)}"
    return None


def _missing_extra(launcher: Any, options: Sequence[str]) -> str | None:
    """The extra of a launcher that comes with another package. The file `slurm` is there without it."""
    name = "submitit_slurm" if launcher == "slurm" else launcher
    return None if name in options else LAUNCHERS.get(name)


def _value_problem(override: Override, known: set[str], before: DictConfig) -> str | None:
    text = override.input_line or ""
    key = override.key_or_group
    section, _, leaf = key.rpartition(".")
    if override.is_sweep_override():
        return f"{text}: {NEEDS_SWEEP}"
    if override.is_add() and key in known and not isinstance(override.value(), dict):
        return f"{text}: already set; write {text.lstrip('+')}"
    if override.is_delete() and key not in known:
        return f"{text}: no such key"
    if key in known or override.type != OverrideType.CHANGE:
        return None
    if key.startswith("hydra."):
        return f"{key}: unknown key of Hydra; --cfg hydra prints those it has"
    name = OmegaConf.select(before, "optimizer.name")
    if section == "optimizer" and name in optimizers() and leaf in arguments(name):
        return f"{text}: not in the file of this optimizer; write +{text}"
    return None


def _keys(node: DictConfig) -> Iterator[str]:
    """Every key with its path, sections too."""

    def walk(values: Mapping[str, Any], path: str) -> Iterator[str]:
        for key, value in values.items():
            yield f"{path}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{path}{key}.")

    return walk(cast(dict[str, Any], OmegaConf.to_container(node, resolve=False)), "")
