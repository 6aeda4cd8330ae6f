"""Measure what one changed import line gains: alternate d2l's train_ch6 and cnnlab.d2l's, each with its own loader.

    python benchmarks/drop_in.py [--networks lenet resnet18-manual ...] [--pairs 3] [--epochs 2] [--tiny]

Both sides use the same network of torch's own layers, batch size, image size and learning rate, in float32 and torch's
default memory format, as in a reader's listing. Nothing is measured beforehand or compiled. Timing, networks, limits
and d2l's side are as in vs_d2l.py.

Writes build/results/drop-in_HARDWARE_DATE.json. Needs Fashion-MNIST (CNNLAB_DATA) and psutil.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from _common import PEERS, Task, answered, call_each, comparison_parser, prepare, spread, write_result
from vs_d2l import D2L, EVAL_IMAGES, NETWORKS, as_printed, child_d2l, child_prepare


class First:
    """The first `count` batches of an iterable. It can be iterated several times."""

    def __init__(self, batches: Any, count: int) -> None:
        self._batches, self._count = batches, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._batches), self._count)

    def __len__(self) -> int:
        return self._count


def child_manual(task: Task) -> Task:
    os.chdir(PEERS / "work")  # train_ch6 saves its curves in the working folder
    from cnnlab import d2l
    from cnnlab.models import build_model

    recipe = task["recipe"]
    batch, size, epochs = recipe["batch_size"], recipe["image_size"], recipe["epochs"]
    net = as_printed(build_model(recipe["model"], num_classes=10, in_channels=1, image_size=size or 28))
    train_iter: Any
    train_iter, test_iter = d2l.load_data_fashion_mnist(batch, resize=size or None)
    eval_iter: Any = test_iter
    if task["images"]:
        train_iter = First(train_iter, task["images"] // batch)
        eval_iter = First(test_iter, task["eval_images"] // batch)
    start = time.perf_counter()
    history = d2l.train_ch6(net, train_iter, eval_iter, epochs, recipe["learning_rate"], d2l.try_gpu())
    return {
        "seconds": time.perf_counter() - start,
        "train_seconds": sum(row["train_seconds"] for row in history.rows),
        "images": sum(row["images"] for row in history.rows),
    }


def main() -> None:
    if answered({"prepare": child_prepare, "d2l": child_d2l, "cnnlab.d2l": child_manual}):
        return
    parser = comparison_parser(__doc__, list(NETWORKS))
    parser.set_defaults(networks=["lenet", "lenet-bn", "lenet-bn-scratch", "resnet18-manual"])
    parser.add_argument("--epochs", type=int, default=2, help="for networks that train on all images; others: 1")
    args = parser.parse_args()
    if args.tiny:
        args.networks, args.pairs = ["lenet-bn"], 1
    if prepare([], args.tiny) is None:
        return
    from cnnlab.recipes import RECIPES  # only now: see vs_d2l.py

    figures: dict[str, Any] = {}
    for network in args.networks:
        name, images = NETWORKS[network]
        images = 1280 if args.tiny else images
        recipe = RECIPES[name].changed(epochs=1 if images else args.epochs).to_dict()
        task = {"recipe": recipe, "images": images, "eval_images": EVAL_IMAGES if images else 0}
        sides = ("d2l", "cnnlab.d2l")
        pairs = [call_each([{**task, "side": side} for side in sides], together=args.tiny) for _ in range(args.pairs)]
        ratio = {
            key: spread([p["d2l"][key] / p["d2l"]["images"] * p[sides[1]]["images"] / p[sides[1]][key] for p in pairs])
            for key in ("train_seconds", "seconds")
        }
        figures[network] = {"images": images or 60_000, "epochs": recipe["epochs"], "ratio": ratio, "pairs": pairs}
        trained, whole = ratio["train_seconds"], ratio["seconds"]
        print(
            f"{network}: training {trained['median']:.2f} times as fast ({trained['min']:.2f} to {trained['max']:.2f}, "
            f"n={args.pairs}), the whole call {whole['median']:.2f}",
            flush=True,
        )
    print(write_result("drop-in", "auto", {"peer": D2L, "n": args.pairs, "networks": figures}, args.out))


if __name__ == "__main__":
    main()
