"""The user's own images: every form gives the same image set, and errors are one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from cnnlab import CnnlabError, ImageSet
from cnnlab.data.own import own_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 1, 4, 4), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 3, 5, 5), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Pairs(Dataset[Any]):
    """A dataset of given pairs. classes: an attribute, as in torchvision's datasets."""

    def __init__(self, images: Any, labels: Any, classes: list[str] | None = None) -> None:
        self.images, self.labels = images, labels
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], self.labels[i]


def pictures(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(i[0] if len(i) == 1 else np.ascontiguousarray(i.transpose(1, 2, 0))) for i in images]


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_form_gives_the_same_images(images: np.ndarray) -> None:
    tensor, last = torch.from_numpy(images.copy()), images.transpose(0, 2, 3, 1)
    frozen = images.copy()
    frozen.flags.writeable = False
    forms = {
        "tensors": (tensor, torch.from_numpy(LABELS)),
        "int32 labels": (tensor, torch.from_numpy(LABELS).int()),
        "a list of labels": (images, LABELS.tolist()),
        "float": (tensor / 255, LABELS),
        "float64": (images / 255, LABELS),
        "half": ((tensor / 255).half(), LABELS),
        "channels last": (last, LABELS),
        "float, channels last": (last.astype(np.float32) / 255, LABELS),
        "read only": (frozen, LABELS),
        "TensorDataset": TensorDataset(tensor / 255, torch.from_numpy(LABELS)),
        "PIL images": Pairs(pictures(images), LABELS),
        "a list of pairs": list(zip(images, LABELS.tolist(), strict=True)),
        "ImageSet": ImageSet(tensor, torch.from_numpy(LABELS), list("abcdef"), ["0", "1", "2"]),
    }
    if len(images[0]) == 1:
        forms["rows"] = (images[:, 0], LABELS)
    expected = torch.from_numpy(images)
    for name, form in forms.items():
        own = own_images(form)
        assert own.held_out is None
        assert torch.equal(own.train.images, expected), name
        assert own.train.labels.tolist() == LABELS.tolist(), name
        assert own.train.classes == ["0", "1", "2"], name
        assert own.name.startswith("memory:")


def test_class_names_come_from_the_dataset() -> None:
    own = own_images(Pairs(pictures(GREY), LABELS, ["a", "b", "c", "d"]))
    assert own.train.classes == ["a", "b", "c", "d"]
    assert own_images((GREY, LABELS), ["x", "y", "z"]).train.classes == ["x", "y", "z"]


def test_two_sets_are_for_training_and_evaluation() -> None:
    own = own_images(((GREY, LABELS), (GREY[:2], LABELS[:2])))
    assert own.held_out is not None
    assert (len(own.train), len(own.held_out)) == (6, 2)
    assert own.train.classes == own.held_out.classes == ["0", "1", "2"]
    with pytest.raises(CnnlabError):
        own_images(((GREY, LABELS), (COLOUR, LABELS)))
    with pytest.raises(CnnlabError):
        own_images((Pairs(GREY, LABELS, ["a", "b", "c"]), Pairs(GREY, LABELS, ["a", "c", "b"])))


def test_palettes_and_transparency_become_colour() -> None:
    for mode in ("P", "RGBA"):
        images = [picture.convert(mode) for picture in pictures(COLOUR)]
        assert own_images(Pairs(images, LABELS)).train.images.shape == (6, 3, 5, 5)


def test_grey_with_transparency_stays_grey() -> None:
    images = [picture.convert("LA") for picture in pictures(GREY)]
    assert torch.equal(own_images(Pairs(images, LABELS)).train.images, torch.from_numpy(GREY))


X = torch.from_numpy(GREY)


@pytest.mark.parametrize(
    "data",
    [
        (GREY[:, :, :3], LABELS),  # not square
        (GREY, LABELS.astype(float)),
        (X, torch.from_numpy(LABELS).float()),
        (X, torch.from_numpy(LABELS) > 0),
        (GREY, LABELS[:, None]),
        (GREY, np.eye(3, dtype=int)[LABELS]),
        (GREY, LABELS[:5]),
        (GREY, [[0], [1, 2], 0, 1, 2, 0]),
        (GREY, LABELS - 1),
        (GREY, LABELS + 10**9),
        (GREY, np.array([str(k) for k in LABELS])),
        (GREY, None),
        (GREY.astype(int), LABELS),
        (X.long(), LABELS),
        (GREY.astype(np.float32), LABELS),  # 0..255
        (X / 255 - 0.5, LABELS),  # normalized
        (torch.full((6, 1, 4, 4), float("nan")), LABELS),
        (GREY[0, 0], LABELS),
        (GREY[:0], LABELS[:0]),
        (np.zeros((6, 65, 4, 4), np.uint8), LABELS),
        (GREY, LABELS, LABELS),
        GREY,
        X,
        [],
        [1, 2],
        [(GREY[0], 0.5)],
        [("1.png", 0)],
        [(GREY[0], 0), (GREY[0, :, :2], 1)],
        Pairs(GREY, LABELS, ["a", "b"]),  # a label without a name
        Pairs([Image.fromarray(np.full((5, 5), 4000, np.uint16))] * 6, LABELS),  # Pillow would clip it at 255
        Pairs(GREY, LABELS[:5]),  # fewer labels than its length says
        ImageSet(X, torch.from_numpy(LABELS), list("abcdef"), ["a"]),
        ImageSet(X[:0], torch.zeros(0, dtype=torch.int64), [], ["a"]),
        iter([]),
        3,
    ],
)
def test_invalid_image_sets_are_refused_in_one_line(data: object) -> None:
    with pytest.raises(CnnlabError) as error:
        own_images(data)
    assert "\n" not in str(error.value)
