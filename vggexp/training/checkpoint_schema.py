"""The schema of a checkpoint: what a run writes, and what every reader may rely on.

A file with the right hash may still hold anything, because anyone can compute a hash. `load` checks
all that follows from the file alone: keys, types, ranges and the history. `check_weights` and
`check_state` compare the tensors with the model that the configuration describes. The checks raise
ValueError with the name of the field, its value and what is expected.
"""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from vggexp.errors import CheckpointError
from vggexp.formatting import shorten
from vggexp.training import checkpoint
from vggexp.training.loop import TrainState
from vggexp.training.timer import PARTS

FORMAT_VERSION = 1
# The largest values that a configuration allows; see vggexp.config.schema.
MAX_STEPS = 10**12  # epochs times the largest number of training images
MAX_BATCH_SIZE = 65_536
MAX_PROCESSES = 4096
MAX_ITEMS = 100_000  # epochs, classes, or parameters
MAX_CHANNELS = 16
MAX_DEPTH = 6  # of lists and dictionaries inside the configuration
MAX_VALUE_CHARS = 40  # of a value in an error text

Check = Callable[[str, Any], None]  # takes the name of a field and its value; raises ValueError


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that has the form of one: the only way to read a run's own file.

    Raises:
        DamagedError: The content of the file is not what was written.
        CheckpointError: The file is unreadable, of a newer format, or no run writes such content.
    """
    content = checkpoint.load(path)
    try:
        check_content(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: not what a run writes: {error}") from error
    return content


def check_content(content: Any) -> None:
    """Raises ValueError unless this can be the content of a checkpoint."""
    _fields({"format": _whole(1, MAX_STEPS)})("", content)
    if content["format"] > FORMAT_VERSION:
        raise ValueError(
            f"format {content['format']}, this vggexp reads up to {FORMAT_VERSION}; update vggexp"
        )
    _fields(FACTS)("", content)
    if "processes" in content:
        _whole(1, MAX_PROCESSES)("processes", content["processes"])
    if "weights" in content:  # a run with train.keep=weights has ended
        _weights("weights", content["weights"])
        if "net" in content:
            raise ValueError("net and weights are in one file")
        return
    _fields(STATE)("", content)
    _check_history(content)
    if "ema" in content:
        ema = _fields({"updates": _whole(0, content["step"]), "module": _weights})
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
        _check_finite(f"{name}.{key}", weights[key])


def check_state(content: Mapping[str, Any], state: TrainState, epochs: int | None) -> None:
    """Raises ValueError unless the state of training can continue from a checkpoint.

    Args:
        content: The result of `load`.
        state: The state at the start of the run. Its optimizer takes one step, so that it has all
            its tensors; the caller overwrites the weights and the optimizer's state afterwards.
        epochs: Epochs of the run. None: the configuration may differ from the checkpoint's.
    """
    if "net" not in content:
        raise ValueError("net is missing: the file holds the final weights alone")
    model = state.model.state_dict()
    check_weights(content["net"], model, "net")
    if state.ema is not None:
        if "ema" not in content:
            raise ValueError("ema is missing")
        check_weights(content["ema"]["module"], model, "ema.module")
    _like(state.schedule.state_dict())("schedule", content["schedule"])
    _like(state.scaler.state_dict())("scaler", content["scaler"])
    _check_optimizer(content["optimizer"], _stepped_state(state.optimizer))
    if epochs is not None:
        _whole(0, epochs)("epoch", content["epoch"])
        _whole(0, state.schedule.steps_per_epoch)("batch", content["batch"])


def _check_history(content: Mapping[str, Any]) -> None:
    """Checks that one row stands for each epoch, and that the position follows from the rows."""
    history = content["history"]
    step = 0
    for index, row in enumerate(history):
        _exactly(index + 1)(f"history.{index}.epoch", row["epoch"])
        _whole(step + 1, MAX_STEPS)(f"history.{index}.step", row["step"])
        step = row["step"]
    _exactly(len(history))("epoch", content["epoch"])
    _exactly(step + content["batch"])("step", content["step"])
    count = content["sums"]["count"]
    if not content["batch"] <= count <= content["batch"] * MAX_BATCH_SIZE:
        _refuse("sums.count", count, f"the images of {content['batch']} batches")


def _check_optimizer(saved: dict[str, Any], expected: dict[str, Any]) -> None:
    """Checks the tensors of each parameter. The configuration sets all other values again.

    A parameter without tensors has not been updated yet. Tensors that the optimizer does not need
    come from the optimizer before resume=force.
    """
    indices = expected["param_groups"][0]["params"]
    if saved["param_groups"][0]["params"] != indices:
        raise ValueError("optimizer.param_groups does not list the parameters of this network")
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
        _tensor(name, value)
        if value.dtype != expected.dtype or value.shape != expected.shape:
            _refuse(name, value, _describe(expected))

    if isinstance(expected, Tensor):
        return check_tensor
    if isinstance(expected, Mapping):
        return _fields({key: _like(value) for key, value in expected.items()})
    return _number()


def _fields(checks: Mapping[Any, Check]) -> Check:
    """Returns a check for a dictionary with these fields. More are allowed."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            _refuse(name, value, "a dictionary")
        for key, check_value in checks.items():
            path = f"{name}.{key}".lstrip(".")
            if key not in value:
                raise ValueError(f"{path} is missing")
            check_value(path, value[key])

    return check


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(
            f"{name} holds NaN or infinity: the run had diverged, or the file was changed"
        )


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            _refuse(name, value, f"a whole number of {low}..{high}")

    return check


