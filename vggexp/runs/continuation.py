"""The recorded command of a run, and the one that continues it. Needs no torch."""

import re
import shlex
from collections.abc import Sequence

from vggexp.errors import CheckpointError
from vggexp.runs.directory import RUN_MODE, read_overrides
from vggexp.runs.records import RunRecord

SIMPLE_PATH = re.compile(r"[\w./-]+", re.ASCII)


def read_command(run: RunRecord) -> str | None:
    """Returns the recorded command, which is this one run, for a shell; None without a record."""
    words = _recorded_words(run)
    return None if words is None else _shell_command(words)


def resume_command(run: RunRecord) -> str | None:
    """Returns a command that trains a run to its end, for a shell.

    It names the run by its folder, so a copied or moved run continues there. A command that is
    read differently today is refused, because the folder has another configuration; one with
    `resume=force` is not. Paths are as typed; the folders of `VGGEXP_CONF_PATH` are not named.

    Returns:
        None if no command is recorded, or if the path has other characters than letters, digits
        and `_./-`.
    """
    from vggexp.config.overrides import format_override  # imports Hydra, which few errors need

    words = _recorded_words(run)
    folder = run.folder.resolve() if run.folder.name in ("", "..") else run.folder
    if words is None or not SIMPLE_PATH.fullmatch(str(folder)):
        return None
    if run.config.get("run.until") is not None:
        words = [*_remove_key("run.until", words), "run.until=null"]
    if run.config.get("resume") == "never":
        words = [*_remove_key("resume", words), "resume=auto"]
    words = _remove_key("run.name", _remove_key("run.root", words))
    root = format_override("run.root", str(folder.parent))
    return _shell_command([*words, root, format_override("run.name", folder.name)])


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
        CheckpointError: a run has another state. The message says what to do.
    """
    unfinished = [run for run in runs if run.state not in states]
    if not unfinished:
        return
    found = ", ".join(f"{run.folder} is {run.state}" for run in unfinished)
    problem = f"{found}; only {' and '.join(states)} runs can be {participle}"
    raise CheckpointError(problem + _next_step(unfinished[0]))


def _next_step(run: RunRecord) -> str:
    if run.state == "running":
        return f"; wait until {run.folder} has ended"
    step = ""
    if run.state == "failed":
        step += f"; {run.folder} failed: {run.result.get('error')}"
    command = resume_command(run)
    if command is not None:
        step += f"; continue {run.folder} with: {command}"
    return step


def _recorded_words(run: RunRecord) -> list[str] | None:
    words = read_overrides(run.folder)
    keys = [word.partition("=")[0] for word in words or []]
    if words is not None and "sweep" in keys and "hydra.mode" not in keys:
        return [RUN_MODE, *words]  # of a job of version 0.1.0, which is one run
    return words


def _remove_key(key: str, words: Sequence[str]) -> list[str]:
    return [word for word in words if word.lstrip("+").partition("=")[0] != key]


def _shell_command(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "vggexp", *words])
