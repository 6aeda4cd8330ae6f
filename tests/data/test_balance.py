"""Classes of unequal size, images of unequal weight: the loss against PyTorch's, the order of an epoch, resuming."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from cnnlab import CnnlabError, Recipe, train
from cnnlab.data.augment import Augmentation
from cnnlab.data.balance import balanced_order, loss_weights
from cnnlab.data.imageset import ImageSet
from cnnlab.data.loader import Loader, Preprocessing
from cnnlab.training.header import balance_lines
from cnnlab.training.optim import make_optimizer
from cnnlab.training.step import train_step
from conftest import Command, one_line_error

CPU = torch.device("cpu")


def image_set(counts: list[int], weights: list[float] | None = None, side: int = 4) -> ImageSet:
    """Return images of random pixels, sorted by class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.randint(256, (len(labels), 1, side, side), generator=torch.Generator().manual_seed(0)).byte()
    ids, classes = [f"{i}.png" for i in range(len(labels))], [f"c{k}" for k in range(len(counts))]
    return ImageSet(images, labels, ids, classes, weights=None if weights is None else torch.tensor(weights))


def batches(
    images: ImageSet, balance: str = "none", size: int = 8, **augmentation: float
) -> list[tuple[Tensor, Tensor]]:
    pre = Preprocessing.of(images.images, image_size=0, fit="pad", normalize=True)
    loader = Loader(images, pre, size, CPU, balance=balance, augmentation=Augmentation(**augmentation))
    return list(loader.shuffled(3, 1))


