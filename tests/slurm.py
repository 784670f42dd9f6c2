"""A Slurm cluster of one node, this machine: real daemons on loopback, started and stopped by a test.

with cluster(folder) as environment:      # SLURM_CONF and the path to its commands
    subprocess.run(["sbatch", ...], env=environment)
    subprocess.run([sys.executable, "-c", HEAD, "--workflow-profile", "profiles/slurm", ...], env=environment)
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
# linuxproc and task/none need no cgroups; accounting is off, as on many small clusters; a job that was put back into
# the queue starts again as soon as its old credential has expired, and below 6 s Slurm takes its default of 120 s
# A job of the partition `urgent` takes the place of others: they get SIGTERM, and SIGKILL half a minute later.
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmctldPort={control}
SlurmdPort={node}
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
SelectTypeParameters=CR_Core_Memory
KillWait=2
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
CARDS = "NodeName={host} Name=gpu File=/dev/null\nNodeName={host} Name=gpu File=/dev/zero\n"
# The plugin waits ten seconds longer after each look at a job that goes on, whatever it is told; here: one second.
HEAD = """
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
main()
"""
#: The same, whose jobs run with another Python than its own.
JOBS = HEAD.replace("main()\n", "RemoteExecutor.get_python_executable = lambda self: {!r}\nmain()\n")
ON_SLURM = (
    "--workflow-profile", "profiles/slurm", "--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "2",
)  # fmt: skip


def missing() -> list[str]:
    """What of Slurm is not installed, and that one must be root to start its daemons."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [name for name in PROGRAMS if not shutil.which(name, path=path)] + (["root"] if os.getuid() else [])


@contextmanager
def cluster(folder: Path, cores: int = 4) -> Iterator[dict[str, str]]:
    """Start the daemons in `folder` and wait until the node is idle; what to run Slurm's commands with.

    Args:
        folder: Empty; its path must be short, for a socket lies there.
        cores: How many the node says it has.
    """
    folder.chmod(0o711)
    names = {"host": socket.gethostname(), "folder": folder, "cores": cores, "memory": 8000 * cores}
    control, node = free_ports(2)
    (folder / "slurm.conf").write_text(CONFIG.format(**names, control=control, node=node), "utf-8")
    (folder / "gres.conf").write_text(CARDS.format(**names), "utf-8")
    # jobs' own steps are started without Slurm's variables, and would look for /etc/slurm
    srun = folder / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n', "utf-8")
    srun.chmod(0o755)
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir()
    environment = {
        **os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{srun.parent}:{os.environ['PATH']}:/usr/sbin",
    }  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(_munge(folder, environment))
        for words in (["slurmctld", "-D"], ["slurmd", "-D", "-N", str(names["host"])]):
            with (folder / f"{words[0]}.out").open("wb") as said:
                daemons.append(subprocess.Popen(words, env=environment, stdout=said, stderr=said))
        _wait(lambda: b"idle" in _said(["sinfo", "-h", "-o", "%T"], environment), folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--state=RUNNING"], env=environment, capture_output=True, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def _munge(folder: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Slurm's own authentication, with a key and a socket of its own."""
    key = folder / "munge/munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "munge").chmod(0o700)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge/munged.pid",
             "log-file": folder / "munge/munged.log", "seed-file": folder / "munge/seed"}  # fmt: skip
    words = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())]
    with (folder / "munged.out").open("wb") as said:
        daemon = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
    _wait((folder / "munge.socket").exists, folder)
    return daemon


def _said(words: list[str], environment: dict[str, str]) -> bytes:
    return subprocess.run(words, env=environment, capture_output=True, check=False).stdout


def _wait(found: Callable[[], object], folder: Path, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not found():
        if time.monotonic() > limit:
            logs = "\n".join(path.read_text("utf-8", "replace")[-1500:] for path in folder.glob("*.[lo][ou][gt]"))
            raise RuntimeError(f"Slurm did not start:\n{logs}")
        time.sleep(0.1)
