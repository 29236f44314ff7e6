"""The expected ends of a command. Each carries the exit code of the contract and one line for its reader."""


class VggexpError(Exception):
    """Ends the command with `exit_code`; str(error) is the one line after `vggexp: error: `."""

    exit_code = 1
    signal: int | None = None  # a stop signal that had come by then: it ends a sweep all the same


class ConfigError(VggexpError):
    """The command or its configuration is wrong; nothing has been written. Holds every problem found."""

    exit_code = 2

    def __init__(self, *problems: str):
        super().__init__("; ".join(problems))
        self.problems = problems


class DataError(VggexpError):
    """Data missing, corrupt or not what its name promises."""

    exit_code = 3


class CheckpointError(VggexpError):
    """A run directory or checkpoint is unusable or belongs to another configuration."""

    exit_code = 4


class DivergedError(VggexpError):
    """The loss or a gradient is not finite; or the net is dead, where that is to end the run."""

    exit_code = 5


class ResourceError(VggexpError):
    """Disk, memory or permission is missing."""

    exit_code = 6


class SweepError(VggexpError):
    """A sweep ended and some of its jobs failed."""

    exit_code = 7


class InUseError(VggexpError):
    """Another process works in the run directory."""

    exit_code = 8


class RankError(VggexpError):
    """One of several processes has gone or hangs, or they do not agree."""

    exit_code = 9


class StoppedError(VggexpError):
    """A signal asked for a stop; what was trained has been saved."""

    def __init__(self, signal: int, place: str, advice: str):
        super().__init__(f"stopped by {getattr(signal, 'name', signal)} {place}: {advice}")
        self.exit_code = 128 + signal
