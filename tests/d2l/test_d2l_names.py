"""Every name of `from cnnlab import d2l`, used as in the manual's listings."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
import torchvision
from nbclient import NotebookClient
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cnnlab import build_model, d2l
from cnnlab.d2l.checks import explained
from cnnlab.d2l.data import Batches
from cnnlab.data.imageset import ImageSet
from cnnlab.io.errors import CnnlabError

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("CNNLAB_PEERS", ROOT / ".peers"))
CPU = torch.device("cpu")
NAMES = [
    "load_data_fashion_mnist", "train_ch6", "evaluate_accuracy_gpu", "evaluate_accuracy", "accuracy", "Accumulator",
    "Timer", "Animator", "try_gpu", "try_all_gpus", "size", "argmax", "astype", "reduce_sum",
    "get_dataloader_workers", "Residual", "resnet18", "train_batch_ch13", "train_ch13", "DATA_HUB", "DATA_URL",
    "download", "download_extract", "read_csv_labels", "copyfile", "reorg_train_valid", "reorg_test", "plt",
    "use_svg_display", "set_axes", "get_fashion_mnist_labels", "show_images",
]  # fmt: skip


def some_images(n: int = 200, side: int = 28, seed: int = 0) -> ImageSet:
    """Return images of noise with a bright bar whose position depends on the class, one of ten."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (n, 1, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 10
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * int(label) : 2 * int(label) + 3] += 180
    return ImageSet(images, labels, [str(i) for i in range(n)], [str(k) for k in range(10)])


def some_batches(n: int = 200, batch_size: int = 32, shuffle: bool = False) -> Batches:
    return Batches(some_images(n), batch_size, None, shuffle=shuffle)


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, kernel_size=5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 12, 10)
    )  # fmt: skip


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


# The names


def test_public_names() -> None:
    assert sorted(d2l.__all__) == sorted([*NAMES, "History"])
    assert dir(d2l) == sorted(d2l.__all__)
    for name in d2l.__all__:
        thing = getattr(d2l, name)
        if callable(thing):
            assert (thing.__doc__ or "").strip(), name


def test_an_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(AttributeError, match="train_ch6"):
        d2l.train_ch66  # noqa: B018


@pytest.mark.parametrize("page", ["docs/from-d2l.md", "docs/from-d2l.zh.md"])
def test_the_pages_list_every_name(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "from cnnlab import d2l" in text
    for name in d2l.__all__:
        assert re.search(rf"`{name}\b", text), name


# The data


def link_raw_files(fashion_folder: Path, root: Path) -> None:
    """Link the files to where the original, run in a folder in `root`, looks for them. It unpacks them there."""
    raw = root / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (fashion_folder / "FashionMNIST" / "raw").glob("*.gz"):
        (raw / file.name).symlink_to(file)


def test_batches_match_the_originals_loader(
    fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed gives the same images in the same order as torchvision's data set in a DataLoader."""
    monkeypatch.setenv("CNNLAB_DATA", str(fashion_folder))
    link_raw_files(fashion_folder, tmp_path)
    T = torchvision.transforms
    for resize in (None, 40, (30, 20)):
        ours = d2l.load_data_fashion_mnist(64, resize) if resize else d2l.load_data_fashion_mnist(batch_size=64)
        steps = [T.ToTensor()] if resize is None else [T.Resize(resize), T.ToTensor()]
        for train, mine in zip((True, False), ours, strict=True):
            data = torchvision.datasets.FashionMNIST(
                str(tmp_path / "data"), train=train, transform=T.Compose(steps), download=True
            )
            theirs = DataLoader(data, 64, shuffle=train)
            assert len(mine) == len(theirs) == math.ceil((60_000 if train else 10_000) / 64)
            torch.manual_seed(5)
            want = list(itertools.islice(theirs, 3))
            after = torch.rand(1)
            torch.manual_seed(5)
            got = list(itertools.islice(mine, 3))
            assert torch.equal(after, torch.rand(1))  # as many random numbers were drawn
            for (x, y), (a, b) in zip(want, got, strict=True):
                assert torch.equal(y, b)
                assert a.dtype == x.dtype
                assert a.shape == x.shape
                if resize is None:
                    assert torch.equal(x, a)
                else:
                    assert (x - a).abs().max() <= 1.01 / 255


def test_batches_are_complete_reshuffled_and_between_0_and_1() -> None:
    images = some_images(70)
    train, test = Batches(images, 32, None, shuffle=True), Batches(images, 32, (12, 16), shuffle=False)
    torch.manual_seed(0)
    passes = [torch.cat([y for _, y in train]) for _ in range(2)]
    assert not torch.equal(passes[0], passes[1])
    for order in passes:
        assert torch.equal(order.sort().values, images.labels.sort().values)
    sizes = []
    for x, y in test:
        sizes.append(len(y))
        assert x.shape == (len(y), 1, 12, 16)
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1
    assert sizes == [32, 32, 6]
    assert len(test) == 3
    assert torch.equal(torch.cat([y for _, y in test]), images.labels)


@pytest.mark.parametrize(
    ("batch_size", "resize"), [(0, None), (2.5, None), (4, -1), (4, "96"), (4, (3, 4, 5)), (4, 1e3)]
)
def test_invalid_sizes_are_errors(batch_size: int, resize: object) -> None:
    with pytest.raises(CnnlabError, match=r"^(batch_size|resize)="):
        d2l.load_data_fashion_mnist(batch_size, resize)


def test_files_that_d2l_downloaded_are_used(
    fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "FashionMNIST").mkdir(parents=True)
    (tmp_path / "data" / "FashionMNIST" / "raw").symlink_to(fashion_folder / "FashionMNIST" / "raw")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("CNNLAB_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("CNNLAB_FASHION_MNIST_URL", "http://127.0.0.1:9")  # nothing may be downloaded
    _, test_iter = d2l.load_data_fashion_mnist(256)
    assert len(test_iter) == 40
    assert not (tmp_path / "empty").exists()


def test_class_names_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert d2l.get_fashion_mnist_labels(torch.tensor([0, 9, 5])) == ["t-shirt", "ankle boot", "sandal"]
    assert d2l.get_fashion_mnist_labels([1.0]) == ["trouser"]
    with pytest.raises(CnnlabError, match="^10 "):
        d2l.get_fashion_mnist_labels([10])
    with pytest.raises(CnnlabError, match="^-1 "):
        d2l.get_fashion_mnist_labels(torch.tensor([-1]))
    d2l.plt.switch_backend("agg")
    x, y = next(iter(some_batches(20, 18)))
    axes = d2l.show_images(x.reshape(18, 28, 28), 2, 9, titles=d2l.get_fashion_mnist_labels(y))
    assert len(axes) == 18
    assert axes[1].get_title() == "trouser"
    assert axes[0].images[0].get_array().shape == (28, 28)
    one = d2l.show_images([x[0].requires_grad_(), Image.new("L", (5, 5))], 1, 1)  # (1, 28, 28); more images than places
    assert len(one) == 1
    (chinese,) = d2l.show_images([x[0]], 1, 1, titles=["猫"])
    assert chinese.title.get_fontfamily()[-1] != "sans-serif" or "[" in chinese.get_title()  # never an empty box
    for colour in (torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8, 3).numpy(), torch.rand(2, 4, 8, 8).bfloat16()):
        assert d2l.show_images(colour, 1, 2)[1].images[0].get_array().shape[:2] == (8, 8)
    for bad in (torch.rand(2, 2, 8, 8), torch.rand(8, 8), torch.rand(1, 1, 1, 8, 8), [None], ["a.png"]):
        with pytest.raises(CnnlabError, match=r"image 1\b"):
            d2l.show_images(bad, 1, 2)
    for arguments in ((x, 0, 2), (x, 1, 2.5), (None, 1, 2)):
        with pytest.raises(CnnlabError):
            d2l.show_images(*arguments)
    d2l.plt.close("all")


def test_workers_do_not_exceed_cores() -> None:
    assert 0 <= d2l.get_dataloader_workers() <= 4
    data = TensorDataset(torch.rand(8, 2), torch.arange(8))
    assert len(list(DataLoader(data, 4, num_workers=d2l.get_dataloader_workers()))) == 2


# The helpers


def test_functions_of_tensors() -> None:
    x = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])
    assert d2l.size(x) == 6
    assert d2l.argmax(x, axis=1).tolist() == [1, 0]
    assert d2l.argmax(x).item() == 3
    assert d2l.astype(x, torch.int32).dtype == torch.int32
    assert d2l.reduce_sum(x).item() == 18
    assert d2l.reduce_sum(x, dim=0).tolist() == [8, 5, 5]
    assert d2l.reduce_sum(d2l.astype(d2l.argmax(x, axis=1), torch.int64) == torch.tensor([1, 1])).item() == 1


