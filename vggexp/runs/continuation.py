"""Says by which command a run continues. Needs no torch."""

import contextlib
import shlex
from collections.abc import Sequence

from vggexp.errors import CheckpointError, VggexpError
from vggexp.runs import schema
from vggexp.runs.directory import OVERRIDES
from vggexp.runs.records import RunRecord


def read_command(run: RunRecord) -> str | None:
    """Returns the command that was typed for the run, for a shell; None if it is not recorded."""
    words = _typed_words(run)
    return None if words is None else _shell_command(words)


def continuing_command(run: RunRecord) -> str | None:
    """Returns a command that continues the run, for a shell; None if none is recorded."""
    words = _typed_words(run)
    if words is None:
        return None
    if run.config.get("run.until") is not None:
        words = [*_without("run.until", words), "run.until=null"]
    if run.config.get("resume") == "never":
        words = _without("run.name", _without("resume", words))
        words += ["resume=auto", f"run.name={run.name}"]
    return _shell_command(words)


def continuation(run: RunRecord) -> str:
    """Returns what makes the command of a run continue it; of a finished run, train it again."""
    is_new_each_time = run.config.get("resume") == "never"
    if run.state == "finished":
        if is_new_each_time:
            return "The same command trains the finished run again."
        return "Add resume=never to train the finished run again."
    until = run.config.get("run.until") if run.state == "paused" else None
    changes = []
    if is_new_each_time:
        changes.append(f"with run.name={run.name} in place of resume=never")
    if until is not None:
        changes.append(f"without run.until={until}")
    sentence = f"{' and '.join(changes)} the same command continues the run.".lstrip()
    return sentence[0].upper() + sentence[1:]


def check_states(
    runs: Sequence[RunRecord],
    participle: str,
    states: Sequence[str] = ("finished",),
) -> None:
    """Checks that each run has one of some states.

    Args:
        runs: what a command was given.
        participle: what it does with them, as "compared".
        states: those that it accepts.

    Raises:
        CheckpointError: a run has another state. The message has a command that continues it.
    """
    others = [run for run in runs if run.state not in states]
    if not others:
        return
    found = ", ".join(f"{run.folder} is {run.state}" for run in others)
    problem = f"{found}; only {' and '.join(states)} runs can be {participle}"
    command = continuing_command(others[0])
    if others[0].state == "running":
        problem += f"; wait until {others[0].folder} has ended"
    elif command is not None:
        problem += f"; continue {others[0].folder} with: {command}"
    raise CheckpointError(problem)


def _typed_words(run: RunRecord) -> list[str] | None:
    with contextlib.suppress(VggexpError, FileNotFoundError):
        text = schema.read_bytes(run.folder / OVERRIDES).decode("utf-8", "replace")
        words = text.splitlines()
        if any(word.startswith("sweep=") for word in words):  # of a job, which is one run
            words.insert(0, "hydra.mode=RUN")
        return words
    return None


def _without(key: str, words: Sequence[str]) -> list[str]:
    return [word for word in words if word.lstrip("+").partition("=")[0] != key]


def _shell_command(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "vggexp", *words])
