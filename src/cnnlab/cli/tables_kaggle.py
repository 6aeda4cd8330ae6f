"""What `cnnlab kaggle` prints."""

from __future__ import annotations

from collections.abc import Sequence

from cnnlab.cli.tables import confusion, evaluation
from cnnlab.competition import Competition, Overview, Submitted, Trained
from cnnlab.competition.submission import Score
from cnnlab.training.evaluate import VIEWS

__all__ = ["overview", "prepared", "scored", "submitted", "trained"]


def prepared(found: Competition) -> str:
    """Where the images are, and what was noticed on the way."""
    store = found.images()
    train, test = len(store.train), len(store.test_ids)
    c, h, w = store.train.images.shape[1:]
    lines = [
        f"{train} labelled images of {len(store.train.classes)} classes, {test} test images, {c} x {h} x {w}; store: "
        f"{store.path}"
    ]
    for what, names in (("labelled images were left out", "skipped"), ("test images are black", "unreadable_test")):
        if damaged := store.info[names]:
            more = f"; {store.path / 'store.json'} names all" if len(damaged) > 1 else ""
            lines.append(f"note: damaged: {len(damaged)} {what}; the first: {damaged[0]}{more}")
    return "\n".join([*lines, *(f"note: {line}" for line in store.info["report"])])


def overview(found: Overview) -> str:
    """Class counts and the pixels' moments."""
    width = max(map(len, found.counts))
    lines = [f"  {name:<{width}}  {count}" for name, count in found.counts.items()]
    mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (found.mean, found.std))
    return "\n".join(
        ["labelled images of each class:", *lines, f"pixel mean {mean}, std {std}", f"figure: {found.figure}"]
    )


def trained(found: Trained) -> str:
    """The training's own lines, then both parts measured image by image, and what more views give."""
    lines = [str(found.result)]
    for validation, train in zip(found.validation, found.train, strict=True):
        lines += [evaluation(train).splitlines()[0], evaluation(validation)]
    several = f" of {len(found.validation)} networks together" if len(found.validation) > 1 else ""
    told = ", ".join(f"{found.views[views]:.4f} with {_looks(count)}" for views, count in VIEWS.items())
    lines.append(f"validation acc{several}, by looks at each image: {told}")
    return "\n".join(lines)


def submitted(found: Submitted) -> str:
    """The file, and whose answers it holds."""
    names = ", ".join(str(run.path) for run in found.runs)
    looks = _looks(VIEWS[found.views])
    lines = [str(found.written), f"from {names}; {looks} at each image"]
    return "\n".join([*lines, *([found.answer] if found.answer else [])])


def scored(found: Score) -> str:
    """Accuracy, then the confusion matrix; labels that are no class have the last column."""
    extra: Sequence[int] = found.other.tolist() if found.no_class else ()
    return f"{found}\n{confusion(found.classes, found.confusion.tolist(), found.class_accuracy, extra)}"


def _looks(count: int) -> str:
    return "1 look" if count == 1 else f"{count} looks"
