"""The errors listed in docs/errata.md, each in a small example, and cnnlab without them.

The faulty code is written from its description, as short as possible. None of it is copied from a listing.
"""

from __future__ import annotations

import ast
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import cnnlab
from cnnlab import RECIPES, ImageSet, Recipe, Run, build_model, evaluate_run, load_images, predict
from cnnlab.data.loader import Batches, Loader, Preprocessing
from cnnlab.inference import load_network
from cnnlab.io.errors import CnnlabError
from cnnlab.models import MODELS
from cnnlab.models.batch_norm import BatchNorm
from cnnlab.training.evaluate import evaluate
from cnnlab.training.optim import learning_rate, make_optimizer

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/errata.md", "docs/papers.md", "docs/adding-a-network.md")
CPU = torch.device("cpu")


def make_network(name: str, size: int, channels: int = 1, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=classes, in_channels=channels, image_size=size)


def weights(modules: nn.Module) -> int:
    return sum(p.numel() for p in modules.parameters())


def short_recipe(**changes: object) -> Recipe:
    return RECIPES["digits"].changed(epochs=1, **changes)


def digits_test() -> ImageSet:
    images = load_images("digits", "test")
    assert images is not None
    return images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of LeNet with batch norm, one epoch on the digits."""
    return cnnlab.train(short_recipe(), runs_dir=tmp_path_factory.mktemp("runs"), progress="none").run


@pytest.fixture
def model(trained: Run) -> nn.Module:
    return load_network(trained, trained.weights("last"))


@pytest.fixture(scope="module")
def pre(trained: Run) -> Preprocessing:
    return Preprocessing.from_dict(trained.info["preprocessing"])


# The chapter's text


def test_dividing_by_the_variance_does_not_normalise() -> None:
    x = torch.randn(4096, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 20.0]) + 5
    centred, variance = x - x.mean(0), x.var(0, correction=0)
    wrong = (centred / variance).std(0, correction=0)
    torch.testing.assert_close(wrong, 1 / variance.sqrt())  # 10, 1, 1/20: right only where the deviation is 1
    assert wrong.max() / wrong.min() > 100
    for layer in (BatchNorm(3, eps=1e-12).double(), nn.BatchNorm1d(3, eps=1e-12).double()):
        torch.testing.assert_close(layer(x).std(0, correction=0), torch.ones(3, dtype=torch.float64))


def test_alexnets_two_hidden_layers_take_172_megabytes() -> None:
    with torch.device("meta"):
        hidden = [m for m in make_network("alexnet", 224).modules() if isinstance(m, nn.Linear)][:2]
    assert [(m.in_features, m.out_features) for m in hidden] == [(6400, 4096), (4096, 4096)]
    assert sum(m.weight.numel() for m in hidden) == 42_991_616
    size = sum(p.numel() * p.element_size() for m in hidden for p in m.parameters())
    assert size == 171_999_232  # bytes, biases included
    assert size < 0.2 * 10**9


def test_a_class_whose_logit_is_cut_off_learns_nothing() -> None:
    x, y = torch.randn(4, 1, 67, 67), torch.zeros(4, dtype=torch.int64)  # all of class 0
    gradients = {}
    for name in ("nin", "nin-linear"):
        net = make_network(name, 67).eval()
        last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
        assert last.bias is not None
        with torch.no_grad():
            last.bias[0] = -100.0  # one bad update is enough
        logits = net(x)
        F.cross_entropy(logits, y).backward()
        assert last.weight.grad is not None
        gradients[name] = last.weight.grad[0].norm().item()
        assert (logits[:, 0] == 0).all() if name == "nin" else (logits[:, 0] < 0).all()
    assert gradients["nin"] == 0.0
    assert gradients["nin-linear"] > 0.0


# Batch norm from scratch, as the manual's source describes it


class NaiveBatchNorm(nn.Module):
    """Running statistics in plain tensors, gradient mode as the train/eval switch, the biased variance."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.mean, self.var = torch.zeros(features), torch.ones(features)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if torch.is_grad_enabled():
            mean, var = x.mean(0), x.var(0, correction=0)
            self.mean = 0.9 * self.mean + 0.1 * mean.detach()
            self.var = 0.9 * self.var + 0.1 * var.detach()
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


