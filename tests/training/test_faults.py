"""Injected faults: killed processes, full disks, damaged files, a clock set back, NaN and Inf.

The long version, which writes the table of docs/reliability.md:
`pytest tests/training/test_faults.py --kills 200 --fault-table docs/reliability.md`
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
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from comparing import Interrupt, assert_same_run, interrupted
from faults import Lab, Saboteur, Tally
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
from cnnlab.training import autotune, checkpoint
from cnnlab.training import loop as training
from cnnlab.training.checkpoint import previous_checkpoint, save_weights, weights_metadata
from cnnlab.training.checkpointer import BackgroundWriter, SaveSchedule
from cnnlab.training.guard import NonFinite, NonFiniteMonitor
from cnnlab.training.locks import locked
from cnnlab.training.optim import make_optimizer
from cnnlab.training.plan import Workload
from cnnlab.training.progress import Progress
from cnnlab.training.step import GuardedStep
from conftest import Command, one_line_error

# 320 images: 5 steps per epoch. Saving after every second step puts most saves inside an epoch.
SMALL = ["epochs=4", "limit=320", "save_steps=2"]
KINDS = {
    "sgd": SMALL,
    "adamw, average, mixed images": [
        *SMALL, "epochs=3", "optimizer=adamw", "learning_rate=0.003", "average=ema", "average_decay=0.7", "mixup=0.4", "cutmix=0.4",
    ],
    "muon, lookahead, growing images": [
        *SMALL, "epochs=3", "optimizer=muon", "learning_rate=0.1", "momentum=0.6", "average=lookahead", "average_decay=0.5", "average_every=3",
        "memory_format=channels_last", "flip=true", "cutout=4", "model=airbench-small", "limit=64", "batch_size=16", "start_size=20",
    ],
    "dropout": [*SMALL, "epochs=3", "model=nin-small", "image_size=20", "limit=64", "batch_size=16", "brightness=0.3", "schedule=cosine"],
}  # fmt: skip
COMMAND = ["train", "--threads", "1", *(word for s in SMALL for word in ("--set", s))]


def small_recipe(*settings: str) -> Recipe:
    return RECIPES["digits"].with_settings([*SMALL, *settings])


def strike_at(
    monkeypatch: pytest.MonkeyPatch, turn: int, error: BaseException | None, *, always: bool = True
) -> Saboteur:
    """Make writing fail with `error` at operation `turn`; with `always`, also at all later ones."""

    def strike() -> None:
        assert error is not None
        raise error

    saboteur = Saboteur(turn, strike, always=always)
    for module in (files, checkpoint):
        monkeypatch.setattr(module, "os", saboteur)
    return saboteur


def start_or_resume_options(run: Path, *arguments: object) -> list[object]:
    """Return the options that resume `run` if it exists, and start it otherwise."""
    return ["--threads", 1, "--resume", run] if run.exists() else [*COMMAND[1:], "--name", run.name, *arguments]


# Killed


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", list(KINDS))
def test_killed_run_ends_with_the_same_bits(
    kind: str, forks: Any, tmp_path: Path, request: pytest.FixtureRequest, tally: Tally
) -> None:
    kills = -(-int(request.config.getoption("--kills")) // len(KINDS))
    lab = Lab(forks, tmp_path, KINDS[kind], random.Random(kind))
    whole = lab.uninterrupted()
    done = number = 0
    while done < kills:
        path, kinds_of_kills = lab.killed(f"killed-{number}", min(3, kills - done))
        assert_same_run(path, whole)
        for each in kinds_of_kills:
            tally(f"{each} ({kind})", "bit-identical weights")
        done, number = done + len(kinds_of_kills), number + 1


LONG = ["epochs=15", "limit=320"]


@pytest.fixture(scope="module")
def long_run(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Lab(forks, tmp_path_factory.mktemp("long"), LONG, random.Random(0)).uninterrupted()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_cleanly_and_the_run_resumes(
    number: signal.Signals, forks: Any, long_run: Path, tmp_path: Path, tally: Tally
) -> None:
    lab = Lab(forks, tmp_path, LONG, random.Random(number))
    process = lab.start_and_wait_for_an_epoch()
    os.kill(process.pid, number)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 128 + number, output
    assert "Traceback" not in output
    assert "cnnlab train --resume runs/run" in output.splitlines()[-1]
    assert (tmp_path / "runs/run/curves.png").exists()
    code, output = lab.call(["train", "--resume", "runs/run", "--threads", "1"])
    assert code == 0, output
    assert_same_run(tmp_path / "runs/run", long_run)
    assert len(json.loads((tmp_path / "runs/run/environment.json").read_text())["sessions"]) == 2
    tally(number.name, "stopped in one line, then bit-identical weights")


@pytest.mark.slow
def test_lock_excludes_other_processes_and_ends_with_its_process(forks: Any, tmp_path: Path, tally: Tally) -> None:
    lab = Lab(forks, tmp_path, ["epochs=500", "limit=320"], random.Random(0))
    process = lab.start_and_wait_for_an_epoch()
    with pytest.raises(CnnlabError, match=rf"runs/run.*\bprocess {process.pid}\b"):
        resume("runs/run", threads=1)
    assert open_run("run").metrics()  # reading is always allowed
    assert evaluate_run("run", split="validation", weights="last").result.count > 0
    process.kill()
    process.join(60)
    with locked(Path("runs/run")):
        pass
    tally("a second process on the run", "refused in one line; reading allowed")
    tally("the lock's holder killed", "the lock is free")


def test_seeds_are_trained_by_one_process_at_a_time(quick: Recipe) -> None:
    path = train_seeds(quick.changed(limit=64, epochs=1), 2).path
    (path / "seed-1/summary.json").unlink()
    with locked(path), pytest.raises(CnnlabError, match=rf"{path}.*\bprocess {os.getpid()}\b"):
        resume(path)
    assert resume(path).summary["loss"]["n"] == 2


# Inside an epoch


@pytest.mark.parametrize("kind", list(KINDS))
def test_run_resumes_inside_an_epoch(kind: str) -> None:
    recipe = RECIPES["digits"].with_settings(KINDS[kind])
    whole = train(recipe, name="whole", threads=1).run.path
    for number, saved in ((4, 2), (8, 6)):
        path = interrupted(recipe, number, f"stopped-at-{number}")
        updates = Interrupt(0)
        with updates.patched(training, "train_step"):
            resume(path, threads=1)
        assert updates.calls == recipe.epochs * (recipe.limit // recipe.batch_size) - saved
        assert_same_run(path, whole)


def test_signal_saves_every_step(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(quick, name="whole").run.path
    real, calls = training.train_step, []

    def signalling(*args: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", signalling)
        with pytest.raises(TrainingInterrupted, match="1 finished epoch .*2 steps") as caught:
            train(quick, name="run")
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    updates = Interrupt(0)
    with updates.patched(training, "train_step"):
        resume("runs/run")
    assert updates.calls == 2 * 4 - 6
    assert_same_run(Path("runs/run"), whole)


@pytest.mark.parametrize("by_signal", [True, False])
def test_run_interrupted_in_an_evaluation_keeps_the_epoch(
    by_signal: bool, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its figures, such as the learning rate of the last step, which is not run again after the resume."""
    recipe = quick.changed(epochs=3, schedule="one-cycle", save_steps=0 if by_signal else 4)
    whole = train(recipe, name="whole").run.path
    real, calls = training.evaluate, []

    def ending(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 and by_signal:
            signal.raise_signal(signal.SIGTERM)
        elif len(calls) == 2:
            raise MemoryError("as if killed: nothing is saved any more")
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", ending)
        with pytest.raises((TrainingInterrupted, CnnlabError)) as caught:
            train(recipe, name="run")
    assert not by_signal or re.search("1 finished epoch .*4 steps", str(caught.value))
    updates = Interrupt(0)
    with updates.patched(training, "train_step"):
        resume("runs/run")
    assert updates.calls == 4
    assert_same_run(Path("runs/run"), whole)


def test_second_ctrl_c_waits_for_the_write() -> None:
    writer, done = BackgroundWriter(), []

    def write() -> None:
        time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)  # reaches the main thread, which is waiting by then
        time.sleep(0.05)
        done.append(1)

    writer.start(write)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert done


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `small_recipe()`, stopped at update 13 of 20, with saves after every epoch and every second update."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / interrupted(small_recipe(), 13)


