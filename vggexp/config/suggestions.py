"""Finds what to type instead of a wrong flag, device or network."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vggexp.config import yaml_limits
from vggexp.config.derived import input_spec, spatial_ops
from vggexp.config.device import conf_dir
from vggexp.config.overrides import SECTIONS
from vggexp.config.parse import (
    ErrorList,
    keys_named,
    parse_section,
    schema_keys,
    select_schema,
    settings_named,
)
from vggexp.config.schema import Config
from vggexp.config.similarity import did_you_mean
from vggexp.data.torchvision_sets import TORCHVISION_SETS
from vggexp.errors import ConfigError
from vggexp.models import shapes

MAX_ARCHS = 3  # networks that an error names


def unknown_flag(word: str, argv: Sequence[str], flags: Sequence[str]) -> str:
    """Describes a flag that is not one, perhaps a key with dashes: --lr 0.1, --batch-size=64."""
    name, equals, value = word.lstrip("-").partition("=")
    shown = word
    following = argv[argv.index(word) + 1 :][:1] if word in argv else []
    if not equals and following and re.fullmatch(r"[^-=][^=]*", following[0]):
        value = following[0]
        shown = f"{word} {value}"
    key = name.replace("-", "_")
    known = [key] if key in schema_keys() or key in SECTIONS else keys_named(key)
    if known and not value:
        value = "true" if schema_keys().get(known[0]) is bool else "VALUE"
    words = shlex.quote(f"{key}={value}") if known == [key] else settings_named(key, value)
    if words:
        return f"{shown}: unknown flag; keys take no dashes, write {words}"
    return f"{word}: unknown flag; {did_you_mean(word.partition('=')[0], flags)}see --help"


def device_advice(name: str) -> str:
    """Returns what to write for gpu, cuda:1 or 1; empty for another name."""
    match = re.fullmatch(r"(?i)(?:gpu|cuda)?:?(\d*)", name)
    if match is None:
        return ""
    if not match[1]:
        return "write device=cuda; "
    return f"write device=cuda, with CUDA_VISIBLE_DEVICES={match[1]} before the command; "


def data_set_advice(name: str) -> str:
    """Returns what to write for svhn or EMNIST; empty for a name that torchvision does not have."""
    for known in TORCHVISION_SETS:
        if known.lower() == name.lower():
            return f"write data=torchvision data.name={known}; "
    return ""


def reject_other_command(words: Sequence[str]) -> None:
    """Raises ConfigError if the first word is another command, as in `vggexp report DIR`."""
    package = Path(__file__).parents[1]
    if words and words[0].isidentifier() and Path(package, words[0], "__main__.py").is_file():
        command = shlex.join([f"vggexp.{words[0]}", *words[1:]])
        raise ConfigError(f"{words[0]}: a command of its own; write python -m {command}")


def fitting_archs(config: Config) -> str:
    """Returns the shipped networks that take images of this size: those that are called after the
    data set first, then those of most poolings.
    """
    fitting = [(config.data.name not in name, -count, name) for count, name in _fits(config)]
    words = [f"arch={name}" for _, _, name in sorted(fitting)[:MAX_ARCHS]]
    return "; or write " + " or ".join(words) if words else ""


def _fits(config: Config) -> Iterator[tuple[int, str]]:
    """Yields the number of poolings and the name of each shipped network that fits."""
    size = input_spec(config).size
    for path in sorted(Path(conf_dir(), "arch").glob("*.yaml")):
        content = {"init": config.arch.init, **yaml_limits.load(path.read_text("utf-8"))}
        errors = ErrorList()
        cls = select_schema("arch", content, errors)
        if cls is None:
            continue
        ops = spatial_ops(replace(config, arch=parse_section(cls, content, "arch", errors)))
        if not errors and shapes.size_problem(size, ops) is None:
            yield sum(op.channels is None for op in ops), path.stem
