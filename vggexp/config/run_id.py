"""Which run a configuration is: the same command is the same name."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vggexp.config.derived import input_spec, layers
from vggexp.config.keys import flatten, to_plain
from vggexp.config.schema import Config, Vgg
from vggexp.formatting import format_value
from vggexp.models import shapes

# Keys that do not change a result. A key that is null is left out as well, so that names survive a new option. What
# `train.init_from` names enters by the hash of its weights, `train.init_sha256`, and not by its path.
NON_IDENTITY_KEYS = (
    "run.",
    "sweep.",
    "resume",
    "data.root",
    "data.download",
    "data.workers",
    "data.cache",
    "train.checkpoint_minutes",
    "train.rest_minutes",
    "train.keep",
    "train.init_from",
    "train.probe_steps",
    "train.stop_if_dead",
    "device.timeout_minutes",
)
OPEN_ENDED_SCHEDULES = (
    "constant",
    "step",
    "plateau",
)  # schedules that do not depend on the number of epochs


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain configuration that make a run what it is."""
    keys = flatten(values)
    if keys.get("device.processes") == 1:  # as if it were not given
        keys["device.processes"] = None
    kept = {
        key: value
        for key, value in keys.items()
        if value is not None and not key.startswith(NON_IDENTITY_KEYS)
    }
    return {key: _canonical(value) for key, value in sorted(kept.items())}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What keeps a run from being continued, a line for each key. there, here: of `identity`.

    More epochs keep nothing, where the schedule does not depend on their number.
    """
    differing = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if only_more_epochs(there, here):
        differing.remove("train.epochs")
    return [
        f"{key}: run has {format_value(there.get(key))}, command says {format_value(here.get(key))}"
        for key in differing
    ]


def only_more_epochs(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return here["scheduler.name"] in OPEN_ENDED_SCHEDULES and here["train.epochs"] > there.get(
        "train.epochs", 0
    )


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_canonical(item) for item in value] if isinstance(value, list | tuple) else value


def run_name(config: Config) -> str:
    """run.name, or a readable beginning and 8 hexadecimal digits of the configuration's hash."""
    if config.run.name is not None:
        return config.run.name
    digest = hashlib.sha256(json.dumps(identity(to_plain(config))).encode()).hexdigest()
    return f"{_readable(config)}-{digest[:8]}"


def _readable(config: Config) -> str:
    seed = f"-seed{config.seed}" if config.seed else ""
    size = input_spec(config).size
    return f"{network_name(config)}-{config.data.name}-{size}px-lr{config.optimizer.lr:g}{seed}"


def network_name(config: Config) -> str:
    """vgg16, vgg16_bn, vgg16c, vgg11_lrn-w0.25, lenet, ...: told from the rows, whatever file they came from."""
    arch = config.arch
    if not isinstance(arch, Vgg):
        return arch.name
    pointwise = "c" if any(block.pointwise for block in arch.blocks) else ""
    norm = {"none": "", "batch": "_bn", "lrn": "_lrn"}[arch.norm]
    width = f"-w{arch.width:g}" if arch.width != 1 else ""
    return f"vgg{shapes.weight_layers(layers(config))}{pointwise}{norm}{width}"


def sweep_name(jobs: list[list[str]]) -> str:
    """The swept keys and 8 hexadecimal digits of the set of jobs, whatever their order and how they are run."""
    jobs = [
        [word for word in overrides if not word.lstrip("+").startswith(("sweep.", "hydra"))]
        for overrides in jobs
    ]
    values: dict[str, set[str]] = {}
    for overrides in jobs:
        for override in overrides:
            key, _, value = override.lstrip("+").partition("=")
            values.setdefault(key, set()).add(value)
    swept = [key.replace("/", ".") for key, chosen in values.items() if len(chosen) > 1]
    digest = hashlib.sha256(json.dumps(sorted(sorted(job) for job in jobs)).encode()).hexdigest()
    return f"{'-'.join(swept)[:80] or 'sweep'}-{digest[:8]}"
