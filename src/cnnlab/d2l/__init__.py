"""The names that the manual's code uses from the package d2l.

With `from cnnlab import d2l` in place of `from d2l import torch as d2l`, the manual's listings run, and so do those of
the book's sections on LeNet, modern networks and the competition. Every name works as in d2l 0.17.6. Where the original
is wrong, the name's docstring and docs/from-d2l.md describe the difference. No code is copied from d2l.

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
    if name == "plt":  # pyplot is slow to import, and most sections do not need it
        return import_module("matplotlib.pyplot")
    if name.startswith("__"):  # asked for by Python and its tools, never by a user
        raise AttributeError(name)
    raise AttributeError(
        f"{unknown('name', name, __all__)} (cnnlab.d2l has the names that the sections on convolutional networks "
        "use from d2l 0.17; the classes of edition 1.0, such as Trainer, are not included)"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