def test_accuracy_counts_correct_predictions() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
    got = d2l.accuracy(scores, torch.tensor([0, 2]))
    assert got == 1.0
    assert isinstance(got, float)
    assert d2l.accuracy(torch.tensor([2, 1, 1]), torch.tensor([2, 1, 0])) == 2.0  # classes, not scores


def test_accumulator() -> None:
    metric = d2l.Accumulator(3)
    metric.add(torch.tensor(1.5), 2, 3)
    metric.add(1, torch.tensor(1), 1.0)
    assert [metric[0], metric[1], metric[2]] == [2.5, 3.0, 4.0]
    assert metric[0] / metric[2] == 0.625
    with pytest.raises(CnnlabError, match=r"Accumulator\(3\).*\b2 values"):
        metric.add(1, 2)
    metric.reset()
    assert metric.data == [0.0, 0.0, 0.0]


def test_timer() -> None:
    timer = d2l.Timer()
    with pytest.raises(CnnlabError, match=r"Timer\.avg.*stop"):
        timer.avg()
    spans = [timer.stop()]
    timer.start()
    spans.append(timer.stop())
    assert timer.times == spans
    assert min(spans) >= 0
    assert timer.sum() == pytest.approx(sum(spans))
    assert timer.avg() == pytest.approx(sum(spans) / 2)
    assert timer.cumsum() == pytest.approx([spans[0], sum(spans)])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert d2l.try_all_gpus()[0] == d2l.try_gpu()
    assert d2l.try_gpu(99) == CPU
    with pytest.raises(CnnlabError, match=r"try_gpu\(-1\)"):
        d2l.try_gpu(-1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert d2l.try_all_gpus() == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert d2l.try_gpu(1) == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert d2l.try_all_gpus() == [torch.device("mps")]
    assert d2l.try_gpu(1) == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert d2l.try_all_gpus() == [CPU]


def test_evaluating_modules_and_functions() -> None:
    data = some_batches(50)
    truth = torch.cat([y for _, y in data])
    predicted = torch.zeros(50, dtype=torch.int64)

    def always_0(x: Tensor) -> Tensor:
        return F.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()

    want = (predicted == truth).float().mean().item()
    assert d2l.evaluate_accuracy(always_0, data) == pytest.approx(want)
    assert d2l.evaluate_accuracy_gpu(always_0, data) == pytest.approx(want)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5)).train()
    got = d2l.evaluate_accuracy_gpu(net, data)
    assert not net.training  # the original leaves it in evaluation mode
    with torch.no_grad():
        correct = sum((net(x).argmax(1) == y).sum().item() for x, y in data)
    assert got == d2l.evaluate_accuracy(net, data) == d2l.evaluate_accuracy_gpu(net, list(data), "cpu") == correct / 50
    listed = [([x], y) for x, y in data]  # the first item of a pair may be a list
    assert d2l.evaluate_accuracy_gpu(lambda xs: net(xs[0]), listed, CPU) == got
    with pytest.raises(CnnlabError, match="data_iter"):
        d2l.evaluate_accuracy_gpu(net, [])
    with pytest.raises(CnnlabError, match="drop_last"):
        d2l.evaluate_accuracy_gpu(net, DataLoader(TensorDataset(torch.rand(8, 784), truth[:8]), 32, drop_last=True))
    with pytest.raises(CnnlabError, match=r"batch 1\b.*\bTensor"):
        d2l.evaluate_accuracy_gpu(net, [torch.rand(2, 784)])
    with pytest.raises(CnnlabError, match="tuple of 3"):
        d2l.evaluate_accuracy_gpu(net, [(1, 2, 3)])


# train_ch6


def train_in_a_plain_loop(
    net: nn.Module, batches: list[tuple[Tensor, Tensor]], epochs: int, lr: float
) -> tuple[list[float], float]:
    """Train as train_ch6 should, in a plain loop; return each batch's loss and the last epoch's training accuracy."""
    for module in net:  # type: ignore[attr-defined]
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    losses, correct, count = [], 0, 0
    for _ in range(epochs):
        net.train()
        correct = count = 0
        for x, y in batches:
            scores = net(x)
            loss = F.cross_entropy(scores, y)
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= lr * p.grad
            losses.append(loss.item())
            correct += int((scores.argmax(1) == y).sum())
            count += len(y)
    return losses, correct / count


