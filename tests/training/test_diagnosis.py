"""The diagnosis of a training: each fault in a synthetic history, and none in a healthy one."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab import Recipe, train
from cnnlab.training.diagnosis import Finding, active_units, diagnose

COUNTS = [500] * 10


def history(n: int = 10, seed: int = 0, **last: list[float]) -> list[dict[str, Any]]:
    """Return noisy rows of a healthy training of n epochs. last: figures that replace those of the last epochs."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        loss = 2.0 * 0.5**i + 0.05 + draw.uniform(0, 0.01)
        accuracy = 1 - 0.5 * 0.4**i - 0.02 - draw.uniform(0, 0.005)
        rows.append({"epoch": i + 1, "loss": loss, "train_acc": accuracy, "val_loss": loss + draw.uniform(0, 0.05),
                     "val_acc": accuracy - draw.uniform(0, 0.02)})  # fmt: skip
    for key, values in last.items():
        for row, value in zip(rows[-len(values) :], values, strict=True):
            row[key] = value
    return rows


def findings_of(
    rows: list[dict[str, Any]], dead: float = 0.05, counts: list[int] = COUNTS, recalls: dict[int, float] | None = None,
    recipe: Recipe | None = None, **changes: Any,
) -> list[Finding]:  # fmt: skip
    classes = [
        {"class": str(k), "support": max(1, n // 10), "recall": (recalls or {}).get(k, 0.96)}
        for k, n in enumerate(counts)
    ]
    summary = {"shared": {"validation": 0}, "images": {"validation": sum(counts) // 10}, "skipped_updates": 0,
               "stopped": False, "figures": {"classes": classes}, **changes}  # fmt: skip
    return diagnose(summary, rows, recipe or Recipe(epochs=len(rows)), counts, dead)


@pytest.mark.parametrize("seed", range(30))
def test_a_healthy_training_has_no_finding(seed: int) -> None:
    assert findings_of(history(5 + seed, seed)) == []
    assert findings_of(history(5 + seed, seed), counts=[500] * 9 + [20], recalls={9: 0.9}) == []


@pytest.mark.parametrize("loss", [[0.0, 0.0, 1e-4], [0.0, 1e-7, 0.004], [0.3, 0.0, 1e-3]])
def test_a_loss_of_zero_is_not_a_fault(loss: list[float]) -> None:
    assert [f.name for f in findings_of(history(loss=loss))] == []


def test_a_jump_from_a_loss_of_zero_is_found() -> None:
    (finding,) = findings_of(history(loss=[0.5, 0.0, 2.0, 0.1]))
    assert finding.name == "learning rate"
    assert math.isfinite(finding.figure)


@pytest.mark.parametrize(
    ("name", "figure", "rows", "more"),
    [
        ("overfitting", 0.2, history(train_acc=[0.98], val_acc=[0.78] * 5), {}),
        ("learning rate", 3, history(), {"skipped_updates": 3}),
        ("learning rate", 4.0, history(loss=[0.5, 2.0, 0.4]), {}),
        ("learning rate", 1.5, history(loss=[3.0, *[2.5] * 8, 4.5]), {}),
        ("nothing learned", 0.1, history(loss=[2.3] * 10, train_acc=[0.1] * 10, val_acc=[0.1] * 10), {}),
        ("underfitting", 0.6, history(loss=[1.3, *[1.1] * 9], train_acc=[0.6] * 9, val_acc=[0.6] * 9), {}),
        ("still improving", 0.1, history(4, train_acc=[0.7, 0.8, 0.85, 0.93], val_acc=[0.7, 0.75, 0.8, 0.9]), {}),
        ("dead units", 0.5, history(), {"dead": 0.5}),
        ("imbalance", 0.2, history(), {"counts": [500] * 9 + [50], "recalls": {9: 0.2}}),
        ("leak", 0.02, history(), {"shared": {"validation": 10}}),
    ],
)
def test_each_fault_is_found_with_its_figure(
    name: str, figure: float, rows: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    (finding,) = findings_of(rows, **more)
    assert finding.name == name
    assert finding.figure == pytest.approx(figure, abs=0.02)
    assert finding.text
    assert finding.remedy


def test_findings_allow_for_chance_and_for_what_the_recipe_does() -> None:
    small = [5] * 4  # two validation images: an accuracy of 0.5 says little
    assert findings_of(history(train_acc=[0.9], val_acc=[0.5] * 10), counts=small) == []
    low = history(loss=[1.3, *[1.1] * 9], train_acc=[0.6] * 9, val_acc=[0.6] * 9)
    assert findings_of(low, recipe=Recipe(epochs=10, mixup=0.4)) == []
    frozen = history(10, loss=[1.0] * 4 + [1.8, 1.0, 0.6, 0.4, 0.3, 0.3])  # all layers train from epoch 5 on
    assert findings_of(frozen)
    assert findings_of(frozen, recipe=Recipe(epochs=10, freeze_epochs=4)) == []
    improving = history(4, train_acc=[0.7, 0.8, 0.85, 0.93], val_acc=[0.7, 0.75, 0.8, 0.9])
    assert findings_of(improving, stopped=True) == []


def test_dead_units_are_units_that_no_image_activates() -> None:
    relu = nn.ReLU()  # used twice
    model = nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Flatten(), nn.Linear(4 * 36, 6), relu, nn.Linear(6, 2))
    with torch.no_grad():
        for layer, dead in ((model[0], 1), (model[3], 2)):
            layer.bias[:] = 5.0
            layer.weight.mul_(0.01)
            layer.bias[:dead] = -5.0
    x = torch.randn(6, 1, 8, 8)
    with active_units(model) as fraction:
        for part in x.split(4):
            model(part)
        assert fraction() == pytest.approx(3 / 10)
    with active_units(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))) as fraction:
        assert fraction() == 0


def test_a_training_reports_its_findings(quick: Recipe) -> None:
    result = train(quick.changed(learning_rate=0.0001, optimizer="sgd"), name="run", progress="none", threads=1)
    findings = result.summary["findings"]
    assert findings
    assert f"note: {findings[0]['text']}; try {findings[0]['remedy']}" in str(result).splitlines()
    tested = train(replace(quick, eval_split="test", epochs=1), name="test", progress="none", threads=1)
    assert "findings" not in tested.summary
