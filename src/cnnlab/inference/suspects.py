"""Images whose label is probably wrong: a network that was not trained on them confidently contradicts it.

C. G. Northcutt, L. Jiang and I. L. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021,
arXiv:1911.00068. The network is confident of a class for an image if its probability is at least its mean over the
images with that label. An image is suspect if the most probable confident class is not its label. The thresholds per
class make up for classes that the network is less sure of. (The package cleanlab does the same with more code than this
file, and needs pandas.)
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnlab.device.hardware import check_threads, pick_device
from cnnlab.inference.classifier import batch_size_of, load_model
from cnnlab.inference.run_images import validation_images
from cnnlab.io.csv import table_rows
from cnnlab.io.errors import CnnlabError
from cnnlab.io.files import save_new_csv
from cnnlab.io.tables import Table
from cnnlab.io.text import cell, plural
from cnnlab.models.own import Network
from cnnlab.training import runs
from cnnlab.training.own import resume_command
from cnnlab.training.series import OUT_OF_FOLD, is_series, member_folders, open_series


@dataclass(frozen=True)
class Suspect:
    """An image with its label, the class that contradicts it, and the probabilities of both."""

    path: str
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class Suspects:
    """The suspects among `images` images, in the order of `confident_disagreements`.

    out_of_fold: whether all images were searched, each by the network of the fold that held it out; otherwise only the
    validation images were.
    """

    run: Path
    images: int
    out_of_fold: bool
    suspects: list[Suspect]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "run": str(self.run)}

    def to_csv(self) -> str:
        """Return a CSV table with a row for each suspect."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("path", "label", "predicted", "probability", "label_probability"))
        for s in self.suspects:
            probabilities = (f"{p:.6f}" for p in (s.probability, s.label_probability))
            writer.writerow((cell(s.path), cell(s.label), cell(s.predicted), *probabilities))
        return out.getvalue()

    def save(self, path: str | Path) -> None:
        """Write `to_csv` to a new file in UTF-8. Raise CnnlabError if that fails."""
        save_new_csv(path, self.to_csv())

    def to_text(self, most: int = 20) -> str:
        """Return the number of suspects and the first `most` of them."""
        which = "images, out of fold" if self.out_of_fold else "validation images"
        lines = [f"{self.run}: {plural(len(self.suspects), 'suspect')} among {self.images:,} {which}"]
        if self.suspects and most:
            table = Table("image", "label", "predicted", "probability", "of the label", left=(1, 2))
            for s in self.suspects[:most]:
                table.add_row(s.path, s.label, s.predicted, f"{s.probability:.3f}", f"{s.label_probability:.3f}")
            lines.append(str(table))
        if len(self.suspects) > most:
            lines.append(f"and {len(self.suspects) - most:,} more; --csv FILE saves all")
        if not self.out_of_fold:
            lines.append("note: the training images were not searched, since the network knows their labels; to search "
                         "all images, run cnnlab train --folds 5 and name its folder here")  # fmt: skip
        return "\n".join(lines)


def find_suspects(
    name: str | Path,
    *,
    model: Network | None = None,
    data: Any = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
) -> Suspects:
    """Find images whose label is probably wrong.

    name: a folder of folds, whose out-of-fold predictions cover all images, or a run, for which only the validation
    images can be judged. model: your own network, if the run trained one. data: the images, if the run was trained on
    images in memory, or where its images are now. Raise CnnlabError.
    """
    folder = runs.find_folder(name, runs_dir)
    folds = is_series(folder) and open_series(folder).kind == "folds"
    if folds:
        paths, classes, labels, p = _read_out_of_fold(folder)
    else:
        run = runs.open_run(folder)
        check_threads(threads)
        classifier = load_model(run, model=model).to(pick_device(device))
        images = validation_images(run, data)
        parts = images.images.split(batch_size_of(classifier.preprocessing))
        p = torch.cat([classifier.predict_batch(x.numpy(), threads=threads).probabilities for x in parts])
        paths, classes, labels = images.ids, run.classes, images.labels
    found = []
    for i, k in confident_disagreements(p, labels):
        label = int(labels[i])
        found.append(Suspect(paths[i], classes[label], classes[k], p[i, k].item(), p[i, label].item()))
    return Suspects(folder, len(paths), folds, found)


def confident_disagreements(p: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """Return (image, class that contradicts its label), the strongest contradictions first.

    p: probabilities (N, K); labels: (N,) int64. Strength is the probability of the class minus that of the label.
    """
    p = p.double()
    own = p.gather(1, labels[:, None])[:, 0]
    k = p.shape[1]
    count = torch.bincount(labels, minlength=k)
    threshold = torch.bincount(labels, weights=own, minlength=k) / count  # NaN for a class without images
    # Rounding must not put the only image of a class below its own mean.
    confident = p >= threshold - 1e-9
    guess = p.where(confident, -1.0).argmax(1)
    suspect = (confident.any(1) & (guess != labels)).nonzero().flatten()
    margin = own[suspect] - p[suspect, guess[suspect]]
    order = suspect[margin.argsort(stable=True)]
    return list(zip(order.tolist(), guess[order].tolist(), strict=True))


def _read_out_of_fold(folder: Path) -> tuple[list[str], list[str], Tensor, Tensor]:
    """Return paths, classes, labels (N,) and probabilities (N, K) of out_of_fold.csv. Raise CnnlabError."""
    file, members = folder / OUT_OF_FOLD, member_folders(folder)
    if not file.is_file() or not members:
        raise CnnlabError(f"{folder} has no {OUT_OF_FOLD}: its folds are not finished; {resume_command(folder)}")
    classes = runs.open_run(members[0]).classes
    names = {cell(name): k for k, name in enumerate(classes)}
    rows = table_rows(file.open("rb"), str(file))
    _, header = next(rows)
    if header != ["path", "label", "predicted", *(cell(f"p_{name}") for name in classes), "fold"]:
        raise CnnlabError(f"{file} is damaged: its columns are not those of the classes; remove it and resume {folder}")
    paths, labels, values = [], [], []
    for line, row in rows:
        numbers = _probabilities(row[3:-1])
        if row[1] not in names or numbers is None:
            raise CnnlabError(f"{file}, line {line}, is damaged; remove the file, then {resume_command(folder)}")
        paths.append(row[0])
        labels.append(names[row[1]])
        values.append(numbers)
    if not paths:
        raise CnnlabError(f"{file} is damaged: it has no rows; remove it, then {resume_command(folder)}")
    return paths, classes, torch.tensor(labels), torch.tensor(values, dtype=torch.float64)


def _probabilities(cells: Sequence[str]) -> list[float] | None:
    """Return the cells as probabilities, or None if one is not a number from 0 to 1."""
    try:
        numbers = [float(text) for text in cells]
    except ValueError:
        return None
    return numbers if all(math.isfinite(p) and 0 <= p <= 1 for p in numbers) else None