LAYERS: tuple[Callable[[int], nn.Module], ...] = (BatchNorm, nn.BatchNorm1d)


def test_statistics_that_are_not_buffers_are_lost_on_saving() -> None:
    x = torch.randn(64, 3) * 4 + 7

    def loses_statistics(kind: Callable[[int], nn.Module]) -> bool:
        used, loaded = kind(3), kind(3)
        used(x)
        loaded.load_state_dict(used.state_dict())
        with torch.no_grad():
            return not torch.equal(used.eval()(x), loaded.eval()(x))

    assert loses_statistics(NaiveBatchNorm)
    assert not any(loses_statistics(kind) for kind in LAYERS)


def test_gradient_mode_is_not_training_mode() -> None:
    x = torch.randn(64, 3) * 4 + 7

    def outputs_alone_and_in_a_batch(kind: Callable[[int], nn.Module]) -> tuple[Tensor, Tensor]:
        layer = kind(3)
        for _ in range(5):
            layer(x)
        layer.eval()  # gradients stay on, as when visualizing what a filter sees
        return layer(x[:2])[0], layer(x)[0]

    alone, company = outputs_alone_and_in_a_batch(NaiveBatchNorm)
    assert (alone - company).abs().max() > 0.1  # the answer depends on the other images
    for kind in LAYERS:
        alone, company = outputs_alone_and_in_a_batch(kind)
        assert torch.equal(alone, company)
        layer = kind(3)
        with torch.no_grad():  # training mode is still training mode without gradients
            assert layer(x).mean(0).abs().max() < 1e-4
    with torch.no_grad():
        assert NaiveBatchNorm(3).train()(x).mean(0).abs().max() > 1


def test_the_running_variance_of_small_batches_is_too_small() -> None:
    torch.manual_seed(0)
    batches = torch.randn(2000, 4, 2, dtype=torch.float64)  # the true variance is 1
    found = []
    for kind in (NaiveBatchNorm, *LAYERS):
        layer, variances = kind(2).double(), []
        for x in batches:
            layer(x)
            name = next(n for n in ("var", "moving_var", "running_var") if hasattr(layer, n))
            variances.append(getattr(layer, name).clone())
        found.append(torch.stack(variances)[100:].mean(0))
    assert (found[0] - 0.75).abs().max() < 0.05  # (n - 1) / n
    assert (found[1] - 1).abs().max() < 0.05
    torch.testing.assert_close(found[1], found[2])


