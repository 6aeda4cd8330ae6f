"""What a training ends with, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnlab.recipe import KEYS
from cnnlab.training.runs import Run

_SEEN = "note: trained on {count} labelled images; train_subset acc is measured on some of them"
_LEFT_OUT = "note: {count} updates were left out, as their loss or a gradient was no finite number"
_LOOKS = "note: this recipe looks at the test set after each epoch, as the manual does; choose nothing by it"


def _shared(summary: dict[str, Any]) -> list[str]:
    return [
        f"note: {count} of the {split} images are among the training images, pixel for pixel, and flatter its figures; "
        "cnnlab data duplicates names them"
        for split, count in summary.get("shared", {}).items()
        if count
    ]


def _skipped(count: int, path: Path) -> str:
    images = "1 damaged image was" if count == 1 else f"{count} damaged images were"
    return f"note: {images} left out; {path / 'run.json'} says which"


@dataclass(frozen=True)
class Result:
    """A finished training. Its text is the manual's two lines, and ours."""

    run: Run
    summary: dict[str, Any]

    def __str__(self) -> str:
        s = self.summary
        key = self.run.recipe.key
        lines = [
            f"loss {s['loss']:.3f}, train acc {s['train_acc']:.3f}, {key} acc {s[f'{key}_acc']:.3f}",
            f"{s['examples_per_second']:.1f} examples/sec on {s['device']}",
            f"{s['images_per_second']:.1f} images/s wall-clock including data; {s['total_seconds']:.1f} s in all, with "
            f"evaluation and saving",
        ]
        if s.get("left_out"):
            lines.append(_LEFT_OUT.format(count=s["left_out"]))
        if s["eval_split"] == "test":
            lines.append(_LOOKS)
        if s["skipped"]:
            lines.append(_skipped(s["skipped"], self.run.path))
        lines += _shared(s)
        if s["eval_split"] == "train":
            lines.append(_SEEN.format(count=s["images"]["train"]))
        best = "" if s["eval_split"] != "validation" else f", best epoch {s['best_epoch']} with val acc {s['best']:.3f}"
        lines.append(f"run: {self.run.path} (curve: curves.png{best})")
        return "\n".join(lines)


@dataclass(frozen=True)
class SeedsResult:
    """The same recipe trained from several seeds."""

    path: Path
    results: list[Result]
    summary: dict[str, Any]

    def __str__(self) -> str:
        s = self.summary
        key = KEYS[s["eval_split"]]
        lines = []
        for r in self.results:
            row = r.summary
            lines.append(
                f"seed {row['seed']}: loss {row['loss']:.3f}, train acc {row['train_acc']:.3f}, "
                f"{key} acc {row[f'{key}_acc']:.3f}, {row['images_per_second']:.0f} images/s"
            )

        def told(name: str) -> str:
            value = s[name]
            return f"{value['mean']:.4f} ± {value['std']:.4f}" if value["std"] is not None else f"{value['mean']:.4f}"

        lines.append(
            f"mean ± std of {s['loss']['n']} seeds, last epoch: loss {told('loss')}, train acc {told('train_acc')}, "
            f"{key} acc {told(f'{key}_acc')} ({s['eval_split']} split)"
        )
        if s["eval_split"] == "test":
            lines.append(_LOOKS)
        if s["eval_split"] == "train":
            lines.append(_SEEN.format(count=self.results[0].summary["images"]["train"]))
        skipped = self.results[0].summary["skipped"] if self.results else 0
        if skipped:
            lines.append(_skipped(skipped, self.results[0].run.path))
        lines += _shared(self.results[0].summary) if self.results else []
        lines.append(f"runs: {self.path}")
        return "\n".join(lines)
