"""Compare the usual ways to train a network on images with ours: the same network, images and augmentation, in turn.

    python benchmarks/vs_reference.py [--networks resnet18-cifar ...] [--pairs 3] [--images N] [--workers N] [--tiny]

The data is Fashion-MNIST at 28 and at 96 pixels, with a limited number of training images. All sides use our networks,
crop at random (0.64 to 1 of the area, square), resize to the network's size, flip, normalise, and train in batches of
128 with SGD, momentum 0.9 and weight decay 5e-4. Each run is a process of its own, one of each side in turn:

    torchvision         what torchvision's reference scripts for classification do, in our own writing: a DataLoader
                        with worker processes, torchvision.transforms on each image as PIL, a plain loop
    torchvision-tuned   the same in channels_last and, if the device supports it natively, with autocast to bfloat16:
                        what a user who knows of both would switch on
    timm                timm.data.create_loader with its prefetcher, timm.optim.create_optimizer_v2, the same loop
    fastai              a fastai Learner on Datasets: worker processes crop and resize, batches are flipped and
                        normalised (its SGD has no Nesterov momentum)
    cnnlab              `cnnlab.train` in float32
    cnnlab-auto         the same with precision=auto

timm is one of this project's extras. fastai is installed into .peers/fastai, which git ignores, without its pinned
dependencies. A side that cannot be installed is left out and named in the result (`left_out`). There are as many
workers as cores, unless --workers says otherwise.

`train_seconds` is the training including data, wall-clock, without evaluation (for ours, from the run's rows).
`seconds` adds an evaluation on 256 test images after each epoch; ours also saves weights, checkpoint, metrics, events
and the curve. Ratios are a peer's time over ours. Our side computes as it would for ten epochs of 60,000 images; the
choice is made outside every clock, as in vs_d2l.py. This parent process does not import torch before it has measured.

Writes build/results/vs-reference_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA) and psutil.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from _common import (
    PEERS,
    Task,
    answered,
    child_cnnlab,
    comparison_parser,
    fixed_plans,
    matrix_peak,
    prepare,
    present,
    report,
    run_rounds,
    summary,
    write_result,
)

FASTAI = ["fastai==2.8.12", "fastcore==2.2.39", "fastdownload==0.0.8", "fastprogress==1.0.3", "fasttransform==0.0.5"]
FASTAI_NEEDS = ["plum-dispatch<2.10", "cloudpickle", "pandas", "requests", "pyyaml"]
# Image size in pixels, and the number of training images.
NETWORKS = {"resnet18-small": (28, 12_800), "resnet18-cifar": (28, 1280), "resnet18-manual": (96, 1280)}
EVAL_IMAGES = 256
BATCH, RATE, MOMENTUM, DECAY = 128, 0.05, 0.9, 5e-4
AREA = (0.64, 1.0)


def our_recipe(network: str, epochs: int) -> Task:
    from cnnlab.recipe import Recipe

    return Recipe(
        name="vs-reference", data="fashion-mnist", model=network, epochs=epochs, batch_size=BATCH, learning_rate=RATE,
        momentum=MOMENTUM, nesterov=True, weight_decay=DECAY, image_size=NETWORKS[network][0], crop_scale=AREA[0],
        flip=True, val_fraction=0.0, eval_split="test",
    ).to_dict()  # fmt: skip


def child_prepare(task: Task) -> Task:
    """Install missing peers, measure the machine and choose our plans."""
    left_out = {}
    if find_spec("timm") is None:
        left_out["timm"] = "not installed; it is in the extra cnnlab[timm]"
    target = PEERS / "fastai"
    if not (target / "fastai").exists():
        left_out["fastai"] = "not installed in .peers"
        if not task["tiny"]:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run([*pip, "--no-deps", *FASTAI], check=True, timeout=300)
                subprocess.run([*pip, *FASTAI_NEEDS], check=True, timeout=300)
                del left_out["fastai"]
    if task["tiny"] and not present():
        return {"skipped": "Fashion-MNIST is not here"}
    from cnnlab.data import load_images

    load_images("fashion-mnist", "train")  # downloads missing files and checks the rest
    epochs, count = (1, 1000) if task["tiny"] else (10, 60_000)
    setups = {n: fixed_plans(our_recipe(n, epochs), count, NETWORKS[n][0]) for n in task["networks"]}
    return {"left_out": left_out, "peaks": matrix_peak(), "setups": setups}


class Images:
    """Fashion-MNIST like torchvision's dataset: pairs of a transformed PIL image and its label."""

    def __init__(self, split: str, count: int, transform: Any = None) -> None:
        from cnnlab.data import load_images

        images = load_images("fashion-mnist", split)
        assert images is not None
        self.pixels, self.labels = images.images[:count][:, 0].numpy(), images.labels[:count].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self.pixels[index])
        return (self.transform(image) if self.transform else image), self.labels[index]


