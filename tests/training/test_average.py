"""Averaged weights and growing images, against plain loops."""

from __future__ import annotations

import copy
import math
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from comparing import interrupted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cnnlab import Recipe, train
from cnnlab.io.errors import CnnlabError
from cnnlab.training import loop as training
from cnnlab.training import train as starting_point
from cnnlab.training.average import Average, averaged_weights
from cnnlab.training.optim import make_optimizer, size_in_epoch
from cnnlab.training.runs import change_recipe, open_run
from cnnlab.training.step import train_step
from conftest import Command, one_line_error


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 2, 4, 4), torch.randint(3, (8,))


def floats(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in copy.deepcopy(model.state_dict()).items() if v.is_floating_point()}


def decay_at(update: int, decay: float) -> float:
    return min(decay, update / (update + 9))


@settings(deadline=None, max_examples=10)
@given(decay=st.floats(0, 0.99), every=st.integers(1, 4), steps=st.integers(1, 12))
def test_ema_matches_a_plain_loop(decay: float, every: int, steps: int) -> None:
    model = network()
    recipe = Recipe(average="ema", average_decay=decay, average_every=every, momentum=0.9)
    optimizer, average = make_optimizer(model, recipe), Average(model, recipe)
    mean, updates = floats(model), 0
    for step in range(steps):
        train_step(model, optimizer, *batch())
        before = floats(model)
        average.after_step(step)
        assert all(torch.equal(before[k], v) for k, v in floats(model).items())  # the model is unchanged
        if (step + 1) % every == 0:
            updates += 1
            d = decay_at(updates, decay)
            mean = {k: d * mean[k] + (1 - d) * before[k] for k in mean}
    assert average.tensors.keys() == mean.keys() >= {"0.weight", "1.running_mean", "1.running_var", "4.bias"}
    for name, value in mean.items():
        torch.testing.assert_close(average.tensors[name], value, rtol=1e-5, atol=1e-6)


def test_ema_matches_torchs_averaged_model() -> None:
    model = network()
    recipe = Recipe(average="ema", average_decay=0.6)
    optimizer, average = make_optimizer(model, recipe), Average(model, recipe)
    theirs = AveragedModel(
        model,
        avg_fn=lambda mean, own, n: mean.lerp(own, 1 - decay_at(int(n), 0.6)) if own.is_floating_point() else own,
        use_buffers=True,
    )
    theirs.update_parameters(model)  # the first update only copies
    for step in range(15):
        train_step(model, optimizer, *batch())
        average.after_step(step)
        theirs.update_parameters(model)
    for name, value in floats(theirs.module).items():
        torch.testing.assert_close(average.tensors[name], value, rtol=1e-6, atol=1e-7)
    with averaged_weights(average):  # the weights that are evaluated and saved
        x = torch.randn(5, 2, 4, 4)
        torch.testing.assert_close(model.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=10)
