"""Kill processes of a training at random moments: it must end with the same weights as an undisturbed one, bit for bit.

    python benchmarks/kill_ranks.py [--kills 30] [--processes 2] [--threads 1] [--out benchmarks/results]

torchrun trains a small network on the digits with `--max-restarts`. The first training is left alone. In each further
one, a process is killed with SIGKILL, and torchrun restarts all of them, until `--kills` trainings have been hit. The
moment is drawn uniformly from the creation of the run to the end of the training; the imports before that take longer
than the training. The weights and rows of each run are compared with those of the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from _common import add_out, write_result

SETTINGS = ["model=lenet-bn", "epochs=30", "batch_size=64", "save_steps=5", "average=ema", "mixup=0.2"]
TIMES = {"train_seconds", "compute_seconds", "evaluation_seconds", "seconds", "images_per_second",
         "examples_per_second", "check"}  # fmt: skip


def start(runs: Path, name: str, processes: int, threads: int) -> subprocess.Popen[bytes]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
         "--max-restarts", "3", "-m", "cnnlab", "train", "--data", "digits", "--runs-dir", str(runs), "--name", name,
         "--threads", str(threads), "--progress", "none", *settings],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def result(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the last weights and the rows without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "last.safetensors").read_bytes(), [
        {key: value for key, value in row.items() if key not in TIMES} for row in rows
    ]


def seconds_of_training(job: subprocess.Popen[bytes], run: Path) -> float:
    """Wait for the end of an undisturbed job. Return the seconds from the creation of its run to the end."""
    while not (run / "run.json").exists() and job.poll() is None:
        time.sleep(0.01)
    started = time.monotonic()
    error = job.communicate()[1]
    assert job.returncode == 0, error.decode()
    return time.monotonic() - started


def kill_one(job: subprocess.Popen[bytes], run: Path, after: float, rank: int) -> bool:
    """Kill the process `rank` after `after` seconds of training. Return False if the training ended before that."""
    deadline = float("inf")
    while time.monotonic() < deadline:
        if job.poll() is not None:
            return False
        if deadline == float("inf") and (run / "run.json").exists():
            deadline = time.monotonic() + after
        time.sleep(0.01)
    for process in psutil.Process(job.pid).children(recursive=True):
        try:
            if process.environ().get("RANK") == str(rank):
                os.kill(process.pid, signal.SIGKILL)
                return True
        except (psutil.Error, ProcessLookupError):
            continue
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        job = start(runs, "undisturbed", args.processes, args.threads)
        seconds = seconds_of_training(job, runs / "undisturbed")
        expected = result(runs / "undisturbed")
        equal, killed, restarted, number = 0, 0, 0, 0
        while killed < args.kills:
            rank, after, run = random.randrange(args.processes), random.uniform(0, seconds), runs / f"run-{number}"
            job = start(runs, run.name, args.processes, args.threads)
            hit = kill_one(job, run, after, rank)
            job.communicate()
            sessions = json.loads((run / "environment.json").read_text())["sessions"]
            same = job.returncode == 0 and result(run) == expected
            number, killed, restarted, equal = number + 1, killed + hit, restarted + (len(sessions) > 1), equal + same
            print(
                f"{number}: rank {rank} at {after:.1f} s, killed {hit}, sessions {len(sessions)}, equal {same}",
                flush=True,
            )
    figures = {"processes": args.processes, "trainings": number, "killed": killed, "continued": restarted,
               "equal": equal, "training_seconds": seconds, "settings": SETTINGS}  # fmt: skip
    print(write_result("kill-ranks", "cpu", figures, args.out))


if __name__ == "__main__":
    main()
