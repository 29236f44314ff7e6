"""Starts a real Slurm of one node: its daemons as child processes in a private directory.

The cluster needs neither munge nor cgroups nor accounting.
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
MinJobAge={forget_seconds}
{extra}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes={host} Default=NO MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""
# A preempted job gets the signal of its --signal.
USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"
DAEMONS = ("slurmctld", "slurmd")


class Cluster:
    """The daemons of a cluster, and the commands that tests run on it."""

    def __init__(
        self, folder: Path, extra: str = USER_SIGNAL, cpus: int = 2, forget_seconds: int = 600
    ):
        """Writes slurm.conf.

        Args:
            folder: holds everything that Slurm writes.
            extra: additional lines of slurm.conf.
            cpus: the processors of the node.
            forget_seconds: how long the controller remembers a job that has ended.
        """
        self.folder = folder.resolve()
        self.host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        hardware = subprocess.check_output(["slurmd", "-C"], text=True)
        conf = CONF.format(
            host=self.host,
            folder=self.folder,
            user=os.environ.get("USER") or "root",
            ports=_free_ports(2),
            cpus=cpus,
            megabytes=re.search(r"RealMemory=(\d+)", hardware)[1],
            extra=extra,
            forget_seconds=forget_seconds,
        )
        (self.folder / "slurm.conf").write_text(conf)
        self.variables = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons = dict[str, subprocess.Popen]()

    def start(self, *names: str) -> None:
        """Starts daemons and waits until the node is ready."""
        for name in names:
            self.daemons[name] = subprocess.Popen(
                [name, "-D"],
                env=self.variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        ready = ("idle", "mix", "alloc")
        self.wait_until(lambda: self.output("sinfo", "-h", "-o", "%t").startswith(ready))

    def stop(self, *names: str, signum: int = signal.SIGTERM) -> None:
        for name in names:
            self.daemons[name].send_signal(signum)
            self.daemons[name].wait(20)

    def kill_node(self) -> None:
        """Kills everything on the node; no process gets a signal that it could handle."""
        self.stop("slurmd", signum=signal.SIGKILL)
        self.kill_jobs()

    def kill_jobs(self) -> None:
        """Kills the processes of all jobs, and Slurm's own, which outlive its daemons."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes()
                command = (process / "comm").read_text()
                is_job = b"SLURM_JOB_ID=" in environment or command == "slurmstepd\n"
                if is_job and f"SLURM_CONF={self.folder}/".encode() in environment:
                    os.kill(int(process.name), signal.SIGKILL)

    def output(self, *command: str) -> str:
        """Runs a command of Slurm and returns its output."""
        process = subprocess.run(command, env=self.variables, capture_output=True, text=True)
        return process.stdout.strip()

    def wait_until(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Waits for a condition. Raises TimeoutError with the queue and the ends of the logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [(self.folder / f"{name}.log").read_text()[-1500:] for name in DAEMONS]
                raise TimeoutError("\n".join([self.output("squeue", "-t", "all"), *logs]))
            time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path, **settings: object) -> Iterator[Cluster]:
    """Yields a running cluster; its jobs and daemons end with the block."""
    running = Cluster(folder, **settings)
    try:
        running.start(*DAEMONS)
        yield running
    finally:
        for name in reversed(DAEMONS):
            if name in running.daemons and running.daemons[name].poll() is None:
                running.stop(name)
        running.kill_jobs()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            opened = stack.enter_context(socket.socket())
            opened.bind(("127.0.0.1", 0))
            ports.append(opened.getsockname()[1])
        return ports


def main() -> int:
    if shutil.which("slurmctld") is None:
        print("slurmctld is missing (Debian: apt-get install --no-install-recommends slurm-wlm)")
        return 1
    with cluster(Path(sys.argv[1])) as running:
        return subprocess.run(sys.argv[2:], env=running.variables).returncode


if __name__ == "__main__":
    sys.exit(main())