@pytest.fixture
def stopped_copy(stopped: Path) -> Path:
    """A copy of `stopped` in runs/run."""
    return Path(shutil.copytree(stopped, "runs/run"))


def _change_first_row(progress: dict[str, Any], **changes: Any) -> None:
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
        lambda p: _change_first_row(p, val_loss=[1.0]),
        lambda p: _change_first_row(p, learning_rate="much"),
        lambda p: _change_first_row(p, train_seconds=1e-100),
        lambda p: _change_first_row(p, images=0),
        lambda p: _change_first_row(p, epoch=5),
        lambda p: p.update(rows=[{**p["rows"][0], "epoch": n + 1} for n in range(1000)]),
        lambda p: p.update(rows=[{**p["rows"][0], "epoch": n + 1} for n in range(4)], position=None, best=None),
        lambda p: p.update(rows=[{**p["rows"][0], "epoch": n + 1} for n in range(4)]),
        lambda p: p.update(best=[]),
    ],
)  # fmt: skip
def test_impossible_values_in_a_checkpoint_are_errors(change: Callable[[dict[str, Any]], Any], stopped: Path) -> None:
    path = stopped / "checkpoint.safetensors"
    progress = checkpoint._read(path)[1]["progress"]
    assert Progress.from_dict(progress, small_recipe(), 320, path).position is not None
    change(progress)
    with pytest.raises(CnnlabError, match=r"checkpoint\.safetensors.*damaged"):
        Progress.from_dict(progress, small_recipe(), 320, path)