def test_train_ch6_matches_a_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    batches = list(some_batches(200, 32))
    torch.manual_seed(1)
    net = small_net()
    biases = [m.bias.detach().clone() for m in net if hasattr(m, "bias")]
    torch.manual_seed(2)
    history = d2l.train_ch6(net, batches, batches, 3, 0.1, CPU)
    torch.manual_seed(1)
    other = small_net()
    torch.manual_seed(2)
    losses, accuracy = train_in_a_plain_loop(other, batches, 3, 0.1)
    assert history.batch_losses == pytest.approx(losses, rel=1e-5)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert not any(torch.equal(m.bias, b) for m, b in zip([net[0], net[3]], biases, strict=True))  # they were trained
    row = history.rows[-1]
    assert row["train_acc"] == pytest.approx(accuracy)
    assert row["loss"] == pytest.approx(
        sum(loss * len(y) for loss, (_, y) in zip(losses[-7:], batches, strict=True)) / 200, rel=1e-5
    )
    with torch.no_grad():
        right = sum((net(x).argmax(1) == y).sum().item() for x, y in batches)
    assert row["test_acc"] == right / 200
    assert not net.training
    out = lines(capsys.readouterr().out)
    assert out[0] == "training on cpu"
    assert out[1] == f"loss {row['loss']:.3f}, train acc {row['train_acc']:.3f}, test acc {row['test_acc']:.3f}"
    assert re.fullmatch(r"\d+\.\d examples/sec on cpu", out[2])
    assert len(out) == 3
    assert [r["epoch"] for r in history.rows] == [1, 2, 3]
    assert row["images"] == 200
    assert row["images_per_second"] <= row["examples_per_second"]
    assert repr(history).startswith("History of 3 epochs: loss ")
    assert repr(d2l.History()) == "History of 0 epochs"


def test_only_the_weights_are_initialized() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.25)
    torch.manual_seed(3)
    d2l.train_ch6(net, some_batches(20), some_batches(20), 1, 0.0)
    torch.manual_seed(3)
    want = [nn.init.xavier_uniform_(torch.empty_like(net[i].weight)) for i in (0, 3)]
    assert torch.equal(net[0].weight, want[0])
    assert torch.equal(net[3].weight, want[1])
    for still in (net[0].bias, net[1].weight, net[1].bias, net[3].bias):
        assert torch.equal(still, torch.full_like(still, 0.25))


def test_fewer_than_five_batches_suffice() -> None:
    data = some_batches(8, 8)
    assert len(d2l.train_ch6(small_net(), data, data, 2, 0.05, "cpu").batch_losses) == 2


def test_every_kind_of_iterable_is_accepted() -> None:
    data = some_batches(40, 8)
    pairs = list(data)
    loader = DataLoader(TensorDataset(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])), 8)

    class Unmeasured:  # no len
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(pairs)

    found = []
    for train_iter in (data, pairs, loader, Unmeasured()):
        torch.manual_seed(0)
        found.append(d2l.train_ch6(small_net(), train_iter, loader, 2, 0.1, CPU).batch_losses)
    assert all(losses == pytest.approx(found[0]) for losses in found)
    assert len(d2l.train_ch6(small_net(), (pair for pair in pairs), data, 1, 0.1).rows) == 1
    with pytest.raises(CnnlabError, match="train_iter.*epoch 2"):
        d2l.train_ch6(small_net(), (pair for pair in pairs), data, 2, 0.1)


def test_lazy_layers_are_initialized_with_the_first_batch() -> None:
    data = some_batches(40, 8)
    lazy = nn.Sequential(
        nn.LazyConv2d(4, 5, stride=2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    d2l.train_ch6(lazy, data, data, 1, 0.0, CPU)
    assert lazy[0].weight.shape == (4, 1, 5, 5)
    assert lazy[4].weight.shape == (10, 576)
    bound = math.sqrt(6 / (576 + 10))  # Xavier's; PyTorch's default would be 1/24
    assert 0.9 * bound < lazy[4].weight.abs().max() <= bound
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))  # an iterator keeps the batch that initializes the layer
    assert len(d2l.train_ch6(net, iter(list(data)), data, 1, 0.1, CPU).batch_losses) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_epochs": 0}, {"num_epochs": 1.5}, {"lr": -1.0}, {"lr": float("nan")}, {"device": "gpu"},
        {"device": "cuda:99"}, {"lr": "0.1"}, {"lr": None}, {"num_epochs": "1"}, {"train_iter": []}, {"test_iter": []}, {"train_iter": [torch.rand(4, 1, 28, 28)]},
    ],
)  # fmt: skip
def test_bad_input_is_one_line(changes: dict[str, object]) -> None:
    data = some_batches(16, 8)
    arguments = {"train_iter": data, "test_iter": data, "num_epochs": 1, "lr": 0.1, "device": CPU, **changes}
    with pytest.raises(CnnlabError) as caught:
        d2l.train_ch6(small_net(), **arguments)
    assert "\n" not in str(caught.value)


def tiny_network(outputs: int = 3, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, outputs))


