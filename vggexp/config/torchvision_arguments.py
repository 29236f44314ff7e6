"""Checks the arguments of torchvision's data sets. Needs neither torch nor torchvision."""

from collections.abc import Iterator, Mapping
from typing import Any

from vggexp.config.schema import Pixels
from vggexp.config.similarity import did_you_mean
from vggexp.data.torchvision_sets import (
    IMAGE_SHAPE,
    TORCHVISION_SETS,
    UNSUPPORTED_SETS,
    Choices,
)
from vggexp.formatting import format_value

(PIXELS,) = Pixels.__metadata__  # type: ignore[attr-defined]


def name_problem(name: str) -> str | None:
    """Returns why a class of torchvision.datasets is no choice of data.name; None for others."""
    reason = UNSUPPORTED_SETS.get(name)
    return None if reason is None else f"data.name={name}: {reason}"


def argument_problems(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the arguments of a data set, unknown and missing names first."""
    info = TORCHVISION_SETS[name]
    takes = f"it takes {', '.join(info.arguments)}" if info.arguments else "it takes none"
    for key, value in values.items():
        setting = f"data.{key}={format_value(value)}"
        if key in info.train:
            yield f"{setting}: vggexp chooses the parts of {name} itself; {takes}"
        elif key not in info.arguments:
            nearest = did_you_mean(str(key), info.arguments)
            yield f"{setting}: not an argument of {name}; {nearest}{takes}"
    for key in info.required:
        if key not in values:
            choices = _format_choices(info.arguments[key])
            yield f"data.{key}: {name} needs it; write +data.{key}=CHOICE, allowed {choices}"
    for key in info.arguments:
        if key in values and not _is_choice(values[key], info.arguments[key]):
            setting = f"data.{key}={format_value(values[key])}"
            yield f"{setting}: allowed {_format_choices(info.arguments[key])}"


def _is_choice(value: object, choices: Choices) -> bool:
    if choices == IMAGE_SHAPE:
        if not isinstance(value, list | tuple) or len(value) != 3:
            return False
        channels, height, width = value
        return channels in (1, 3) and height == width and type(width) is int and width in PIXELS
    return type(value) is type(choices[0]) and value in choices


def _format_choices(choices: Choices) -> str:
    if isinstance(choices, range):
        return f"{choices[0]}..{choices[-1]}"
    return ", ".join(map(format_value, choices))


def is_argument(key: str) -> bool:
    """Returns whether some data set takes an argument of this name."""
    return any(key in info.arguments for info in TORCHVISION_SETS.values())
