"""Explains, override by override, why Hydra does not compose a command."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from vggexp.config import own_files
from vggexp.config.overrides import SECTIONS, Override, format_override, group_options
from vggexp.config.parse import ErrorList, section_advice
from vggexp.config.similarity import did_you_mean
from vggexp.config.suggestions import data_set_advice, device_advice
from vggexp.config.torch_optim import arguments, is_usable
from vggexp.config.torchvision_arguments import is_argument
from vggexp.formatting import format_value

ComposeFn = Callable[[Sequence[str]], DictConfig]
LAUNCHER_EXTRAS = {  # the extra of this package that installs the launcher
    "joblib": "joblib",
    "ray": "ray",
    "slurm": "slurm",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
}
OPTIONAL_GROUPS = ("experiment", "sweep")  # of which a command needs no file
ADVICE = {"data": data_set_advice, "device": device_advice}  # on a name that no file has
NEEDS_SWEEP = "a list of values needs -m (a sweep)"


def compose_error_line(error: Exception) -> str:
    """Returns the first line of an error of Hydra, OmegaConf or YAML, with the key or file."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    if isinstance(error, ReaderError):
        return f"{error.name}: {error.reason}"
    if isinstance(error, MissingConfigException) and (problem := _missing_file_problem(error)):
        return problem
    in_file = re.match(r"In '(.+)': \w+ raised while composing config:", str(error))
    if in_file and isinstance(error.__context__, Exception):  # has the key
        return f"{in_file[1]}: {compose_error_line(error.__context__)}"
    while isinstance(error.__cause__, Exception) and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    if text == "HydraConfig was not set":
        text = "${hydra:...} is known to Hydra's jobs alone; write the value"
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key else text


