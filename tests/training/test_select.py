"""Choice of the best epoch, and patience: also after a kill, training stops at the same epoch with the same bits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from comparing import figures, interrupted
from sklearn.metrics import f1_score

from cnnlab import CnnlabError, Recipe, evaluate_run, resume, train
from cnnlab.recipe import SELECT
from cnnlab.training import checkpoint, loop
from cnnlab.training.curves import curves
from cnnlab.training.progress import Progress, out_of_patience
from cnnlab.training.runs import Run
from conftest import Command, one_line_error

# A network without batch norm and a learning rate of 0: nothing ever improves.
STILL: dict[str, Any] = {
    "model": "lenet",
    "learning_rate": 0.0,
    "epochs": 6,
    "limit": 64,
    "batch_size": 32,
    "patience": 2,
}


def rows(**figures: list[float]) -> list[dict[str, Any]]:
    columns = {"epoch": range(1, 1 + len(next(iter(figures.values())))), **figures}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(("select", "best"), [("accuracy", 1), ("balanced_accuracy", 3), ("macro_f1", 2), ("loss", 4)])
def test_the_selected_figure_chooses_the_best_epoch(select: str, best: int) -> None:
    found = rows(val_acc=[0.9, 0.8, 0.8, 0.8], val_balanced_acc=[0.5, 0.5, 0.7, 0.7], val_macro_f1=[0.4, 0.8, 0.7, 0.7],
                 val_loss=[0.7, 0.6, 0.4, 0.3] if select == "loss" else [0.7, 0.6, 0.3, 0.4])  # fmt: skip
    recipe, progress = Recipe(select=select), Progress()
    for row in found:
        progress = progress.finish(row, recipe)
    assert progress.best_epoch == best
    figure = curves([{**row, "loss": 0.5, "train_acc": 0.5} for row in found], recipe)
    assert any(f"best epoch: {best}, {recipe.best_by.split('_')[0]} " in text.get_text()
               for legend in figure.legends for text in legend.get_texts())  # fmt: skip


def test_patience_counts_from_the_best_epoch_or_from_where_a_run_continues() -> None:
    accuracies = [0.5, 0.7, 0.7, 0.6, 0.7, 0.71]
    found = rows(val_acc=accuracies, val_loss=[0.9 - 0.1 * k for k in range(6)])  # a falling loss is no improvement

    def stops(info: dict[str, Any], patience: int) -> list[int]:
        run = Run(Path("run"), Recipe(epochs=9, patience=patience), info)
        return [n for n in range(1, 7) if out_of_patience(found[:n], run)]

    assert stops({}, 0) == stops({}, 4) == []
    assert stops({}, 3) == [5]
    assert stops({}, 2) == [4, 5]
    assert stops({"from": {"kind": "continued", "epochs": 4}}, 2) == []
    assert stops({"from": {"kind": "weights"}}, 3) == [5]
    run = Run(Path("run"), Recipe(epochs=5, patience=3), {})
    assert not out_of_patience(found[:5], run)  # that was the last one anyway


def test_a_training_stops_early_even_after_an_interruption(quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick.changed(**STILL)
    whole = train(recipe, name="whole", threads=1)
    assert (whole.summary["epochs"], whole.summary["stopped"], whole.summary["stopped_by"]) == (3, True, "patience")
    assert whole.summary["best_epoch"] == 1
    assert re.search("epoch 3 of 6.*val acc.*2 epochs", str(whole))
    for module, function, turn in (
        (loop, "train_step", 6),
        (checkpoint, "save_checkpoint", 4),
        (loop, "save_epoch", 3),
    ):
        path = interrupted(recipe, turn, f"{function}", module, function)
        again = resume(path, threads=1)
        assert figures(path) == figures(whole.run.path), function
        for name in ("last.safetensors", "best.safetensors"):
            assert (path / name).read_bytes() == (whole.run.path / name).read_bytes()
        assert str(again).splitlines()[3] == str(whole).splitlines()[3]
    more = resume(path, threads=1, epochs=9, name="more")  # with more epochs, patience counts anew
    assert more.summary["epochs"] == 5  # type: ignore[union-attr]


def test_a_run_names_the_figure_that_chose_its_best_epoch(quick: Recipe, cnnlab: Command) -> None:
    result = train(quick.changed(select="balanced_accuracy"), name="run", threads=1)
    s, history = result.summary, result.history
    assert s["best_by"] == "val_balanced_acc"
    assert s["best"] == max(row["val_balanced_acc"] for row in history)
    assert f"best epoch {s['best_epoch']} with val balanced acc {s['best']:.3f}" in str(result)
    text = cnnlab("runs", "run").stdout
    assert "val balanced acc" in text
    # the figures of the chosen weights equal those of an evaluation
    found = evaluate_run("run", split="validation", threads=1)
    figures = found.to_dict()
    assert s["figures"]["weights"] == "best"
    for key in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert s["figures"][key] == figures[key], key
        low, high = s["figures"]["intervals"][key]
        assert low <= figures[key] <= high
    assert s["figures"]["classes"][3]["recall"] == figures["classes"][3]["recall"]
    images = found.images
    assert images is not None
    expected = f1_score(images.labels.numpy(), found.result.predicted.numpy(), average="macro")  # type: ignore[union-attr]
    assert figures["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("setting", ["patience=3", *(f"select={name}" for name in SELECT if name != "accuracy")])
def test_selecting_on_the_test_set_is_refused(setting: str, cnnlab: Command) -> None:
    for split in ("test", "train"):
        line = one_line_error(cnnlab("train", "--set", setting, "--set", f"eval_split={split}"))
        assert setting.partition("=")[0] in line
        assert "eval_split=validation" in line
    with pytest.raises(CnnlabError, match="patience=-1"):
        Recipe(patience=-1)
