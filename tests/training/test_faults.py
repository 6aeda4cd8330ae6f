"""Injected faults: killed processes, full disks, damaged files, a clock that goes back, NaN and Inf.

`pytest tests/training/test_faults.py --kills 200 --fault-table FILE` is the long version, and writes docs/reliability.md's table.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from faults import Lab, Saboteur, Tally, server
from torch import Tensor, nn

from cnnlab import Recipe, evaluate_run, open_run, resume, train, train_seeds
from cnnlab.data import load_images
from cnnlab.data.augment import Augmentation
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.device import memory
from cnnlab.io import files
from cnnlab.io.errors import CnnlabError, TrainingInterrupted
from cnnlab.models import build_model
from cnnlab.recipes import RECIPES
from cnnlab.training import autotune, checkpoint, runs
from cnnlab.training import loop as training
from cnnlab.training.checkpoint import previous_checkpoint, save_weights, weights_metadata
from cnnlab.training.checkpointer import BackgroundWriter, SaveSchedule
from cnnlab.training.guard import NonFinite, NonFiniteMonitor
from cnnlab.training.optim import make_optimizer
from cnnlab.training.step import GuardedStep
from conftest import Command, one_line_error

# 320 images: 5 steps an epoch; saved after each second step, so that most saves are inside an epoch.
SMALL = ["epochs=4", "limit=320", "save_steps=2"]
KINDS = {
    "sgd": SMALL,
    "adamw, average, mixed images": [
        *SMALL, "optimizer=adamw", "learning_rate=0.003", "average=ema", "average_decay=0.7", "mixup=0.4", "cutmix=0.4",
    ],
    "muon, lookahead, growing images": [
        *SMALL, "optimizer=muon", "learning_rate=0.1", "momentum=0.6", "average=lookahead", "average_decay=0.5", "average_every=3",
        "flip=true", "cutout=4", "model=airbench-small", "limit=64", "batch_size=16", "start_size=20",
    ],
    "dropout": [*SMALL, "model=nin-small", "limit=64", "batch_size=16", "brightness=0.3", "schedule=cosine"],
}  # fmt: skip
COMMAND = ["train", "--threads", "1", *(word for s in SMALL for word in ("--set", s))]
TIMES = {"train_seconds", "compute_seconds", "evaluation_seconds", "seconds", "images_per_second",
         "examples_per_second", "total_seconds", "check", "blake2b"}  # fmt: skip


def small(*settings: str) -> Recipe:
    return RECIPES["digits"].with_settings([*SMALL, *settings])


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in TIMES}


def assert_the_same(path: Path, whole: Path) -> None:
    """Check that the run ended like the undisturbed one: bit-identical weights, one row per epoch, no leftover files."""
    for name in ("last.safetensors", "best.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    lines = [
        [timeless(json.loads(line)) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (path, whole)
    ]
    assert lines[0] == lines[1]
    ends = [timeless(json.loads((p / "summary.json").read_text())) for p in (path, whole)]
    assert ends[0] == ends[1]
    assert not list(path.glob(".*.tmp"))
    run = open_run(path)
    assert [row["epoch"] for row in run.metrics()] == list(range(1, run.recipe.epochs + 1))


def strike_at(
    monkeypatch: pytest.MonkeyPatch, turn: int, error: BaseException | None, *, always: bool = True
) -> Saboteur:
    """From that turn on, writing fails with `error`."""

    def strike() -> None:
        assert error is not None
        raise error

    saboteur = Saboteur(turn, strike, always=always)
    for module in (files, checkpoint):
        monkeypatch.setattr(module, "os", saboteur)
    return saboteur


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Stop before update `number` (from 1), as if the process had died. Return a list that grows with each update."""
    real, calls = training.train_step, []

    def stopping(*args: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(training, "train_step", stopping)
    return calls


# Killed


@pytest.fixture(scope="session")
def forks() -> Any:
    return server()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_killed_run_ends_at_the_same_bits(
    kind: str, forks: Any, tmp_path: Path, request: pytest.FixtureRequest, tally: Tally
) -> None:
    kills = -(-int(request.config.getoption("--kills")) // len(KINDS))
    lab = Lab(forks, tmp_path, KINDS[kind], random.Random(kind))
    whole = lab.undisturbed()
    assert_the_same(lab.folder / "runs" / "timed", whole)
    done = number = 0
    while done < kills:
        path, how = lab.killed(f"killed-{number}", min(3, kills - done))
        assert_the_same(path, whole)
        for each in how:
            tally(f"{each} ({kind})", "the same weights, to the bit")
        done, number = done + len(how), number + 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_cleanly_and_the_run_goes_on(
    number: signal.Signals, forks: Any, tmp_path: Path, tally: Tally
) -> None:
    lab = Lab(forks, tmp_path, ["epochs=25", "limit=320"], random.Random(number))
    code, output = lab.call(lab.train("whole"))
    assert code == 0, output
    process = lab.start(lab.train("run"))
    metrics = tmp_path / "runs/run/metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 128 + number, output
    assert len(output.splitlines()) == 1
    assert "are saved. Continue with: cnnlab train --resume runs/run" in output
    code, output = lab.call(["train", "--resume", "runs/run", "--threads", "1"])
    assert code == 0, output
    assert_the_same(tmp_path / "runs/run", tmp_path / "runs/whole")
    tally(number.name, "stopped in one line, then the same weights, to the bit")


@pytest.mark.slow
def test_the_lock_keeps_others_out_and_goes_with_the_process(forks: Any, tmp_path: Path, tally: Tally) -> None:
    lab = Lab(forks, tmp_path, ["epochs=500", "limit=320"], random.Random(0))
    process = lab.start(lab.train("run"))
    metrics = tmp_path / "runs/run/metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.001)
    with pytest.raises(CnnlabError, match=rf"runs/run is being trained by another process \(process {process.pid} on "):
        resume("runs/run", threads=1)
    assert open_run("run").metrics()  # reading is always allowed
    assert evaluate_run("run", split="validation", weights="last").result.count > 0
    process.kill()
    process.join(60)
    with runs.locked(Path("runs/run")):
        pass
    tally("a second process on the run", "refused in one line; reading allowed")
    tally("the lock's holder killed", "the lock is free")


def test_seeds_are_trained_by_one_process_at_a_time(quick: Recipe) -> None:
    path = train_seeds(quick.changed(limit=64, epochs=1), 2).path
    (path / "seed-1/summary.json").unlink()
    with runs.locked(path), pytest.raises(CnnlabError, match=f"{path} is being trained by another process"):
        resume(path)
    assert resume(path).summary["loss"]["n"] == 2


# Inside an epoch


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_goes_on_inside_an_epoch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["digits"].with_settings(KINDS[kind])
    whole = train(recipe, name="whole", threads=1).run.path
    for number, saved in ((4, 2), (8, 6)):
        name = f"stopped-at-{number}"
        with monkeypatch.context() as patch:
            stop_at(patch, number)
            with pytest.raises(TrainingInterrupted, match=r"finished epochs and \d+ steps of the next are saved"):
                train(recipe, name=name, threads=1)
        with monkeypatch.context() as patch:
            calls = stop_at(patch, 0)
            resume(f"runs/{name}", threads=1)
        assert len(calls) == recipe.epochs * (recipe.limit // recipe.batch_size) - saved
        assert_the_same(Path("runs") / name, whole)


def test_a_run_that_is_asked_to_stop_keeps_every_step(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick.changed(epochs=3)
    whole = train(recipe, name="whole").run.path
    real, calls = training.train_step, []

    def asked(*args: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == 25:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", asked)
        with pytest.raises(TrainingInterrupted, match="1 finished epochs and 7 steps of the next are saved") as caught:
            train(recipe, name="run")
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    calls.clear()
    with monkeypatch.context() as patch:
        calls = stop_at(patch, 0)
        resume("runs/run")
    assert len(calls) == 3 * 18 - 25
    assert_the_same(Path("runs/run"), whole)


@pytest.mark.parametrize("how", ["asked", "gone"])
def test_a_run_that_ends_in_an_evaluation_keeps_the_whole_epoch(
    how: str, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures, too: the learning rate of the last step, which no step after the resume sets again."""
    recipe = quick.changed(epochs=3, schedule="one-cycle", save_steps=18 if how == "gone" else 0)
    whole = train(recipe, name="whole").run.path
    real, calls = training.evaluate, []

    def ending(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 and how == "asked":
            signal.raise_signal(signal.SIGTERM)
        elif len(calls) == 2:
            raise MemoryError("as if killed: nothing is saved any more")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", ending)
        with pytest.raises((TrainingInterrupted, CnnlabError)) as caught:
            train(recipe, name="run")
    assert how == "gone" or "1 finished epochs and 18 steps of the next are saved" in str(caught.value)
    with monkeypatch.context() as patch:
        calls = stop_at(patch, 0)
        resume("runs/run")
    assert len(calls) == 18
    assert_the_same(Path("runs/run"), whole)


def test_a_second_ctrl_c_waits_for_what_is_being_written() -> None:
    writer, done = BackgroundWriter(), []

    def write() -> None:
        time.sleep(0.3)
        signal.raise_signal(signal.SIGINT)  # comes to the main thread, which waits by then
        time.sleep(0.3)
        done.append(1)

    writer.start(write)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert done


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped at update 25 of 54, with saves after updates 18 and 24."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 25)
        with pytest.raises(TrainingInterrupted):
            train(RECIPES["digits"].changed(epochs=3, save_steps=6), runs_dir=folder, name="run", threads=1)
    return folder / "run"


def _rows(progress: dict[str, Any], **changes: Any) -> None:
    progress["rows"] = [{**progress["rows"][0], **changes}]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["position"].update(sums=[1.0]),
        lambda p: p["position"].update(sums=[1.0, 2.0, 3.0]),
        lambda p: p["position"].update(steps=10**15),
        lambda p: p["position"]["batches"].update(done=10**15),
        lambda p: p["position"].update(steps=10**15, batches={**p["position"]["batches"], "done": 10**15}),
        lambda p: p["position"].update(images=10**9),
        lambda p: p["rows"][0].pop("val_loss"),
        lambda p: p["rows"][0].pop("compute_seconds"),
        lambda p: _rows(p, val_loss=[1.0]),
        lambda p: _rows(p, learning_rate="much"),
        lambda p: _rows(p, train_seconds=1e-100),
        lambda p: _rows(p, images=0),
        lambda p: _rows(p, epoch=5),
        lambda p: p.update(rows=[{**p["rows"][0], "epoch": n + 1} for n in range(1000)]),
        lambda p: p.update(rows=[{**p["rows"][0], "epoch": n + 1} for n in range(3)], position=None, best=None),
        lambda p: p.update(rows=[{**p["rows"][0], "epoch": n + 1} for n in range(3)]),
        lambda p: p.update(best=[]),
    ],
)  # fmt: skip
def test_impossible_values_in_a_checkpoint_are_refused(change: Callable[[dict[str, Any]], Any], stopped: Path) -> None:
    """The checksum is right: the values are checked."""
    path = Path(shutil.copytree(stopped, "runs/run")) / "checkpoint.safetensors"
    previous_checkpoint(path).unlink(missing_ok=True)
    tensors, values = checkpoint._read(path)
    change(values["progress"])
    checkpoint._write(path, tensors, values)
    with pytest.raises(CnnlabError, match=r"checkpoint.safetensors is damaged: .*; train again"):
        resume("runs/run")


def test_a_folder_in_place_of_a_checkpoint_is_named(stopped: Path) -> None:
    path = Path(shutil.copytree(stopped, "runs/run")) / "checkpoint.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(CnnlabError, match="is not a regular file; remove it to continue from the save before it"):
        resume("runs/run")
    path.rmdir()
    resume("runs/run")


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shift": 2, "flip": True, "brightness": 0.4, "randaugment": 1},
        {"mixup": 0.3, "cutmix": 0.3, "crop_scale": 0.5},
    ],
    ids=["plain", "changed", "mixed"],
)
def test_batches_go_on_where_they_stood(changes: dict[str, Any], resident: bool) -> None:
    images = load_images("digits", "train")
    assert images is not None
    pre = Preprocessing.of(images.images, image_size=12, fit="pad", normalize=True)
    loader = Loader(
        images, pre, 200, torch.device("cpu"), augmentation=Augmentation(**changes), resident=resident
    )  # fmt: skip
    whole = [(x.clone(), y.clone()) for x, y in loader.shuffled(3, 2)]
    batches = loader.shuffled(3, 2)
    for done in range(len(loader) + 1):
        state = json.loads(json.dumps(batches.state()))
        rest = [(x.clone(), y.clone()) for x, y in loader.shuffled(3, 2, 0, state)]
        assert len(rest) == len(loader) - done
        for (x, y), (x2, y2) in zip(whole[done:], rest, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
        next(batches, None)


def test_when_a_save_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("cnnlab.training.checkpointer.time.monotonic", lambda: now)
    due = SaveSchedule(Recipe(save_seconds=60, save_steps=7))
    assert [step for step in range(1, 22) if due(step)] == [7, 14, 21]
    now = 160.0
    assert due(1)
    due.saved(1.0)
    now = 219.0
    assert not due(1)
    now = 220.0
    assert due(1)
    due.saved(10.0)  # a slow disk: a twentieth of the time at most
    now = 419.0
    assert not due(1)
    now = 420.0
    assert due(1)
    never = SaveSchedule(Recipe(save_seconds=0))
    now = 1e9
    assert not never(1)


def test_saving_by_the_clock(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(quick, name="whole").run.path
    saved, real = [], checkpoint.save_checkpoint

    def saving(*args: Any) -> None:
        saved.append(args[4]["position"])
        real(*args)

    monkeypatch.setattr(checkpoint, "save_checkpoint", saving)
    run = train(quick.changed(save_seconds=1e-9), name="often").run
    parts = [part for part in saved if part]
    assert parts
    assert run.recipe.name == quick.name  # it is the same training
    for name in ("last.safetensors", "best.safetensors"):
        assert (run.path / name).read_bytes() == (whole / name).read_bytes()


# Full and closed disks


def test_a_file_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The order that a power cut needs: bytes flushed, then the older one renamed, then this, then the folder flushed."""
    path, before = tmp_path / "file", tmp_path / "before"
    path.write_bytes(b"old")
    seen: list[str] = []

    class Watch(Saboteur):
        def fsync(self, handle: int) -> None:
            about = os.fstat(handle)
            seen.append("folder flushed" if stat.S_ISDIR(about.st_mode) else f"{about.st_size} bytes flushed")

        def replace(self, source: Any, target: Any) -> None:
            seen.append(f"{Path(target).name} gets {Path(source).read_bytes().decode()}")
            os.replace(source, target)  # noqa: PTH105

    monkeypatch.setattr(files, "os", Watch(0, lambda: None))
    files.write_atomic(path, [b"ne", memoryview(b"w!")], before)
    assert seen == ["4 bytes flushed", "before gets old", "file gets new!", "folder flushed"]
    assert (path.read_bytes(), before.read_bytes()) == (b"new!", b"old")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A finished run of `SMALL`, and how many turns a saboteur had in it."""
    with pytest.MonkeyPatch.context() as patch:
        counted = strike_at(patch, 0, None)
        path = train(small(), name="whole", threads=1, runs_dir=tmp_path_factory.mktemp("undisturbed")).run.path
    return path, counted.count


@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=["full", "read-only", "broken"])
def test_a_disk_that_fails_keeps_what_was_saved(
    error_number: int,
    undisturbed: tuple[Path, int],
    monkeypatch: pytest.MonkeyPatch,
    cnnlab: Command,
    request: pytest.FixtureRequest,
    tally: Tally,
) -> None:
    whole, turns = undisturbed
    every = range(1, turns)  # the last is a folder's fsync, which may fail
    tried = random.Random(error_number).sample(every, min(len(every), int(request.config.getoption("--kills")) // 6))
    for turn in sorted({1, *tried}):
        with monkeypatch.context() as patch:
            strike_at(patch, turn, OSError(error_number, os.strerror(error_number)))
            line = one_line_error(cnnlab(*COMMAND, "--name", "run"))
        assert os.strerror(error_number) in line
        assert "runs/run" in line
        if "--resume" in line:  # what it says is what works
            answer = cnnlab("train", "--threads", "1", "--resume", "runs/run")
        else:
            assert not Path("runs/run").exists()
            answer = cnnlab(*COMMAND, "--name", "run")
        assert answer.returncode == 0, (turn, answer.stderr)
        assert_the_same(Path("runs/run"), whole)
        shutil.rmtree("runs/run")
        tally(f"writing fails: {os.strerror(error_number).lower()}", "one line, then the same weights, to the bit")


@pytest.mark.slow
def test_a_file_size_limit_is_a_full_disk(forks: Any, tmp_path: Path, tally: Tally) -> None:
    lab = Lab(forks, tmp_path, SMALL, random.Random(0))
    whole = lab.undisturbed()
    size = (whole / "checkpoint.safetensors").stat().st_size
    for number, limit in enumerate((500, 5_000, size // 4, size // 2, size - 1)):
        name = f"run-{number}"
        code, output = lab.call(lab.train(name), file_limit=limit)
        assert code == 2, output
        assert output.startswith("error: ")
        assert len(output.splitlines()) == 1
        path = tmp_path / "runs" / name
        again = ["train", "--resume", str(path), "--threads", "1"] if path.exists() else lab.train(name)
        code, output = lab.call(again)
        assert code == 0, output
        assert_the_same(path, whole)
        tally("no file may grow beyond a limit", "one line, then the same weights, to the bit")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, which `mount` may change; skips where that may not be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    if shutil.which("mount") is None or not mount(path, "-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        pytest.skip("no tmpfs can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def mount(path: Path, *options: str) -> bool:
    return subprocess.run(["mount", *options, path], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_small_disk_that_is_full(
    undisturbed: tuple[Path, int], disk: Path, cnnlab: Command, request: pytest.FixtureRequest, tally: Tally
) -> None:
    whole, _ = undisturbed
    needed = sum(f.stat().st_size for f in whole.rglob("*")) // 1024
    count = int(request.config.getoption("--kills")) // 6
    for size in range(200, needed, (needed - 200) // count):
        assert mount(disk, "-o", f"remount,rw,size={size}k")
        line = one_line_error(cnnlab(*COMMAND, "--runs-dir", disk, "--name", "run"))
        assert "No space left on device" in line
        assert mount(disk, "-o", "remount,size=10m")
        begun = (disk / "run").exists()
        goes_on = ["--resume", disk / "run"] if begun else [*COMMAND[3:], "--runs-dir", disk, "--name", "run"]
        answer = cnnlab("train", "--threads", "1", *goes_on)
        assert answer.returncode == 0, answer.stderr
        assert_the_same(disk / "run", whole)
        shutil.rmtree(disk / "run")
        tally("a small tmpfs is full", "one line, then the same weights, to the bit")


@pytest.mark.slow
def test_a_folder_that_is_read_only(
    undisturbed: tuple[Path, int], disk: Path, cnnlab: Command, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    assert mount(disk, "-o", "remount,size=10m")
    path = interrupted(monkeypatch, small(), 13)
    path = Path(shutil.copytree(path, disk / "run"))
    assert mount(disk, "-o", "remount,ro")
    for command in (["train", "--resume", path], [*COMMAND, "--runs-dir", disk, "--name", "other"]):
        assert "Read-only file system" in one_line_error(cnnlab(*command))
    assert cnnlab("runs", path).returncode == 0
    assert cnnlab("eval", path, "--split", "validation", "--weights", "last").returncode == 0
    tally("a folder is read-only", "training: refused in one line; reading and evaluating: allowed")
    assert mount(disk, "-o", "remount,rw")
    assert cnnlab("train", "--resume", path, "--threads", 1).returncode == 0
    assert_the_same(path, undisturbed[0])


# Damaged files


def damages(content: bytes, rng: random.Random, flips: int) -> Iterator[tuple[str, bytes]]:
    """Each class of truncation (four of them where few bits are flipped), and flipped bits at random."""
    ends = {0, 4, 8, len(content) // 2, len(content) - 1, rng.randrange(len(content) + 1)}
    if content[:1] == b"{":  # text: at the end of a line, and inside the last
        ends |= {content.rfind(b"\n", 0, -1) + 1, content.rfind(b"\n", 0, -1) + 9}
    else:  # safetensors: inside the header, at its end, and where a number ends
        header = 8 + int.from_bytes(content[:8], "little")
        ends |= {header // 2, header, header + 4, len(content) - 4}
    possible = sorted(end for end in ends if 0 <= end < len(content))
    for end in possible if flips > 3 else rng.sample(possible, min(4, len(possible))):
        yield "a file cut short", content[:end]
    for _ in range(flips):
        damaged = bytearray(content)
        # half of them in the first part, where a weights file has its structure
        damaged[rng.randrange(rng.choice([min(2000, len(content)), len(content)]))] ^= 1 << rng.randrange(8)
        yield "a flipped bit", bytes(damaged)


@pytest.fixture
def flips(request: pytest.FixtureRequest) -> int:
    return max(2, int(request.config.getoption("--kills")) // 8)


FINISHED = ["recipe.json", "run.json", "environment.json", "metrics.jsonl", "summary.json", "best.safetensors",
            "last.safetensors", "checkpoint.safetensors", "evaluations.jsonl", "curves.png", "tensorboard"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_damaged_file_never_gives_another_answer(cnnlab: Command, flips: int, tally: Tally) -> None:
    """Of a finished run: evaluating, predicting and listing say what they said before, or name the damaged file."""
    whole = train(small(), name="whole", threads=1).run.path
    evaluate_run("whole", split="test")
    picture = str(whole / "curves.png")
    shutil.copy(picture, "picture.png")
    commands: dict[str, Callable[[dict[str, Any]], Any]] = {
        "eval runs/run --split validation --json": lambda v: (v["confusion"], v["loss"], v["classes"]),
        "predict runs/run picture.png --format json --weights last": lambda v: v,
        "runs runs/run --json": lambda v: v,
        "train --resume runs/run": lambda v: v,
    }

    def answers(command: str) -> Any:
        answer = cnnlab(*command.split())
        if answer.returncode:
            return one_line_error(answer)
        if command.startswith("train"):
            return answer.stdout
        return json.dumps(commands[command](json.loads(answer.stdout)))

    shutil.copytree(whole, "runs/run")
    expected = {command: answers(command) for command in commands}
    rng = random.Random(1)
    for name in FINISHED:
        file = a_file(Path("runs/run") / name)
        content = file.read_bytes()
        for kind, damaged in damages(content, rng, flips):
            file.write_bytes(damaged)
            outcomes = set()
            for command, right in expected.items():
                found = answers(command)
                if found != right:
                    assert found.startswith("error: "), (name, kind, command, found)
                    assert name in found, found
                    outcomes.add("named in one line")
            what = "named in one line" if outcomes else "not needed, or no different"
            tally(f"{kind}, finished run: {name}", f"{what}; never another answer")
            file.write_bytes(content)


UNFINISHED = ["recipe.json", "run.json", "environment.json", "metrics.jsonl", "best.safetensors", "last.safetensors",
              "checkpoint.safetensors", "checkpoint.before.safetensors", "tensorboard"]  # fmt: skip


def a_file(path: Path) -> Path:
    """`path`, or the file in that folder."""
    return next(path.iterdir()) if path.is_dir() else path


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_damaged_file_never_gives_other_weights(
    monkeypatch: pytest.MonkeyPatch, cnnlab: Command, flips: int, tally: Tally
) -> None:
    """Of a run that is not finished: resuming ends at the same weights, or names the damaged file."""
    whole = train(small(), name="whole", threads=1).run.path
    with monkeypatch.context() as patch:
        stop_at(patch, 18)
        with pytest.raises(TrainingInterrupted, match="3 finished epochs and 1 steps"):
            train(small(), name="stopped", threads=1)
    monkeypatch.setattr("cnnlab.training.curves.save_curves", lambda *_: None)  # half of the time that this takes
    rng = random.Random(2)
    for name in UNFINISHED:
        content = a_file(Path("runs/stopped") / name).read_bytes()
        for kind, damaged in damages(content, rng, flips):
            shutil.rmtree("runs/run", ignore_errors=True)
            shutil.copytree("runs/stopped", "runs/run")
            a_file(Path("runs/run") / name).write_bytes(damaged)
            answer = cnnlab("train", "--resume", "runs/run", "--threads", 1)
            if answer.returncode:
                assert name in one_line_error(answer)
                outcome = "named in one line"
            else:
                if "best.safetensors" in answer.stderr:  # which is said
                    shutil.copy(whole / "best.safetensors", "runs/run")
                    assert (Path("runs/run/last.safetensors")).read_bytes() == (whole / "last.safetensors").read_bytes()
                else:
                    assert_the_same(Path("runs/run"), whole)
                outcome = "the same weights, to the bit" + (", and a line that says so" if answer.stderr else "")
            if name == "checkpoint.safetensors":
                assert "continuing from the save before it" in answer.stderr
            tally(f"{kind}, unfinished run: {name}", outcome)


def test_a_damaged_file_of_several_seeds_is_named(cnnlab: Command, quick: Recipe, flips: int, tally: Tally) -> None:
    path = train_seeds(quick.changed(limit=64, epochs=1), 2, name="both").path
    expected = cnnlab("train", "--resume", path).stdout
    rng = random.Random(3)
    for name in ("seeds.json", "summary.json"):
        content = (path / name).read_bytes()
        for kind, damaged in damages(content, rng, flips):
            (path / name).write_bytes(damaged)
            answer = cnnlab("train", "--resume", path)
            if answer.returncode:
                assert name in one_line_error(answer)
            else:  # the seeds' own summaries count
                assert re.sub(r"[\d.]+ s\b", "", answer.stdout) == re.sub(r"[\d.]+ s\b", "", expected)
            tally(f"{kind}, several seeds: {name}", "named in one line" if answer.returncode else "no other answer")
        (path / name).write_bytes(content)


def interrupted(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, number: int, name: str = "run") -> Path:
    with monkeypatch.context() as patch:
        stop_at(patch, number)
        with pytest.raises(TrainingInterrupted):
            train(recipe, name=name, threads=1)
    return Path("runs") / name


def test_of_two_checkpoints_the_whole_one_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cnnlab: Command
) -> None:
    whole = train(small(), name="whole", threads=1).run.path
    kept = interrupted(monkeypatch, small(), 13, "kept")
    newest, before = (Path(name) for name in ("checkpoint.safetensors", "checkpoint.before.safetensors"))
    assert previous_checkpoint(kept / newest) == kept / before

    def copy() -> Path:
        shutil.rmtree("runs/run", ignore_errors=True)
        return Path(shutil.copytree(kept, "runs/run"))

    path = copy()
    (path / newest).write_bytes(b"torn")
    resume(path, threads=1)
    output = capsys.readouterr().err
    assert "note: runs/run/checkpoint.safetensors is damaged" in output
    assert output.strip().endswith("continuing from the save before it")
    assert_the_same(path, whole)
    path = copy()
    (path / newest).unlink()
    resume(path, threads=1)
    assert "checkpoint.safetensors is gone; continuing from the save before it" in capsys.readouterr().err
    assert_the_same(path, whole)
    path = copy()
    for name in (newest, before):
        (path / name).write_bytes(b"torn")
    line = one_line_error(cnnlab("train", "--resume", path))
    assert "checkpoint.safetensors is damaged" in line
    assert "and runs/run/checkpoint.before.safetensors is damaged" in line
    path = copy()
    (path / before).write_bytes(b"torn")  # it is not needed
    resume(path, threads=1)
    assert_the_same(path, whole)
    assert not (path / before).exists()


def test_the_best_is_not_replaced_by_a_worse_one(monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted(monkeypatch, small(), 13)
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
    # as a process left it that came to the fourth epoch and died before its checkpoint
    save_weights(path / "best.safetensors", model, {"figure": [1.5, 0.0], "epoch": 4})
    before = (path / "best.safetensors").read_bytes()
    result = resume(path, threads=1)
    assert (path / "best.safetensors").read_bytes() == before
    assert (result.summary["best"], result.summary["best_epoch"]) == (1.5, 4)


def test_damaged_best_weights_are_named_and_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("torn", "gone"):
        path = interrupted(monkeypatch, small(), 13, damage)
        if damage == "torn":
            (path / "best.safetensors").write_bytes(b"torn")
        else:
            (path / "best.safetensors").unlink()
        capsys.readouterr()
        result = resume(path, threads=1)
        assert "best.safetensors" in (output := capsys.readouterr().err)
        assert "the best of the epochs to come replaces it" in output
        assert result.summary["best_epoch"] in (3, 4)
        assert weights_metadata(path / "best.safetensors")["epoch"] == result.summary["best_epoch"]


@pytest.mark.parametrize("name", ["run.json", "environment.json", "metrics.jsonl"])
def test_a_file_without_a_checksum_is_refused(name: str, monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    path = interrupted(monkeypatch, small("save_steps=0"), 13)
    lines = (path / name).read_text().splitlines() if name.endswith("jsonl") else [(path / name).read_text()]
    stripped = [{k: v for k, v in json.loads(line).items() if k not in ("blake2b", "check")} for line in lines]
    (path / name).write_text("".join(json.dumps(values) + "\n" for values in stripped))
    command = ("runs", path) if name == "metrics.jsonl" else ("train", "--resume", path)
    assert name in one_line_error(cnnlab(*command))


def test_a_recipe_that_was_changed_by_hand_is_refused(monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    path = interrupted(monkeypatch, small(), 13)
    file = path / "recipe.json"
    file.write_text(file.read_text().replace('"weight_decay": 0.0005', '"weight_decay": 0.0006'))
    line = one_line_error(cnnlab("train", "--resume", path))
    assert "recipe.json was damaged or changed by hand" in line


# The clock


def test_a_clock_that_goes_back_changes_nothing(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = train(small(), name="whole", threads=1).run.path
    path = interrupted(monkeypatch, small(), 13)
    with monkeypatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() - 1e8)
        for file in path.iterdir():
            os.utime(file, (1, 1))
        resume(path, threads=1)
    assert_the_same(path, whole)
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/train")] == [1, 2, 3, 4]
    tally("the clock goes back by three years", "the same weights, to the bit; each event once")


# NaN and Inf


def poisoned(monkeypatch: pytest.MonkeyPatch, *numbers: int, value: float = float("nan")) -> list[int]:
    """Make the images of these updates (from 1; default: all) NaN or Inf."""
    real, real_guarded = training.train_step, GuardedStep.__call__
    calls: list[int] = []

    def poison(x: Tensor) -> Tensor:
        calls.append(1)
        return x * value if len(calls) in numbers or not numbers else x

    def poisoning(model: nn.Module, optimizer: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return real(model, optimizer, poison(x), *rest)

    def poisoning_guarded(self: GuardedStep, model: nn.Module, optimizer: Any, x: Tensor, *rest: Any) -> Any:
        return real_guarded(self, model, optimizer, poison(x), *rest)

    monkeypatch.setattr(training, "train_step", poisoning)
    monkeypatch.setattr(GuardedStep, "__call__", poisoning_guarded)
    return calls


def test_a_loss_of_nan_stops_at_once(monkeypatch: pytest.MonkeyPatch, cnnlab: Command, tally: Tally) -> None:
    with monkeypatch.context() as patch:
        calls = poisoned(patch, 14)
        with pytest.raises(CnnlabError) as caught:
            train(small(), name="run", threads=1)
    assert len(calls) == 14
    line = str(caught.value)
    assert line.startswith("the loss became nan at step 14 of 20 (epoch 3 of 4) at a learning rate of 0.0")
    assert "2 finished epochs and 2 steps of the next are saved in runs/run. Try --set learning_rate=0.0667" in line
    assert "or skip such updates: cnnlab train --resume runs/run --on-nan skip" in line
    saved = safetensors.torch.load_file("runs/run/checkpoint.safetensors")
    assert all(torch.isfinite(w).all() for name, w in saved.items() if w.is_floating_point())
    tally("a loss of nan", "stops at that step; the last good checkpoint is kept")
    with monkeypatch.context() as patch:
        poisoned(patch, 2)  # the same step, counted from the checkpoint
        answer = cnnlab("train", "--resume", "runs/run", "--threads", 1, "--on-nan", "skip")
    assert answer.returncode == 0, answer.stderr
    assert "note: 1 updates were skipped" in answer.stdout
    run = open_run("run")
    assert run.recipe.on_nan == "skip"
    assert run.recipe.name.endswith("on_nan=skip")
    rows = run.metrics()
    assert [row.get("skipped_updates") for row in rows] == [None, None, 1, 0]
    assert [row["images"] for row in rows] == [320, 320, 256, 320]


def test_a_bad_on_nan_is_refused(monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    path = interrupted(monkeypatch, small(), 13)
    assert "on_nan='never': choose one of stop, skip" in one_line_error(cnnlab("train", "--on-nan", "never"))
    assert "on_nan='never'" in one_line_error(cnnlab("train", "--resume", path, "--on-nan", "never"))


def test_skipping_changes_nothing_where_there_is_nothing_to_skip() -> None:
    paths = [train(small(f"on_nan={word}"), name=word, threads=1).run.path for word in ("stop", "skip")]
    assert (paths[0] / "last.safetensors").read_bytes() == (paths[1] / "last.safetensors").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_twenty_skipped_updates_in_a_row_stop(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = poisoned(monkeypatch, value=value)
    with pytest.raises(CnnlabError, match=r"NaN or Inf 20 times in a row at step 20 of 40 .*Try --set"):
        train(small("on_nan=skip", "epochs=2", "batch_size=16"), name="run", threads=1)
    assert len(calls) == 20


def test_an_epoch_without_an_update_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch)
    with pytest.raises(CnnlabError, match="NaN or Inf throughout the epoch at step 5 of 20"):
        train(small("on_nan=skip"), name="run", threads=1)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_skipped_update_leaves_nothing_behind(where: str, optimizer: str) -> None:
    torch.manual_seed(0)
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
    updater = make_optimizer(model, Recipe(optimizer=optimizer, momentum=0.9, weight_decay=0.1))
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    step = GuardedStep(skip_nonfinite=True)
    loss, _ = step(model, updater, x, y)
    assert torch.isfinite(loss)

    def everything() -> list[Tensor]:
        kept = [t.clone() for t in model.state_dict().values()]
        for values in updater.state.values():
            kept += [torch.as_tensor(v).clone() for v in values.values() if v is not None]
        return kept

    before = everything()
    handle = None
    if where == "gradient":
        handle = next(model.parameters()).register_hook(lambda grad: grad * float("inf"))
    else:
        x = x * float("nan")
    loss, _ = step(model, updater, x, y)
    assert torch.isnan(loss)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    if handle is not None:
        handle.remove()
    loss, _ = step(model, updater, torch.rand(16, 1, 28, 28), y)
    assert torch.isfinite(loss)
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))


def test_the_monitor_names_the_first_bad_step() -> None:
    good = nn.Linear(2, 2)
    monitor = NonFiniteMonitor(torch.device("cpu"), 10, skips=False)
    assert monitor.counts(0, torch.tensor(1.0))
    with pytest.raises(NonFinite, match="the loss became inf") as caught:
        monitor.counts(1, torch.tensor(float("inf")))
    assert caught.value.step == 1
    monitor.check(1, good)
    with torch.no_grad():
        good.weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="a weight became NaN or Inf"):
        monitor.check(2, good)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_monitor_does_not_wait_for_the_gpu() -> None:
    device = torch.device("cuda")
    monitor = NonFiniteMonitor(device, 1000, skips=False)
    losses = torch.ones(400, device=device)
    losses[123] = float("nan")
    found = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, loss in enumerate(losses.unbind()):
            monitor.counts(step, loss)
            time.sleep(0.001)
    except NonFinite as error:
        found = error.step
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found == 123


# Memory


def test_a_batch_that_fits_is_found(quick: Recipe, monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    real = autotune.train_step

    def full(model: nn.Module, optimizer: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if len(x) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, optimizer, x, *rest)

    monkeypatch.setattr(autotune, "train_step", full)
    answer = cnnlab("train", "--set", "epochs=1", "--set", "limit=64", "--auto-batch", "--name", "run")
    assert answer.returncode == 0, answer.stderr
    assert "note: a batch of 64 does not fit in memory, one of 16 does" in answer.stderr
    recipe = open_run("run").recipe
    assert recipe.batch_size == 16
    assert recipe.name.endswith("batch_size=16")
    assert train(quick.changed(epochs=1, batch_size=8), auto_batch=True).run.recipe.batch_size == 8
    assert "leave out --auto-batch" in one_line_error(cnnlab("train", "--resume", "runs/run", "--auto-batch"))


def test_too_large_a_batch_on_the_cpu_is_an_error_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2**28)
    with memory.limit_memory():
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.zeros(2**30, dtype=torch.uint8)
        torch.zeros(2**20, dtype=torch.uint8)
    torch.zeros(2**29, dtype=torch.uint8)
    # Some GiB, more than an earlier test can have left free within what the process holds.
    recipe = small("image_size=96", "batch_size=1280", "epochs=1", "limit=1280")
    chosen = train(recipe, auto_batch=True, threads=1).run.recipe
    assert chosen.batch_size in (40, 80, 160, 320, 640)


def test_an_error_if_no_batch_fits(monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    def full(*args: Any) -> tuple[Tensor, Tensor]:
        raise MemoryError

    monkeypatch.setattr(autotune, "train_step", full)
    line = one_line_error(cnnlab("train", "--auto-batch", "--name", "run"))
    assert "out of memory with batch_size=2 and images of 28 pixels; set a smaller image_size" in line
    assert not Path("runs/run").exists()