X4, Y4 = torch.arange(4 * 36.0).view(4, 1, 6, 6) / 144, torch.tensor([0, 1, 2, 1])
BAD_BATCHES: dict[str, tuple[object, str]] = {
    "beyond": ((X4, torch.tensor([0, 1, 2, 7])), r"\b0 to 7\b.*\b3 outputs"),
    "negative": ((X4, torch.tensor([0, 1, -1, 2])), r"batch 1\b.* -1\b"),
    "ignored": ((X4, torch.tensor([0, 1, -100, 2])), r" -100\b"),
    "float": ((X4, Y4.float()), r"float32.*y\.long\(\)"),
    "soft": ((X4, torch.full((4, 3), 1 / 3)), r"\(4, 3\).*float32.*y\.argmax\(1\)"),
    "float column": ((X4, Y4.float()[:, None]), r"float32.*y\.long\(\)"),
    "one-hot": ((X4, F.one_hot(Y4, 3)), r"one-hot.*y\.argmax\(1\)"),
    "channels": ((X4.expand(4, 3, 6, 6), Y4), r"\b3 channels\b.* 1\b"),
    "flat": ((X4.flatten(1), Y4), r"X.reshape\(-1, 1, 6, 6\)"),
    "no channels": ((X4[:, 0], Y4), r"X.unsqueeze\(1\)"),
    "one without channels": ((X4[:1, 0], Y4[:1]), r"X.unsqueeze\(1\)"),
    "channels last": ((X4.permute(0, 2, 3, 1), Y4), r"X.permute\(0, 3, 1, 2\)"),
    "colour last": ((X4.permute(0, 2, 3, 1).expand(4, 6, 6, 3), Y4), r"X.permute\(0, 3, 1, 2\)"),
    "float16": ((X4.half(), Y4), r"\bfloat16.*X\.float\(\)"),
    "bfloat16": ((X4.bfloat16(), Y4), r"\bbfloat16.*X\.float\(\)"),
    "complex": ((X4.to(torch.complex64), Y4), r"X.abs\(\)"),
    "small": ((X4[:, :, :2, :2], Y4), r"\(4, 1, 2, 2\)"),
    "uint8": (((X4 * 255).byte(), Y4), r"\buint8.*X\.float\(\) / 255"),
    "float64": ((X4.double(), Y4), "float64|double"),
    "nan": ((X4.masked_fill(X4 > 0.9, torch.nan), Y4), "NaN or Inf"),
    "inf": ((X4.masked_fill(X4 > 0.9, torch.inf), Y4), "NaN or Inf"),
    "fewer labels": ((X4, Y4[:3]), r"labels.*\(3,\)"),
    "scalar": ((X4, torch.tensor(1)), r"labels.*\(\)"),
    "wide labels": ((X4, torch.ones(4, 2, dtype=torch.long)), r"labels.*\(4, 2\)"),
    "dict": ({"image": X4, "label": Y4}, r"batch 1\b.*\bdict"),
    "numpy": ((X4.numpy(), Y4), r"images.*\bndarray"),
    "list of labels": ((X4, [0, 1, 2, 1]), r"labels.*\blist"),
    "images only": (X4, r"batch 1\b.*\bTensor"),
    "no labels": ((X4, None), "labels.*NoneType"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
@pytest.mark.parametrize("way", ["train_ch6", "train_ch13", "evaluate"])
def test_bad_batches_are_one_line(case: str, way: str) -> None:
    batch, why = BAD_BATCHES[case]
    net = tiny_network()
    if case in ("float", "float column") and way == "evaluate":
        return  # evaluation compares these labels with the predictions as numbers
    good, cpu = [(X4, Y4)], [torch.device("cpu")]
    loss, trainer = nn.CrossEntropyLoss(reduction="none"), torch.optim.Adam(net.parameters())
    calls: dict[str, Callable[[], object]] = {
        "evaluate": lambda: d2l.evaluate_accuracy_gpu(net, [batch], "cpu"),
        "train_ch6": lambda: d2l.train_ch6(net, [batch], good, 1, 0.1, "cpu"),
        "train_ch13": lambda: d2l.train_ch13(net, [batch], good, loss, trainer, 1, cpu),
    }
    with pytest.raises(CnnlabError, match=why) as caught:
        calls[way]()
    assert "\n" not in str(caught.value)
    assert net.training == (way != "evaluate")  # searching the fault leaves the mode as it was


class Returns(nn.Module):
    """A network that returns something other than one row of outputs per image."""

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.what = tiny_network(), what

    def forward(self, x: Tensor) -> object:
        return self.what(self.inner(x))


BAD_NETWORKS: dict[str, tuple[object, str]] = {
    "tuple": (Returns(lambda out: (out, 0)), r"network.*\btuple\b"),
    "dict": (Returns(lambda out: {"logits": out}), r"network.*\bdict\b"),
    "None": (Returns(lambda _: None), r"network.*\bNone\b"),
    "unflattened": (Returns(lambda out: out[..., None, None]), r"\(B, 3, 1, 1\).*Flatten"),
    "function": (lambda x: x, r"\bnet\b.*\bfunction"),
    "class": (nn.Sequential, r"Sequential.*Sequential\(\.\.\.\)"),
    "no weights": (nn.Flatten(), r"\bnet\b.*requires_grad"),
    "frozen": (tiny_network().requires_grad_(requires_grad=False), r"\bnet\b.*requires_grad"),
    "none at all": (None, r"\bnet\b.*\bNone\b"),
}


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_networks_that_cannot_be_trained_are_one_line(case: str) -> None:
    net, why = BAD_NETWORKS[case]
    data: list[object] = [(X4, Y4)]
    trainer, cpu = torch.optim.Adam(tiny_network().parameters()), [torch.device("cpu")]
    calls: list[Callable[[], object]] = [
        lambda: d2l.train_ch6(net, data, data, 1, 0.1, "cpu"),  # type: ignore[arg-type]
        lambda: d2l.train_ch13(net, data, data, nn.CrossEntropyLoss(), trainer, 1, cpu),  # type: ignore[arg-type]
    ]
    if isinstance(net, Returns | type | None) and case != "unflattened":  # (B, K, 1, 1) can be evaluated
        calls.append(lambda: d2l.evaluate_accuracy(net, data))
    for call in calls:
        with pytest.raises(CnnlabError, match=why) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_networks_own_error_is_not_hidden() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        d2l.train_ch6(Returns(lambda out: out.no_such_name), [(X4, Y4)], [(X4, Y4)], 1, 0.1, "cpu")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes",
    [{"loss": nn.CrossEntropyLoss}, {"loss": None}, {"trainer": 0.1}, {"trainer": torch.optim.SGD}, {"num_epochs": 0}],
)
def test_bad_arguments_of_train_ch13_are_one_line(changes: dict[str, object]) -> None:
    net = tiny_network()
    arguments = {"loss": nn.CrossEntropyLoss(), "trainer": torch.optim.Adam(net.parameters()), "num_epochs": 1}
    with pytest.raises(CnnlabError) as caught:
        d2l.train_ch13(net, [(X4, Y4)], [(X4, Y4)], **{**arguments, **changes}, devices=CPU)
    assert "\n" not in str(caught.value)


def test_after_a_device_side_assert_nothing_is_read_from_the_gpu() -> None:
    class Lost(Tensor):
        def min(self, *args: object, **kwargs: object) -> Tensor:  # type: ignore[override]
            raise RuntimeError("CUDA error: device-side assert triggered")

    for y, why in (
        (Y4.as_subclass(Lost), r"batch 1: labels(?!.* to \d)"),
        (Y4, r"labels.*\b0 to 2\b"),
    ):
        with pytest.raises(CnnlabError, match=why), explained(tiny_network(), X4, y, "batch 1"):
            raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("column", [False, True])
def test_labels_of_any_integer_type(dtype: torch.dtype, column: bool) -> None:
    y = Y4.to(dtype)
    histories = []
    for labels in (Y4, y[:, None] if column else y):
        torch.manual_seed(0)
        net = tiny_network()
        histories.append(d2l.train_ch6(net, [(X4, labels)], [(X4, labels)], 2, 0.1, "cpu"))
        assert d2l.evaluate_accuracy(net, [(X4, labels)]) == d2l.accuracy(net(X4), Y4) / 4
    assert histories[0].batch_losses == histories[1].batch_losses
    assert [row["test_acc"] for row in histories[0].rows] == [row["test_acc"] for row in histories[1].rows]
    net = tiny_network()
    trainer = torch.optim.Adam(net.parameters())
    d2l.train_batch_ch13(net, X4, y[:, None] if column else y, nn.CrossEntropyLoss(reduction="none"), trainer,
                         [torch.device("cpu")])  # fmt: skip


def test_predictions_in_a_column_are_compared_one_by_one() -> None:
    assert d2l.accuracy(torch.tensor([[0], [1], [1]]), torch.tensor([0, 1, 2])) == 2
    assert d2l.accuracy(torch.eye(3), torch.tensor([[0], [1], [0]])) == 2
    with pytest.raises(CnnlabError, match=r"\(3,\).*\(2,\)"):
        d2l.accuracy(torch.eye(3), torch.tensor([0, 1]))
    assert d2l.accuracy(torch.eye(3).numpy(), Y4[:3].numpy()) == 3
    assert d2l.accuracy([[1, 0], [0, 1]], [0, 0]) == 1
    for bad in ("cat", {"a": 1}, [[1], [2, 3]], None):
        with pytest.raises(CnnlabError, match="accuracy.*tensors"):
            d2l.accuracy(bad, torch.tensor([0]))


def test_a_last_batch_of_one_with_batch_norm_is_an_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))
    with pytest.raises(CnnlabError, match="batch 2 of train_iter.*batch norm.*drop_last=True"):
        d2l.train_ch6(net, [(X4, Y4), (X4[:1], Y4[:1])], [(X4, Y4)], 1, 0.1, "cpu")
    trainer = torch.optim.Adam(net.parameters())
    with pytest.raises(CnnlabError, match="batch norm.*drop_last=True"):
        d2l.train_batch_ch13(net, X4[:1], Y4[:1], nn.CrossEntropyLoss(), trainer, [torch.device("cpu")])
    d2l.evaluate_accuracy(net, [(X4[:1], Y4[:1])])  # works, in eval mode
    late = [(X4, Y4), (X4 * torch.nan, Y4)]
    with pytest.raises(CnnlabError, match="batch 2 of train_iter.*NaN"):
        d2l.train_ch6(tiny_network(), late, [(X4, Y4)], 1, 0.1, "cpu")
    with pytest.raises(CnnlabError, match="NoneType.*DataLoader"):
        d2l.train_ch6(tiny_network(), None, [(X4, Y4)], 1, 0.1, "cpu")  # type: ignore[arg-type]
    lazy = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(CnnlabError, match=r"first batch of train_iter.*\b3 channels"):
        d2l.train_ch6(lazy, [(X4.expand(4, 3, 6, 6), Y4)], [(X4, Y4)], 1, 0.1, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_matches_the_cpu() -> None:
    losses = []
    for device in (CPU, d2l.try_gpu()):
        torch.manual_seed(0)
        net = small_net()
        data = some_batches(100, 16)
        losses.append(d2l.train_ch6(net, data, data, 2, 0.1, device).batch_losses)
        assert next(net.parameters()).device == device
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # tf32 in the convolutions


# d2l's own functions, where they are installed


@pytest.fixture(scope="module")
def d2l_folder() -> Path:
    if not (PEERS / "d2l" / "d2l" / "torch.py").is_file():
        pytest.skip(f"d2l is not in {PEERS / 'd2l'}: benchmarks/vs_d2l.py puts it there, or set CNNLAB_PEERS")
    return PEERS / "d2l"


SIDE = """
import itertools, json, os, sys
import torch
from torch import nn
side, peer, work = sys.argv[1:]
torch.set_num_threads(1)
os.chdir(work)
seen, record = [], nn.CrossEntropyLoss.forward
if side == "d2l":
    sys.path.append(peer)  # behind ours: torch and numpy are the same for both
    from d2l import torch as d2l
    def forward(self, *args):
        loss = record(self, *args)
        seen.append(loss.detach().mean().item())
        return loss
    nn.CrossEntropyLoss.forward = forward
else:
    from cnnlab import d2l

def batches(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, 1, 28, 28, generator=generator), torch.randint(0, 10, (n,), generator=generator))
            for _ in range(7)]

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.Sigmoid(), nn.AvgPool2d(2, 2), nn.Flatten(),
                         nn.Dropout(0.2), nn.Linear(6 * 12 * 12, 10))

answer = {}
model = net()
torch.manual_seed(2)
history = d2l.train_ch6(model, batches(16, 3), batches(16, 4), 3, 0.5, torch.device("cpu"))
answer["ch6"] = seen[:] if side == "d2l" else history.batch_losses
answer["ch6 test"] = d2l.evaluate_accuracy_gpu(model, batches(16, 4))
answer["ch6 weights"] = [p.double().sum().item() for p in model.parameters()]

torch.manual_seed(5)
model = d2l.resnet18(10, 1)
answer["resnet18"] = {name: value.double().sum().item() for name, value in model.state_dict().items()}

del seen[:]
model = net()
trainer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
torch.manual_seed(6)
history = d2l.train_ch13(model, batches(16, 7), batches(16, 8), nn.CrossEntropyLoss(reduction="none"), trainer, 2,
                         d2l.try_all_gpus())
answer["ch13"] = seen[:] if side == "d2l" else history.batch_losses
answer["ch13 weights"] = [p.double().sum().item() for p in model.parameters()]
x, y = batches(4, 9)[0]
total, right = d2l.train_batch_ch13(model, x, y, nn.CrossEntropyLoss(reduction="none"), trainer, d2l.try_all_gpus())
answer["batch"] = [float(total), right]

for name, resize in (("as they are", None), ("resized", 36)):
    train_iter, test_iter = d2l.load_data_fashion_mnist(64, resize=resize)
    torch.manual_seed(10)
    some = list(itertools.islice(train_iter, 5))  # it cannot do with fewer
    model = nn.Sequential(nn.Flatten(), nn.Linear((resize or 28) ** 2, 10))
    del seen[:]
    history = d2l.train_ch6(model, some, list(itertools.islice(test_iter, 1)), 1, 0.1, torch.device("cpu"))
    answer[name] = seen[:] if side == "d2l" else history.batch_losses
print("ANSWER", json.dumps(answer))
"""


def test_losses_match_d2l(d2l_folder: Path, fashion_folder: Path, tmp_path: Path) -> None:
    """With the same weights, batches and seed, the loss of every batch and the final weights agree to 1e-5.

    So do the losses on each side's own batches of Fashion-MNIST. On resized images they agree to 1e-3: the original
    rounds their pixels to whole grey levels.
    """
    link_raw_files(fashion_folder, tmp_path)
    (tmp_path / "work").mkdir()
    answers, printed = {}, {}
    for side in ("d2l", "ours"):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SIDE, side, str(d2l_folder), str(tmp_path / "work")],
            capture_output=True, text=True, timeout=300, env={**os.environ, "MPLBACKEND": "Agg"},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        # Outside a notebook, d2l's plots print other lines, too.
        printed[side] = re.findall("^(?:training on|loss).*", run.stdout, re.MULTILINE)
        answers[side] = json.loads(run.stdout.rpartition("ANSWER ")[2])
    theirs, ours = answers["d2l"], answers["ours"]
    assert len(ours["ch6"]) == 21
    for what in ("ch6", "ch6 test", "ch6 weights", "ch13", "ch13 weights", "batch", "as they are"):
        assert ours[what] == pytest.approx(theirs[what], rel=1e-5, abs=1e-6), what
    assert ours["resnet18"] == pytest.approx(theirs["resnet18"], rel=1e-6)  # the same names and the same random draws
    assert len(ours["resized"]) == 5
    assert ours["resized"] == pytest.approx(theirs["resized"], abs=1e-3)
    assert printed["ours"][:3] == printed["d2l"][:3]  # the lines of train_ch6 and train_ch13


