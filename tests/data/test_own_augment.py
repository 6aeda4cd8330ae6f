"""The caller's own augmentation: what it gets and may return, and that a resumed training repeats its draws."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from augmenting import pictures
from torch import Tensor, nn
from torchvision.transforms import v2

import cnnlab
from cnnlab import CnnlabError, Recipe, TrainingInterrupted, open_run, resume, train, train_seeds
from cnnlab.data.own_augment import OwnAugmentation
from cnnlab.recipes import RECIPES
from cnnlab.training import loop

ROTATION = v2.Compose([v2.RandomRotation(20), v2.RandomErasing(p=0.5)])
QUICK: Recipe = RECIPES["digits"].changed(name="quick", model="lenet", epochs=2, limit=64, batch_size=16, save_steps=1)


def every_generator(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change the brightness with draws from the given generator and from those of torch, NumPy and Python."""
    draws = torch.rand(len(images), generator=generator), torch.rand(len(images)), torch.rand(len(images))
    factor = 0.5 + sum(draws) / 6 * random.random() * np.random.rand()
    images *= factor.view(-1, 1, 1, 1)  # working in place is allowed
    return images


class Brighter(nn.Module):
    def forward(self, images: Tensor, strength: float = 0.5) -> Tensor:
        return images * strength


@pytest.mark.parametrize(
    "function", [every_generator, ROTATION, Brighter(), lambda images: images.flip(3), partial(torch.clamp, max=0.5)]
)
def test_draws_depend_only_on_the_seed_and_disturb_no_other_generator(function: Any) -> None:
    own, x = OwnAugmentation(function), pictures(6, 3, 12, 12)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    one, other = own(x.clone(), 7), own(x.clone(), 8)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr]
    torch.rand(5)
    assert torch.equal(one, own(x.clone(), 7))
    assert torch.equal(one, other) is (function not in (every_generator, ROTATION))
    assert not torch.equal(one, x)


def failing(images: Tensor) -> Tensor:
    raise ValueError(f"a line\nand another about {len(images)}")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x[:, :, 1:], "(2, 1, 27, 28)"),
        (lambda x: x.double(), "float64"),
        (lambda x: (x, 1), "tuple"),
        (lambda x: None, "NoneType"),
        (failing, "a line and another about 2"),
        (v2.RandomCrop(4), "(2, 1, 4, 4)"),
        ("flip", "str"),
    ],
)
def test_an_unusable_augmentation_is_one_line_before_a_run_is_created(function: Any, words: str, tmp_path: Any) -> None:
    with pytest.raises(CnnlabError) as caught:
        train(QUICK, augment=function, progress="none")
    assert words in str(caught.value)
    assert "augment=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("function", [every_generator, ROTATION])
def test_a_training_killed_within_an_epoch_repeats_the_draws(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(QUICK, name="whole", threads=1, progress="none", augment=function)
    plain = train(QUICK, name="plain", threads=1, progress="none")
    assert whole.summary["loss"] != plain.summary["loss"]
    real, calls = loop.train_step, []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:  # in the second epoch of four updates
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop)
        with pytest.raises(TrainingInterrupted, match=r"cnnlab\.resume\(.*augment="):
            train(QUICK, name="stopped", threads=1, progress="none", augment=function)
    run = open_run("runs/stopped")
    assert run.augment.endswith((":every_generator", ":Compose"))
    with pytest.raises(CnnlabError, match="augment="):
        resume(run.path, progress="none")
    resumed = resume(run.path, progress="none", augment=function)
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(CnnlabError, match=f"{plain.run.path}.*augment"):
        resume(plain.run.path, epochs=3, progress="none", augment=function)


def test_resuming_seeds_requires_the_augmentation_even_before_the_first_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cnnlab.training.train_series.train_run", stop)
        with pytest.raises(TrainingInterrupted, match="augment="):
            train_seeds(QUICK, 2, name="seeds", progress="none", augment=ROTATION)
    with pytest.raises(CnnlabError, match="augment="):
        resume("runs/seeds", progress="none")


def test_the_loader_applies_the_augmentation() -> None:
    batch, _ = next(iter(cnnlab.loader("digits", augment=lambda x: x * 0, normalize=False)))
    assert not batch.any()
