"""Expected errors of a command. Each class has an exit code, and each error one line of text."""

from typing import Any


class VggexpError(Exception):
    """Ends the command with `exit_code`; str(error) is the line after `vggexp: error: `."""

    exit_code = 1
    signal: int | None = None  # a stop signal that arrived before the error; it ends a sweep too


class ConfigError(VggexpError):
    """The command or its configuration is wrong; nothing has been written.

    Args:
        problems: every problem that was found.
    """

    exit_code = 2

    def __init__(self, *problems: str):
        super().__init__("; ".join(problems))
        self.problems = problems


class DataError(VggexpError):
    """Data is missing, corrupt, or not what its name promises."""

    exit_code = 3


class CheckpointError(VggexpError):
    """A run directory or a checkpoint is unusable or belongs to another configuration."""

    exit_code = 4


class LostRunError(CheckpointError):
    """A run can never continue: none of its checkpoints verifies and fits."""


class DivergedError(VggexpError):
    """The loss or a gradient is not finite, or dead layers are to end the run."""

    exit_code = 5


class ResourceError(VggexpError):
    """Disk space, memory or a permission is missing."""

    exit_code = 6


class SweepError(VggexpError):
    """A sweep ended, and some of its jobs failed."""

    exit_code = 7


class InUseError(VggexpError):
    """Another process works in the run directory."""

    exit_code = 8


class RankError(VggexpError):
    """A rank ended or hangs, or the ranks disagree."""

    exit_code = 9


class StoppedError(VggexpError):
    """A signal requested a stop; the training so far has been saved.

    Args:
        signal: number of the signal.
        position: how far the run has come, such as `at epoch 2 batch 7`.
        resume_hint: how to continue.
    """

    def __init__(self, signal: int, position: str, resume_hint: str):
        super().__init__(f"stopped by {getattr(signal, 'name', signal)} {position}: {resume_hint}")
        self.exit_code = 128 + signal
        self._arguments = (signal, position, resume_hint)

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets pickle, which ranks send an error by, create the error with these arguments."""
        return type(self), self._arguments, self.__dict__


class WaitStoppedError(StoppedError):
    """A signal ended a wait for a disk or for another program; the caller saves."""