def _missing_file_problem(error: MissingConfigException) -> str | None:
    """Describes a file of a group that one of the user's own files chooses and no folder has."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    choice = f"override /{group}"
    path = own_files.file_with_default({choice: name})
    if path is None:
        return None
    options = error.options or []
    nearest = did_you_mean(name, options)
    return f"{path}: {choice}: {name}: unknown; {nearest}allowed {', '.join(options)}"


def diagnose(
    parsed: Sequence[Override],
    compose: ComposeFn,
) -> tuple[DictConfig | None, ErrorList]:
    """Finds the errors of each override and composes the remaining ones.

    The caller parses the composed node, so that all errors are reported together. An unknown key
    is therefore added by force: the parser reports it, as it reports an unknown key in a file.
    Keys that depend on an unknown file are not checked.
    """
    errors = ErrorList()
    good: list[str] = []
    groups: set[str] = set()
    bad_groups: dict[str, str] = {}
    for override in parsed:
        group = override.key
        if not group_options(group):
            continue
        groups.add(group)
        problem = _group_problem(override)
        if problem is not None:
            bad_groups[group] = problem
    for override in parsed:
        group = override.key
        if group in groups and group not in bad_groups:
            good.append(override.text)
    errors.extend(bad_groups.values())
    try:
        groups_only = compose(good)
    except Exception:  # raised for the whole command too, whose error the caller reports
        return None, errors
    for override in parsed:
        if override.key == "optimizer.name" and isinstance(override.value, str):
            OmegaConf.update(groups_only, "optimizer.name", override.value)
    values: Any = OmegaConf.to_container(groups_only, resolve=False)
    known = set(_full_names(values))
    added: set[str] = set()
    for override in parsed:
        key = override.key
        if key in groups or _depends_on(key, bad_groups, known):
            continue
        text = override.text
        problem = _value_problem(override, known, groups_only)
        if override.action == "add" and key in added:
            problem = f"{text}: given twice; leave one out"
        added.add(key)
        is_new = key not in known and override.action == "change"
        if problem is not None:
            errors.append(problem)
        elif is_new:
            good.append(f"++{text}")
        else:
            good.append(text)
    return _compose_leniently(good, compose, errors), errors


def _depends_on(
    key: str,
    bad_groups: Mapping[str, str],
    known: set[str],
) -> bool:
    """Returns whether an unknown file may be the reason that the key is unknown."""
    if key.split(".")[0] in bad_groups:
        return True
    return "experiment" in bad_groups and key not in known


def _compose_leniently(
    overrides: Sequence[str],
    compose: ComposeFn,
    errors: ErrorList,
) -> DictConfig:
    """Composes without the overrides that Hydra refuses for a reason unknown to this module.

    The error of such an override is Hydra's text.
    """
    try:
        return compose(overrides)
    except Exception:  # Hydra raises many types, all because of the overrides
        accepted: list[str] = []
    for text in overrides:
        try:
            compose([*accepted, text])
            accepted.append(text)
        except Exception as error:
            errors.append(f"{text.removeprefix('++')}: {compose_error_line(error)}")
    return compose(accepted)


def _group_problem(override: Override) -> str | None:
    """Returns the error of an override that chooses a file of a group."""
    text = override.text
    group = override.key
    options = group_options(group)
    if override.is_sweep:
        return f"{text}: {NEEDS_SWEEP}"
    value = override.value
    plain = shlex.quote(format_override(group, value))
    if override.parsed.package is not None:
        return f"{text}: @ is not needed; write {plain}"
    if override.action in ("add", "force") and (group in SECTIONS or override.is_hydra):
        return f"{text}: {group} is already set; write {plain}"
    if isinstance(value, dict):
        key = next(iter(value), "KEY")
        return f"{text}: set one key at a time, as {group}.{key}=VALUE"
    if group == "hydra/launcher" and (extra := _missing_extra(value, options)):
        return f"{text}: needs another package: pip install -e '.[{extra}]'"
    if value is None and group in OPTIONAL_GROUPS:
        return f"{text}: leave it out for none; allowed {', '.join(options)}"
    names = value if isinstance(value, list) else [value]
    for name in map(format_value, names):
        if name not in options:
            advice = ADVICE[group](name) if group in ADVICE else ""
            advice = advice or did_you_mean(name, options)
            return f"{group}={name}: unknown; {advice}allowed {', '.join(options)}"
    return None


def _missing_extra(launcher: Any, options: Sequence[str]) -> str | None:
    """Returns the extra to install if the package of this launcher is missing.

    The file `slurm` is shipped; its package provides the file `submitit_slurm`.
    """
    name = "submitit_slurm" if launcher == "slurm" else launcher
    return None if name in options else LAUNCHER_EXTRAS.get(name)


def _value_problem(
    override: Override,
    known: set[str],
    groups_only: DictConfig,
) -> str | None:
    """Returns the error of an override of a key.

    Args:
        known: all keys of the chosen files.
        groups_only: the chosen files, composed, with the typed name of the optimizer.
    """
    text = override.text
    key = override.key
    if override.is_sweep:
        return f"{text}: {NEEDS_SWEEP}"
    section = OmegaConf.select(groups_only, key) if key in SECTIONS else None
    if isinstance(section, DictConfig) and not isinstance(override.value, dict):
        return f"{text}: {section_advice(key, map(str, section))}"
    if override.action == "add" and key in known and not isinstance(override.value, dict):
        return f"{text}: already set; write {shlex.quote(text.lstrip('+'))}"
    if override.action == "delete" and key not in known:
        return f"{text}: no such key"
    if key in known or override.action != "change":
        return None
    if key.startswith("hydra."):
        return f"{key}: unknown key of Hydra; --cfg hydra prints those it has"
    section, _, argument = key.rpartition(".")
    optimizer = OmegaConf.select(groups_only, "optimizer.name")
    if section == "optimizer" and is_usable(optimizer) and argument in arguments(optimizer):
        return f"{text}: not in the file of this optimizer; write {shlex.quote('+' + text)}"
    if not section and is_usable(optimizer) and argument in arguments(optimizer):
        added = "" if f"optimizer.{key}" in known else "+"
        return f"{key}: unknown key; write {shlex.quote(f'{added}optimizer.{text}')}"
    if section == "data" and "data.train_images" in known and is_argument(argument):
        return f"{text}: not in the file data/torchvision; write {shlex.quote('+' + text)}"
    return None


def _full_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the full name of every key and of every section."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _full_names(value, f"{prefix}{key}.")
