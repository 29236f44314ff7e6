"""Summarizes what the configurations of runs determine: the network, its costs, the images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vggexp.config.derived import input_spec, layers
from vggexp.config.keys import unflatten
from vggexp.config.parse import parse_config
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config, ImageFiles
from vggexp.errors import VggexpError
from vggexp.formatting import format_value
from vggexp.models import shapes
from vggexp.runs.records import RunRecord


class NetworkSummary(NamedTuple):
    """A network by its name. A number is None if the configuration does not say it."""

    name: str
    parameters: int | None = None
    macs: int | None = None
    weight_layers: int | None = None
    val_images: int | None = None  # the images that the validation accuracy is of


def summarize_networks(runs: Sequence[RunRecord]) -> list[NetworkSummary]:
    """Returns the summary of each run."""
    # Many runs have the same network, and parsing a configuration takes a millisecond.
    cache: dict[str, NetworkSummary] = {}
    summaries = []
    for run in runs:
        keys = {}
        for key, value in run.config.items():
            if key.startswith(("arch.", "data.", "run.")):
                keys[key] = value
        text = format_value(keys)
        summary = cache.get(text)
        if summary is None or summary.parameters is None:
            summary = cache[text] = _summarize_network(run.config)
        summaries.append(summary)
    return summaries


def _summarize_network(flat_config: Mapping[str, Any]) -> NetworkSummary:
    """Returns the summary of a configuration.

    A configuration of another version may fail to parse. The name is then `arch.blocks` or
    `arch.name` as typed.
    """
    try:
        config, _ = parse_config(unflatten(flat_config))
        if config is not None:
            return _summarize_parsed_network(config)
    except (VggexpError, ValueError, TypeError, AttributeError, LookupError, OverflowError):
        pass
    name = format_value(flat_config.get("arch.blocks") or flat_config.get("arch.name"))
    return NetworkSummary(name)


def _summarize_parsed_network(config: Config) -> NetworkSummary:
    data = config.data
    if isinstance(data, ImageFiles) and data.classes is None:
        # The number of classes is unknown here: the folder may be on another machine. The name
        # does not depend on that number.
        return NetworkSummary(network_name(replace(config, data=replace(data, classes=1))))
    table = layers(config)
    return NetworkSummary(
        network_name(config),
        shapes.parameters(table),
        shapes.macs(table),
        shapes.weight_layers(table),
        input_spec(config).val_images,
    )
