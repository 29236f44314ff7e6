"""Composes a command line into one checked configuration, without torch and without writing.

`parse_command` sorts the arguments, `compose_or_diagnose` composes the overrides with Hydra, and
`build_config` parses and validates the result. A sweep repeats the last two steps for each job.
"""

import argparse
import contextlib
import copy
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vggexp import __version__
from vggexp.config import hydra_safety, own_files
from vggexp.config.device import conf_dir
from vggexp.config.diagnostics import ComposeFn, compose_error_line, diagnose
from vggexp.config.labels import read_arch_file
from vggexp.config.overrides import Override, format_override, quote_filter, typed_values
from vggexp.config.parse import in_quotes, parse_partial
from vggexp.config.run_id import with_labels
from vggexp.config.schema import Config
from vggexp.config.suggestions import fitting_archs, reject_other_command, unknown_flag
from vggexp.config.validate import validate
from vggexp.data.torchvision_sets import TORCHVISION_SETS
from vggexp.errors import ConfigError, ResourceError

HYDRA_VERSION = tuple(int(part) for part in hydra.__version__.split(".")[:2])
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if HYDRA_VERSION < (1, 4) else {}
CONF_PATH = "VGGEXP_CONF_PATH"  # the environment variable with folders of own files
HYDRA_FLAGS = ("help", "hydra_help", "cfg", "info", "shell_completion")  # Hydra's, without a run

TOO_SMALL = ": too small for "  # in the problem of an image that a network does not take
SIZE_KEYS = ("data.resize", "data.size", "arch.blocks")  # of a user who has chosen a size
MISSING_VALUES = {"data.name": f"one of {', '.join(TORCHVISION_SETS)}"}
HYDRA_MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of which Hydra takes one


class Command(NamedTuple):
    """A sorted command line."""

    overrides: list[str]
    flags: list[str]  # Hydra's own flags, as typed
    arguments: argparse.Namespace  # the parsed values of the flags

    @property
    def file_flags(self) -> list[str]:
        """The flags that choose files, as `--config-dir=mine`."""
        flags = {
            "--config-dir": self.arguments.config_dir,
            "--config-name": self.arguments.config_name,
        }
        return [f"{flag}={value}" for flag, value in flags.items() if value is not None]


def parse_command(argv: Sequence[str], *switches: str, options: Sequence[str] = ()) -> Command:
    """Sorts a command line, in which flags may stand anywhere.

    Args:
        argv: the command line without the program's name.
        switches: more flags without a value, as `--json`; options: with one, as `--images FILE`.

    Raises:
        ConfigError: a flag is unknown, not allowed, or does not fit another flag; a folder of own
            files is missing.
        ResourceError: a folder of own files may not be read.
    """
    for word in argv:
        if not word.isascii() and word.encode(errors="replace").decode() != word:
            raise ConfigError(f"{word}: not UTF-8 text; rename the file or folder")
        if "\n" in word:
            raise ConfigError(f"{word}: has a line break; write it in one line")
    reject_other_command(argv)
    hydra_safety.SafeConfigLoader.begin_command()
    own_files.READ.clear()
    parser = get_args_parser()
    for flag in switches:
        parser.add_argument(flag, action="store_true")
    for flag in options:
        parser.add_argument(flag)
    for action in parser._actions:
        if action.dest == "version":
            action.version = versions()  # type: ignore[attr-defined]
    parser._print_message = _write_message  # type: ignore[method-assign, assignment]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    parser.error = partial(_raise_usage_error, argv, flags)  # type: ignore[method-assign, assignment]
    arguments = parser.parse_intermixed_args(list(argv))
    overrides = list(arguments.overrides)
    _check_flags(arguments)
    if arguments.shell_completion:
        _check_completion(overrides)
    flags = _remove_words(argv, overrides)
    for index, flag in enumerate(flags):
        if flag in ("--info", "-i"):  # a bare one would take the word behind it as its value
            has_value = flags[index + 1 : index + 2] == [arguments.info]
            flags[index : index + 1 + has_value] = [f"--info={arguments.info}"]
    return Command([quote_filter(text) for text in overrides], flags, arguments)


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raises ConfigError or ResourceError for a flag that is wrong, or does not fit others."""
    if arguments.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun: not allowed, it would run code from a file; repeat the command"
        )
    if arguments.config_path is not None:
        raise ConfigError(
            f"--config-path={arguments.config_path}: not allowed; add a folder with --config-dir"
        )
    if arguments.config_dir is not None:
        _check_folder("--config-dir", arguments.config_dir)
    for folder in filter(None, os.environ.get(CONF_PATH, "").split(os.pathsep)):
        _check_folder(CONF_PATH, folder)
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigError("--resolve: belongs with --cfg job")
    if arguments.resolve and arguments.cfg == "hydra":
        raise ConfigError("--resolve: Hydra's keys refer to those of a run; show both, --cfg all")
    if arguments.package and not arguments.cfg:
        raise ConfigError(f"--package={arguments.package}: belongs with --cfg")
    if arguments.multirun and arguments.info:
        raise ConfigError("--info: describes a single configuration; leave out -m")
    if arguments.multirun and arguments.cfg:
        raise ConfigError(
            "--cfg: shows a single configuration; leave out -m and give each key one value"
        )
    modes = [mode for mode in HYDRA_MODES if getattr(arguments, mode)]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[1].replace('_', '-')}: does not go with --{modes[0]}")


def _check_folder(source: str, folder: str) -> None:
    """Raises ConfigError or ResourceError for a folder of own files that cannot be searched.

    Hydra leaves out such a folder, and the files that it replaces would be the shipped ones.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"{source}={folder}: no such directory")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ResourceError(f"{source}={folder}: permission denied")