def moments() -> tuple[tuple[float], tuple[float]]:
    return (0.2860,), (0.3530,)  # mean and std of Fashion-MNIST's training images


def usual_loop(
    task: Task, train_loader: Iterable[Any], test_loader: Iterable[Any], network: Any, optimizer: Any, tuned: bool
) -> Task:
    """Run a plain loop that sums loss and accuracy after each step, like the reference scripts' meters."""
    import torch
    import torch.nn.functional as F

    from cnnlab.device.hardware import has_bfloat16, pick_device

    device = pick_device("auto")
    layout = torch.channels_last if tuned else torch.contiguous_format
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=tuned and has_bfloat16(device))
    evaluating = images = 0.0
    loss_sum = correct = 0.0
    start = time.perf_counter()
    for _ in range(task["epochs"]):
        network.train()
        loss_sum = correct = images = 0.0
        for x, y in train_loader:
            x, y = x.to(device, memory_format=layout), y.to(device)
            with autocast():
                output = network(x)
                loss = F.cross_entropy(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(y)
            correct += (output.argmax(1) == y).sum().item()
            images += len(y)
        trained = time.perf_counter()
        network.eval()
        right = seen = 0
        with torch.inference_mode(), autocast():
            for x, y in test_loader:
                output = network(x.to(device, memory_format=layout))
                right, seen = right + int((output.argmax(1) == y.to(device)).sum()), seen + len(y)
        evaluating += time.perf_counter() - trained
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "train_seconds": seconds - evaluating,
        "images": int(images) * task["epochs"],
        "loss": loss_sum / images,
        "train_acc": correct / images,
        "test_acc": right / seen,
        "precision": "bfloat16" if tuned and has_bfloat16(device) else "float32",
    }


def build(task: Task, tuned: bool = False) -> Any:
    import torch

    from cnnlab.device.hardware import pick_device
    from cnnlab.models import build_model

    torch.manual_seed(0)
    network = build_model(task["network"], num_classes=10, in_channels=1, image_size=task["size"])
    return network.to(pick_device("auto")).to(memory_format=torch.channels_last if tuned else torch.contiguous_format)


def child_torchvision(task: Task) -> Task:
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    tuned, size = task["side"] == "torchvision-tuned", task["size"]
    last = [transforms.ToTensor(), transforms.Normalize(*moments())]
    crop = [transforms.RandomResizedCrop(size, AREA, (1.0, 1.0)), transforms.RandomHorizontalFlip()]
    train_loader, test_loader = (
        DataLoader[Any](
            Images(split, count, transforms.Compose([*first, *last])),  # type: ignore[arg-type]
            BATCH,
            shuffle=split == "train",
            num_workers=task["workers"],
            pin_memory=torch.cuda.is_available(),
        )
        for split, count, first in (
            ("train", task["images"], crop),
            ("test", task["eval_images"], [transforms.Resize(size)]),
        )
    )
    network = build(task, tuned)
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    return usual_loop(task, train_loader, test_loader, network, optimizer, tuned)


