#!/usr/bin/env python3
"""Runs an array on a real Slurm of one node: time limit, requeue, a killed worker, and the same result as without.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
    just test-slurm

Starts munged, slurmctld and slurmd as the current user, in a temporary folder and on ports of its own, and stops them
again. Takes about five minutes, most of them waiting: Slurm counts time limits in minutes.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PROGRAM = pathlib.Path(sys.argv[1]).resolve()
EXPERIMENT = """
description = "Runs that outlive their time limit"
seeds = [1, 2, 3]

[model.random]
layers = 2
hidden = 32
heads = 2
intermediate = 64
vocabulary = 50
seed = 7

[task.planted]
layers = ["query"]
rank = 2
strength = 1.0
outputs = 3
length = 8
train_rows = 200
dev_rows = 40
seed = 11

[adapter.svd]
targets = ["query", "value", "dense"]
init_r = 3
alpha = 6

[orthogonality.mean-of-norms]
gamma = 0.1

[importance.sensitivity-uncertainty]

[budget.cubic]
target_r = 1
t_init = 1000
t_final = 2000
delta_t = 10

[observation]
weights = "after-step"
gradient = "clipped"
regularizer = true

[optimizer]
lr = 1e-3

[train]
steps = {steps}
batch_size = 16
clip = 1.0
evaluate_every = 500
record_every = 20
"""


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def wait_for(what, condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds} s in vain: {what}")
        time.sleep(0.2)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Slurm:
    """A controller and a node on this machine."""

    def __init__(self, folder):
        self.folder, self.user = folder, subprocess.check_output(["id", "-un"], text=True).strip()
        host, cores = socket.gethostname().split(".")[0], os.cpu_count()
        for name in ["state", "spool"]:
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        # A job that was requeued starts again only when its old credential has expired.
        (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={self.user}
SlurmdUser={self.user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")

    def __enter__(self):
        of = {name: self.folder / f"munge{ending}" for name, ending in
              [("key-file", ".key"), ("socket", ".socket"), ("pid-file", "d.pid"), ("log-file", "d.log"), ("seed-file", ".seed")]}
        subprocess.run(["munged", "--force", *[f"--{name}={path}" for name, path in of.items()]], check=True)
        subprocess.run(["slurmctld", "-c"], check=True)
        subprocess.run(["slurmd"], check=True)
        wait_for("the node is idle", lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout, 60)
        return self

    def __exit__(self, *_):
        subprocess.run(["scancel", f"--user={self.user}"], check=False)
        for daemon in ["slurmd", "slurmctld", "munged"]:
            path = self.folder / f"{daemon}.pid"
            if path.exists():
                os.kill(int(path.read_text()), signal.SIGTERM)
        time.sleep(2)

    @staticmethod
    def states():
        """State of each task, by its number, as far as Slurm still knows it."""
        lines = subprocess.check_output(["squeue", "-h", "-r", "-t", "all", "-o", "%K %T"], text=True).splitlines()
        return {int(number): state for number, state in (line.split() for line in lines)}


class Workspace:
    def __init__(self, folder, steps):
        self.folder = folder
        for name in ["datasets", "experiments"]:
            (folder / name).mkdir(parents=True)
        (folder / "experiments/long.toml").write_text(EXPERIMENT.replace("{steps}", str(steps)))

    def adalora(self, *arguments):
        return subprocess.run([PROGRAM, *arguments], cwd=self.folder, check=True, stdout=subprocess.PIPE, text=True).stdout

    def run(self, seed):
        return self.folder / f"runs/long/run/seed-{seed}"

    def json(self, seed, name):
        path = self.run(seed) / name
        return json.loads(path.read_text()) if path.exists() else {}

    def left(self, seed):
        """Everything but wall times and memory."""
        lines = [json.loads(line) for line in (self.run(seed) / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"]
        adapter = (self.run(seed) / "adapter/adapter_model.safetensors").read_bytes()
        return lines, adapter, (self.run(seed) / "ranks.csv").read_text()


def main():
    for program in ["munged", "slurmctld", "slurmd", "sbatch"]:
        if not shutil.which(program):
            raise SystemExit(f"{program} is not here: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge")
    # The daemons are stopped whatever ends this script.
    for number in [signal.SIGINT, signal.SIGTERM]:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    # munged and slurmd want every folder above their sockets to be passable.
    root = pathlib.Path(tempfile.mkdtemp(prefix="adalora-slurm-"))
    root.chmod(0o755)
    (root / "slurm").mkdir()
    workspace, undisturbed = Workspace(root / "disturbed", STEPS), Workspace(root / "undisturbed", STEPS)
    with Slurm(root / "slurm") as slurm:
        # A limit of two minutes, of which the first may be all there is: Slurm signals up to a minute early.
        script = workspace.adalora("slurm", "long", "--time", "2", "--ahead", "50").split("sbatch ")[1].strip()
        submit = lambda: say(subprocess.check_output(["sbatch", script], text=True).strip())
        submit()
        step = lambda seed: workspace.json(seed, "status.json").get("step", 0)
        wait_for("the first run trains", lambda: step(1) > 100, 120)
        say(workspace.adalora("status", "long").strip().splitlines()[-1])

        wait_for("its time limit", lambda: workspace.json(1, "status.json").get("state") == "interrupted", 300)
        say(f"seed 1 was stopped at its time limit, at step {step(1)}; {slurm.states()}")
        at_limit = step(1)
        wait_for("a later run trains", lambda: step(3) > 600, 300)
        lock = (workspace.run(3).parent / ".seed-3.lock").read_text()
        os.kill(int(lock.split()[1]), signal.SIGKILL)
        wait_for("its end is noticed", lambda: workspace.json(3, "status.json").get("state") == "failed", 30)
        say(f"seed 3 was killed: {workspace.json(3, 'status.json')}")

        wait_for("it goes on by itself", lambda: step(1) > at_limit, 400)
        say(f"seed 1 goes on; {slurm.states()}")

        subprocess.run(["scontrol", "requeue", job_of(0)], check=True)
        wait_for("it is stopped for another job", lambda: workspace.json(1, "status.json").get("state") == "interrupted", 120)
        preempted = step(1)
        say(f"seed 1 was preempted at step {preempted}")

        wait_for("the others end", lambda: all(workspace.json(seed, "status.json").get("state") == "finished" for seed in [1, 2]), 1200)
        say(workspace.adalora("status", "long").strip().splitlines()[-1])
        workspace.adalora("report", "long")
        submit()
        wait_for("the rest ends", lambda: workspace.json(3, "status.json").get("state") == "finished", 900)
        say(workspace.adalora("status", "long").strip().splitlines()[-1])
    say("the same without Slurm")
    undisturbed.adalora("run", "long", "--jobs", "1")
    for seed in [1, 2, 3]:
        attempts = [attempt["from_step"] for attempt in workspace.json(seed, "provenance.json")["attempts"]]
        say(f"seed {seed}: attempts from steps {attempts}")
        assert len(attempts) > 1 or seed == 2, "nothing disturbed it"
        assert workspace.left(seed) == undisturbed.left(seed), f"seed {seed} came to another end"
    shutil.rmtree(root)
    say("all runs came to the same end, bit for bit")


def job_of(task):
    lines = subprocess.check_output(["squeue", "-h", "-r", "-t", "all", "-o", "%K %A"], text=True).splitlines()
    return dict(line.split() for line in lines)[str(task)]


STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 20000

if __name__ == "__main__":
    main()
