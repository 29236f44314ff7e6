"""A real Slurm of one node: its daemons as child processes in a private directory, without munge, cgroups or accounts.

From a terminal: python -m tests.slurm.cluster FOLDER COMMAND...
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmdTimeout=10
KillWait=5
MinJobAge={forgotten_after}
{more}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes={host} Default=NO MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
WARNS = "SlurmctldParameters=preempt_send_user_signal"  # a job that is preempted gets the signal of its --signal


class Cluster:
    """The daemons, and what a test asks of them."""

    def __init__(self, folder: Path, more: str = WARNS, cpus: int = 2, forgotten_after: int = 600):
        """more: lines of slurm.conf. forgotten_after: seconds that the controller remembers a job that has ended."""
        self.folder, self.host = folder.resolve(), socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        megabytes = re.search(
            r"RealMemory=(\d+)", subprocess.check_output(["slurmd", "-C"], text=True)
        )
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                host=self.host,
                folder=self.folder,
                user=os.environ.get("USER") or "root",
                ports=_free_ports(2),
                cpus=cpus,
                megabytes=megabytes[1],
                more=more,
                forgotten_after=forgotten_after,
            )
        )
        self.variables = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons = dict[str, subprocess.Popen]()

    def start(self, *names: str) -> None:
        for name in names:
            self.daemons[name] = subprocess.Popen(
                [name, "-D"], env=self.variables, stdout=-3, stderr=-3
            )
        self.until(
            lambda: self.told("sinfo", "-h", "-o", "%t").startswith(("idle", "mix", "alloc"))
        )

    def stop(self, *names: str, number: int = signal.SIGTERM) -> None:
        for name in names:
            self.daemons[name].send_signal(number)
            self.daemons[name].wait(20)

    def lose_node(self) -> None:
        """All that runs on it is gone without a signal that it could answer."""
        self.stop("slurmd", number=signal.SIGKILL)
        self.end_jobs()

    def end_jobs(self) -> None:
        """Those of the jobs' processes that Slurm itself has started, too, which outlive its daemons."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                known = (process / "environ").read_bytes()
                runs = b"SLURM_JOB_ID=" in known or (process / "comm").read_text() == "slurmstepd\n"
                if runs and f"SLURM_CONF={self.folder}/".encode() in known:
                    os.kill(int(process.name), signal.SIGKILL)

    def told(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.variables, capture_output=True, text=True
        ).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job: JobState, Restarts, Reason, ..."""
        return dict(
            word.partition("=")[::2]
            for word in self.told("scontrol", "-o", "show", "job", number).split()
        )

    def until(self, holds: Callable[[], object], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                logs = [
                    (self.folder / f"{name}.log").read_text()[-1500:]
                    for name in ("slurmctld", "slurmd")
                ]
                raise TimeoutError("\n".join([self.told("squeue", "-t", "all"), *logs]))
            time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path, **settings: object) -> Iterator[Cluster]:
    one = Cluster(folder, **settings)
    try:
        one.start("slurmctld", "slurmd")
        yield one
    finally:
        for name in ("slurmd", "slurmctld"):
            if name in one.daemons and one.daemons[name].poll() is None:
                one.stop(name)
        one.end_jobs()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    if shutil.which("slurmctld") is None:
        sys.exit(
            "slurmctld is not installed (Debian: apt-get install --no-install-recommends slurm-wlm)"
        )
    with cluster(Path(sys.argv[1])) as here:
        sys.exit(subprocess.run(sys.argv[2:], env=here.variables).returncode)
