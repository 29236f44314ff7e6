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
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vggexp import __version__
from vggexp.config.diagnose import SECTIONS, Composed, diagnosed, one_line, understood
from vggexp.config.found_device import conf_dir, profile
from vggexp.config.grid import ends, filed, hydra_problems, jobs
from vggexp.config.read import Problems, draft, section, shown
from vggexp.config.rules import broken_rules
from vggexp.config.schema import Config, Sweep
from vggexp.config.search import Search, axes, is_search, planned, search_problems
from vggexp.config.source import pinned
from vggexp.config.where import holds
from vggexp.errors import ConfigError

HYDRA_VERSION = tuple(int(part) for part in hydra.__version__.split(".")[:2])
REGISTER: Any = OmegaConf.register_new_resolver if HYDRA_VERSION < (1, 4) else OmegaConf.register_resolver
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if HYDRA_VERSION < (1, 4) else {}
REGISTER("vggexp.device", lambda key: profile()[key], replace=True)
HYDRA_FLAGS = ("help", "hydra_help", "cfg", "info", "shell_completion")  # answered by Hydra, without a run
TOLD = 8  # problems of a sweep that are told; the others are counted


class Command(NamedTuple):
    """A command line, sorted: `flags` are Hydra's own as typed, `arguments` their parsed values."""

    overrides: list[str]
    flags: list[str]
    arguments: argparse.Namespace


class Job(NamedTuple):
    overrides: list[str]
    config: Config


def parse(argv: Sequence[str], *switches: str) -> Command:
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
        raise ConfigError("--experimental-rerun: not allowed, it would run code from a file; repeat the command")
    if arguments.config_path is not None:
        raise ConfigError(f"--config-path={arguments.config_path}: not allowed; add a folder with --config-dir")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        raise ConfigError(f"--config-dir={arguments.config_dir}: no such directory")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigError("--resolve: belongs with --cfg job")
    if arguments.multirun and arguments.cfg:
        raise ConfigError("--cfg: shows a single configuration; leave out -m and give each key one value")
    return Command([_quoted(word) for word in typed], _without(argv, typed), arguments)


def _quoted(word: str) -> str:
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
    raise ConfigError(*(map(_unknown_flag, unknown.split()) if unknown != message else [f"{message}; see --help"]))


def _unknown_flag(word: str) -> str:
    key, equals, value = word.lstrip("-").partition("=")
    if equals or key.split(".")[0] in SECTIONS:
        return f"{word}: unknown flag; keys take no dashes, write {key}={value or 'VALUE'}"
    return f"{word}: unknown flag; see --help"


@contextlib.contextmanager
def composing(command: Command) -> Iterator[Composed]:
    """Opens Hydra's configuration; yields what makes overrides into our keys, and Hydra's under `hydra`."""
    name, folder = command.arguments.config_name or "config", command.arguments.config_dir
    with initialize_config_dir(config_dir=conf_dir(), job_name="vggexp", **VERSION_BASE):
        if folder:  # as hydra.main does it
            loader: Any = GlobalHydra.instance().config_loader()
            path = loader.get_search_path()
            path.prepend("command-line", f"file://{Path(folder).resolve()}", SearchPathQuery(provider="schema"))
            loader.repository.initialize_sources(path)
        yield lambda overrides: compose(name, overrides=list(overrides), return_hydra_config=True)


def load(command: Command) -> Config | list[Job] | Search | None:
    """The checked configuration of a single run, the checked jobs of a grid, or a search, whose jobs are made as it
    goes and of which only each axis's ends are checked; None for one of a sweeper not known here. Raises ConfigError
    with every problem, naming the job."""
    with composing(command) as composed:
        parsed, problems = understood(command.overrides)
        swept = command.arguments.multirun or any(override.is_sweep_override() for override in parsed)
        outline = _deciding(parsed) if swept else parsed
        node, more, refusal = _explained([override.input_line or "" for override in outline], composed)
        if command.arguments.multirun or (node is not None and node.hydra.mode == RunMode.MULTIRUN):
            if node is None or problems:
                raise ConfigError(*([*problems, *more] or [refusal]))
            return _sweep(command.overrides, node, composed)
        if swept:
            node, more, refusal = _explained([override.input_line or "" for override in parsed], composed)
        config = _config(node, Problems([*problems, *more]), refusal, command.overrides)
        _no_sweep(config.sweep)
        return config


def _no_sweep(sweep: Sweep) -> None:
    """Raises ConfigError where a single run is given what only a sweep can do."""
    for key, off in (("pairs", ()), ("repeats", 1), ("where", None), ("dry_run", False)):
        if (value := getattr(sweep, key)) != off:
            raise ConfigError(f"sweep.{key}={shown(value)}: needs -m (a sweep)")


def _deciding(parsed: Sequence[Override]) -> list[Override]:
    """What decides how a sweep is made. The other keys may fit only some of its jobs."""
    last = {override.get_key_element(): override for override in parsed if not override.is_sweep_override()}
    return [override for key, override in last.items() if "." not in key or key.startswith(("hydra.", "sweep."))]