def child_timm(task: Task) -> Task:
    from cnnlab.device.hardware import pick_device

    data, optim = import_module("timm.data"), import_module("timm.optim")
    mean, std = moments()
    train_loader, test_loader = (
        data.create_loader(
            Images(split, count), (1, task["size"], task["size"]), BATCH, is_training=split == "train", scale=AREA,
            ratio=(1.0, 1.0), color_jitter=None, interpolation="bilinear", crop_pct=1.0, mean=mean, std=std,
            num_workers=task["workers"], persistent_workers=task["workers"] > 0, device=pick_device("auto"),
        )
        for split, count in (("train", task["images"]), ("test", task["eval_images"]))
    )  # fmt: skip
    network = build(task)
    optimizer = optim.create_optimizer_v2(network, opt="sgd", lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    return usual_loop(task, train_loader, test_loader, network, optimizer, tuned=False)


def child_fastai(task: Task) -> Task:
    sys.path.append(str(PEERS / "fastai"))  # after our packages: torch and numpy are the same for all
    data, core = import_module("fastai.data.core"), import_module("fastai.vision.core")
    transforms, augment = import_module("fastai.data.transforms"), import_module("fastai.vision.augment")
    learner, torch_core = import_module("fastai.learner"), import_module("fastai.torch_core")
    optimizer, metrics = import_module("fastai.optimizer"), import_module("fastai.metrics")
    losses, callback = import_module("fastai.losses"), import_module("fastai.callback.core")

    train, test = Images("train", task["images"]), Images("test", task["eval_images"])
    count = len(train)

    def image(index: int) -> Any:
        return core.PILImageBW(train[index][0] if index < count else test[index - count][0])

    def label(index: int) -> Any:
        return torch_core.TensorCategory(train.labels[index] if index < count else test.labels[index - count])

    everything = range(count + len(test))
    sets = data.Datasets(everything, [[image], [label]], splits=[everything[:count], everything[count:]])
    loaders = sets.dataloaders(
        bs=BATCH,
        drop_last=False,
        num_workers=task["workers"],
        after_item=[
            augment.RandomResizedCrop(task["size"], min_scale=AREA[0], ratio=(1.0, 1.0)),
            transforms.ToTensor(),
        ],
        after_batch=[
            transforms.IntToFloatTensor(),
            augment.Flip(),
            transforms.Normalize.from_stats(*moments(), cuda=False),
        ],
    )
    clock = {"start": 0.0, "training": 0.0}

    class Clock(callback.Callback):  # type: ignore[name-defined, misc]
        def before_train(self) -> None:
            clock["start"] = time.perf_counter()

        def after_train(self) -> None:
            clock["training"] += time.perf_counter() - clock["start"]

    learn = learner.Learner(
        loaders,
        build(task),
        loss_func=losses.CrossEntropyLossFlat(),
        opt_func=partial(optimizer.SGD, mom=MOMENTUM),
        metrics=metrics.accuracy,
        wd=DECAY,
        moms=(MOMENTUM,) * 3,
        cbs=Clock(),
    )
    start = time.perf_counter()
    with learn.no_logging():  # no progress bar: its module is not imported
        learn.fit(task["epochs"], RATE)
    loss, _, test_acc = learn.recorder.values[-1]
    return {
        "seconds": time.perf_counter() - start,
        "train_seconds": clock["training"],
        "images": count * task["epochs"],
        "loss": loss,
        "test_acc": test_acc,
    }


CHILDREN = {
    "prepare": child_prepare,
    "torchvision": child_torchvision,
    "torchvision-tuned": child_torchvision,
    "timm": child_timm,
    "fastai": child_fastai,
    "cnnlab": child_cnnlab,
    "cnnlab-auto": child_cnnlab,
}


def main() -> None:
    if answered(CHILDREN):
        return
    parser = comparison_parser(__doc__, list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, help="training images. Default: by network")
    parser.add_argument("--workers", type=int, help="processes of the peers' loaders. Default: one per core")
    args = parser.parse_args()
    if args.tiny:
        args.networks, args.pairs, args.images = args.networks or ["resnet18-small"], 1, 128
    networks = args.networks or list(NETWORKS)
    ready = prepare(networks, args.tiny)
    if ready is None:
        return
    peaks, left_out, figures = ready["peaks"], ready["left_out"], {}
    for network in networks:
        setup = ready["setups"][network]
        shared = {"size": NETWORKS[network][0], "images": args.images or NETWORKS[network][1],
                  "eval_images": EVAL_IMAGES, "epochs": args.epochs,
                  "workers": setup["cnnlab"]["threads"] if args.workers is None else args.workers}  # fmt: skip
        peers = [s for s in CHILDREN if s not in ("prepare", "cnnlab", "cnnlab-auto") and s not in left_out]
        sides = (*peers, "cnnlab", "cnnlab-auto")
        rounds = run_rounds(network, sides, setup, {**shared, "network": network}, args.epochs, args)
        against = {}
        for peer in peers:
            pairs = [{side: runs[side] for side in (peer, "cnnlab", "cnnlab-auto")} for runs in rounds]
            against[peer] = summary(pairs, peer, setup, peaks)
            print(report(f"{network} against {peer}", against[peer], setup, args.pairs), flush=True)
        figures[network] = {
            **shared,
            "plans": {side: ours["plan"] for side, ours in setup.items()},
            "against": against,
            "rounds": rounds,
        }
    top = {"n": args.pairs, "epochs": args.epochs, "left_out": left_out, "operations_per_second_at_most": peaks}
    print(write_result("vs-reference", "auto", {**top, "networks": figures}, args.out))


if __name__ == "__main__":
    main()
