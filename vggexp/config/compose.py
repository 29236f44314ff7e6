"""The door from the command line to a checked configuration: before anything is written, without torch."""

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vggexp.config.found_device import found_device
from vggexp.config.grid import jobs
from vggexp.config.read import Problems, nearest, read, shown
from vggexp.config.rules import broken_rules
from vggexp.config.schema import Config
from vggexp.errors import ConfigError

OmegaConf.register_new_resolver("vggexp.device", found_device, replace=True)
HYDRA_VERSION = tuple(int(part) for part in hydra.__version__.split(".")[:2])
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if HYDRA_VERSION < (1, 4) else {}
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)


class Command(NamedTuple):
    """A command line, sorted: `flags` are Hydra's own as typed, `arguments` their parsed values."""

    overrides: list[str]
    flags: list[str]
    arguments: argparse.Namespace


class Job(NamedTuple):
    overrides: list[str]
    config: Config


def conf_dir() -> str:
    """The shipped configuration: inside the package when installed from a wheel, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no configuration beside {package}")


def parse(argv: Sequence[str], *switches: str) -> Command:
    """Sorts a command line, whose flags may stand anywhere. switches: a door's own flags. Raises ConfigError."""
    parser = get_args_parser()
    for switch in switches:
        parser.add_argument(switch, action="store_true")

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    arguments = parser.parse_intermixed_args(list(argv))
    overrides = list(arguments.overrides)
    rest = list(overrides)
    flags = [word for word in argv if not (word in rest and (rest.remove(word) or True))]
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: not allowed, it would run code from a file; repeat the command")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise ConfigError(f"--config-dir={arguments.config_dir}: no such directory")
    return Command(overrides, flags, arguments)


@contextlib.contextmanager
def composing(command: Command) -> Iterator[list[str]]:
    """Opens Hydra's configuration; yields the overrides that a flag of the command stands for."""
    folder = command.arguments.config_dir
    with initialize_config_dir(config_dir=conf_dir(), job_name="vggexp", **VERSION_BASE):
        yield [f'+hydra.searchpath=["{_escaped(Path(folder).resolve().as_uri())}"]'] if folder else []


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def load(command: Command) -> Config | list[Job] | None:
    """The checked configuration of a single run, the checked jobs of a grid, or None for a search, whose jobs are made
    as it goes. Raises ConfigError with every problem found, naming the job in a grid."""
    with composing(command) as base:
        last = {override.get_key_element(): override for override in _parsed(command.overrides)}
        fixed = [override.input_line or "" for override in last.values() if not override.is_sweep_override()]
        node, problems = _composed_or_diagnosed(fixed, base)
        if not command.arguments.multirun and (node is None or node.hydra.mode != RunMode.MULTIRUN):
            return _config(
                *_composed_or_diagnosed(command.overrides, base) if len(fixed) < len(last) else (node, problems)
            )
        if node is None or problems:
            raise ConfigError(*problems)
        if node.hydra.runtime.choices.get("hydra/sweeper") not in ("grid", "basic"):
            return None
        combinations = jobs(GlobalHydra.instance().config_loader(), command.overrides, node.hydra.sweeper.params or {})
        if len(combinations) > node.sweep.max_jobs:
            raise ConfigError(f"sweep: {len(combinations)} jobs, at most sweep.max_jobs={node.sweep.max_jobs}")
        return [_job(index, overrides, len(combinations), base) for index, overrides in enumerate(combinations, 1)]


def load_run(command: Command) -> Config:
    """As `load`, for a door that takes one configuration. Raises ConfigError for a sweep."""
    config = load(command)
    if not isinstance(config, Config):
        raise ConfigError("this door takes a single configuration, not a sweep")
    return config


def _job(index: int, overrides: list[str], count: int, base: Sequence[str]) -> Job:
    try:
        return Job(overrides, _config(*_composed_or_diagnosed(overrides, base)))
    except ConfigError as error:
        raise ConfigError(*(f"sweep job {index} of {count}: {problem}" for problem in error.problems)) from error


def _composed_or_diagnosed(overrides: Sequence[str], base: Sequence[str]) -> tuple[DictConfig | None, Problems]:
    try:
        return composed([*overrides, *base]), Problems()
    except COMPOSE_ERRORS as error:
        return _diagnosed(overrides, base, error)


def _config(node: DictConfig | None, problems: Problems) -> Config:
    """Reads and checks what was composed. Raises ConfigError."""
    config = read(_container(node, problems), problems) if node is not None else None
    if config is not None and not problems:
        problems.extend(broken_rules(config))
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def composed(overrides: Sequence[str]) -> DictConfig:
    """Our keys, and Hydra's under `hydra`."""
    return compose("config", overrides=list(overrides), return_hydra_config=True)