def composes(command: Command) -> None:
    """Raises ConfigError where Hydra could not even show what the overrides make."""
    with composing(command) as composed:
        parsed, problems = understood(command.overrides)
        _, more, refusal = _explained([override.input_line or "" for override in parsed], composed)
    if problems or refusal:
        load(command)  # which tells it best
        raise ConfigError(*([*problems, *more] or [refusal]))


def load_run(command: Command) -> Config:
    """As `load`, for a door that takes one configuration. Raises ConfigError for a sweep."""
    if any(getattr(command.arguments, flag) for flag in HYDRA_FLAGS if flag != "help"):
        raise ConfigError(f"{command.flags[0]}: not a flag of this door; python -m vggexp answers it")
    config = load(command)
    if not isinstance(config, Config):
        raise ConfigError("this door takes a single configuration, not a sweep")
    return config


CHECKED: dict[tuple[str, ...], Config] = {}  # the jobs of the sweep that this process has checked, by their overrides


def _sweep(overrides: Sequence[str], node: DictConfig, composed: Composed) -> list[Job] | Search | None:
    """Every job of a grid; of a search every choice and end is checked, and the jobs are made as it goes."""
    problems, choices = Problems(), node.hydra.runtime.choices
    grid = choices.get("hydra/sweeper") == "grid"
    sweep = section(Sweep, OmegaConf.to_container(node.sweep), "sweep", problems)
    problems += [] if problems else hydra_problems(node, sweep)
    problems += search_problems(node)
    if problems:
        raise ConfigError(*_as_typed(problems, overrides))
    loader, params = GlobalHydra.instance().config_loader(), node.hydra.sweeper.get("params") or {}
    searched = axes(loader, overrides, params)[1] if is_search(node) else {}
    combinations = (jobs(loader, overrides, params, sweep, _first_seed(overrides, node)) if grid
                    else ends(loader, overrides, params, sweep))  # fmt: skip
    made, told = _checked(combinations, filed(composed))
    if told:
        raise ConfigError(*(_told(told, len(combinations)) if grid else told))
    if sweep.where is not None:
        made = [job for job in made if holds(sweep.where, job.config)]
        if not made:
            raise ConfigError(f"sweep.where={sweep.where}: holds for none of {len(combinations)} jobs")
    if searched:
        typed = any(word.startswith("hydra.sweep.dir=") for word in overrides)
        return planned(node, searched, [job.config for job in made], typed)
    CHECKED.clear()
    CHECKED.update({tuple(job.overrides): job.config for job in made})
    return made if grid else None


def _first_seed(overrides: Sequence[str], node: DictConfig) -> int:
    typed = [word.partition("=")[2] for word in overrides if word.startswith("seed=")]
    return int(typed[-1]) if typed and typed[-1].isdecimal() else node.seed


def _checked(combinations: Sequence[list[str]], composed: Composed) -> tuple[list[Job], dict[str, list[int]]]:
    """The jobs, and each problem with the numbers of the jobs that have it."""
    made, told = [], dict[str, list[int]]()
    for number, combination in enumerate(combinations, 1):
        try:
            config = _config(*_explained(combination, composed), combination)
            made.append(Job(combination, config))
            if config.sweep.objective.startswith("val/") and not config.data.val_fraction:
                raise ConfigError(
                    f"sweep.objective={config.sweep.objective}: needs a validation split, but data.val_fraction=0; "
                    "choose test/accuracy or train/accuracy"
                )
        except ConfigError as error:
            for problem in error.problems:
                told.setdefault(problem, []).append(number)
    return made, told


def _told(problems: dict[str, list[int]], count: int) -> Iterator[str]:
    """Each problem with the first job that has it, or alone where all have it."""
    for problem, numbers in list(problems.items())[:TOLD]:
        yield problem if len(numbers) == count else f"sweep job {numbers[0]} of {count}: {problem}"
    if len(problems) > TOLD:
        yield f"and {len(problems) - TOLD} more"


def _explained(overrides: Sequence[str], composed: Composed) -> tuple[DictConfig | None, Problems, str]:
    """What could be composed, the problems of the overrides that it is without, and Hydra's refusal of the whole."""
    try:
        return composed(overrides), Problems(), ""
    except Exception as error:  # Hydra fails in many ways, and here only on what it is given
        return *diagnosed(understood(overrides)[0], composed), one_line(error)


def _config(node: DictConfig | None, problems: Problems, refusal: str, overrides: Sequence[str]) -> Config:
    """Reads and checks what was composed, as `_explained` returns it. Raises ConfigError."""
    if node is None:
        raise ConfigError(*(problems or [refusal]))
    found = Problems()
    config = draft(_container(node, problems), found)
    if not problems:
        found += broken_rules(config, whole=not found)
    if told := [*problems, *_as_typed(found, overrides)] or [refusal] * bool(refusal):
        raise ConfigError(*told)
    return pinned(config)


def checked(node: DictConfig) -> Config:
    """Of a job as Hydra hands it over. Raises ConfigError."""
    return _config(node, Problems(), "", [])


def _as_typed(problems: Sequence[str], overrides: Sequence[str]) -> Iterator[str]:
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
