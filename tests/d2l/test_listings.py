"""Our own listings in the manual's style run after `from cnnlab import d2l`, with what `cnnlab[all]` installs.

They use d2l's names as the manual's listings do: load Fashion-MNIST, define a network, print its shapes, train it, and
take part in the competition. The data is cut to a few images.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

from cnnlab import d2l
from cnnlab.d2l import data as d2l_data

ROOT = Path(__file__).resolve().parents[2]

VGG = """
import torch
from torch import nn
from cnnlab import d2l

def block(convs, inputs, outputs):
    layers = []
    for _ in range(convs):
        layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.MaxPool2d(2))

net = nn.Sequential(block(1, 1, 4), block(2, 4, 8), d2l.Residual(8, 16, use_1x1conv=True, strides=2), nn.Flatten(),
                    nn.LazyLinear(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
X = torch.rand(1, 1, 48, 48)
for layer in net:
    X = layer(X)
    print(type(layer).__name__, 'output', tuple(X.shape))
lr, num_epochs, batch_size = 0.05, 2, 64
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size, resize=48)
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
"""

# A layer and a training loop written by the user, with the small helpers.
BATCH_NORM = """
import torch
from torch import nn
from cnnlab import d2l

class Norm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, X):
        mean, var = X.mean((0, 2, 3), keepdim=True), X.var((0, 2, 3), keepdim=True, unbiased=False)
        return self.gamma.reshape(1, -1, 1, 1) * (X - mean) / torch.sqrt(var + 1e-5) + self.beta.reshape(1, -1, 1, 1)

net = nn.Sequential(nn.Conv2d(1, 6, 5), Norm(6), nn.Sigmoid(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(216, 10))
train_iter, test_iter = d2l.load_data_fashion_mnist(64)
device, loss, timer = d2l.try_gpu(), nn.CrossEntropyLoss(), d2l.Timer()
net.to(device)
updater = torch.optim.SGD(net.parameters(), lr=1.0)
animator = d2l.Animator(xlabel='epoch', xlim=[1, 2], legend=['loss', 'train acc', 'test acc'])
for epoch in range(2):
    metric = d2l.Accumulator(3)
    net.train()
    for i, (X, y) in enumerate(train_iter):
        timer.start()
        updater.zero_grad()
        X, y = X.to(device), y.to(device)
        y_hat = net(X)
        l = loss(y_hat, y)
        l.backward()
        updater.step()
        with torch.no_grad():
            metric.add(l * X.shape[0], d2l.accuracy(y_hat, y), X.shape[0])
        timer.stop()
        animator.add(epoch + (i + 1) / len(train_iter), (metric[0] / metric[2], metric[1] / metric[2], None))
    test_acc = d2l.evaluate_accuracy_gpu(net, test_iter)
    animator.add(epoch + 1, (None, None, test_acc))
print(f'loss {metric[0] / metric[2]:.3f}, train acc {metric[1] / metric[2]:.3f}, test acc {test_acc:.3f}')
print(f'{metric[2] * 2 / timer.sum():.1f} examples/sec on {str(device)}')
print(net[1].gamma.reshape((-1,)), net[1].beta.reshape((-1,)))
"""

COMPETITION = """
import os
import pandas as pd
import torch
import torchvision
from torch import nn
from cnnlab import d2l

data_dir = d2l.download_extract('cifar10_tiny')
labels = d2l.read_csv_labels(os.path.join(data_dir, 'trainLabels.csv'))
d2l.reorg_train_valid(data_dir, labels, valid_ratio=0.2)
d2l.reorg_test(data_dir)

norm = torchvision.transforms.Normalize([0.49, 0.48, 0.45], [0.25, 0.24, 0.26])
augment = torchvision.transforms.Compose([
    torchvision.transforms.Resize(40),
    torchvision.transforms.RandomResizedCrop(32, scale=(0.64, 1.0), ratio=(1.0, 1.0)),
    torchvision.transforms.RandomHorizontalFlip(), torchvision.transforms.ToTensor(), norm])
plain = torchvision.transforms.Compose([torchvision.transforms.ToTensor(), norm])

def images(part, transform):
    return torchvision.datasets.ImageFolder(os.path.join(data_dir, 'train_valid_test', part), transform=transform)

train_iter = torch.utils.data.DataLoader(images('train', augment), 8, shuffle=True, drop_last=True)
valid_iter = torch.utils.data.DataLoader(images('valid', plain), 8)
test_iter = torch.utils.data.DataLoader(images('test', plain), 8, shuffle=False)

def train(net, lr, num_epochs):
    loss = nn.CrossEntropyLoss(reduction='none')
    trainer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer, 4, 0.9)
    timer = d2l.Timer()
    animator = d2l.Animator(xlabel='epoch', xlim=[1, num_epochs], legend=['train loss', 'train acc', 'valid acc'])
    net = nn.DataParallel(net, device_ids=devices).to(devices[0])
    for epoch in range(num_epochs):
        net.train()
        metric = d2l.Accumulator(3)
        for i, (X, y) in enumerate(train_iter):
            timer.start()
            l, acc = d2l.train_batch_ch13(net, X, y, loss, trainer, devices)
            metric.add(l, acc, y.shape[0])
            timer.stop()
            animator.add(epoch + (i + 1) / len(train_iter), (metric[0] / metric[2], metric[1] / metric[2], None))
        animator.add(epoch + 1, (None, None, d2l.evaluate_accuracy_gpu(net, valid_iter)))
        scheduler.step()
    print(f'train loss {metric[0] / metric[2]:.3f}, train acc {metric[1] / metric[2]:.3f}')
    print(f'{metric[2] * num_epochs / timer.sum():.1f} examples/sec on {str(devices)}')

