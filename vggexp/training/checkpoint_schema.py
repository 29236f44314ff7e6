"""The schema of a checkpoint: what a run writes, and what every reader may rely on.

A file with the right hash may still hold anything, because anyone can compute a hash. `load` checks
all that follows from the file alone: keys, types, ranges and the history. `check_weights` and
`check_state` compare the tensors with the model that the configuration describes. The checks raise
ValueError with the name of the field, its value and what is expected.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggexp.errors import CheckpointError
from vggexp.training import checkpoint, checks
from vggexp.training.checks import Check
from vggexp.training.loop import TrainState
from vggexp.training.timer import PARTS

FORMAT_VERSION = 1
# The largest values that a configuration allows; see vggexp.config.schema.
MAX_STEPS = 10**12  # epochs times the largest number of training images
MAX_BATCH_SIZE = 65_536
MAX_PROCESSES = 4096
MAX_ITEMS = 100_000  # epochs, classes, or parameters
MAX_CHANNELS = 16


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that has the form of one: the only way to read a run's own file.

    Raises:
        DamagedError: The content of the file is not what was written.
        CheckpointError: The file is of a newer format, or no run writes such content.
        ResourceError: A permission or a resource is missing.
    """
    content = checkpoint.load(path)
    try:
        check_content(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: not what a run writes: {error}") from error
    return content


def check_content(content: Any) -> None:
    """Raises ValueError unless this can be the content of a checkpoint."""
    checks.fields({"format": checks.whole(1, MAX_STEPS)})("", content)
    if content["format"] > FORMAT_VERSION:
        raise ValueError(
            f"format {content['format']}, this vggexp reads up to {FORMAT_VERSION}; update vggexp"
        )
    checks.fields(FACTS)("", content)
    for key in LATER_FACTS.keys() & content.keys():
        LATER_FACTS[key](key, content[key])
    if "weights" in content:  # a run with train.keep=weights has ended
        _weights("weights", content["weights"])
        if "net" in content:
            raise ValueError("net and weights are in one file")
        return
    checks.fields(STATE)("", content)
    _check_history(content)
    if "ema" in content:
        ema = checks.fields({"updates": checks.whole(0, content["step"]), "module": _weights})
        ema("ema", content["ema"])


def check_weights(weights: Any, expected: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError unless these are finite weights of the model.

    Args:
        weights: Of a checkpoint.
        expected: The state dict of a model that is built from the configuration.
        name: Of the weights, in the error text.
    """
    for key in [*expected, *weights]:
        if key not in weights:
            raise ValueError(f"{name}.{key} is missing")
        if key not in expected:
            raise ValueError(f"{name}.{key} is not a tensor of this network")
        _like(expected[key])(f"{name}.{key}", weights[key])
        checks.finite(f"{name}.{key}", weights[key])


def check_state(content: Mapping[str, Any], state: TrainState, epochs: int | None) -> None:
    """Raises ValueError unless the state of training can continue from a checkpoint.

    Args:
        content: The result of `load`.
        state: The state at the start of the run. Its optimizer takes one step, so that it has all
            its tensors; the caller overwrites the weights and the optimizer's state afterwards.
        epochs: Epochs of the run. None: the configuration may differ from the checkpoint's, which
            may then lack the state of the schedule.
    """
    if "net" not in content:
        raise ValueError("net is missing: the file holds the final weights alone")
    model = state.model.state_dict()
    check_weights(content["net"], model, "net")
    if state.ema is not None:
        if "ema" not in content:
            raise ValueError("ema is missing")
        check_weights(content["ema"]["module"], model, "ema.module")
    if content["schedule"] or epochs is not None:
        _like(state.schedule.state_dict())("schedule", content["schedule"])
    # A run in bf16 or fp32 has no scaler. On a GPU that trains in fp16 a new one begins.
    if content["scaler"] or content["precision"] == "fp16":
        _like(state.scaler.state_dict())("scaler", content["scaler"])
    _check_optimizer(content["optimizer"], _stepped_state(state.optimizer))
    if epochs is not None:
        checks.whole(0, epochs)("epoch", content["epoch"])
        checks.whole(0, state.schedule.steps_per_epoch)("batch", content["batch"])


def _check_history(content: Mapping[str, Any]) -> None:
    """Checks that one row stands for each epoch, and that the position follows from the rows."""
    history = content["history"]
    step = 0
    for index, row in enumerate(history):
        checks.exactly(index + 1)(f"history.{index}.epoch", row["epoch"])
        checks.whole(step + 1, MAX_STEPS)(f"history.{index}.step", row["step"])
        step = row["step"]
    checks.exactly(len(history))("epoch", content["epoch"])
    checks.exactly(step + content["batch"])("step", content["step"])
    count = content["sums"]["count"]
    if not content["batch"] <= count <= content["batch"] * MAX_BATCH_SIZE:
        checks.refuse("sums.count", count, f"the images of {content['batch']} batches")


def _check_optimizer(saved: dict[str, Any], expected: dict[str, Any]) -> None:
    """Checks the tensors of each parameter. The configuration sets all other values again.

    A step updates all parameters, so either all have their tensors or none has been updated yet.
    Tensors that the optimizer does not need come from the optimizer before resume=force.
    """
    indices = expected["param_groups"][0]["params"]
    if saved["param_groups"][0]["params"] != indices:
        raise ValueError("optimizer.param_groups does not list the parameters of this network")
    for index in expected["state"]:
        if saved["state"] and index not in saved["state"]:
            raise ValueError(f"optimizer.state.{index} is missing")
    for index, values in saved["state"].items():
        name = f"optimizer.state.{index}"
        if index not in indices:
            raise ValueError(f"{name} is of no parameter of this network")
        needed = expected["state"].get(index, {})
        _like(needed)(name, values)
        for key in needed:
            if isinstance(values[key], Tensor) and values[key].isnan().any():
                raise ValueError(f"{name}.{key} holds NaN")


def _stepped_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state dict after a step on gradients of zero, which has all tensors."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = optimizer.state_dict()
    optimizer.state.clear()  # so that the tensors are not in memory twice when the run's are loaded
    return state


def _like(expected: Any) -> Check:
    """Returns a check for the form of `expected`: dtype, shape, keys. More keys are allowed."""

    def check_tensor(name: str, value: Any) -> None:
        checks.tensor(name, value)
        if value.dtype != expected.dtype or value.shape != expected.shape:
            checks.refuse(name, value, checks.describe(expected))

    if isinstance(expected, Tensor):
        return check_tensor
    if isinstance(expected, Mapping):
        return checks.fields({key: _like(value) for key, value in expected.items()})
    return checks.number()


def _row(name: str, value: Any) -> None:
    """Checks a row of the history: the metrics of a finished epoch."""
    checks.fields(EPOCH)(name, value)
    for key, metric in value.items():
        checks.text(f"a key of {name}", key)
        part, _, kind = key.partition("/")
        if kind == "accuracy":
            checks.number(0, 1)(f"{name}.{key}", metric)
        elif kind == "loss":
            # Weights of one epoch may give NaN or inf, and those of the next a number.
            has_overflowed = type(metric) is float and (metric == math.inf or math.isnan(metric))
            if part == "train" or not has_overflowed:
                checks.number(0)(f"{name}.{key}", metric)
        else:
            checks.number()(f"{name}.{key}", metric)


def _weights(name: str, value: Any) -> None:
    checks.dict_of(checks.tensor)(name, value)
    if not value:
        raise ValueError(f"{name} is empty")


def _statistic(name: str, value: Any) -> None:
    """Checks the mean or std of the training images by channel, [C]; None without them."""
    if value is None:
        return
    checks.tensor(name, value)
    if value.dtype != torch.float32 or value.ndim != 1 or not 1 <= len(value) <= MAX_CHANNELS:
        checks.refuse(name, value, f"float32 of 1..{MAX_CHANNELS} channels")
    checks.finite(name, value)


def _std(name: str, value: Any) -> None:
    _statistic(name, value)
    if value is not None and not (value > 0).all():
        raise ValueError(f"{name} is not above zero")


def _identity(name: str, value: Any) -> None:
    checks.dict_of(checks.plain)(name, value)
    checks.fields({"train.epochs": checks.whole(1, MAX_ITEMS)})(name, value)


def _sums(name: str, value: Any) -> None:
    """Checks the sums of the epoch under way: loss and correct predictions [2], and images."""
    checks.fields({"sums": checks.tensor, "count": _STEPS})(name, value)
    sums = value["sums"]
    if sums.shape != (2,) or sums.dtype not in (torch.float32, torch.float64):
        checks.refuse(f"{name}.sums", sums, "float64 [2]")
    checks.finite(f"{name}.sums", sums)
    loss, correct = sums.tolist()
    checks.number()(f"{name}.sums.0", loss)
    checks.number(0, value["count"])(f"{name}.sums.1", correct)
    if "last_totals" in value:
        checks.list_of(checks.number(), 3, 3)(f"{name}.last_totals", value["last_totals"])
        images = value["last_totals"][2]
        checks.number(0, value["count"])(f"{name}.last_totals.2", images)


def _schedule(name: str, value: Any) -> None:
    """Checks the state of the schedule `plateau`; all others have none."""
    if value == {}:
        return
    fields = {"factor": checks.number(0, 1), "best": checks.number(-1, 1), "waited": _STEPS}
    checks.fields(fields)(name, value)


def _optimizer(name: str, value: Any) -> None:
    """Checks what holds for every optimizer. `_check_optimizer` compares it with the run's own."""
    tensors = checks.dict_of(_optimizer_value)
    fields = {
        "state": checks.dict_of(tensors, _STEPS),
        "param_groups": checks.list_of(checks.dict_of(checks.plain), 1, 1),
    }
    checks.fields(fields)(name, value)
    group = checks.fields({"params": checks.list_of(_STEPS, 1, MAX_ITEMS)})
    group(f"{name}.param_groups.0", value["param_groups"][0])


def _optimizer_value(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        checks.tensor(name, value)
    elif value is not None:
        checks.number()(name, value)


_STEPS = checks.whole(0, MAX_STEPS)
_TIME = checks.number(0)
_TIMES = {f"time/{part}_seconds": _TIME for part in ("epoch", *PARTS)}

# Fields of every checkpoint: what it was trained with.
FACTS: dict[str, Check] = {
    "identity": _identity,
    "torch": checks.text,
    "threads": checks.whole(1, MAX_PROCESSES),
    "device": checks.choice("cpu", "cuda", "mps"),
    "device_name": checks.text,
    "cpu_capability": checks.text,
    "precision": checks.choice("fp32", "tf32", "bf16", "fp16"),
    "data": checks.dict_of(checks.text),
    "classes": checks.list_of(checks.text, 2, MAX_ITEMS),
    "mean": _statistic,
    "std": _std,
}
# Fields that the first version did not write.
LATER_FACTS: dict[str, Check] = {
    "processes": checks.whole(1, MAX_PROCESSES),
    "numerics": checks.whole(1, MAX_STEPS),
}
# Fields of a checkpoint that a run can continue from; `ema` stands beside them with train.ema.
STATE: dict[str, Check] = {
    "net": _weights,
    "epoch": checks.whole(0, MAX_ITEMS),
    "batch": _STEPS,
    "step": _STEPS,
    "micro_batches": checks.whole(1, MAX_BATCH_SIZE),
    "history": checks.list_of(_row, 0, MAX_ITEMS),
    "spent": checks.dict_of(_TIME),
    "sums": _sums,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "scaler": checks.dict_of(checks.number()),
}
# Fields of one row of the history; val/... and test/... stand beside them where they are measured.
EPOCH: dict[str, Check] = {
    "epoch": checks.whole(1, MAX_ITEMS),
    "step": checks.whole(1, MAX_STEPS),
    "lr": checks.number(0),
    "train/loss": checks.number(0),
    "train/accuracy": checks.number(0, 1),
    "images_per_second": checks.number(0),
    **_TIMES,
}