def _container(node: DictConfig, problems: Problems) -> Any:
    """Our keys in plain containers, with unfillable values ("???", broken interpolations) told as problems."""
    ours = OmegaConf.masked_copy(node, [key for key in node if key != "hydra"])
    try:
        missing = sorted(OmegaConf.missing_keys(ours))
        if missing:
            raise ConfigError(*problems, *(f"{key}=???: give a value" for key in missing))
        return OmegaConf.to_container(ours, resolve=True)
    except OmegaConfBaseException as error:
        problems.append(_one_line(error))
        return OmegaConf.to_container(ours, resolve=False)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\s+", " ", lines[0] if lines else type(error).__name__)


def _parsed(overrides: Sequence[str]) -> list[Override]:
    """Parses each override by itself. Raises ConfigError naming all that are not in Hydra's grammar."""
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            if text.startswith("="):
                raise HydraException("key missing")
            parsed.append(parser.parse_override(text))
        except Exception as error:  # Hydra's parser fails in many ways, and only on the text it is given
            problems.append(f"{text}: {_grammar_problem(text, error)}")
    if problems:
        raise ConfigError(*problems)
    return parsed


def _grammar_problem(text: str, error: Exception) -> str:
    if "=" not in text and not text.startswith("~"):
        return f"= missing (write {text}=VALUE)"
    if text.startswith("="):
        return "key missing"
    for opening, closing in ("[]", "{}", "()"):
        if text.count(opening) != text.count(closing):
            return f"{text.count(opening)} {opening} but {text.count(closing)} {closing}"
    return f"not in the override grammar ({_one_line(error)})"


def _diagnosed(overrides: Sequence[str], base: Sequence[str], error: Exception) -> tuple[DictConfig | None, Problems]:
    """Finds what is wrong with each override, then composes the rest so that its problems are told as well."""
    parsed = _parsed(overrides)
    loader = GlobalHydra.instance().config_loader()
    problems, good = Problems(), []
    groups = [override for override in parsed if _options(loader, override.key_or_group)]
    for override in groups:
        problem = _group_problem(override, _options(loader, override.key_or_group))
        problems.append(problem) if problem else good.append(override.input_line or "")
    try:
        defaults = composed([*good, *base])
        for override in parsed:
            if override not in groups:
                problem = _value_problem(override, defaults)
                problems.append(problem) if problem else good.append(override.input_line or "")
        node = composed([*good, *base])
    except COMPOSE_ERRORS as other:
        return None, Problems([*problems, _one_line(other)])
    return node, problems if problems else Problems([_one_line(error)])


def _options(loader: Any, group: str) -> list[str]:
    return [] if group == "hydra" else list(loader.get_group_options(group))


def _group_problem(override: Override, options: list[str]) -> str | None:
    text, group = override.input_line or "", override.key_or_group
    if override.is_sweep_override():
        return f"{text}: a list of values needs -m (a sweep)"
    if override.is_delete():
        return f"{text}: may not be removed"
    value = shown(override.value())
    if override.is_add():
        return f"{text}: {group} is already set; write {group}={value}"
    if value not in options and value != "null":
        return f"{group}={value}: unknown; {nearest(value, options)}allowed {', '.join(options)}"
    return None


def _value_problem(override: Override, defaults: DictConfig) -> str | None:
    text, key = override.input_line or "", override.key_or_group
    if key.split(".")[0] == "hydra":
        return None
    known = [
        name for name in _known_keys(OmegaConf.to_container(defaults, resolve=False)) if not name.startswith("hydra")
    ]
    if override.is_delete():
        return f"{text}: {'may not be removed' if key in known else 'no such key'}"
    if override.is_sweep_override():
        return f"{text}: a list of values needs -m (a sweep)"
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside and not isinstance(override.value(), dict):
        return f"{text}: a section; set {', '.join(inside[:3])}, ..."
    if override.is_add() and key in known:
        return f"{text}: already set; write {text.lstrip('+')}"
    if key in known or override.is_add() or override.is_force_add():
        return None
    section = key.rsplit(".", 1)[0] if "." in key else ""
    if section == "optimizer":
        return f"{key}: not in the file of this optimizer; {nearest(key, known)}write +{text} if its class takes it"
    siblings = [name for name in known if name.rpartition(".")[0] == (section if section in known else "")]
    return f"{key}: unknown key; {nearest(key, known)}keys: {', '.join(siblings)}"


def _known_keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _known_keys(value, f"{prefix}{key}.")
    return keys