# Networks


def test_residual_takes_both_editions_arguments() -> None:
    x = torch.rand(4, 3, 6, 6)
    for arguments, named in (((3, 3), {}), ((3,), {}), ((), {"num_channels": 3}), ((3, False), {})):
        block = d2l.Residual(*arguments, **named)
        assert block(x).shape == (4, 3, 6, 6)
        assert block.conv3 is None
    halved = {"use_1x1conv": True, "strides": 2}
    for arguments, named in (
        ((3, 6), halved), ((3, 6, True, 2), {}), ((), {"input_channels": 3, "num_channels": 6, **halved}),
        ((6,), halved), ((6, True, 2), {}), ((6, True), {"strides": 2}), ((), {"num_channels": 6, **halved}),
    ):  # fmt: skip
        block = d2l.Residual(*arguments, **named)
        assert block(x).shape == (4, 6, 3, 3)
        assert block.conv3.weight.shape == (6, 3, 1, 1)
        assert {n.partition(".")[0] for n, _ in block.named_parameters()} == {"conv1", "conv2", "conv3", "bn1", "bn2"}


def test_a_residual_block_adds_its_input() -> None:
    block = d2l.Residual(2, 2).eval()
    with torch.no_grad():
        block.bn2.weight.zero_()
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(block(x), F.relu(x))


