"""The door from the command line to a checked configuration: before anything is written, without torch."""

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vggexp import __version__
from vggexp.config.device import conf_dir, device_profile
from vggexp.config.diagnostics import SECTIONS, ComposeFn, diagnose, one_line, parse_overrides
from vggexp.config.parse import ErrorList, parse_partial
from vggexp.config.schema import Config
from vggexp.config.validate import validate
from vggexp.errors import ConfigError

HYDRA_VERSION = tuple(int(part) for part in hydra.__version__.split(".")[:2])
REGISTER: Any = (
    OmegaConf.register_new_resolver if HYDRA_VERSION < (1, 4) else OmegaConf.register_resolver
)
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if HYDRA_VERSION < (1, 4) else {}
REGISTER("vggexp.device", lambda key: device_profile()[key], replace=True)
HYDRA_FLAGS = (
    "help",
    "hydra_help",
    "cfg",
    "info",
    "shell_completion",
)  # answered by Hydra, without a run


class Command(NamedTuple):
    """A command line, sorted: `flags` are Hydra's own as typed, `arguments` their parsed values."""

    overrides: list[str]
    flags: list[str]
    arguments: argparse.Namespace


def parse_command(argv: Sequence[str], *switches: str) -> Command:
    """Sorts a command line, whose flags may stand anywhere. switches: a door's own flags. Raises ConfigError."""
    parser = get_args_parser()
    for switch in switches:
        parser.add_argument(switch, action="store_true")
    for action in parser._actions:
        if action.dest == "version":
            action.version = versions()  # type: ignore[attr-defined]
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    arguments = parser.parse_intermixed_args(list(argv))
    typed = list(arguments.overrides)
    if arguments.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun: not allowed, it would run code from a file; repeat the command"
        )
    if arguments.config_path is not None:
        raise ConfigError(
            f"--config-path={arguments.config_path}: not allowed; add a folder with --config-dir"
        )
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise ConfigError(f"--config-dir={arguments.config_dir}: no such directory")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigError("--resolve: belongs with --cfg job")
    if arguments.multirun and arguments.cfg:
        raise ConfigError(
            "--cfg: shows a single configuration; leave out -m and give each key one value"
        )
    return Command([_quote_filter(word) for word in typed], _without(argv, typed), arguments)


def _quote_filter(word: str) -> str:
    """sweep.where=a < b in the quotes that Hydra's grammar wants for <."""
    key, _, value = word.partition("=")
    quoted = value[:1] in ("'", '"') and value.count(value[0]) == 2 and value[-1] == value[0]
    if key.lstrip("+") != "sweep.where" or value in ("", "null") or quoted:
        return word
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'


def versions() -> str:
    return f"vggexp {__version__} (hydra {hydra.__version__}, torch {version('torch')})"


def _without(words: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The words that are left once each of `taken` has gone, the order kept."""
    left = Counter(words) - Counter(taken)
    return [word for index, word in enumerate(words) if words[:index].count(word) < left[word]]


def _refuse(message: str) -> NoReturn:
    """In place of argparse's page of usage. Raises ConfigError."""
    unknown = message.removeprefix("unrecognized arguments: ")
    raise ConfigError(
        *(map(_unknown_flag, unknown.split()) if unknown != message else [f"{message}; see --help"])
    )


def _unknown_flag(word: str) -> str:
    key, equals, value = word.lstrip("-").partition("=")
    if equals or key.split(".")[0] in SECTIONS:
        return f"{word}: unknown flag; keys take no dashes, write {key}={value or 'VALUE'}"
    return f"{word}: unknown flag; see --help"


@contextlib.contextmanager
def hydra_session(command: Command) -> Iterator[ComposeFn]:
    """Opens Hydra's configuration; yields what makes overrides into our keys, and Hydra's under `hydra`."""
    name = command.arguments.config_name or "config"
    folder = command.arguments.config_dir
    with initialize_config_dir(config_dir=conf_dir(), job_name="vggexp", **VERSION_BASE):
        if folder:  # as hydra.main does it
            loader: Any = GlobalHydra.instance().config_loader()
            path = loader.get_search_path()
            path.prepend(
                "command-line",
                f"file://{Path(folder).resolve()}",
                SearchPathQuery(provider="schema"),
            )
            loader.repository.initialize_sources(path)
        yield lambda overrides: compose(name, overrides=list(overrides), return_hydra_config=True)


def compose_or_diagnose(
    overrides: Sequence[str], composed: ComposeFn
) -> tuple[DictConfig | None, ErrorList, str]:
    """What could be composed, the problems of the overrides that it is without, and Hydra's refusal of the whole."""
    try:
        return composed(overrides), ErrorList(), ""
    except Exception as error:  # Hydra fails in many ways, and here only on what it is given
        return *diagnose(parse_overrides(overrides)[0], composed), one_line(error)


def build_config(
    node: DictConfig | None, problems: ErrorList, refusal: str, overrides: Sequence[str]
) -> Config:
    """Reads and checks what was composed, as `_explained` returns it. Raises ConfigError."""
    if node is None:
        raise ConfigError(*(problems or [refusal]))
    found = ErrorList()
    config = parse_partial(_container(node, problems), found)
    if not problems:
        found += validate(config, whole=not found)
    if told := [*problems, *with_typed_values(found, overrides)] or [refusal] * bool(refusal):
        raise ConfigError(*told)
    return config


def with_typed_values(problems: Sequence[str], overrides: Sequence[str]) -> Iterator[str]:
    """`data.batch_size=1000.0: ...` as `data.batch_size=1e3: ...` where that was the command."""
    typed = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    for problem in problems:
        head, _, rest = problem.partition(": ")
        key, equals, _ = head.partition("=")
        known = equals and key in typed and ": " not in typed[key]
        yield f"{key}={typed[key]}: {rest}" if known else problem


def _container(node: DictConfig, problems: Sequence[str]) -> Any:
    """Our keys in plain containers. Raises ConfigError for values that cannot be filled in."""
    ours = OmegaConf.masked_copy(node, [str(key) for key in node if key != "hydra"])
    try:
        if missing := sorted(OmegaConf.missing_keys(ours)):
            raise ConfigError(*problems, *(f"{key}=???: give a value" for key in missing))
        return OmegaConf.to_container(ours, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(*problems, one_line(error)) from error
