"""What the lessons claim, against the committed trainings of several seeds or a small computation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from cnnlab.chapter import lessons
from cnnlab.chapter.figures import normal_residual
from cnnlab.chapter.lessons import show
from cnnlab.training.optim import initialize


def last(lesson: str, figure: str) -> dict[str, list[float]]:
    """Return a figure of the last epoch for each training of a lesson: a value for each seed."""
    newest = max(show.results_folder().glob(f"lesson-{lesson.replace('_', '-')}_*.json"), key=lambda p: p.stem[-10:])
    found = json.loads(newest.read_text())
    assert found["n"] >= 3
    return {name: [epochs[-1] for epochs in figures[figure]] for name, figures in found["trainings"].items()}


def of(figures: dict[str, list[float]], start: str) -> list[float]:
    """Return the figures of the one training whose name starts so, followed by its settings or nothing."""
    (name,) = [name for name in figures if name == start or name.startswith(f"{start},")]
    return figures[name]


@pytest.mark.parametrize("lesson", lessons.lessons())
def test_a_table_of_seeds_has_every_network_of_its_lesson(lesson: str) -> None:
    text = "\n".join(cell.text for cell in lessons.read(lesson) if not cell.language)
    for name, figure in re.findall(r'show\.seeds\("(\w+)"(?:, "(\w+)")?\)', text):
        assert name == lesson
        table = show.seeds(name, *filter(None, [figure])).data
        for values in last(name, figure or "val_acc").values():
            assert f"| {', '.join(f'{v:.3f}' for v in values)} |" in table


# ResNet


def test_plain_deep_networks_are_worse_on_their_training_images_and_residual_ones_are_not() -> None:
    train = last("08_resnet", "train_acc")
    plain_4, plain_16, residual_4, residual_16 = (
        of(train, name) for name in ("plain-4", "plain-16", "residual-4", "residual-16")
    )
    assert max(plain_16) < min(plain_4) - 0.1
    assert min(residual_16) > 0.99
    assert abs(sum(residual_16) - sum(residual_4)) / len(residual_4) < 0.01
    for name in train:
        assert "init=he-normal" in name or name.startswith("resnet18-small")


def relative_gradient(scheme: str, depth: int = 30) -> float:
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(depth)])
    initialize(layers, scheme)
    x = torch.randn(16, 64, requires_grad=True)
    y = layers(x)
    towards = torch.randn_like(y)
    (y * towards).sum().backward()
    assert x.grad is not None
    return (x.grad.norm() / towards.norm()).item()


def test_whether_gradients_vanish_depends_on_the_initial_weights() -> None:
    assert relative_gradient("pytorch") < 1e-10
    assert 0.1 < relative_gradient("he-normal") < 10


def test_the_residual_is_named_as_in_the_figure() -> None:
    """The lesson: f(x) = g(x) + x, so the layers of the block compute f(x) - x, which figure 1.5 writes into them."""
    normal, residual = normal_residual()
    assert (normal.frame_title, residual.frame_title) == ("f(x)", "f(x) − x")
    for language in lessons.LANGUAGES:
        text = "\n".join(cell.text for cell in lessons.read("08_resnet") if cell.language == language)
        assert "$f(x) = g(x) + x$" in text
        assert "$g(x) = f(x) - x$" in text
        assert "g(x) = f(x) + x" not in text


# NiN, GoogLeNet: what an average forgets


def test_linear_layers_know_positions_and_averages_do_not() -> None:
    def moved(head: Callable[[torch.Tensor], torch.Tensor]) -> float:
        x = torch.zeros(1, 4, 5, 5)
        x[0, :, 0, 0] = 1
        return (head(x) - head(x.flip(2, 3))).abs().max().item()

    torch.manual_seed(0)
    assert moved(nn.Sequential(nn.Flatten(), nn.Linear(100, 10))) > 0.1
    assert moved(nn.AdaptiveAvgPool2d(1)) == 0
