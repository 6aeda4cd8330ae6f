"""A torch.export archive: the same computation as in the ONNX file, for PyTorch without cnnlab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from PIL import __version__ as pillow_version
from torch import Tensor, nn

from cnnlab.export.conversion import not_convertible, quiet
from cnnlab.export.graph import Answer
from cnnlab.inference import Classifier
from cnnlab.io.decode import Decoding

ONE = float(1 << 22)  # the weight 1 in Pillow's fixed point
# Earlier versions resize the rows first (some of them not for images a hundred times as high as wide).
MAY_BEGIN_WITH_COLUMNS = Version(pillow_version) >= Version("13")
DESCRIPTION = "cnnlab.json"
"""The file in the archive that describes it."""


class FitAndClassify(nn.Module):
    """Images (B, C, H, W) uint8 of any size -> the outputs of `Answer`."""

    def __init__(self, classifier: Classifier, *, half: bool = False) -> None:
        super().__init__()
        self.fit = Fit(classifier.preprocessing.decoding)
        self.answer = Answer(classifier, half=half)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the answers for a batch."""
        answers: tuple[Tensor, Tensor, Tensor] = self.answer(self.fit(pixels))
        return answers


class Fit(nn.Module):
    """`fit.fit_nodes` in torch: (B, C, H, W) uint8 -> (B, C, size, size) uint8, bit-identical to Pillow."""

    def __init__(self, how: Decoding) -> None:
        super().__init__()
        self.how = how

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the fitted images."""
        height, width = (torch.scalar_tensor(side, dtype=torch.float64) for side in pixels.shape[2:])
        new_height, rows = self._matrix(height, width, torch.arange(pixels.shape[2]).double())  # (size, H)
        new_width, columns = self._matrix(width, height, torch.arange(pixels.shape[3]).double())  # (size, W)
        if not MAY_BEGIN_WITH_COLUMNS:
            return _row_first(pixels, rows, columns)
        lost = height - new_height
        begins_with_columns = (lost > 0) & (lost > 2 * (width - new_width))
        if not torch.compiler.is_exporting():  # `cond` would compile its branches
            return (_column_first if begins_with_columns else _row_first)(pixels, rows, columns)
        fitted: Tensor = torch.cond(begins_with_columns, _column_first, _row_first, (pixels, rows, columns))
        return fitted

    def _matrix(self, length: Tensor, other: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return a side's resized length before padding, and Pillow's weights (size, length). See `fit._matrix`."""
        size, bicubic = self.how.size, self.how.interpolation == "bicubic"
        place = torch.arange(size).double()
        start, span, new = torch.zeros_like(length), length, torch.full_like(length, size)
        if self.how.fit == "pad":
            new = torch.where(length < other, torch.round(length / other * size), new)
            place = place - torch.round((size - new) * 0.5)
        elif self.how.fit == "crop":
            span = torch.minimum(length, other)
            start = (length - span) * 0.5
        scale = span / new.clamp(min=1.0)
        stretch = scale.clamp(min=1.0)
        support = stretch * (2.0 if bicubic else 1.0)
        centre = (start + (place + 0.5) * scale)[:, None]
        low, high = torch.floor(centre - support + 0.5), torch.floor(centre + support + 0.5)
        used = (places >= low) & (places < high) & ((place >= 0) & (place < new))[:, None]
        x = ((places - centre + 0.5) * (1.0 / stretch)).abs()
        kernel = (1.0 - x).clamp(min=0.0)
        if bicubic:
            near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
            kernel = torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
        weight = torch.where(used, kernel, 0.0)
        total = weight.sum(1, keepdim=True)
        fixed = weight / torch.where(total == 0, 1.0, total) * ONE
        return new, torch.trunc(fixed + torch.where(fixed < 0, -0.5, 0.5))


def _row_first(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _rounded(rows @ _rounded(pixels.double() @ columns.T)).to(torch.uint8)


def _column_first(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _rounded(_rounded(rows @ pixels.double()) @ columns.T).to(torch.uint8)


def _rounded(sums: Tensor) -> Tensor:
    return torch.floor((sums + ONE / 2) * (1 / ONE)).clamp(0.0, 255.0)


def save_archive(classifier: Classifier, description: dict[str, Any], path: Path, *, half: bool = False) -> None:
    """Write an archive. Raise CnnlabError for a network that torch.export cannot convert."""
    p, free = classifier.preprocessing, torch.export.Dim.DYNAMIC
    # Height and width differ, or the exporter would treat them as equal.
    pixels = torch.zeros(2, p.channels, p.native_size + 3, p.native_size + 5, dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                FitAndClassify(classifier, half=half).eval(), (pixels,), dynamic_shapes=({0: free, 2: free, 3: free},)
            )
            torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(description)})
    except Exception as error:
        raise not_convertible(error, "a torch.export archive") from error


def load_archive(path: Path) -> nn.Module:
    """Return the module of an archive: images (B, C, H, W) uint8 -> answers."""
    with quiet():
        return torch.export.load(path).module()
