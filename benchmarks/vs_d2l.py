"""Compare the d2l package's train_ch6, with its own loader, with ours, for every network of the chapter, in turn.

    python benchmarks/vs_d2l.py [--networks lenet alexnet ...] [--pairs 3] [--epochs 2] [--images N] [--tiny]

Both sides use the manual's network, batch size, image size and learning rate. d2l's side uses torch's own layers, as
its readers do, and the book's batch norm from scratch instead of our layer, which is part of the comparison. The script
installs d2l 0.17.6 into .peers/d2l, which git ignores, without its pinned dependencies, which a current Python cannot
meet. None of its code is ours or committed.

Each run is a process of its own: d2l, ours in float32 (`cnnlab`: the manual's recipe as it is), ours with
`precision=auto` (`cnnlab-auto`: bfloat16 if the CPU supports it natively and it is faster), d2l, ...

The networks for 28 pixels train for whole epochs of 60,000 images. An epoch at 96 or 224 pixels takes many minutes, so
those networks train once on a limited number of images, the same for both sides, and are evaluated on 256. d2l's
load_data_fashion_mnist is then cut: a DataLoader with the same workers, shuffling, resizing and transforms over a
torch.utils.data.Subset of the same data set. On both sides, startup (of workers, of memory) weighs more in a few steps
than in an epoch.

What is timed:

    speed_ratio   training including data, wall-clock: the primary figure. d2l: train_ch6's loop over the epochs, minus
                  its calls of evaluate_accuracy_gpu and of its Animator (which draws five times an epoch, however
                  short). cnnlab: `train_seconds` of the run's rows. Neither includes evaluation or saving
    whole_ratio   d2l: the call of train_ch6, with evaluation and drawing. cnnlab: from a built model to a finished run,
                  with evaluation, saving weights, checkpoint and metrics, TensorBoard, and the curve. In a limited run,
                  most of that is work which a full run spreads over many minutes
    process_ratio the whole process, including imports and reading the data

Our side computes (memory format, precision, threads) as it would for the whole recipe, ten epochs of 60,000 images. The
trial that chooses this is outside the clock; its choice and seconds are in the result (`plans`). Nothing is compiled,
which would take longer than the measurement. `share_of_peak` is three times the operations of the forward pass, times
images/s, divided by the operations per second of a large matrix product in that precision.

This parent process imports torch only after measuring: pages shared with it would not count as the children's.

Writes build/results/vs-d2l_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA) and psutil.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import (
    PEERS,
    Task,
    answered,
    call,
    child_cnnlab,
    commit,
    comparison_parser,
    fixed_plans,
    matrix_peak,
    prepare,
    present,
    report,
    run_rounds,
    summary,
    warm_up_gpu,
    write_result,
)

D2L = "d2l==0.17.6"
# The recipe of each network, and its number of training images; 0: all.
NETWORKS = {
    "lenet": ("manual/lenet", 0),
    "lenet-bn": ("manual/lenet-bn", 0),
    "lenet-bn-scratch": ("manual/lenet-bn-scratch", 0),
    "alexnet": ("manual/alexnet", 896),
    "vgg11-quarter": ("manual/vgg11", 1280),
    "nin": ("manual/nin", 896),
    "resnet18-manual": ("manual/resnet18", 2560),
    "googlenet": ("manual/googlenet", 1280),
    "densenet": ("manual/densenet", 2560),
}
EVAL_IMAGES = 256  # test images after a limited epoch


def child_prepare(task: Task) -> Task:
    """Install d2l, put the data where d2l looks for it, measure the machine and choose our plans."""
    from cnnlab.data import data_folder, load_images
    from cnnlab.recipes import RECIPES

    target = PEERS / "d2l"
    installed = (target / "d2l").exists()
    if task["tiny"] and not (installed and present()):
        return {"skipped": "Fashion-MNIST is not here" if installed else f"{D2L} is not installed in .peers"}
    if not installed:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
        subprocess.run([*pip, "--no-deps", D2L], check=True)
        subprocess.run([*pip, "pandas", "ipython", "requests", "matplotlib-inline"], check=True)
    load_images("fashion-mnist", "train")  # downloads missing files and checks the rest
    load_images("fashion-mnist", "test")
    raw = PEERS / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for file in (data_folder() / "FashionMNIST" / "raw").glob("*.gz"):
        if not (raw / file.name).exists():
            shutil.copy(file, raw)
    (PEERS / "work").mkdir(exist_ok=True)

    count, setups = 1000 if task["tiny"] else 60_000, {}
    for network in task["networks"]:
        recipe = RECIPES[NETWORKS[network][0]]
        recipe = recipe.changed(epochs=1) if task["tiny"] else recipe
        setups[network] = fixed_plans(recipe.to_dict(), count, recipe.image_size or 28)
    return {"peaks": matrix_peak() if setups else {}, "setups": setups}


def as_printed(net: Any) -> Any:
    """Replace the forward pass of our batch norm layers by the book's formulas. Return the network."""
    import torch

    from cnnlab.models import batch_norm

    class BatchNorm(batch_norm.BatchNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Compute batch norm as the book does: mean, squared deviations, quotient, scale."""
            over, wide = ((0,), (1, -1)) if x.ndim == 2 else ((0, 2, 3), (1, -1, 1, 1))
            mean, var = self.moving_mean.view(wide), self.moving_var.view(wide)
            if self.training:
                mean = x.mean(over, keepdim=True)
                var = ((x - mean) ** 2).mean(over, keepdim=True)
                keep = self.momentum
                self.moving_mean = keep * self.moving_mean + (1 - keep) * mean.detach().view(-1)
                self.moving_var = keep * self.moving_var + (1 - keep) * var.detach().view(-1)
            return self.gamma.view(wide) * ((x - mean) / torch.sqrt(var + self.eps)) + self.beta.view(wide)

    for layer in net.modules():
        if isinstance(layer, batch_norm.BatchNorm):
            layer.__class__ = BatchNorm
    return net


def child_d2l(task: Task) -> Task:
    sys.path.append(str(PEERS / "d2l"))  # after our packages: torch, numpy and matplotlib are the same for both sides
    os.chdir(PEERS / "work")
    from torch.utils.data import DataLoader, Subset

    from cnnlab.models import build_model
    from d2l import torch as d2l

    recipe = task["recipe"]
    batch, size, epochs = recipe["batch_size"], recipe["image_size"], recipe["epochs"]
    net = as_printed(build_model(recipe["model"], num_classes=10, in_channels=1, image_size=size or 28))
    train_iter, test_iter = d2l.load_data_fashion_mnist(batch, resize=size or None)
    if task["images"]:
        train_iter, test_iter = (
            DataLoader(Subset(whole.dataset, range(n)), batch, shuffle=shuffle, num_workers=whole.num_workers)
            for whole, n, shuffle in ((train_iter, task["images"], True), (test_iter, task["eval_images"], False))
        )

    clock = {"loop start": 0.0, "loop ended": 0.0, "not training": 0.0}

    def excluded(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            answer = function(*args)
            clock["loop ended"] = time.perf_counter()
            clock["not training"] += clock["loop ended"] - start
            return answer

        return timed

    def timer(make: Callable[[], Any] = d2l.Timer) -> Any:
        clock["loop start"] = time.perf_counter()  # train_ch6 creates its timer right before the loop
        return make()

    warm_up_gpu()
    vars(d2l)["evaluate_accuracy_gpu"] = excluded(d2l.evaluate_accuracy_gpu)
    d2l.Animator.add = excluded(d2l.Animator.add)  # also the last call in the loop
    vars(d2l)["Timer"] = timer
    start = time.perf_counter()
    d2l.train_ch6(net, train_iter, test_iter, epochs, recipe["learning_rate"], d2l.try_gpu())
    return {
        "seconds": time.perf_counter() - start,
        "train_seconds": clock["loop ended"] - clock["loop start"] - clock["not training"],
        "images": epochs * len(train_iter.dataset),
    }


def ensure_installed() -> None:
    """Install d2l and its data, for other scripts."""
    call({"side": "prepare", "networks": [], "tiny": False}, __file__)


def measure(side: str, network: str, epochs: int) -> Task:
    """Run one side once, with the network's recipe on all images, for other scripts."""
    from cnnlab.recipes import RECIPES

    recipe = RECIPES[NETWORKS[network][0]].changed(epochs=epochs).to_dict()
    return call({"side": side, "recipe": recipe, "threads": None, "images": 0, "eval_images": 0}, __file__)


def measured(env: dict[str, Any]) -> dict[str, str]:
    """Return the date and PyTorch version of a result, for the networks that --keep takes from it."""
    return {"date": env["date"], "torch": env["versions"]["torch"]}


def main() -> None:
    children = {"prepare": child_prepare, "d2l": child_d2l, "cnnlab": child_cnnlab, "cnnlab-auto": child_cnnlab}
    if answered(children):
        return
    parser = comparison_parser(__doc__, list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=2, help="for networks that train on all images; others: 1")
    parser.add_argument("--images", type=int, help="training images, 0: all; at least 5 batches. Default: by network")
    parser.add_argument("--keep", type=Path, metavar="JSON", help="an earlier result, whose other networks are kept")
    args = parser.parse_args()
    if args.tiny:
        args.networks, args.pairs, args.images = args.networks or ["lenet-bn"], 1, 1280
    networks = args.networks or list(NETWORKS)
    ready = prepare(networks, args.tiny)
    if ready is None:
        return
    peaks, setups = ready["peaks"], ready["setups"]
    figures: dict[str, Any] = {}
    if args.keep:
        earlier = json.loads(args.keep.read_text())
        shared = {key: earlier[key] for key in ("commit", "operations_per_second_at_most")}
        shared["measured"] = measured(earlier["environment"])
        figures = {network: {**shared, **found} for network, found in earlier["networks"].items()}
    for network in networks:
        images = NETWORKS[network][1] if args.images is None else args.images
        limits = {"images": images, "eval_images": EVAL_IMAGES if images else 0}
        epochs, setup = 1 if images else args.epochs, setups[network]
        pairs = run_rounds(network, ("d2l", "cnnlab", "cnnlab-auto"), setup, limits, epochs, args)
        recipe = setup["cnnlab"]["recipe"]
        found = summary(pairs, "d2l", setup, peaks)
        figures[network] = {
            "recipe": NETWORKS[network][0],
            "commit": commit(),
            "operations_per_second_at_most": peaks,
            **{key: recipe[key] for key in ("batch_size", "image_size", "learning_rate")},
            "images": images or 60_000,
            "limited": bool(images),
            "epochs": epochs,
            "plans": {side: ours["plan"] for side, ours in setup.items()},
            **found,
            "pairs": pairs,
        }
        print(report(network, found, setup, args.pairs), flush=True)
    figures = {network: figures[network] for network in NETWORKS if network in figures}
    shared = {"peer": D2L, "epochs": args.epochs, "n": args.pairs, "operations_per_second_at_most": peaks}
    print(write_result("vs-d2l", "auto", {**shared, "networks": figures}, args.out))


if __name__ == "__main__":
    main()