devices, net = d2l.try_all_gpus(), d2l.resnet18(2, 3)
train(net, 2e-4, 1)
net.eval()
preds = []
for X, _ in test_iter:
    preds.extend(net(X.to(devices[0])).argmax(dim=1).type(torch.int32).cpu().numpy())
ids = sorted(range(1, len(preds) + 1), key=str)
table = pd.DataFrame({'id': ids, 'label': preds})
table['label'] = table['label'].apply(lambda k: train_iter.dataset.classes[k])
table.to_csv('submission.csv', index=False)
"""

NETWORKS = {"vgg": VGG, "batch norm": BATCH_NORM}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_listing_trains(
    name: str, fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CNNLAB_DATA", str(fashion_folder))
    load_images = d2l_data.load_images
    monkeypatch.setattr(d2l_data, "load_images", lambda *args: load_images(*args).take(torch.arange(256)))
    exec(compile(NETWORKS[name], name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert re.search(r"^loss \d+\.\d{3}, train acc \d\.\d{3}, test acc \d\.\d{3}$", printed, re.MULTILINE)
    assert re.search(r"^\d+\.\d examples/sec on ", printed, re.MULTILINE)
    assert (tmp_path / "figures" / "curve-1.png").exists()


def test_the_competitions_listing_writes_a_submission(
    tiny_competition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(d2l, "download_extract", lambda name: str(tiny_competition))
    exec(compile(COMPETITION, "competition", "exec"), {"__name__": "__main__"})
    assert re.search(r"^train loss \d+\.\d{3}, train acc \d\.\d{3}$", capsys.readouterr().out, re.MULTILINE)
    rows = [line.split(",") for line in (tmp_path / "submission.csv").read_text().splitlines()]
    assert rows[0] == ["id", "label"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "3", "4", "5"]
    assert {row[1] for row in rows[1:]} <= {"frog", "ship"}


def test_the_all_extra_installs_everything_the_listings_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    chosen = re.fullmatch(r"cnnlab\[(.*)\]", everything)
    assert chosen
    assert set(chosen[1].split(",")) == extras.keys() - {"all"}
    requirements = project["dependencies"] + [r for name in chosen[1].split(",") for r in extras[name]]
    installed = {"cnnlab", *(re.match(r"[\w.-]+", r)[0].lower() for r in requirements)}  # type: ignore[index]
    owners = packages_distributions()
    for listing in (*NETWORKS.values(), COMPETITION):
        for node in ast.walk(ast.parse(listing)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"cnnlab"}:
                assert {owner.lower() for owner in owners[top]} & installed, top
