"""Checkpoints: resumed training is exact, and a damaged checkpoint is set aside."""

import itertools
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from tests.factories import (
    Blobs,
    RecordingCheckpointer,
    make_checkpoint,
    make_model,
    make_schedule,
    make_state,
    run_training,
)
from tools.faults.catalog import Catalog, replace_attribute
from vggexp.training import checkpoint, checkpoint_manager
from vggexp.training import loop as training_loop
from vggexp.training.loop import TrainState
from vggexp.verify.replay import bitwise_equal, named_values

# Exactness

EPOCHS = 3
NORMS = ("none", "batch")
DROPOUTS = (0, 0.3)
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
}
SCHEDULES = {
    "step": {"milestones": [1, 2], "gamma": 0.5},
    "cosine": {"final_factor": 0},
    "plateau": {"gamma": 0.5, "patience": 0, "threshold": 0},
}
EMA_DECAYS = (None, 0.8)
CONTROL = ("batch", 0.3, "sgd", "cosine", 0.8)  # norm, dropout, optimizer, schedule, EMA decay


def exactness_cases(small: bool) -> Iterable[tuple]:
    """Returns the arguments of `build_state`, the step of the checkpoint, and whether to control.

    A control case switches off derived randomness. The comparison must then fail.
    """
    steps = range(1, 9)
    every = itertools.product(NORMS, DROPOUTS, OPTIMIZERS, SCHEDULES, EMA_DECAYS, steps)
    for *arguments, step in itertools.islice(every, 0, None, 13 if small else 1):
        yield arguments, step, False
    for step in (4,) if small else steps:
        yield CONTROL, step, True


def build_state(
    norm: str, dropout: float, optimizer: str, schedule: str, ema_decay: float | None
) -> TrainState:
    return make_state(
        make_model(norm=norm, dropout=dropout),
        OPTIMIZERS[optimizer],
        make_schedule(schedule, 0.02, 0.5, epochs=EPOCHS, **SCHEDULES[schedule]),
        ema_decay,
    )


def check_exactness(case: tuple, folder: Path) -> str:
    arguments, step, is_control = case
    torch.set_num_threads(1)
    original_seed_step = training_loop.seed_step
    if is_control:
        replace_attribute(training_loop, "seed_step", lambda *keys: None)
    try:
        uninterrupted = build_state(*arguments)
        checkpointer = RecordingCheckpointer(uninterrupted, step)
        torch.manual_seed(0)
        run_training(uninterrupted, checkpointer=checkpointer, epochs=EPOCHS)
        checkpoint.save(folder / "1.pt", checkpointer.saved[step])
        resumed = build_state(*arguments)
        torch.manual_seed(step)
        resumed.restore(checkpoint.load(folder / "1.pt"))
        run_training(resumed, Blobs(), epochs=EPOCHS)
    finally:
        replace_attribute(training_loop, "seed_step", original_seed_step)
    is_equal = have_equal_bits(uninterrupted, resumed)
    if is_equal and is_control:
        return "the comparison sees nothing"
    if not is_equal and not is_control:
        return "not the same bits"
    return ""


def have_equal_bits(first: TrainState, second: TrainState) -> bool:
    """Compares all tensors, and the metrics and learning rates of all epochs."""
    if metrics_of(first) != metrics_of(second):
        return False
    first_tensors = dict(named_values(first.capture()))
    second_tensors = dict(named_values(second.capture()))
    return all(
        bitwise_equal(tensor, second_tensors.get(name)) for name, tensor in first_tensors.items()
    )


def metrics_of(state: TrainState) -> list[list[float]]:
    prefixes = ("train/", "val/", "lr")
    return [[row[key] for key in row if key.startswith(prefixes)] for row in state.history]


# Damage


def damage_cases(small: bool) -> Iterable[tuple[str, int]]:
    for damage, count in (("flip", 1000), ("cut", 200)):
        for seed in range(count // 20 if small else count):
            yield damage, seed


def check_damaged_checkpoint(case: tuple[str, int], folder: Path) -> str:
    """Damages the newer of two checkpoints.

    It must be set aside with one warning, and the older checkpoint must be taken.
    """
    damage, _ = case
    draws = random.Random(repr(case))
    state = build_state(*CONTROL)
    for step in (1, 2):
        state.step = step
        state.batch = step
        state.sums.count = step
        checkpoint.save(folder / f"{step}.pt", make_checkpoint(state))
    content = bytearray((folder / "2.pt").read_bytes())
    if damage == "flip":
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    else:
        del content[draws.randrange(len(content)) :]
    (folder / "2.pt").write_bytes(content)
    warnings: list[str] = []
    latest = checkpoint_manager.load_latest(folder, warnings.append)
    names = sorted(path.name for path in folder.iterdir())
    if latest is None or latest["step"] != 1:
        return f"the older checkpoint was not taken: {names} {warnings}"
    if len(warnings) != 1 or names != ["1.pt", "2.corrupt"]:
        return f"{names} {warnings}"
    return ""


CATALOGS = {
    "exactness": Catalog(
        "continued from a checkpoint, tolerance 0, and controls", exactness_cases, check_exactness
    ),
    "damage": Catalog(
        "checkpoints with a flipped bit or cut short", damage_cases, check_damaged_checkpoint
    ),
}