def linear_network(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()


def step_loss(model: nn.Module, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Run a step and return its loss. The parameters keep the gradients."""
    return train_step(model, make_optimizer(model, Recipe()), x.double(), y, smoothing)[0]


def test_class_weights_match_pytorchs_cross_entropy() -> None:
    counts = [2, 5, 0, 13]
    images, model, reference = image_set(counts), linear_network(4), linear_network(4)
    # 20 images, 3 classes with images: the weight of a class with n images is 20 / (3 n)
    weight = torch.tensor([20 / 3 / n if n else 0.0 for n in counts], dtype=torch.float64)
    torch.testing.assert_close(loss_weights(images, "weights"), weight[images.labels].float())
    for (x, y), (x2, plain) in zip(batches(images, "weights"), batches(images), strict=True):
        assert torch.equal(x, x2)
        loss = step_loss(model, x, y.double())
        expected = nn.CrossEntropyLoss(weight=weight)(reference(x.double()), plain)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-8)
            p.data, q.grad = q.data.clone(), None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_an_image_of_weight_three_counts_like_three_images(smoothing: float) -> None:
    weights = [1.0, 3.0, 2.0, 1.0, 1.0]
    images = image_set([2, 3], weights)
    ((x, y),) = batches(images)
    loss = step_loss(linear_network(2), x, y.double(), smoothing)
    ((plain_x, plain_y),) = batches(replace(images, weights=None))
    assert torch.equal(x, plain_x)
    # the sums of the rows are proportional to the weights
    times = (y.sum(1) / y.sum(1).min()).round().long()
    assert sorted(times.tolist()) == sorted(map(int, weights))
    copies = plain_x.repeat_interleave(times, 0), plain_y.repeat_interleave(times)
    torch.testing.assert_close(loss, step_loss(linear_network(2), *copies, smoothing), rtol=1e-6, atol=0)


def test_mixed_images_carry_the_weights_of_both() -> None:
    weights = [0.5, 4.0, 1.0, 2.0, 1.0, 0.25]
    images, size = image_set([3, 3], weights), 6
    ((x, y),) = batches(images, "weights", size, mixup=1.0)
    ((x2, plain),) = batches(replace(images, weights=None), size=size, mixup=1.0)
    assert torch.equal(x, x2)
    # one batch holds all images; the weights scale the mixed labels, but the same classes are mixed
    assert (y[:, 0] > 0).equal(plain[:, 0] > 0)
    own = replace(images, weights=torch.full((6,), 7.0))
    assert torch.equal(batches(own, size=size, mixup=1.0)[0][1], plain)  # equal weights change nothing
    single = batches(image_set([3, 3], [2.0] * 3 + [1.0] * 3), size=size, mixup=1.0)[0][1]
    torch.testing.assert_close(single, plain * torch.tensor([2.0, 1.0]) / 1.5)  # the mean weight is 1


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), seed=st.integers(0, 9))
def test_the_sampler_draws_each_class_equally_often(counts: list[int], seed: int) -> None:
    labels = image_set(counts).labels
    order = balanced_order(labels, torch.Generator().manual_seed(seed))
    assert torch.equal(order, balanced_order(labels, torch.Generator().manual_seed(seed)))
    assert len(order) == len(labels)
    drawn = [n for n, k in zip(torch.bincount(labels[order], minlength=len(counts)).tolist(), counts, strict=True) if k]
    assert max(drawn) - min(drawn) <= 1
    times = torch.bincount(order, minlength=len(labels))
    for k in range(len(counts)):  # within a class, images are drawn equally often, too
        members = times[labels == k]
        assert len(members) == 0 or int(members.max() - members.min()) <= 1


def test_an_epoch_of_the_sampler_depends_on_seed_and_epoch_and_continues_anywhere() -> None:
    images = image_set([3, 30], [1.0] * 32 + [2.0])
    pre = Preprocessing.of(images.images, image_size=0, fit="pad", normalize=True)
    loader = Loader(images, pre, 5, CPU, balance="sampler", augmentation=Augmentation(shift=1, mixup=0.4, cutmix=0.4))
    assert len(loader) == 7
    whole = list(loader.shuffled(0, 2))
    assert not torch.equal(whole[0][0], next(loader.shuffled(0, 3))[0])
    for done in (1, 4):
        first = loader.shuffled(0, 2)
        for _ in range(done):
            next(first)
        rest = list(loader.shuffled(0, 2, start=first.state()))
        assert all(torch.equal(a, b) for one, two in zip(whole[done:], rest, strict=True)
                   for a, b in zip(one, two, strict=True))  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf"), -float("inf")])
def test_an_invalid_weight_names_its_image(bad: float) -> None:
    with pytest.raises(CnnlabError, match=r"1\.png"):
        image_set([2, 1], [1.0, bad, 1.0])


def test_a_training_explains_what_balance_does(cnnlab: Command, tmp_path: Path) -> None:
    images = image_set([3, 27])
    (hint,) = balance_lines(images, "none")
    assert "9 times" in hint
    assert "balance=weights" in hint
    assert not list(balance_lines(image_set([6, 29]), "none"))
    (line,) = balance_lines(images, "weights")
    assert re.search(r"c0 \(3 images\).*\bweight 5\b", line)  # 30 / (2 * 3)
    (line,) = balance_lines(image_set([4, 4]), "weights")
    assert "4 images" in line
    line, own = balance_lines(image_set([3, 27], [0.5] * 20 + [2.0] * 10), "sampler")
    assert re.search(r"c0 \(3 images\).*\b5 times", line)
    assert "0.5 to 2 times" in own
    for name, count, level in (("rare", 3, 200), ("common", 30, 50)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("L", (28, 28), level + i).save(tmp_path / name / f"{i}.png")
    common = ("train", "--data", f"folder:{tmp_path}", "--epochs", 1, "--set")
    answer = cnnlab(*common, "balance=weights")
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"balance: weights.*\brare \(2 images\)", answer.stderr)
    assert "balance='wieghts'" in one_line_error(cnnlab(*common, "balance=wieghts"))


def test_images_of_weight_zero_are_not_trained_on(quick: Recipe) -> None:
    images = image_set([20, 20], [0.0] * 10 + [1.0] * 20 + [3.0] * 10, side=28)
    recipe = quick.changed(val_fraction=0.5, epochs=1, batch_size=8)
    result = train(recipe, images, name="run", threads=1)
    left = result.summary["images"]["train"]
    assert left < 20
    # the weights are part of a run's training data
    other = train(recipe, replace(images, weights=images.weights.clamp(max=1.0)), name="other", threads=1)  # type: ignore[union-attr]
    assert other.run.info["data"]["fingerprint"] != result.run.info["data"]["fingerprint"]
    with pytest.raises(CnnlabError, match="weight 0"):
        train(recipe, replace(images, weights=torch.zeros(40)), threads=1)