@given(decay=st.floats(0, 0.9), every=st.integers(1, 4), steps=st.integers(1, 12))
def test_lookahead_matches_a_plain_loop(decay: float, every: int, steps: int) -> None:
    recipe = Recipe(average="lookahead", average_decay=decay, average_every=every, momentum=0.9)
    model, plain = network(), network()
    optimizer, average = make_optimizer(model, recipe), Average(model, recipe)
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    slow, updates = floats(plain), 0
    for step in range(steps):
        x, y = batch()
        train_step(model, optimizer, x, y)
        average.after_step(step)
        other.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        other.step()
        if (step + 1) % every == 0:
            updates += 1
            d = decay_at(updates, decay)
            own = floats(plain)
            slow = {k: d * slow[k] + (1 - d) * own[k] for k in slow}
            plain.load_state_dict({**plain.state_dict(), **slow})
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for name, value in slow.items():
        torch.testing.assert_close(average.tensors[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_averaged_weights_are_swapped_back_after_an_error(layout: torch.memory_format) -> None:
    model = network().to(memory_format=layout)
    recipe = Recipe(average="ema", average_decay=0.9)
    optimizer, average = make_optimizer(model, recipe), Average(model, recipe)
    train_step(model, optimizer, *batch())
    train_step(model, optimizer, *batch())
    average.after_step(0)
    own, mean = floats(model), copy.deepcopy(average.tensors)
    seen = {}
    with suppress(KeyboardInterrupt), averaged_weights(average):
        seen = floats(model)
        raise KeyboardInterrupt
    assert all(torch.equal(v, mean[k]) for k, v in seen.items())
    assert not torch.equal(own["0.weight"], seen["0.weight"])
    assert all(torch.equal(v, own[k]) for k, v in floats(model).items())
    assert all(torch.equal(v, mean[k]) for k, v in average.tensors.items())
    assert model[0].weight.is_contiguous(memory_format=layout)
    with averaged_weights(None):
        assert all(torch.equal(v, own[k]) for k, v in floats(model).items())


# In a training


def small_recipe(shapes: Path, **changes: object) -> Recipe:
    recipe = Recipe(
        name="small",
        model="resnet18-small",
        data=f"folder:{shapes}",
        epochs=3,
        batch_size=16,
        learning_rate=0.05,
        momentum=0.9,
        schedule="trapezoid",
        val_fraction=0.2,
        start_size=12,
        flip=True,
    )
    return replace(recipe, **changes)  # type: ignore[arg-type]


def test_saved_weights_equal_the_average(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last and best weights equal the average of the weights of all steps, computed afterwards."""
    recipe = small_recipe(shapes, average="ema", average_decay=0.8, epochs=3, start_size=0)
    real_step, real_average = training.train_step, starting_point.Average
    seen: list[dict[str, Tensor]] = []

    def starting(model: nn.Module, recipe: Recipe) -> Average:
        seen.append(floats(model))
        return real_average(model, recipe)

    def stepping(model: nn.Module, *rest: object) -> object:
        answer = real_step(model, *rest)  # type: ignore[arg-type]
        seen.append(floats(model))
        return answer

    monkeypatch.setattr(starting_point, "Average", starting)
    monkeypatch.setattr(training, "train_step", stepping)
    result = train(recipe, name="run", threads=1)
    mean = seen[0]
    after = []
    for update, own in enumerate(seen[1:], 1):
        d = decay_at(update, 0.8)
        mean = {k: d * mean[k] + (1 - d) * own[k] for k in mean}
        after.append(mean)
    each = len(after) // recipe.epochs
    for which, epoch in (("last", recipe.epochs), ("best", result.summary["best_epoch"])):
        saved = safetensors.torch.load_file(result.run.path / f"{which}.safetensors")
        for name, value in after[each * epoch - 1].items():
            torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)


def test_checkpoint_without_averages_is_an_error(shapes: Path, cnnlab: Command) -> None:
    run = open_run(interrupted(small_recipe(shapes), 3))
    change_recipe(run, replace(run.recipe, average="ema"))
    line = one_line_error(cnnlab("train", "--resume", "runs/run"))
    assert re.search(r"checkpoint\.safetensors.*averaged weights", line)


# Growing images


@given(start=st.integers(1, 300), size=st.integers(1, 300), epochs=st.integers(1, 60))
def test_images_grow_evenly_to_their_size(start: int, size: int, epochs: int) -> None:
    recipe = Recipe(start_size=start, epochs=epochs)
    sizes = [size_in_epoch(recipe, size, epoch) for epoch in range(epochs)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == size
    assert all(s == size or s % 2 == 0 for s in sizes)
    assert all(min(start, size) <= s <= size for s in sizes)
    if start >= size:
        assert set(sizes) == {size}
    elif epochs > 1:
        assert sizes[0] <= start + 1
        assert sizes.count(size) >= epochs // 4
        growing = sizes[: min(round(0.75 * epochs), epochs - 1)]
        steps = [b - a for a, b in zip(growing, growing[1:], strict=False)]
        assert not steps or max(steps) - min(steps) <= 2  # equal steps, except for rounding to even numbers
    assert size_in_epoch(replace(recipe, start_size=0), size, 0) == size


def test_images_grow_during_a_run(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = training.train_step, []

    def record_size(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, *rest: object) -> object:
        seen.append(x.shape[2])
        return real(model, optimizer, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train_step", record_size)
    result = train(small_recipe(shapes, epochs=4), threads=1)
    assert seen == [12] * 2 + [16] * 2 + [18] * 2 + [20] * 2
    assert math.isfinite(result.summary["loss"])


def test_only_full_batches_of_the_final_size_are_compiled(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Compiled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return self.model(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(training, "prepare_model", lambda model, *how: Compiled(model))
    train(
        small_recipe(shapes, batch_size=12), threads=1
    )  # 32 images: two batches of 12 and one of 8, sizes 12, 16 and 20
    assert seen == [(12, 3, 20, 20)] * 2


@pytest.mark.parametrize("model", ["lenet", "lenet-bn", "vgg11-small"])
def test_start_size_with_a_network_of_fixed_size_is_an_error(model: str, shapes: Path, cnnlab: Command) -> None:
    settings = ("--set", "start_size=32", "--set", "image_size=64")
    line = one_line_error(cnnlab("train", model, "--data", f"folder:{shapes}", *settings, "--name", "x"))
    assert re.search(rf"start_size=32\b.*\b{model}\b.*\b64 pixels.*\b32\b", line)
    assert "start_size=0" in line
    assert not Path("runs/x").exists()


def test_start_size_above_the_image_size_is_an_error(shapes: Path) -> None:
    with pytest.raises(CnnlabError, match=r"start_size=40.*\b20\b"):
        train(small_recipe(shapes, start_size=40))
    with pytest.raises(CnnlabError, match="start_size=40.*image_size=28"):
        small_recipe(shapes, start_size=40, image_size=28)