def _exactly(number: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int or value != number:
            _refuse(name, value, str(number))

    return check


def _number(low: float = -sys.float_info.max, high: float = sys.float_info.max) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            bounds = f"{low}..{high}" if high == 1 else "a finite number"
            _refuse(name, value, bounds)

    return check


def _choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not str or value not in choices:
            _refuse(name, value, f"one of {', '.join(choices)}")

    return check


def _list(check_item: Check, low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not list or not low <= len(value) <= high:
            _refuse(name, value, f"a list of {low}..{high} values")
        for index, item in enumerate(value):
            check_item(f"{name}.{index}", item)

    return check


def _dictionary(check_item: Check, check_key: Check | None = None) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            _refuse(name, value, "a dictionary")
        for key, item in value.items():
            (check_key or _text)(f"a key of {name}", key)
            check_item(f"{name}.{key}", item)

    return check


def _row(name: str, value: Any) -> None:
    """Checks a row of the history: the metrics of a finished epoch."""
    _fields(EPOCH)(name, value)
    for key, metric in value.items():
        _text(f"a key of {name}", key)
        part, _, kind = key.partition("/")
        if kind == "accuracy":
            _number(0, 1)(f"{name}.{key}", metric)
        elif type(metric) is not float or kind != "loss" or part == "train":
            _number()(f"{name}.{key}", metric)  # another loss may not be finite


def _text(name: str, value: Any) -> None:
    if type(value) is not str:
        _refuse(name, value, "a text")


def _plain(name: str, value: Any, depth: int = 0) -> None:
    """Checks a value of the configuration."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _plain(f"{name}.{index}", item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _text(f"a key of {name}", key)
            _plain(f"{name}.{key}", item, depth + 1)
    elif value is not None and type(value) not in (bool, str):
        _number()(name, value)


def _any_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        _refuse(name, value, "a tensor")


def _tensor(name: str, value: Any) -> None:
    """Checks that a tensor is dense, in memory, and as large in the file as its shape says."""
    _any_tensor(name, value)
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        _refuse(name, value, "a dense tensor in memory")
    if value.untyped_storage().nbytes() < value.nbytes:
        raise ValueError(f"{name} has fewer values than its shape says")


def _weights(name: str, value: Any) -> None:
    _dictionary(_tensor)(name, value)
    if not value:
        raise ValueError(f"{name} is empty")


def _statistic(name: str, value: Any) -> None:
    """Checks the mean or std of the training images by channel, [C]; None without them."""
    if value is None:
        return
    _tensor(name, value)
    if value.dtype != torch.float32 or value.ndim != 1 or not 1 <= len(value) <= MAX_CHANNELS:
        _refuse(name, value, f"float32 of 1..{MAX_CHANNELS} channels")
    _check_finite(name, value)


def _std(name: str, value: Any) -> None:
    _statistic(name, value)
    if value is not None and not (value > 0).all():
        raise ValueError(f"{name} is not above zero")


def _identity(name: str, value: Any) -> None:
    _dictionary(_plain)(name, value)
    _fields({"train.epochs": _whole(1, MAX_ITEMS)})(name, value)


def _sums(name: str, value: Any) -> None:
    """Checks the sums of the epoch under way: loss and correct predictions [2], and images."""
    _fields({"sums": _tensor, "count": _STEPS})(name, value)
    sums = value["sums"]
    if sums.shape != (2,) or sums.dtype not in (torch.float32, torch.float64):
        _refuse(f"{name}.sums", sums, "float64 [2]")
    _check_finite(f"{name}.sums", sums)
    loss, correct = sums.tolist()
    _number()(f"{name}.sums.0", loss)
    _number(0, value["count"])(f"{name}.sums.1", correct)


def _schedule(name: str, value: Any) -> None:
    """Checks the state of the schedule `plateau`; all others have none."""
    if value == {}:
        return
    fields = {"factor": _number(0, 1), "best": _number(-1, 1), "waited": _STEPS}
    _fields(fields)(name, value)


def _optimizer(name: str, value: Any) -> None:
    """Checks what holds for every optimizer. `_check_optimizer` compares it with the run's own."""
    tensors = _dictionary(_optimizer_value)
    fields = {
        "state": _dictionary(tensors, _STEPS),
        "param_groups": _list(_dictionary(_plain), 1, 1),
    }
    _fields(fields)(name, value)
    group = _fields({"params": _list(_STEPS, 1, MAX_ITEMS)})
    group(f"{name}.param_groups.0", value["param_groups"][0])


def _optimizer_value(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        _tensor(name, value)
    elif value is not None:
        _number()(name, value)


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"{name} is {_describe(value)}, expected {expected}")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > MAX_STEPS**2:  # Python prints no number of any size
        return "a whole number that is too large"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN or infinity"
    return shorten(repr(value), MAX_VALUE_CHARS)


_STEPS = _whole(0, MAX_STEPS)
_TIME = _number(0)
_TIMES = {f"time/{part}_seconds": _TIME for part in ("epoch", *PARTS)}

# Fields of every checkpoint: what it was trained with.
FACTS: dict[str, Check] = {
    "identity": _identity,
    "torch": _text,
    "threads": _whole(1, MAX_PROCESSES),
    "device": _choice("cpu", "cuda", "mps"),
    "device_name": _text,
    "cpu_capability": _text,
    "precision": _choice("fp32", "tf32", "bf16", "fp16"),
    "data": _dictionary(_text),
    "classes": _list(_text, 2, MAX_ITEMS),
    "mean": _statistic,
    "std": _std,
}
# Fields of a checkpoint that a run can continue from; `ema` stands beside them with train.ema.
STATE: dict[str, Check] = {
    "net": _weights,
    "epoch": _whole(0, MAX_ITEMS),
    "batch": _STEPS,
    "step": _STEPS,
    "micro_batches": _whole(1, MAX_BATCH_SIZE),
    "history": _list(_row, 0, MAX_ITEMS),
    "spent": _dictionary(_TIME),
    "sums": _sums,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "scaler": _dictionary(_number()),
}
# Fields of one row of the history; val/... and test/... stand beside them where they are measured.
EPOCH: dict[str, Check] = {
    "epoch": _whole(1, MAX_ITEMS),
    "step": _whole(1, MAX_STEPS),
    "lr": _number(0),
    "train/loss": _number(),
    "train/accuracy": _number(0, 1),
    "images_per_second": _number(0),
    **_TIMES,
}