@pytest.mark.parametrize("arguments", [(), (0, 3), (3, 0), (3, 6, True, 0), (6, True, True), ("3", 3), (3, 6, 2)])
def test_residual_refuses_other_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises(CnnlabError, match=r"Residual\(input_channels.*Residual\(num_channels"):
        d2l.Residual(*arguments)


def test_residual_refuses_shapes_that_cannot_be_added() -> None:
    with pytest.raises(CnnlabError, match="use_1x1conv=True"):
        d2l.Residual(3, 6)(torch.rand(1, 3, 4, 4))
    with pytest.raises(CnnlabError, match="use_1x1conv=True"):
        d2l.Residual(3, strides=2)(torch.rand(1, 3, 4, 4))


def test_resnet18_matches_the_competitions_network() -> None:
    net = d2l.resnet18(10, 3)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    ours = build_model("resnet18-manual-cifar", num_classes=10, in_channels=3, image_size=32)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in ours.parameters())
    names = [name for name, _ in net.named_children()]
    assert names == ["0", "1", "2", *(f"resnet_block{i}" for i in range(1, 5)), "global_avg_pool", "fc"]
    assert d2l.resnet18(7)[0].in_channels == 1


# train_batch_ch13 and train_ch13


def linear_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def one_update(loss: nn.Module, **more: bool) -> tuple[Tensor, float, Tensor]:
    """Run one update at rate 0.1. Return the loss, the correct predictions and the decrease of the weights."""
    net = linear_layer()
    torch.manual_seed(1)
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    trainer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    total, right = d2l.train_batch_ch13(net.eval(), x, y, loss, trainer, d2l.try_all_gpus()[:1], **more)
    assert net.training
    assert right == d2l.accuracy(linear_layer()(x), y)
    return total, right, before - net.weight.detach()


def test_a_batch_is_trained_on_the_sum_of_its_losses_or_their_mean() -> None:
    each, averaged = nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss()
    total, right, step = one_update(each)
    assert isinstance(right, float)
    assert not total.requires_grad
    for loss, more in (
        (each, {"mean": True}),
        (averaged, {}),
        (averaged, {"mean": True}),
        (F.cross_entropy, {}),
        (lambda scores, y: F.cross_entropy(scores, y), {"mean": True}),
    ):
        same, _, smaller = one_update(loss, **more)
        torch.testing.assert_close(same, total)  # always the sum of the losses
        torch.testing.assert_close(smaller, step / 8)
    same, _, as_large = one_update(nn.CrossEntropyLoss(reduction="sum"))
    torch.testing.assert_close((same, as_large), (total, step))


def test_a_learning_rate_for_the_mean_loss_gets_a_warning() -> None:
    net, x, y = linear_layer(), torch.randn(128, 3), torch.arange(128) % 2
    each = nn.CrossEntropyLoss(reduction="none")
    with pytest.warns(UserWarning, match=r"\b12\.8\b.*mean=True"):
        d2l.train_batch_ch13(net, x, y, each, torch.optim.SGD(net.parameters(), lr=0.1), [CPU])
    # No warnings for these; warnings are errors here.
    d2l.train_batch_ch13(net, x, y, each, torch.optim.SGD(net.parameters(), lr=0.1), [CPU], mean=True)
    d2l.train_batch_ch13(net, x, y, each, torch.optim.SGD(net.parameters(), lr=2e-4), [CPU])
    d2l.train_batch_ch13(net, x, y, each, torch.optim.Adam(net.parameters(), lr=0.1), [CPU])
    with pytest.raises(CnnlabError, match="try_all_gpus"):
        d2l.train_batch_ch13(net, x, y, each, torch.optim.SGD(net.parameters(), lr=2e-4), [])


def test_a_list_of_inputs_is_accepted() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear_layer()

        def forward(self, xs: list[Tensor]) -> Tensor:
            return self.layer(xs[0] + xs[1])

    net, x, y = Sum(), torch.randn(8, 3), torch.arange(8) % 2
    trainer = torch.optim.SGD(net.parameters(), lr=0.01)
    total, _ = d2l.train_batch_ch13(net, [x, x], y, nn.CrossEntropyLoss(reduction="none"), trainer, [CPU])
    torch.testing.assert_close(total, F.cross_entropy(linear_layer()(2 * x), y, reduction="sum").detach())


def test_train_ch13(capsys: pytest.CaptureFixture[str]) -> None:
    data, net = some_batches(120, 16), small_net()
    before = net[0].weight.detach().clone()
    trainer = torch.optim.Adam(net.parameters(), lr=1e-3)
    history = d2l.train_ch13(net, data, data, nn.CrossEntropyLoss(reduction="none"), trainer, 2)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert not torch.equal(net[0].weight.cpu(), before)
    first, second = lines(capsys.readouterr().out)
    assert re.fullmatch(r"loss \d\.\d{3}, train acc \d\.\d{3}, test acc \d\.\d{3}", first)
    assert re.fullmatch(rf"\d+\.\d examples/sec on {re.escape(str(d2l.try_all_gpus()))}", second)


# Files


