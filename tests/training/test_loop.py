"""The loop: the hook, the result, late signals, invalid files, skipped updates."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cnnlab import CnnlabError, Recipe, TrainingInterrupted, open_run, resume, train, train_seeds
from cnnlab.models import build_model
from cnnlab.training import checkpoint, loop, runs
from cnnlab.training.locks import lock_pid
from cnnlab.training.progress import Position, Progress
from cnnlab.training.step import GuardedStep


@pytest.fixture
def tiny(quick: Recipe) -> Recipe:
    return quick.changed(limit=64, epochs=3, batch_size=16)


# The hook and the result


def test_on_epoch_gets_each_saved_row_and_may_stop(tiny: Recipe) -> None:
    rows: list[dict[str, Any]] = []

    def hook(row: dict[str, Any]) -> bool:
        assert open_run("run").metrics()[-1] == row  # already saved
        torch.rand(3)  # drawing random numbers must not change the training
        rows.append(row)
        return len(rows) < 2

    result = train(tiny, name="run", threads=1, on_epoch=hook)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert result.history == rows
    assert (result.summary["epochs"], result.summary["stopped"]) == (2, True)
    assert "epoch 2 of 3" in str(result)
    again = resume("runs/run", threads=1)
    assert again.summary == result.summary
    (Path("runs/run") / "summary.json").unlink()  # as if killed before the summary was written
    assert resume("runs/run", threads=1).summary["stopped"]
    whole = train(tiny, name="whole", threads=1, on_epoch=lambda row: None)
    assert [row["loss"] for row in whole.history[:2]] == [row["loss"] for row in rows]
    assert not whole.summary["stopped"]
    ended = train(
        tiny, name="ended", threads=1, on_epoch=lambda row: row["epoch"] < 3
    )  # there is no epoch to leave out
    assert (ended.summary["epochs"], ended.summary["stopped"]) == (3, False)


def test_interrupt_in_the_hook_interrupts_the_training(tiny: Recipe) -> None:
    def hook(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="1 finished epoch"):
        train(tiny, name="run", threads=1, on_epoch=hook)
    assert lock_pid(Path("runs/run")) is None  # though this process lives on, as in a notebook
    assert len(resume("runs/run", threads=1).history) == 3  # type: ignore[union-attr]


def test_the_result_has_a_model_in_eval_mode_and_timings(tiny: Recipe) -> None:
    result = train(tiny, threads=1)
    assert not result.model.training
    assert result.model is result.model
    best = checkpoint.weights_metadata(result.run.path / "best.safetensors")["epoch"]
    assert best == result.summary["best_epoch"]
    saved = load_file(result.run.weights())
    assert all(torch.equal(tensor, saved[key]) for key, tensor in result.model.state_dict().items())
    assert result.model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert set(result.timings) == {"setup", "whitening", "training", "finish"}


# A signal after the last point at which training can stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_a_run_is_being_finished_is_raised(
    number: signal.Signals, tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runs.write_atomic

    def signalling(*args: Any, **more: Any) -> None:
        signal.raise_signal(number)
        real(*args, **more)

    monkeypatch.setattr("cnnlab.training.curves.write_atomic", signalling)
    with pytest.raises(TrainingInterrupted) as caught:
        train(tiny.changed(epochs=1), name="run", threads=1)
    assert caught.value.code == 128 + number
    assert open_run("run").summary() is not None  # the files being written are complete
    with pytest.raises(TrainingInterrupted):
        train_seeds(tiny.changed(epochs=1), 2, name="seeds", threads=1)
    assert open_run("seeds/seed-0").summary() is not None
    assert not Path("runs/seeds/seed-1/run.json").exists()


# Optional and required fields of files


def test_invalid_metadata_of_the_best_weights_is_an_error(tiny: Recipe) -> None:
    run = train(tiny, name="run", threads=1).run
    (run.path / "summary.json").unlink()
    model = build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
    for about in (
        {"figure": [2.0, 0.0]},
        {"epoch": 1},
        {"figure": [], "epoch": 1},
        {"figure": [2.0], "epoch": 1},
        {"figure": "much", "epoch": 1},
        {"figure": [2.0, 0.0], "epoch": 1.5},
    ):
        checkpoint.save_weights(run.path / "best.safetensors", model, about)
        with pytest.raises(CnnlabError, match=r"best\.safetensors.*damaged"):
            resume("runs/run", threads=1)


def test_summary_without_a_printed_figure_is_an_error(tiny: Recipe) -> None:
    from cnnlab.io.files import read_checked, write_checked

    path = train(tiny.changed(epochs=1), name="run", threads=1).run.path / "summary.json"
    summary = read_checked(path)
    for key in ("images", "shared", "skipped_updates", "stopped", "epochs"):
        write_checked(path, {k: v for k, v in summary.items() if k != key})
        with pytest.raises(CnnlabError, match=rf"summary\.json.*lacks.*\b{key}\b"):
            resume("runs/run")


def test_progress_round_trip(tiny: Recipe) -> None:
    result = train(tiny, threads=1)
    batches = {"done": 2, "kind": "cpu", "host": "", "here": ""}
    row = {k: v for k, v in result.history[0].items() if k != "check"}
    progress = Progress([row], [0.5, -1.0], 1, False, Position(2, 0, 32, [1.0, 2.0], 0.1, 0.1, batches))
    values = progress.to_dict()
    values["position"]["unknown"] = 1
    assert Progress.from_dict(values, tiny, 64, Path("x")) == progress
    for position in ({"steps": 3}, {"images": 65}, {"skipped": 3}):
        wrong = {**values, "position": {**values["position"], **position}}
        with pytest.raises(CnnlabError, match=r"\bx .*damaged"):
            Progress.from_dict(wrong, tiny, 64, Path("x"))


# Skipped updates leave the average alone


def count_averages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from cnnlab.training.train import Average

    real, steps = Average.after_step, []

    def counting(self: Average, step: int) -> None:
        steps.append(step)
        real(self, step)

    monkeypatch.setattr(Average, "after_step", counting)
    return steps


def test_skipped_update_is_not_averaged(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls, steps = GuardedStep.__call__, [], count_averages(monkeypatch)

    def poisoning(self: GuardedStep, model: nn.Module, optimizer: Any, x: Tensor, *rest: Any) -> Any:
        calls.append(1)
        return real(self, model, optimizer, x * float("nan") if len(calls) == 3 else x, *rest)

    monkeypatch.setattr(GuardedStep, "__call__", poisoning)
    train(tiny.changed(average="ema", on_nan="skip", epochs=1), name="run", threads=1)
    assert steps == [step for step in range(len(calls)) if step != 2]


def test_overflowing_update_is_not_averaged(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, updated = count_averages(monkeypatch), []
    real = GuardedStep.__call__

    def noting(self: GuardedStep, *args: Any) -> Any:
        answer = real(self, *args)
        updated.append(self.updated)
        return answer

    monkeypatch.setattr(GuardedStep, "__call__", noting)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)  # the first step overflows
    monkeypatch.setattr(loop, "grad_scaler", lambda *_: scaler)
    train(tiny.changed(average="ema", precision="float16", epochs=1), name="run", threads=1)
    assert updated[0] is False
    assert all(updated[1:])
    assert steps == list(range(1, len(updated)))


# Silence


def test_progress_none_prints_nothing(tiny: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(tiny, name="run", threads=1, progress="none").run
    resume(run.path, progress="none")
    assert capfd.readouterr() == ("", "")
    resume(run.path)
    assert "finished" in capfd.readouterr().err
    (run.path / "summary.json").unlink()
    (run.path / "best.safetensors").unlink()  # which would be worth a note
    resume(run.path, progress="none", threads=1)
    assert capfd.readouterr() == ("", "")
