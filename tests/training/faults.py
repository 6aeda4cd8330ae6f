"""Injected faults: processes that die at a given moment, disks that are full from a given write on.

Processes are forked from a server that has imported everything, so they start at once.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a training would import lazily is imported once, in the server.
import sklearn.datasets  # noqa: F401
import tensorboard.compat.proto.event_pb2
import tensorboard.summary.writer.record_writer  # noqa: F401

from cnnlab.cli import app as cli
from cnnlab.data import SourceOptions, pack_writer
from cnnlab.io import files
from cnnlab.training import checkpoint, curves
from cnnlab.training import train as training  # noqa: F401


class Tally:
    """Counts of faults and outcomes, for the table of docs/reliability.md."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, fault: str, outcome: str, times: int = 1) -> None:
        self.counts[fault, outcome] += times

    def table(self) -> str:
        lines = ["| fault | times | outcome |", "|---|---:|---|"]
        lines += [f"| {fault} | {times:,} | {outcome} |" for (fault, outcome), times in self.counts.items()]
        return "\n".join(lines) + "\n"


class Saboteur:
    """A replacement of the module `os` where files are written. It counts operations and calls `strike` at one.

    Operations: after half of a file is written, before each fsync, before each rename. turn: the number of the
    operation, from 1; 0: never. always: also strike at every later one, as on a full disk.
    """

    def __init__(self, turn: int, strike: Callable[[], None], *, always: bool = False) -> None:
        self.turn, self.strike, self.always, self.count = turn, strike, always, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def count_operation(self) -> None:
        self.count += 1
        if self.turn and (self.count == self.turn or (self.always and self.count > self.turn)):
            self.strike()

    def fsync(self, handle: int) -> None:
        self.count_operation()
        os.fsync(handle)

    def replace(self, source: Any, target: Any) -> None:
        self.count_operation()
        os.replace(source, target)  # noqa: PTH105

    def fdopen(self, handle: int, mode: str) -> _File:
        return _File(self, os.fdopen(handle, mode))


class _File:
    def __init__(self, saboteur: Saboteur, file: Any) -> None:
        self.saboteur, self.file = saboteur, file

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def writelines(self, pieces: Iterable[Any]) -> None:
        data = b"".join(pieces)
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.saboteur.count_operation()
        self.file.write(data[half:])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(args: list[str], folder: str, output: str, turn: int, file_limit: int) -> None:
    """Run the command in a process that dies at operation `turn`. Its output goes to the file `output`."""
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = folder + "/.cache"
    sys.argv = ["cnnlab", *args]
    vars(curves)["save_curves"] = lambda run, rows: files.write_atomic(run.path / "curves.png", b"drawn slowly")
    saboteur = Saboteur(turn, _kill)
    for module in (files, checkpoint):
        vars(module)["os"] = saboteur
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    code: Any = 99
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    Path(folder, "turns").write_text(str(saboteur.count))
    os._exit(code)


def packing(source: str, store: str, turn: int, shard_bytes: int) -> None:
    """Pack a source in a process that dies at operation `turn`."""
    for module in (files, pack_writer):
        vars(module)["os"] = Saboteur(turn, _kill) if module is files else vars(files)["os"]
    options = SourceOptions(data_dir=Path(store).parent)
    pack_writer.pack(source, store, options, shard_bytes=shard_bytes)
    os._exit(0)


def server() -> Any:
    """Return a multiprocessing context whose processes start with everything imported."""
    here, source = Path(__file__).parent, Path(files.__file__).parents[2]
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(
        PYTHONPATH=os.pathsep.join(filter(None, (str(here), str(source), before["PYTHONPATH"]))),
        OMP_NUM_THREADS="1",  # a process with threads cannot be forked safely
        OPENBLAS_NUM_THREADS="1",
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults"])
    first = context.Process(target=os.getpid)
    first.start()
    first.join()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


@dataclass
class Lab:
    """Trainings in `folder` that are killed. seconds, turns: duration and operations of an uninterrupted one."""

    context: Any
    folder: Path
    settings: list[str]
    random: random.Random
    seconds: float = 0.0
    turns: int = 0

    def start(self, args: list[str], turn: int = 0, file_limit: int = 0) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        process = self.context.Process(
            target=child, args=(args, str(self.folder), str(self.folder / "output"), turn, file_limit)
        )
        process.start()
        return process

    def call(self, args: list[str], turn: int = 0, file_limit: int = 0) -> tuple[int, str]:
        """Run the command. Return its exit code (-9: killed) and its output."""
        process = self.start(args, turn, file_limit)
        process.join(120)
        return process.exitcode, (self.folder / "output").read_text()

    def train(self, name: str) -> list[str]:
        return ["train", "--name", name, "--threads", "1", *(word for s in self.settings for word in ("--set", s))]

    def start_and_wait_for_an_epoch(self) -> Any:
        """Start a training named `run`. Return its process once an epoch is saved."""
        process = self.start(self.train("run"))
        metrics = self.folder / "runs/run/metrics.jsonl"
        while process.is_alive() and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.001)
        return process

    def uninterrupted(self) -> Path:
        """Train without a fault. Measure the seconds and operations, from which the moments of kills are drawn."""
        start = time.monotonic()
        code, output = self.call(self.train("whole"))
        assert code == 0, output
        self.seconds = time.monotonic() - start
        self.turns = int((self.folder / "turns").read_text())
        return self.folder / "runs" / "whole"

    def killed(self, name: str, kills: int) -> tuple[Path, list[str]]:
        """Train; kill and resume up to `kills` times. Return the run's folder and the kind of each kill."""
        path = self.folder / "runs" / name
        killed_by: list[str] = []
        while True:
            # A run that died before it could be resumed has nothing to lose: start it again.
            started = (path / "run.json").exists()
            for leftover in () if started or not path.exists() else path.iterdir():
                leftover.unlink()
            if not started and path.exists():
                path.rmdir()
            args = ["train", "--resume", str(path), "--threads", "1"] if started else self.train(name)
            inside = self.random.random() < 0.5
            if len(killed_by) >= kills:
                code, output = self.call(args)
                assert code == 0, output
            elif inside:
                code, output = self.call(args, turn=self.random.randint(1, self.turns))
            else:
                process = self.start(args)
                time.sleep(self.random.uniform(0, self.seconds))
                process.kill()
                process.join(120)
                code, output = process.exitcode, (self.folder / "output").read_text() if started else ""
            assert "Traceback" not in output, output
            if code == 0:
                return path, killed_by
            assert code == -signal.SIGKILL, (code, output)
            killed_by.append("SIGKILL inside a save" if inside else "SIGKILL at a random moment")