def url_and_sha1(path: Path) -> tuple[str, str]:
    return path.as_uri(), hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty data folder, and a folder to serve files from. DATA_HUB is restored after the test."""
    monkeypatch.setenv("CNNLAB_DATA", str(tmp_path / "data-here"))
    for name in list(d2l.DATA_HUB):
        monkeypatch.setitem(d2l.DATA_HUB, name, d2l.DATA_HUB[name])
    (tmp_path / "server").mkdir()
    return tmp_path / "server"


def test_the_small_competition_has_an_address_in_the_hub() -> None:
    url, sha1 = d2l.DATA_HUB["cifar10_tiny"]
    assert url == d2l.DATA_URL + "kaggle_cifar10_tiny.zip"
    assert re.fullmatch("[0-9a-f]{40}", sha1)


def test_download_and_unpack(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(hub / "few.zip", "w") as archive:
        archive.writestr("few/labels.csv", "id,label\n1,frog\n")
    with tarfile.open(hub / "more.tar.gz", "w:gz") as tar:
        tar.add(hub / "few.zip", "more/inner.zip")
    monkeypatch.setitem(d2l.DATA_HUB, "few", url_and_sha1(hub / "few.zip"))
    monkeypatch.setitem(d2l.DATA_HUB, "more", url_and_sha1(hub / "more.tar.gz"))
    folder = d2l.download_extract("few")
    assert isinstance(folder, str)
    assert folder == str(tmp_path / "data-here" / "few")
    assert d2l.read_csv_labels(os.path.join(folder, "labels.csv")) == {"1": "frog"}  # noqa: PTH118 - as the listings do
    assert "Downloading" in capsys.readouterr().out
    assert d2l.download_extract("more").endswith("more")  # the original returns more.tar
    assert d2l.download_extract("few", folder="elsewhere").endswith("elsewhere")
    capsys.readouterr()
    (hub / "few.zip").unlink()
    assert Path(d2l.download("few")).is_file()  # it has been downloaded already
    assert capsys.readouterr().out == ""
    chosen = d2l.download("more", cache_dir=tmp_path / "chosen")
    assert chosen == str(tmp_path / "chosen" / "more.tar.gz")


def test_a_file_in_the_folder_of_d2l_is_used(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "data" / "few.txt").write_text("few")
    monkeypatch.setitem(d2l.DATA_HUB, "few", url_and_sha1(tmp_path / "data" / "few.txt"))
    monkeypatch.chdir(tmp_path / "work")
    assert Path(d2l.download("few")) == Path("../data/few.txt")


def test_failed_downloads_are_one_line(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, pattern: str) -> None:
        with pytest.raises(CnnlabError, match=pattern) as caught:
            d2l.download_extract(name)
        assert "\n" not in str(caught.value)

    fails("cifar10_tinny", r"'cifar10_tinny'.*cifar10_tiny\b")
    (tmp_path / "table.csv.gz").write_bytes(b"\x1f\x8b")
    monkeypatch.setitem(d2l.DATA_HUB, "table", url_and_sha1(tmp_path / "table.csv.gz"))
    fails("table", r"table\.csv\.gz.*\.tgz")
    monkeypatch.setitem(d2l.DATA_HUB, "odd", "an address")
    fails("odd", "pair")
    (hub / "text.txt").write_text("text")
    monkeypatch.setitem(d2l.DATA_HUB, "text", url_and_sha1(hub / "text.txt"))
    fails("text", r"text\.txt.*\.zip, \.tar")
    (hub / "false.zip").write_text("no zip")
    monkeypatch.setitem(d2l.DATA_HUB, "false", url_and_sha1(hub / "false.zip"))
    fails("false", "damaged")
    (tmp_path / "data-here" / "false.zip").write_text("something else")
    fails("false", r"false\.zip.*SHA-1.*DATA_HUB\['false'\]")
    (hub / "wrong.zip").write_text("wrong")
    monkeypatch.setitem(d2l.DATA_HUB, "wrong", ((hub / "wrong.zip").as_uri(), "0" * 40))
    fails("wrong", "checksum.*SHA1 0000")
    monkeypatch.setitem(d2l.DATA_HUB, "nowhere", ((hub / "nowhere.zip").as_uri(), "0" * 40))
    fails("nowhere", r"nowhere\.zip")
    with tarfile.open(hub / "evil.tar", "w") as tar:
        tar.add(hub / "text.txt", "../../evil.txt")
    monkeypatch.setitem(d2l.DATA_HUB, "evil", url_and_sha1(hub / "evil.tar"))
    fails("evil", r"evil\.tar.*outside")
    assert not (tmp_path / "evil.txt").exists()


def test_label_tables_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(b'\xef\xbb\xbfname,what\r\n1,frog\r\n"a,b","dog, small"\r\n\r\n')
    assert d2l.read_csv_labels(file) == {"1": "frog", "a,b": "dog, small"}
    for content in (
        b"", b"id\n1\n", b"id,label,more\n1,2,3\n", b"id,label\n1,frog\n1,dog\n", b"id,label\n1\n", b"id,label\n1,\xff\xfe\n"
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(CnnlabError, match=r"labels\.csv"):
            d2l.read_csv_labels(file)
    with pytest.raises(CnnlabError, match=r"none\.csv"):
        d2l.read_csv_labels(tmp_path / "none.csv")


def files_by_folder(root: Path) -> dict[str, set[str]]:
    base = root / "train_valid_test"
    return {
        str(folder.relative_to(base)): {p.name for p in folder.iterdir()}
        for folder in base.glob("*/*")
        if any(folder.iterdir())
    }


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_sorted_into_folders(tiny_competition: Path, copy: bool) -> None:
    labels = d2l.read_csv_labels(tiny_competition / "trainLabels.csv")
    assert len(labels) == 24
    assert len(set(labels.values())) == 2
    assert d2l.reorg_train_valid(str(tiny_competition), labels, 0.3, copy=copy) == 2  # 8 frogs, 16 ships
    d2l.reorg_test(tiny_competition, copy=copy)
    found = files_by_folder(tiny_competition)
    assert found["valid/frog"] == {"3.png", "6.png"}  # the first ones by number, on every system
    assert found["valid/ship"] == {"1.png", "2.png"}
    assert len(found["train/frog"]) == 6
    assert len(found["train/ship"]) == 14
    assert len(found["train_valid/ship"]) == 16
    assert found["test/unknown"] == {f"{i}.png" for i in range(1, 6)}
    for cls in ("frog", "ship"):
        assert not found[f"train/{cls}"] & found[f"valid/{cls}"]
        assert found[f"train/{cls}"] | found[f"valid/{cls}"] == found[f"train_valid/{cls}"]
    original, other = (
        tiny_competition / "train" / "7.png",
        tiny_competition / "train_valid_test" / "train" / "ship" / "7.png",
    )
    assert other.read_bytes() == original.read_bytes()
    assert other.samefile(original) is not copy
    # Again, with another ratio, and links instead of copies or the reverse: nothing of the first call is left.
    assert d2l.reorg_train_valid(tiny_competition, labels, 0.15, copy=not copy) == 1
    found = files_by_folder(tiny_competition)
    assert found["valid/frog"] == {"3.png"}
    assert len(found["train/frog"]) == 7
    assert other.samefile(original) is copy


def test_images_that_cannot_be_sorted_are_errors(tiny_competition: Path, tmp_path: Path) -> None:
    labels = d2l.read_csv_labels(tiny_competition / "trainLabels.csv")
    for ratio in (-0.1, 1.0, float("nan")):
        with pytest.raises(CnnlabError, match="valid_ratio"):
            d2l.reorg_train_valid(tiny_competition, labels, ratio)
    with pytest.raises(CnnlabError, match="'cat'"):
        d2l.reorg_train_valid(tiny_competition, {**labels, "99": "cat"}, 0.1)
    with pytest.raises(CnnlabError, match=r"24\.png\b.*label"):
        d2l.reorg_train_valid(tiny_competition, {k: v for k, v in labels.items() if k != "24"}, 0.1)
    with pytest.raises(CnnlabError, match=r"'\.\./out'"):
        d2l.reorg_train_valid(tiny_competition, dict.fromkeys(labels, "../out"), 0.1)
    with pytest.raises(CnnlabError, match=r"\blabels\b.*read_csv_labels"):
        d2l.reorg_train_valid(tiny_competition, {}, 0.1)
    with pytest.raises(CnnlabError, match=f"{tmp_path / 'none'}.*archives"):
        d2l.reorg_test(tmp_path / "none")
    assert not (tiny_competition / "train_valid_test").exists()


def test_copyfile(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    d2l.copyfile(str(tmp_path / "a.txt"), os.path.join(tmp_path, "deep", "er"))  # noqa: PTH118
    assert (tmp_path / "deep" / "er" / "a.txt").read_text() == "a"
    assert not (tmp_path / "deep" / "er" / "a.txt").samefile(tmp_path / "a.txt")
    d2l.copyfile(tmp_path / "a.txt", tmp_path)  # onto itself
    with pytest.raises(CnnlabError, match=r"b\.txt.*deep"):
        d2l.copyfile(tmp_path / "b.txt", tmp_path / "deep")


# Plots


def add_epochs(animator: d2l.Animator, epochs: int = 2) -> None:
    for epoch in range(epochs):
        for i in range(5):
            animator.add(epoch + (i + 1) / 5, (1 / (epoch + 1), 0.5 + epoch / 10, None))
        animator.add(epoch + 1, (None, None, 0.6))


def test_a_script_prints_values_and_saves_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    legend = ["train loss", "train acc", "test acc"]
    animator = d2l.Animator(xlabel="epoch", xlim=[1, 2], legend=legend)
    add_epochs(animator)
    file = tmp_path / "figures" / "curve-1.png"
    *values, last = lines(capsys.readouterr().err)
    assert values == [
        "epoch 1: train loss 1.000, train acc 0.500", "epoch 1: test acc 0.600",
        "epoch 2: train loss 0.500, train acc 0.600", "epoch 2: test acc 0.600",
    ]  # fmt: skip
    assert last.endswith(str(file))
    with Image.open(file) as image:
        assert image.width > 300
    before = file.read_bytes()
    animator.add(3, (0.1, 0.9, 0.8))  # beyond xlim: drawn by finish
    assert file.read_bytes() == before
    animator.finish()
    assert file.read_bytes() != before
    add_epochs(d2l.Animator(xlim=[1, 2]))
    assert sorted(p.name for p in file.parent.iterdir()) == ["curve-1.png", "curve-2.png"]
    assert [len(xs) for xs in animator.X] == [11, 11, 3]
    assert animator.axes[0].get_xlabel() == "epoch"
    assert [t.get_text() for t in animator.axes[0].get_legend().get_texts()] == legend
    assert animator.axes[0].get_xlim() == (1, 2)
    animator.fig.savefig(tmp_path / "own.svg")


def test_matplotlib_is_imported_only_when_needed(tmp_path: Path) -> None:
    """Matplotlib is imported when something is drawn, pyplot when a listing uses it."""
    code = (
        "import sys, torch; from torch import nn; from cnnlab import d2l\n"
        "assert 'matplotlib' not in sys.modules\n"
        "data = [(torch.rand(4, 1, 8, 8), torch.arange(4))] * 3\n"
        "d2l.train_ch6(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, data, 2, 0.1, 'cpu')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "d2l.plt.figure\n"
        "assert 'matplotlib.pyplot' in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(lines(run.stdout)) == 3
    assert lines(run.stderr)[-1].endswith(str(tmp_path / "figures" / "curve-1.png"))


def test_training_continues_if_the_figure_cannot_be_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures").write_text("a file is in the way")
    add_epochs(d2l.Animator(xlim=[1, 2]))
    assert re.search(rf"{tmp_path / 'figures'}.*File exists", lines(capsys.readouterr().err)[-1])


def test_the_animator_takes_any_number_of_points(capsys: pytest.CaptureFixture[str]) -> None:
    animator = d2l.Animator(legend=["only"], nrows=2, ncols=2)
    animator.add(torch.tensor(1), torch.tensor(0.5))
    animator.add([2], [0.25])
    animator.add(3, None)
    assert animator.X == [[1.0, 2.0]]
    assert animator.Y == [[0.5, 0.25]]
    assert len(animator.axes) == 4
    with pytest.raises(CnnlabError, match="2 x and 2 y"):
        animator.add(3, (1, 2))
    animator.finish()
    many = d2l.Animator(fmts=("-",))
    many.add(1, range(6))  # more lines than formats
    many.finish()
    assert len(many.axes[0].lines) == 6


def test_set_axes() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.plot([1, 2], [3, 4])
    d2l.set_axes(axes, "x", "y", [1, 10], [1, 100], "linear", "log", ["line"])
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("x", "y", "log")
    assert axes.get_xlim() == (1, 10)
    assert axes.get_legend().get_texts()[0].get_text() == "line"
    d2l.set_axes(axes, None, None, [1, 1], None, "linear", "linear", None)  # a single epoch
    assert axes.get_xlim() == (0, 1)
    d2l.use_svg_display()  # does nothing outside a notebook


def test_a_notebook_shows_one_figure_alongside_other_output(tmp_path: Path) -> None:
    cells = [
        "import torch; from torch import nn; from cnnlab import d2l\n"
        "data = [(torch.rand(4, 1, 8, 8), torch.arange(4))] * 6\n"
        "net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "print('before')\n"
        "d2l.train_ch6(net, data, data, 3, 0.1, 'cpu')",
        "a = d2l.Animator(legend=['line'])\n"  # no xlim: every point is drawn
        "for x in range(10):\n"
        "    a.add(x / 7, x)\n"
        "    if x == 5: print('between')\n"
        "assert len(a.axes[0].lines[0].get_xdata()) == 10",
        "d2l.use_svg_display()\nd2l.show_images([torch.rand(4, 4)], 1, 1);",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    def printed(cell: nbformat.NotebookNode) -> str:
        return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")

    first, second, third = notebook.cells
    for cell in (first, second, third):
        assert sum("image/svg+xml" in o.get("data", {}) for o in cell.outputs) == 1  # redrawn in place
    results = [o["data"]["text/plain"] for o in first.outputs if o.output_type == "execute_result"]
    assert [text.startswith("History of 3 epochs: loss ") for text in results] == [True]
    assert lines(printed(first))[:2] == ["before", "training on cpu"]
    assert len(lines(printed(first))) == 4
    assert "between" in printed(second)
    assert not (tmp_path / "figures").exists()
