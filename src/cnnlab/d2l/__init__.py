"""The names that the manual's code takes from the package d2l: `from cnnlab import d2l`.

With that one line in place of `from d2l import torch as d2l`, the listings of the manual, and of the sections of its
source on LeNet, modern networks and the competition, run here. Each name means what it means there; where the original
is wrong, the difference stands in the name's own docstring and in docs/from-d2l.md. No code here is d2l's.

Source: A. Zhang, Z. C. Lipton, M. Li, A. J. Smola, Dive into deep learning, and its package d2l 0.17.6.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnnlab.d2l.animator import Animator, set_axes, use_svg_display
from cnnlab.d2l.data import get_dataloader_workers, get_fashion_mnist_labels, load_data_fashion_mnist, show_images
from cnnlab.d2l.hub import (
    DATA_HUB,
    DATA_URL,
    copyfile,
    download,
    download_extract,
    read_csv_labels,
    reorg_test,
    reorg_train_valid,
)
from cnnlab.d2l.measuring import (
    Accumulator,
    Timer,
    accuracy,
    argmax,
    astype,
    evaluate_accuracy,
    evaluate_accuracy_gpu,
    reduce_sum,
    size,
    try_all_gpus,
    try_gpu,
)
from cnnlab.d2l.networks import Residual, resnet18
from cnnlab.d2l.training import History, train_batch_ch13, train_ch6, train_ch13
from cnnlab.io.errors import unknown

if TYPE_CHECKING:
    from matplotlib import pyplot as plt

__all__ = [
    "DATA_HUB",
    "DATA_URL",
    "Accumulator",
    "Animator",
    "History",
    "Residual",
    "Timer",
    "accuracy",
    "argmax",
    "astype",
    "copyfile",
    "download",
    "download_extract",
    "evaluate_accuracy",
    "evaluate_accuracy_gpu",
    "get_dataloader_workers",
    "get_fashion_mnist_labels",
    "load_data_fashion_mnist",
    "plt",
    "read_csv_labels",
    "reduce_sum",
    "reorg_test",
    "reorg_train_valid",
    "resnet18",
    "set_axes",
    "show_images",
    "size",
    "train_batch_ch13",
    "train_ch6",
    "train_ch13",
    "try_all_gpus",
    "try_gpu",
    "use_svg_display",
]


def __getattr__(name: str) -> Any:
    if name == "plt":  # pyplot is slow to import, and most sections do without it
        return import_module("matplotlib.pyplot")
    if name.startswith("__"):  # Python and its tools ask for such names; no person does
        raise AttributeError(name)
    raise AttributeError(
        f"{unknown('name', name, __all__)} (cnnlab.d2l has what the sections on convolutional networks use of d2l "
        "0.17; the classes of the book's 1.0 edition, as Trainer, are not among it)"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
