"""Describes the network and the settings of a run in the words of its command.

A label consists of parts with dashes between them, and is safe in the name of a folder.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from vggexp.config import yaml_limits
from vggexp.config.command_files import current_files
from vggexp.config.derived import stored_size
from vggexp.config.device import conf_dir
from vggexp.config.keys import flatten, to_plain
from vggexp.config.schema import Arch, Config, ImageFolder, Torchvision, Vgg
from vggexp.errors import ConfigError
from vggexp.formatting import HASH_CHARS, format_value

if TYPE_CHECKING:  # the module imports Hydra
    from vggexp.config.overrides import Override

MAX_NETWORK_CHARS = 48
MAX_LABEL_CHARS = 100  # with the hash and the number of a copy at most the 120 of a run.name
MAX_PART_CHARS = 32
DEFAULT_ARCH = "vgg11"  # names what blocks differ from that no file has
NORM_SUFFIXES = {"batch": "_bn", "lrn": "_lrn"}
SHORT_KEYS = {"width": "w"}
# Keys that have a place of their own in a label.
SHOWN_KEYS = ("arch", "arch.blocks", "arch.norm", "data", "data.resize", "optimizer.lr", "seed")
# The order of the settings: those of the hardware and of the amount of data are cut first.
SECTIONS = ("experiment", "arch", "optimizer", "scheduler", "augment", "train", "data", "device")
PATH_KEYS = ("data.root", "train.init_from")  # of which a label shows the last folder


class ArchFile(NamedTuple):
    """A file of the group `arch`."""

    name: str  # without .yaml
    values: Mapping[str, Any]


def read_arch_file(name: str, folders: Sequence[str]) -> ArchFile | None:
    """Returns a file of the group `arch` with the values that its own defaults have.

    Args:
        name: the choice of the group.
        folders: the folders of Hydra's search path, the first of them first.

    Returns:
        None if no folder has a readable file.
    """
    files = current_files()
    for folder in folders:
        path = os.path.join(folder, "arch", f"{name}.yaml")
        if not files.is_file(path):
            continue
        try:
            content = _parse(files.read(path))
        except (ConfigError, OSError, ValueError, yaml.YAMLError):
            continue
        values: dict[str, Any] = {}
        for default in content.get("defaults", []):
            inherited = None
            if isinstance(default, str) and default not in ("_self_", name):
                inherited = read_arch_file(default, folders)
            values |= inherited.values if inherited else {}
        return ArchFile(name, values | {key: content[key] for key in content if key != "defaults"})
    return None


@cache
def _parse(text: str) -> dict[str, Any]:
    content = yaml_limits.load(text)
    return content if isinstance(content, dict) else {}


@cache
def _shipped_files() -> tuple[ArchFile, ...]:
    folder = conf_dir()
    files = []
    for path in sorted(Path(folder, "arch").glob("*.yaml")):
        file = read_arch_file(path.stem, [folder])
        if file is not None:
            files.append(file)
    return tuple(files)


def _closest_file(arch: Arch) -> ArchFile:
    """Returns the shipped file from which a network differs least; of several files the first.

    Only a file with the same blocks is close. A network with blocks of its own is described by
    what differs from the default file.
    """
    same_blocks = []
    default = ArchFile(arch.name, {})
    for file in _shipped_files():
        if file.values.get("name") != arch.name:
            continue
        if "blocks" not in _differing_keys(arch, file):
            same_blocks.append(file)
        elif file.name == DEFAULT_ARCH:
            default = file
    return min(same_blocks, key=lambda file: len(_differing_keys(arch, file)), default=default)


def _differing_keys(arch: Arch, file: ArchFile) -> list[str]:
    values = to_plain(arch)
    return [key for key in values if key in file.values and values[key] != _plain(file.values[key])]


def _plain(value: Any) -> Any:
    """Returns a value of a file as `to_plain` has it: a row of blocks without its 0 of 1x1s."""
    if not isinstance(value, list):
        return value
    return [row[:2] if isinstance(row, list) and row[2:] == [0] else row for row in value]


def network_label(arch: Arch, file: ArchFile | None = None) -> str:
    """Returns vgg16, vgg16_bn-w0.25, vgg11-hidden128, vgg7-blocks16_32_2x64, lenet, ...

    The label is the name of the file and what differs from it. Blocks that the file does not have
    are called vgg and the number of layers with weights.

    Args:
        arch: the network.
        file: the file that was chosen; None for the shipped file that is closest.
    """
    file = file or _closest_file(arch)
    values = to_plain(arch)
    differing = _differing_keys(arch, file)
    name = _safe(file.name)
    norm = file.values.get("norm", "none")
    parts = []
    if isinstance(arch, Vgg) and "blocks" in differing:
        depth = sum(int(block.convs) for block in arch.blocks) + len(arch.hidden) + 1
        has_pointwise = any(block.pointwise > 0 for block in arch.blocks)
        name = f"vgg{depth}c" if has_pointwise else f"vgg{depth}"
        norm = "none"
        parts.append(_part("blocks", [_block_text(row) for row in values["blocks"]]))
    if norm == "none":
        name += NORM_SUFFIXES.get(values.get("norm"), "")
    elif "norm" in differing:
        parts.append(_part("norm", values["norm"]))
    for key in differing:
        if key not in ("name", "blocks", "norm"):
            parts.append(_part(key, values[key]))
    return _join([name, *parts], MAX_NETWORK_CHARS)


def _block_text(row: Sequence[int]) -> str:
    """Returns 64, 2x128, or 3x256c1 if the last convolution is 1x1."""
    convs, channels, *pointwise = row
    count = f"{convs}x" if convs > 1 else ""
    return f"{count}{channels}" + "".join(f"c{number}" for number in pointwise)


def run_label(config: Config, network: str, overrides: Sequence["Override"] = ()) -> str:
    """Returns the readable part of a run's name: network, data, size, learning rate, settings.

    Args:
        config: the configuration.
        network: the label of its network.
        overrides: the overrides that make the run what it is; the label shows all of them.
    """
    typed = {override.key.replace("/", "."): override.typed_value for override in overrides}
    parts = [
        network,
        _safe(_data_name(config, typed)),
        f"{config.data.resize or stored_size(config.data)}px",
        f"lr{config.optimizer.lr:g}",
        *_setting_parts(config, typed, network),
    ]
    seed = f"-seed{config.seed}" if config.seed or "seed" in typed else ""
    return _join(parts, MAX_LABEL_CHARS - len(seed)) + seed


def _data_name(config: Config, typed: Mapping[str, str]) -> str:
    """Returns the file of the group `data` as typed, or the name of the data set."""
    if isinstance(config.data, Torchvision):  # all are in one file
        return config.data.name
    return typed.get("data", config.data.name)


def _setting_parts(config: Config, typed: Mapping[str, str], network: str) -> Iterator[str]:
    """Yields a part for each typed setting that the label does not show already."""
    values = flatten(to_plain(config))
    for key in sorted(typed, key=_section_index):
        leaf = key.rpartition(".")[2]
        if key in SHOWN_KEYS or (key == "data.size" and config.data.resize is None):
            continue
        if key == "data.name" and isinstance(config.data, Torchvision):
            continue
        if key == "data.root" and not isinstance(config.data, ImageFolder):
            continue  # where known files are
        if key in PATH_KEYS:
            yield _part(leaf, Path(typed[key]).name)
        elif "." in key:
            part = _part(leaf, values.get(key))
            if f"-{part}-" not in f"-{network}-":
                yield part
        elif typed[key] == "none":
            yield _safe(f"{key}_none")
        elif typed[key] not in ("auto", "null"):
            yield _safe(typed[key])


def _section_index(key: str) -> int:
    section = key.partition(".")[0]
    return SECTIONS.index(section) if section in SECTIONS else 0


def _part(key: str, value: Any) -> str:
    """Returns weight_decay0.001, hidden256_128, compile_true, ..."""
    key = SHORT_KEYS.get(key, key)
    if isinstance(value, list):
        text = "_".join(map(_value_text, value)) or "none"
    else:
        text = _value_text(value)
    if key.endswith("sha256"):
        text = text[:HASH_CHARS]
    return _safe(f"{key}{text}" if text[0].isdecimal() else f"{key}_{text}")


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value) or "none"


def _safe(text: str) -> str:
    """Returns a text with letters, digits and _ . + - only, of at most MAX_PART_CHARS."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)[:MAX_PART_CHARS].strip("_.+-") or "x"


def _join(parts: Iterable[str], max_chars: int) -> str:
    """Joins the parts with dashes, without those that no longer fit."""
    label = ""
    for part in parts:
        longer = f"{label}-{part}" if label else part
        if len(longer) <= max_chars:
            label = longer
    return label