def _check_completion(words: Sequence[str]) -> None:
    """Raises ConfigError for words behind -sc that end in a traceback of Hydra."""
    text = " ".join(words)
    if not re.fullmatch("(install|uninstall|query)=(bash|zsh|fish)", text):
        raise ConfigError(f"-sc {text}: needs install=SHELL; SHELL is bash, zsh or fish")
    if text.startswith("query=") and "COMP_LINE" not in os.environ:
        raise ConfigError(
            f'-sc {text}: only a shell runs this; type eval "$(vggexp -sc install=bash)"'
        )


def versions() -> str:
    return f"vggexp {__version__} (hydra {hydra.__version__}, torch {version('torch')})"


def _write_message(message: str, file: TextIO) -> None:
    """Writes the text of --version. argparse's own function hides the error of a full disk."""
    file.write(message)
    file.flush()


def _remove_words(words: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Returns `words` in their order, without the last occurrence of each word in `removed`."""
    remaining = Counter(words)
    remaining.subtract(removed)
    kept = []
    for word in words:
        if remaining[word] > 0:
            remaining[word] -= 1
            kept.append(word)
    return kept


def _raise_usage_error(argv: Sequence[str], flags: Sequence[str], message: str) -> NoReturn:
    """Raises ConfigError, in place of argparse's page of usage.

    Args:
        argv: the command line.
        flags: all flags.
        message: the text of argparse.
    """
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown == message:
        raise ConfigError(f"{message}; see --help")
    words = unknown.split()
    unknown_flags = [word for word in words if word.startswith("-")]  # the others are their values
    raise ConfigError(*(unknown_flag(word, argv, flags) for word in unknown_flags or words))


@contextlib.contextmanager
def hydra_session(command: Command) -> Iterator[ComposeFn]:
    """Initializes Hydra for a command and yields a function that composes overrides.

    The composed node has vggexp's keys, and Hydra's own keys under `hydra`.
    """
    config_name = command.arguments.config_name or "config"
    folder = command.arguments.config_dir
    hydra_safety.install()
    with initialize_config_dir(config_dir=conf_dir(), job_name="vggexp", **VERSION_BASE):
        if folder:
            _prepend_config_dir(Path(folder))

        def compose_overrides(overrides: Sequence[str]) -> DictConfig:
            return compose(config_name, overrides=list(overrides), return_hydra_config=True)

        yield compose_overrides


def _prepend_config_dir(folder: Path) -> None:
    """Searches `folder` first."""
    loader: Any = GlobalHydra.instance().config_loader()
    search_path = loader.get_search_path()
    search_path.append(own_files.COMMAND_LINE, f"file://{folder.absolute()}")
    own_files.search_first(search_path.get_path())
    loader.repository.initialize_sources(search_path)


@dataclass(frozen=True)
class Composition:
    """The node that Hydra composed from a list of overrides, or the problems of the overrides."""

    node: DictConfig | None  # without the overrides that have a problem; None if nothing composes
    problems: list[str] = field(default_factory=list)  # one text for each rejected override
    refusal: str = ""  # Hydra's error for the whole list


def compose_or_diagnose(overrides: Sequence[Override], compose_fn: ComposeFn) -> Composition:
    """Composes; if Hydra raises, finds out which of the overrides are the reason."""
    try:
        return Composition(compose_fn([override.text for override in overrides]))
    except (ConfigError, PermissionError):  # a file that is not safe to use, or cannot be read
        raise
    except Exception as error:  # Hydra raises many types, all of them because of the overrides
        node, problems = diagnose(overrides, compose_fn)
        return Composition(node, problems, refusal=compose_error_line(error))


def build_config(
    composition: Composition, overrides: Sequence[Override], hydra: DictConfig | None = None
) -> Config:
    """Parses and validates a composition.

    Args:
        composition: the result of `compose_or_diagnose`.
        overrides: the composed overrides; error texts and labels show values as they stand there.
        hydra: Hydra's own keys, if they are not in the node.

    Raises:
        ConfigError: with every problem of the composition and of its values.
    """
    problems = composition.problems
    if composition.node is None:
        raise ConfigError(*(problems or [composition.refusal]))
    config, value_problems = parse_partial(_container(composition.node, problems))
    if not problems:
        value_problems += validate(config, value_problems.paths)
    all_problems = list(problems)
    for problem in with_typed_values(value_problems, overrides):
        if TOO_SMALL in problem and not {*SIZE_KEYS} & {*typed_values(overrides)}:
            problem += fitting_archs(config)
        all_problems.append(problem)
    if not all_problems and composition.refusal:
        all_problems = [composition.refusal]
    if all_problems:
        raise ConfigError(*all_problems)
    return _with_labels(config, overrides, hydra or composition.node.hydra)


def _with_labels(config: Config, overrides: Sequence[Override], hydra: DictConfig) -> Config:
    """Labels a run by its file of the group `arch`, and by its overrides.

    The keys of hydra.job.config.override_dirname.exclude_keys are no part of the label: `device`,
    because auto and the device that it finds are one configuration. In a sweep they are the keys
    that have the same value in each job.
    """
    sources = hydra.runtime.config_sources
    folders = [source.path for source in sources if source.schema == "file"]
    file = read_arch_file(str(hydra.runtime.choices.get("arch")), folders)
    excluded = hydra.job.config.override_dirname.exclude_keys
    shown = [override for override in overrides if override.key not in excluded]
    return with_labels(config, file, shown)


def exclude_from_labels(keys: Iterable[str]) -> str:
    """Returns the override by which Hydra's jobs leave keys out of their labels."""
    return format_override("hydra.job.config.override_dirname.exclude_keys", sorted(keys))


def without_plugins(node: DictConfig) -> DictConfig:
    """Returns a node with only those of Hydra's own keys that `build_config` reads."""
    own = own_keys(node)
    runtime = {key: node.hydra.runtime[key] for key in ("config_sources", "choices")}
    with open_dict(own):
        own.hydra = {"runtime": runtime, "job": {"config": node.hydra.job.config}}
    return own


def with_typed_values(problems: Sequence[str], overrides: Sequence[Override]) -> Iterator[str]:
    """Yields the problems; `data.batch_size=1000.0: ...` becomes `data.batch_size=1e3: ...`.

    A problem of a key that is not typed names the user's own file that sets it.
    """
    typed = typed_values(overrides)
    for problem in problems:
        setting, _, text = problem.partition(": ")
        key, equals, shown = setting.partition("=")
        typed_value = typed.get(key)
        if key.partition("[")[0] not in typed:
            yield own_files.name_file(problem)
        elif not equals or typed_value is None or ": " in typed_value:
            yield problem
        else:
            advice = text.replace(in_quotes(key, shown), in_quotes(key, typed_value))
            yield f"{key}={typed_value}: {advice}"


def own_keys(node: DictConfig) -> DictConfig:
    """Returns a node without Hydra's own keys. Setting an unknown key raises, as before."""
    if "hydra" not in node:
        return node
    keys: list[Any] = [key for key in node if key != "hydra"]  # a file may have numbers as keys
    own = OmegaConf.masked_copy(node, keys)
    OmegaConf.set_struct(own, True)
    return own


def copy_sections(node: DictConfig, keys: Collection[str]) -> DictConfig:
    """Returns a copy of a node that shares all sections except those in `keys`.

    A reference is resolved in the node that its section belongs to: copy the sections that refer
    to other keys. To copy all sections takes 4 ms in place of 0.1.
    """
    shared = {}  # by identity: deepcopy takes it for what is copied already
    for key in node:
        if key not in keys:
            child = node._get_node(key)
            shared[id(child)] = child
    return copy.deepcopy(node, shared)


def referring_sections(node: DictConfig) -> set[str]:
    """Returns the sections, and keys outside of sections, whose values refer to other keys."""
    plain: Any = OmegaConf.to_container(node)
    return _referring(plain)


def _referring(sections: Mapping[Any, Any]) -> set[Any]:
    return {key for key, value in sections.items() if "${" in str(value)}


def _container(node: DictConfig, problems: Sequence[str]) -> Any:
    """Returns vggexp's keys as plain containers. Raises ConfigError for unresolvable values."""
    values: Any = OmegaConf.to_container(node)
    values.pop("hydra", None)
    referring = _referring(values)
    own = copy_sections(node, referring)
    with open_dict(own):
        own.pop("hydra", None)
    try:
        for key in referring:  # to resolve all sections takes three times as long
            section = own[key]
            is_plain = not OmegaConf.is_config(section)
            values[key] = section if is_plain else OmegaConf.to_container(section, resolve=True)
        missing = []
        if MISSING in str(values):  # a quick test: to look for the keys takes far longer
            for key in sorted(OmegaConf.missing_keys(own)):
                missing.append(f"{key}={MISSING}: give {MISSING_VALUES.get(key, 'a value')}")
        if missing:
            raise ConfigError(*problems, *missing)
        return values
    except OmegaConfBaseException as error:
        problem = own_files.name_file(compose_error_line(error))
        raise ConfigError(*problems, problem) from error