def test_folder_in_place_of_a_checkpoint_is_an_error(stopped_copy: Path) -> None:
    path = stopped_copy / "checkpoint.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(CnnlabError, match=r"checkpoint\.safetensors.*regular file"):
        resume("runs/run")


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shift": 2, "flip": True, "brightness": 0.4, "randaugment": 1},
        {"mixup": 0.3, "cutmix": 0.3, "crop_scale": 0.5},
    ],
    ids=["plain", "augmented", "mixed"],
)
def test_batches_resume_at_their_position(changes: dict[str, Any], resident: bool) -> None:
    images = load_images("digits", "train")
    assert images is not None
    pre = Preprocessing.of(images.images, image_size=12, fit="pad", normalize=True)
    images = images.take(torch.arange(150))
    loader = Loader(images, pre, 40, torch.device("cpu"), augmentation=Augmentation(**changes), resident=resident)
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


def test_saves_are_due_by_steps_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
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
    due.saved(10.0)  # slow disk: saving takes at most 5% of the time
    now = 419.0
    assert not due(1)
    now = 420.0
    assert due(1)
    never = SaveSchedule(Recipe(save_seconds=0))
    now = 1e9
    assert not never(1)


def test_saving_by_the_clock_does_not_change_the_weights(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(quick, name="whole").run.path
    positions, real = [], checkpoint.save_checkpoint

    def saving(*args: Any) -> None:
        positions.append(args[4]["position"])
        real(*args)

    monkeypatch.setattr(checkpoint, "save_checkpoint", saving)
    run = train(quick.changed(save_seconds=1e-9), name="often").run
    assert any(positions)
    assert run.recipe.name == quick.name  # still the same recipe
    for name in ("last.safetensors", "best.safetensors"):
        assert (run.path / name).read_bytes() == (whole / name).read_bytes()


# Full and read-only disks


def test_file_is_flushed_before_it_is_renamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For power cuts, in this order: flush the bytes, rename the old file, rename the new one, flush the folder."""
    path, before = tmp_path / "file", tmp_path / "before"
    path.write_bytes(b"old")
    events: list[str] = []

    class Watch(Saboteur):
        def fsync(self, handle: int) -> None:
            about = os.fstat(handle)
            events.append("folder flushed" if stat.S_ISDIR(about.st_mode) else f"{about.st_size} bytes flushed")

        def replace(self, source: Any, target: Any) -> None:
            events.append(f"{Path(target).name} gets {Path(source).read_bytes().decode()}")
            os.replace(source, target)  # noqa: PTH105

    monkeypatch.setattr(files, "os", Watch(0, lambda: None))
    files.write_atomic(path, [b"ne", memoryview(b"w!")], before)
    assert events == ["4 bytes flushed", "before gets old", "file gets new!", "folder flushed"]
    assert (path.read_bytes(), before.read_bytes()) == (b"new!", b"old")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A finished run of `small_recipe()`, and how many write operations it took."""
    with pytest.MonkeyPatch.context() as patch:
        counted = strike_at(patch, 0, None)
        path = train(small_recipe(), name="whole", threads=1, runs_dir=tmp_path_factory.mktemp("finished")).run.path
    return path, counted.count


@pytest.fixture
def whole(finished: tuple[Path, int]) -> Path:
    """A finished run of `small_recipe()`."""
    return finished[0]


def sixth_of_kills(request: pytest.FixtureRequest) -> int:
    return max(1, int(request.config.getoption("--kills")) // 6)


@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=["full", "read-only", "broken"])
def test_failing_disk_keeps_what_was_saved(
    error_number: int,
    finished: tuple[Path, int],
    monkeypatch: pytest.MonkeyPatch,
    cnnlab: Command,
    request: pytest.FixtureRequest,
    tally: Tally,
) -> None:
    whole, operations = finished
    every = range(1, operations)  # the last one may fail
    for turn in random.Random(error_number).sample(every, min(len(every), sixth_of_kills(request))):
        with monkeypatch.context() as patch:
            strike_at(patch, turn, OSError(error_number, os.strerror(error_number)))
            line = one_line_error(cnnlab(*COMMAND, "--name", "run"))
        assert os.strerror(error_number) in line
        assert "runs/run" in line
        assert Path("runs/run").exists() == ("--resume" in line)
        answer = cnnlab("train", *start_or_resume_options(Path("runs/run")))
        assert answer.returncode == 0, (turn, answer.stderr)
        assert_same_run(Path("runs/run"), whole)
        shutil.rmtree("runs/run")
        tally(f"writing fails: {os.strerror(error_number).lower()}", "one line, then bit-identical weights")


@pytest.mark.slow
def test_file_size_limit_acts_like_a_full_disk(
    forks: Any, whole: Path, tmp_path: Path, request: pytest.FixtureRequest, tally: Tally
) -> None:
    lab = Lab(forks, tmp_path, SMALL, random.Random(0))
    size = (whole / "checkpoint.safetensors").stat().st_size
    limits = (size - 1, 5_000, 500, size // 4, size // 2)
    for number, limit in enumerate(limits if int(request.config.getoption("--kills")) > 50 else limits[:1]):
        path = tmp_path / "runs" / f"run-{number}"
        code, output = lab.call(lab.train(path.name), file_limit=limit)
        assert code == 2, output
        assert output.splitlines()[-1].startswith("error: ")
        assert output.count("error: ") == 1
        code, output = lab.call(["train", *map(str, start_or_resume_options(path))])
        assert code == 0, output
        assert_same_run(path, whole)
        tally("no file may grow beyond a limit", "one line, then bit-identical weights")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system that tests may remount. Skip the test where mounting is not allowed."""
    path = tmp_path / "disk"
    path.mkdir()
    if shutil.which("mount") is None or not mount(path, "-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        pytest.skip("no tmpfs can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def mount(path: Path, *options: str) -> bool:
    return subprocess.run(["mount", *options, path], capture_output=True).returncode == 0


@pytest.mark.slow
def test_full_small_disk_loses_nothing(
    whole: Path, disk: Path, cnnlab: Command, request: pytest.FixtureRequest, tally: Tally
) -> None:
    needed = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) // 1024
    count = sixth_of_kills(request)
    for size in (needed * turn // (count + 1) for turn in range(1, count + 1)):
        assert mount(disk, "-o", f"remount,rw,size={size}k")
        line = one_line_error(cnnlab(*COMMAND, "--runs-dir", disk, "--name", "run"))
        assert "No space left on device" in line
        assert mount(disk, "-o", "remount,size=10m")
        answer = cnnlab("train", *start_or_resume_options(disk / "run", "--runs-dir", disk))
        assert answer.returncode == 0, answer.stderr
        assert_same_run(disk / "run", whole)
        shutil.rmtree(disk / "run")
        tally("a small tmpfs is full", "one line, then bit-identical weights")


@pytest.mark.slow
def test_read_only_folder_refuses_training_and_allows_reading(
    stopped: Path, whole: Path, disk: Path, cnnlab: Command, tally: Tally
) -> None:
    assert mount(disk, "-o", "remount,size=10m")
    path = Path(shutil.copytree(stopped, disk / "run"))
    assert mount(disk, "-o", "remount,ro")
    for command in (["train", "--resume", path], [*COMMAND, "--runs-dir", disk, "--name", "other"]):
        assert "Read-only file system" in one_line_error(cnnlab(*command))
    assert cnnlab("runs", path).returncode == 0
    assert cnnlab("eval", path, "--split", "validation", "--weights", "last").returncode == 0
    tally("a folder is read-only", "training: refused in one line; reading and evaluating: allowed")
    assert mount(disk, "-o", "remount,rw")
    assert cnnlab("train", "--resume", path, "--threads", 1).returncode == 0
    assert_same_run(path, whole)


# Damaged files


def damages(content: bytes, rng: random.Random, flips: int) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, content) of truncated files, only two if `flips` is small, and of files with a flipped bit."""
    ends = {0, 4, 8, len(content) // 2, len(content) - 1, rng.randrange(len(content) + 1)}
    if content[:1] == b"{":  # JSON: cut at the end of a line and inside the last line
        ends |= {content.rfind(b"\n", 0, -1) + 1, content.rfind(b"\n", 0, -1) + 9}
    else:  # safetensors: cut inside the header, at its end, and between numbers
        header = 8 + int.from_bytes(content[:8], "little")
        ends |= {header // 2, header, header + 4, len(content) - 4}
    possible = sorted(end for end in ends if 0 <= end < len(content))
    for end in possible if flips > 3 else rng.sample(possible, min(2, len(possible))):
        yield "a file cut short", content[:end]
    for _ in range(flips):
        damaged = bytearray(content)
        # Half of the flips are in the first part, which holds the structure of a weights file.
        damaged[rng.randrange(rng.choice([min(2000, len(content)), len(content)]))] ^= 1 << rng.randrange(8)
        yield "a flipped bit", bytes(damaged)


@pytest.fixture
def flips(request: pytest.FixtureRequest) -> int:
    return max(1, int(request.config.getoption("--kills")) // 8)


FINISHED = ["recipe.json", "run.json", "environment.json", "metrics.jsonl", "summary.json", "best.safetensors",
            "last.safetensors", "checkpoint.safetensors", "evaluations.jsonl", "curves.png", "tensorboard"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_file_of_a_finished_run_never_changes_an_answer(
    whole: Path, cnnlab: Command, flips: int, tally: Tally
) -> None:
    """Evaluating, predicting, listing and resuming give the same answer as before or name the damaged file."""
    shutil.copytree(whole, "runs/run")
    evaluate_run("run", split="test")
    shutil.copy(whole / "curves.png", "picture.png")
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

    expected = {command: answers(command) for command in commands}
    (listed,) = json.loads(expected["runs runs/run --json"])
    assert listed["test_acc"] is not None
    unrecorded = json.dumps([{**listed, "test_acc": None}])  # if its line is truncated
    rng = random.Random(1)
    for name in FINISHED:
        file = file_in(Path("runs/run") / name)
        content = file.read_bytes()
        for kind, damaged in damages(content, rng, flips):
            file.write_bytes(damaged)
            reported = False
            for command, right in expected.items():
                answer = answers(command)
                if answer != right and not (name == "evaluations.jsonl" and answer == unrecorded):
                    assert answer.startswith("error: "), (name, kind, command, answer)
                    assert name in answer, answer
                    reported = True
            outcome = "reported in one line" if reported else "not needed, or no different"
            tally(f"{kind}, finished run: {name}", f"{outcome}; never a different result")
            file.write_bytes(content)


UNFINISHED = ["recipe.json", "run.json", "environment.json", "metrics.jsonl", "best.safetensors", "last.safetensors",
              "checkpoint.safetensors", "checkpoint.before.safetensors", "tensorboard"]  # fmt: skip


def file_in(path: Path) -> Path:
    """Return `path` or, for a folder, a file in it."""
    return next(path.iterdir()) if path.is_dir() else path


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_file_of_an_unfinished_run_never_changes_the_weights(
    stopped: Path, whole: Path, cnnlab: Command, flips: int, tally: Tally
) -> None:
    """Resuming ends with the same weights or names the damaged file."""
    rng = random.Random(2)
    for name in UNFINISHED:
        content = file_in(stopped / name).read_bytes()
        for kind, damaged in damages(content, rng, flips):
            shutil.rmtree("runs/run", ignore_errors=True)
            shutil.copytree(stopped, "runs/run")
            file_in(Path("runs/run") / name).write_bytes(damaged)
            answer = cnnlab("train", "--resume", "runs/run", "--threads", 1)
            if answer.returncode:
                assert name in one_line_error(answer)
                outcome = "reported in one line"
            else:
                if "best.safetensors" in answer.stderr:  # a note says so
                    shutil.copy(whole / "best.safetensors", "runs/run")
                    assert (Path("runs/run/last.safetensors")).read_bytes() == (whole / "last.safetensors").read_bytes()
                else:
                    assert_same_run(Path("runs/run"), whole)
                outcome = "bit-identical weights" + (", and a line that says so" if answer.stderr else "")
            if name == "checkpoint.safetensors":
                assert "previous checkpoint" in answer.stderr
            tally(f"{kind}, unfinished run: {name}", outcome)


def test_damaged_file_of_several_seeds_is_named(cnnlab: Command, quick: Recipe, flips: int, tally: Tally) -> None:
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
            else:  # the seeds' summaries are used
                assert re.sub(r"[\d.]+ s\b", "", answer.stdout) == re.sub(r"[\d.]+ s\b", "", expected)
            tally(f"{kind}, several seeds: {name}", "reported in one line" if answer.returncode else "no other answer")
        (path / name).write_bytes(content)


def test_intact_checkpoint_of_two_is_used(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str], cnnlab: Command
) -> None:
    newest, before = (Path(name) for name in ("checkpoint.safetensors", "checkpoint.before.safetensors"))
    assert previous_checkpoint(stopped / newest) == stopped / before

    def copy() -> Path:
        shutil.rmtree("runs/run", ignore_errors=True)
        return Path(shutil.copytree(stopped, "runs/run"))

    path = copy()
    (path / newest).write_bytes(b"torn")
    resume(path, threads=1)
    output = capsys.readouterr().err
    assert re.search(r"runs/run/checkpoint\.safetensors.*damaged", output)
    assert "previous checkpoint" in output
    assert_same_run(path, whole)
    path = copy()
    (path / newest).unlink()
    resume(path, threads=1)
    assert re.search(r"runs/run/checkpoint\.safetensors.*previous checkpoint", capsys.readouterr().err)
    assert_same_run(path, whole)
    path = copy()
    for name in (newest, before):
        (path / name).write_bytes(b"torn")
    line = one_line_error(cnnlab("train", "--resume", path))
    assert re.search(r"runs/run/checkpoint\.safetensors.*damaged", line)
    assert re.search(r"runs/run/checkpoint\.before\.safetensors.*damaged", line)
    path = copy()
    (path / before).write_bytes(b"torn")  # not needed
    resume(path, threads=1)
    assert_same_run(path, whole)
    assert not (path / before).exists()


def test_best_weights_are_not_replaced_by_worse(stopped_copy: Path) -> None:
    path = stopped_copy
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
    # As after a process that died between the fourth epoch and its checkpoint.
    save_weights(path / "best.safetensors", model, {"figure": [1.5, 0.0], "epoch": 4})
    before = (path / "best.safetensors").read_bytes()
    result = resume(path, threads=1)
    assert (path / "best.safetensors").read_bytes() == before
    assert (result.summary["best"], result.summary["best_epoch"]) == (1.5, 4)


@pytest.mark.parametrize("torn", [True, False])
def test_damaged_or_missing_best_weights_are_named_and_replaced(
    torn: bool, stopped_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stopped_copy / "best.safetensors"
    file.unlink()
    if torn:
        file.write_bytes(b"torn")
    result = resume(stopped_copy, threads=1)
    assert "best.safetensors" in (output := capsys.readouterr().err)
    assert "remaining epochs" in output
    assert result.summary["best_epoch"] in (3, 4)
    assert weights_metadata(file)["epoch"] == result.summary["best_epoch"]


@pytest.mark.parametrize("name", ["run.json", "environment.json", "metrics.jsonl"])
def test_file_without_a_checksum_is_an_error(name: str, stopped_copy: Path, cnnlab: Command) -> None:
    path = stopped_copy
    lines = (path / name).read_text().splitlines() if name.endswith("jsonl") else [(path / name).read_text()]
    stripped = [{k: v for k, v in json.loads(line).items() if k not in ("blake2b", "check")} for line in lines]
    (path / name).write_text("".join(json.dumps(values) + "\n" for values in stripped))
    command = ("runs", path) if name == "metrics.jsonl" else ("train", "--resume", path)
    assert name in one_line_error(cnnlab(*command))


def test_recipe_changed_by_hand_is_an_error(stopped_copy: Path, cnnlab: Command) -> None:
    file = stopped_copy / "recipe.json"
    file.write_text(file.read_text().replace('"weight_decay": 0.0005', '"weight_decay": 0.0006'))
    line = one_line_error(cnnlab("train", "--resume", stopped_copy))
    assert re.search(r"recipe\.json.*by hand", line)


# The clock


def test_clock_set_back_changes_nothing(
    stopped_copy: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = stopped_copy
    with monkeypatch.context() as patch:
        real = time.time
        patch.setattr(time, "time", lambda: real() - 1e8)
        for file in path.iterdir():
            os.utime(file, (1, 1))
        resume(path, threads=1)
    assert_same_run(path, whole)
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/train")] == [1, 2, 3, 4]
    tally("the clock goes back by three years", "bit-identical weights; each event once")


# NaN and Inf


def poison_images(monkeypatch: pytest.MonkeyPatch, *numbers: int, value: float = float("nan")) -> list[int]:
    """Multiply the images of these updates (from 1; default: all) by `value`. Return the list of calls."""
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


def test_nan_loss_stops_at_once(monkeypatch: pytest.MonkeyPatch, cnnlab: Command, tally: Tally) -> None:
    with monkeypatch.context() as patch:
        calls = poison_images(patch, 14)
        with pytest.raises(CnnlabError) as caught:
            train(small_recipe(), name="run", threads=1)
    assert len(calls) == 14
    line = str(caught.value)
    assert re.search(r"loss.*\bnan\b.*step 14 of 20.*epoch 3 of 4.*learning rate.* 0\.0", line)
    assert re.search(r"2 finished epochs .*2 steps .*runs/run.*--set learning_rate=0\.0667", line)
    assert "cnnlab train --resume runs/run --on-nan skip" in line
    saved = safetensors.torch.load_file("runs/run/checkpoint.safetensors")
    assert all(torch.isfinite(w).all() for name, w in saved.items() if w.is_floating_point())
    tally("a loss of nan", "stops at that step; the last good checkpoint is kept")
    with monkeypatch.context() as patch:
        poison_images(patch, 2)  # the same step, counted from the checkpoint
        answer = cnnlab("train", "--resume", "runs/run", "--threads", 1, "--on-nan", "skip")
    assert answer.returncode == 0, answer.stderr
    assert "1 update" in answer.stdout
    run = open_run("run")
    assert run.recipe.on_nan == "skip"
    assert run.recipe.name.endswith("on_nan=skip")
    rows = run.metrics()
    assert [row.get("skipped_updates") for row in rows] == [None, None, 1, 0]
    assert [row["images"] for row in rows] == [320, 320, 256, 320]


def test_on_nan_may_be_given_as_a_setting_but_not_twice(stopped: Path, cnnlab: Command, tmp_path: Path) -> None:
    answer = cnnlab("train", "--resume", shutil.copytree(stopped, tmp_path / "run"), "--set", "on_nan=skip")
    assert answer.returncode == 0, answer.stderr
    assert "on_nan" in one_line_error(cnnlab("train", "--on-nan", "skip", "--set", "on_nan=stop"))


def test_invalid_on_nan_is_an_error(stopped: Path, cnnlab: Command) -> None:
    path = stopped
    assert re.search("on_nan='never'.*stop, skip", one_line_error(cnnlab("train", "--on-nan", "never")))
    assert "on_nan='never'" in one_line_error(cnnlab("train", "--resume", path, "--on-nan", "never"))


def test_on_nan_skip_changes_nothing_without_nan() -> None:
    paths = [
        train(small_recipe("epochs=1", f"on_nan={word}"), name=word, threads=1).run.path for word in ("stop", "skip")
    ]
    assert (paths[0] / "last.safetensors").read_bytes() == (paths[1] / "last.safetensors").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_twenty_skipped_updates_in_a_row_stop(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = poison_images(monkeypatch, value=value)
    with pytest.raises(CnnlabError, match=r"\b20 times.*step 20 of 40 .*--set"):
        train(small_recipe("on_nan=skip", "epochs=2", "batch_size=16"), name="run", threads=1)
    assert len(calls) == 20


def test_epoch_without_an_update_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_images(monkeypatch)
    with pytest.raises(CnnlabError, match="NaN.*epoch.*step 5 of 20"):
        train(small_recipe("on_nan=skip"), name="run", threads=1)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_skipped_update_changes_nothing(where: str, optimizer: str) -> None:
    torch.manual_seed(0)
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
    updater = make_optimizer(model, Recipe(optimizer=optimizer, momentum=0.9, weight_decay=0.1))
    x, y = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    step = GuardedStep(skip_nonfinite=True)
    loss, _ = step(model, updater, x, y)
    assert torch.isfinite(loss)

    def everything() -> list[Tensor]:
        tensors = [t.clone() for t in model.state_dict().values()]
        for values in updater.state.values():
            tensors += [torch.as_tensor(v).clone() for v in values.values() if v is not None]
        return tensors

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


def test_monitor_names_the_first_bad_step() -> None:
    good = nn.Linear(2, 2)
    monitor = NonFiniteMonitor(torch.device("cpu"), 10, skips=False)
    assert monitor.check_loss(0, torch.tensor(1.0))
    with pytest.raises(NonFinite, match=r"loss.*\binf\b") as caught:
        monitor.check_loss(1, torch.tensor(float("inf")))
    assert caught.value.step == 1
    monitor.check(1, good)
    with torch.no_grad():
        good.weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="weight"):
        monitor.check(2, good)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_monitor_does_not_wait_for_the_gpu() -> None:
    device = torch.device("cuda")
    monitor = NonFiniteMonitor(device, 1000, skips=False)
    losses = torch.ones(400, device=device)
    losses[123] = float("nan")
    found = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, loss in enumerate(losses.unbind()):
            monitor.check_loss(step, loss)
            time.sleep(0.001)
    except NonFinite as error:
        found = error.step
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found == 123


# Memory


def test_auto_batch_finds_a_batch_that_fits(quick: Recipe, monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    real = autotune.train_step

    def full(model: nn.Module, optimizer: Any, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if len(x) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, optimizer, x, *rest)

    monkeypatch.setattr(autotune, "train_step", full)
    answer = cnnlab("train", "--set", "epochs=1", "--set", "limit=64", "--auto-batch", "--name", "run")
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"\b64\b.*memory.*\b16\b", answer.stderr)
    recipe = open_run("run").recipe
    assert recipe.batch_size == 16
    assert recipe.name.endswith("batch_size=16")
    assert train(quick.changed(epochs=1, batch_size=8), auto_batch=True).run.recipe.batch_size == 8
    assert re.search("--resume.*--auto-batch", one_line_error(cnnlab("train", "--resume", "runs/run", "--auto-batch")))


def test_pieces_of_one_image_are_refused_before_a_folder_is_created(cnnlab: Command) -> None:
    for piece, count in ((1, 64), (2, 63)):  # with 63 images a batch is odd
        command = ("train", "--set", f"micro_batch={piece}", "--set", f"limit={count}", "--name", "run")
        assert f"micro_batch={piece}" in one_line_error(cnnlab(*command))
    assert not Path("runs/run").exists()


def test_batch_too_large_for_the_cpu_is_an_error_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2**28)
    with memory.limit_memory():
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.zeros(2**30, dtype=torch.uint8)
        torch.zeros(2**20, dtype=torch.uint8)
    torch.zeros(2**29, dtype=torch.uint8)
    # Several GiB, more than earlier tests can have left cached in the process.
    build = partial(build_model, "lenet-bn", num_classes=10, in_channels=1, image_size=96)
    work = Workload(small_recipe("batch_size=1280"), build, (1, 96, 96), 10, torch.device("cpu"), 1280, 1)
    assert autotune.find_batch_size(work) in (40, 80, 160, 320, 640)


def test_if_no_batch_fits_the_error_names_a_remedy(monkeypatch: pytest.MonkeyPatch, cnnlab: Command) -> None:
    def full(*args: Any) -> tuple[Tensor, Tensor]:
        raise MemoryError

    monkeypatch.setattr(autotune, "train_step", full)
    line = one_line_error(cnnlab("train", "--auto-batch", "--name", "run"))
    assert re.search(r"memory.*batch_size=2\b.*28 pixels.*image_size", line)
    assert not Path("runs/run").exists()