def test_lenet_with_batch_norm_is_not_lenet_plus_batch_norm() -> None:
    plain, norm = make_network("lenet", 28), make_network("lenet-bn", 28)

    def first_linear(net: nn.Module) -> int:
        return next(m.in_features for m in net.modules() if isinstance(m, nn.Linear))

    assert (first_linear(plain), first_linear(norm)) == (400, 256)
    scales = sum(weights(m) for m in norm.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
    assert weights(plain) + scales == 62_158  # what adding batch norm alone would give
    assert weights(norm) == 44_878


# Images of 224 pixels


def multiply_adds(net: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.to("meta").eval()(torch.zeros(1, 1, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


def test_eight_times_the_side_is_sixty_four_times_the_work() -> None:
    # Exact for a convolution that keeps the side, and for VGG's blocks if the poolings divide the side evenly.
    keeps = nn.Conv2d(1, 4, kernel_size=3, padding=1)
    assert multiply_adds(keeps, 28) == 28 * 28 * 4 * 9
    assert multiply_adds(keeps, 224) == 64 * multiply_adds(keeps, 28)
    blocks = nn.Sequential(*[m for m in make_network("vgg11-quarter", 32) if isinstance(m, nn.Sequential)])
    assert len(blocks) == 5
    assert multiply_adds(blocks, 256) == 64 * multiply_adds(blocks, 32)
    # The manual's ResNet-18 takes images of 96 pixels, not 224.
    size = RECIPES["manual/resnet18"].image_size
    net = make_network("resnet18-manual", 28)
    assert size == 96
    assert f"{multiply_adds(net, size) / multiply_adds(net, 28):.1f} times" == "9.7 times"
    assert "take 9.7 times that network's work" in (ROOT / "docs" / "errata.md").read_text(encoding="utf-8")
    assert RECIPES["fashion-mnist"].image_size == 0  # ours keeps the images' own size


def test_an_enlarged_image_holds_no_new_information() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    large = Preprocessing.of(images, image_size=224, fit="pad", normalize=False)(images)
    assert large.shape == (3, 1, 224, 224)
    # Enlarging is a fixed matrix on both sides of the image ...
    matrix = F.interpolate(torch.eye(28).double()[:, None], size=224, mode="linear")[:, 0].T  # (224, 28)
    original = images.double() / 255
    torch.testing.assert_close(large.double(), matrix @ original @ matrix.T, rtol=0, atol=1e-5)
    # ... of rank 28, so every pixel of the small image can be recovered from the large one.
    assert torch.linalg.matrix_rank(matrix) == 28
    back = torch.linalg.pinv(matrix)
    assert torch.equal((back @ large.double() @ back.T * 255).round().to(torch.uint8), images)


# How the manual measures


def test_choosing_the_best_epoch_on_the_test_set_overstates_accuracy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    truth, images, epochs = 0.86, 10_000, 10
    test = rng.binomial(images, truth, (4000, epochs)) / images  # ten equally good epochs
    validation = rng.binomial(images, truth, (4000, epochs)) / images
    assert round(float(test.max(1).mean() - truth), 3) == 0.005
    assert abs(test[np.arange(4000), validation.argmax(1)].mean() - truth) < 0.0005

    read: list[str] = []

    def recorded(source: str, split: str, *rest: object) -> ImageSet | None:
        read.append(split)
        return load_images(source, split, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("cnnlab.data.splits.load_images", recorded)
    summary = cnnlab.train(short_recipe(limit=300), runs_dir=tmp_path, progress="none").summary
    assert "train" in read
    assert "test" not in read
    assert summary["best_by"] == "val_acc"
    on_test = cnnlab.train(
        short_recipe(limit=300, eval_split="test", val_fraction=0.0), runs_dir=tmp_path, progress="none"
    )
    assert "test" in read
    assert on_test.summary["best_by"] == "loss"  # even then the test set chooses nothing
    assert "test set" in str(on_test)


def test_without_a_seed_results_do_not_repeat(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    unseeded = []
    for _ in range(2):
        torch.seed()  # what a new process does
        unseeded.append(nn.Linear(28, 10).weight)
    torch.set_rng_state(before)
    assert not torch.equal(*unseeded)

    runs = [cnnlab.train(short_recipe(seed=s, limit=200), runs_dir=tmp_path, progress="none").run for s in (3, 3, 4)]
    one, same, other = ((r.path / "last.safetensors").read_bytes() for r in runs)
    assert one == same
    assert one != other


def test_throughput_without_loading_hides_slow_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pause, batches, quick = 0.05, 4, Batches.__next__

    def slow(self: Batches) -> tuple[Tensor, Tensor]:
        time.sleep(pause)
        return quick(self)

    monkeypatch.setattr(Batches, "__next__", slow)
    run = cnnlab.train(short_recipe(limit=64 * batches), runs_dir=tmp_path, progress="none").run
    (row,) = run.metrics()
    assert row["images"] == 64 * batches
    assert row["train_seconds"] - row["compute_seconds"] >= pause * batches  # the printed figure leaves this out
    assert row["examples_per_second"] == pytest.approx(row["images"] / row["compute_seconds"])
    assert row["images_per_second"] == pytest.approx(row["images"] / row["train_seconds"])
    assert row["images_per_second"] <= 64 / pause  # ours includes it


def test_training_accuracy_is_an_average_over_changing_weights(trained: Run) -> None:
    images = load_images("digits", "train")
    assert images is not None
    x, y = images.images.flatten(1) / 255, images.labels
    torch.manual_seed(0)
    net = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    correct = 0
    for index in torch.randperm(len(y)).split(64):
        correct += int(cnnlab.train_step(net, optimizer, x[index], y[index])[1])
    running, final = correct / len(y), (net(x).argmax(1) == y).double().mean().item()
    assert final - running > 0.05

    # cnnlab prints the same average as the manual. The accuracy of the final weights takes one more command.
    printed = trained.metrics()[-1]["train_acc"]
    found = evaluate_run(trained.path, split="train", weights="last")
    assert found.result.count == trained.metrics()[-1]["images"]
    assert found.result.accuracy != printed


# The competition's code in the manual's source


def test_dropping_the_last_batch_leaves_images_out(model: nn.Module, pre: Preprocessing) -> None:
    images = digits_test()
    with torch.no_grad():
        correct = (model(pre(images.images)).argmax(1) == images.labels).tolist()
    dropping = {}
    for batch_size in (100, 128, 256):
        count = len(correct) // batch_size * batch_size
        assert count < len(correct)
        dropping[batch_size] = sum(correct[:count]) / count
        found = evaluate(model, Loader(images, pre, batch_size, CPU), 10)
        assert found.count == len(correct) == 359
        assert found.accuracy == sum(correct) / len(correct) != dropping[batch_size]
    assert len(set(dropping.values())) > 1  # one network, several "accuracies"
    assert 5000 % 128 == 8  # the source's split and batch: 8 images are never evaluated


def test_predictions_in_training_mode_depend_on_the_batch(model: nn.Module, pre: Preprocessing) -> None:
    images = digits_test()
    x = pre(images.images)
    assert not model.training  # load_network returns it in evaluation mode
    with torch.no_grad():
        alone, company = model(x[:2]), model(x)
        torch.testing.assert_close(alone, company[:2], rtol=1e-4, atol=1e-4)
        expected = evaluate(model, Loader(images, pre, 100, CPU), 10)
        model.train()
        assert torch.equal(evaluate(model, Loader(images, pre, 100, CPU), 10).confusion, expected.confusion)
        assert model.training
        before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        wrong = model(x[:2])
        assert (wrong - company[:2]).abs().max() > 0.1  # two images alone get other answers
        assert not any(torch.equal(model.state_dict()[k], v) for k, v in before.items())  # and the network has changed
        # With dropout the same images get different answers each time.
        net, x = make_network("nin", 67), torch.randn(2, 1, 67, 67)
        assert not torch.equal(net.train()(x), net(x))
        assert torch.equal(net.eval()(x), net(x))


def test_ids_stay_with_their_images(trained: Run, model: nn.Module, pre: Preprocessing, tmp_path: Path) -> None:
    on_disk = ["1", "2", "4", "10"]  # 3 is missing
    in_order = sorted(on_disk)  # as text, like the names in a folder
    assert in_order == ["1", "10", "2", "4"]
    assumed = sorted(range(1, len(on_disk) + 1), key=str)
    assert dict(zip(in_order, assumed, strict=True)) == {"1": 1, "10": 2, "2": 3, "4": 4}  # two of four are wrong

    images = digits_test()
    assert images.take(torch.tensor([10, 2])).ids == [images.ids[10], images.ids[2]]
    for i, name in enumerate(on_disk):
        Image.fromarray(images.images[i, 0].numpy()).save(tmp_path / f"{name}.png")
    predictions, _ = predict(trained.path, tmp_path, top=10, weights="last")
    assert {p.path.stem for p in predictions} == set(on_disk)
    with torch.no_grad():
        rows = model(pre(images.images[:4])).softmax(1)
    assert len({tuple(row.tolist()) for row in rows}) == 4
    for found in predictions:
        expected = rows[on_disk.index(found.path.stem)]
        for name, probability in found.top:
            assert probability == pytest.approx(expected[int(name)].item(), abs=1e-5)


def test_the_competition_recipe_makes_the_same_updates_as_its_source() -> None:
    """Including momentum and weight decay. The source's settings are for the summed loss, ours for the mean."""
    recipe = RECIPES["manual/cifar-resnet18"]
    x = torch.randn(5, recipe.batch_size, 20, dtype=torch.float64)
    y = torch.randint(0, 10, (5, recipe.batch_size))

    def net() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(20, 10, bias=False).double()

    theirs, ours = net(), net()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=2e-4, momentum=0.9, weight_decay=5e-4)
    same = make_optimizer(ours, recipe)
    for images, labels in zip(x, y, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(theirs(images), labels, reduction="sum").backward()
        optimizer.step()
        cnnlab.train_step(ours, same, images, labels)
    torch.testing.assert_close(ours.weight.detach(), theirs.weight.detach(), rtol=1e-10, atol=1e-12)
    rates = [learning_rate(recipe, epoch * 352, recipe.epochs * 352) for epoch in range(recipe.epochs)]
    assert rates == pytest.approx([2e-4 * 128 * 0.9 ** (epoch // 4) for epoch in range(20)])


def test_the_mean_of_per_image_deviations_is_not_the_overall_deviation() -> None:
    rng = np.random.default_rng(0)
    brightness = rng.uniform(60, 200, (500, 3, 1, 1))  # photographs differ in brightness
    images = np.clip(rng.normal(brightness, 30, (500, 3, 8, 8)), 0, 255).astype(np.uint8)
    pixels = images / 255
    of_all, within = pixels.std((0, 2, 3)), pixels.std((2, 3)).mean(0)
    assert (within < 0.75 * of_all).all()
    # The missing part is the variance of the images' means.
    between = pixels.mean((2, 3)).var(0)
    np.testing.assert_allclose(of_all**2, pixels.var((2, 3)).mean(0) + between)

    tensor = torch.from_numpy(images)
    ours = Preprocessing.of(tensor, image_size=0, fit="pad", normalize=True)
    np.testing.assert_allclose(ours.std, of_all, rtol=1e-9)
    np.testing.assert_allclose(ours(tensor).double().std((0, 2, 3), correction=0).numpy(), 1, rtol=1e-4)


# The pages


def test_pages_and_tests_name_each_other() -> None:
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`(tests/[\w/]*test_\w+\.py)::(\w+)`", text))
    assert len(named) > 15
    for file in {file for file, _ in named} | {"tests/chapter/test_errata.py"}:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        there = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
        here = {name for f, name in named if f == file}
        assert here <= there, f"{file} has no {here - there}"
        if file == "tests/chapter/test_errata.py":
            assert there == here, f"no page names {there - here}"


def test_the_papers_page_lists_every_network_and_its_size() -> None:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d,]+) \| (\d+) \|", text, flags=re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(MODELS)
    for name, count, size in rows:
        with torch.device("meta"):
            assert f"{weights(make_network(name, int(size))):,}" == count, name


def test_the_example_of_adding_a_network_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "adding-a-network.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) < 60
    source, line = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    module = ModuleType("cnnlab.models.all_conv")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "all_conv.py", "exec"), module.__dict__)
    assert module.__doc__
    assert module.all_conv.__doc__
    table: dict[str, tuple[object, str]] = {}
    exec(f"table.update({{{line}}})", {**module.__dict__, "table": table})
    assert table["all-conv"][0] is module.all_conv
    monkeypatch.setitem(MODELS, "all-conv", module.all_conv)

    net = make_network("all-conv", 28, channels=3, classes=7)
    y = net(torch.randn(2, 3, 28, 28))
    assert y.shape == (2, 7)
    F.cross_entropy(y, torch.arange(2)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    with pytest.raises(CnnlabError, match="^all-conv: .*1x1") as caught:
        make_network("all-conv", 1)
    smallest = max(map(int, re.findall(r"\b(\d+)x\1\b", str(caught.value))))
    assert make_network("all-conv", smallest).eval()(torch.zeros(1, 1, smallest, smallest)).shape == (1, 10)
    summary = cnnlab.train(short_recipe(model="all-conv", limit=200), runs_dir=tmp_path, progress="none").summary
    assert summary["model"] == "all-conv"
