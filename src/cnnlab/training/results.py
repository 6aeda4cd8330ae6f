"""The result of a training: its summary, history and model, and the lines that are printed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from cnnlab.data import STORE
from cnnlab.data.own import MEMORY
from cnnlab.io.errors import CnnlabError, reason
from cnnlab.io.text import escape, plural, truncate
from cnnlab.models import build_model
from cnnlab.models.own import Network, build_own, is_own
from cnnlab.recipe import KEYS, metric_label
from cnnlab.training import runs
from cnnlab.training.checkpoint import check_weights, load_weights
from cnnlab.training.diagnosis import skipped_text
from cnnlab.training.own import check_own
from cnnlab.training.plan import FORMATS
from cnnlab.training.progress import Progress, learned, out_of_patience
from cnnlab.training.runs import Run
from cnnlab.training.scores import Scores
from cnnlab.training.series import OUT_OF_FOLD

if TYPE_CHECKING:
    from cnnlab import Export, Inspection, Report

_SHOWN = 3  # findings that are printed
_LEARNED = 0.99  # accuracy on the images of `overfit` at which the network counts as having learned them


def _notes(run: Run, s: dict[str, Any]) -> list[str]:
    """Return the caveats that go with the summary `s`."""
    notes = []
    if s["stopped"]:
        why = f": {metric_label(s['best_by'])} did not improve for {plural(run.recipe.patience, 'epoch')}"
        why = why if s["stopped_by"] == "patience" else ""
        notes.append(f"stopped early, after epoch {s['epochs']} of {run.recipe.epochs}{why}")
    if s["skipped_updates"] and not s.get("findings"):  # else it is the first of them
        notes.append(skipped_text(s["skipped_updates"]))
    if s["eval_split"] == "test":
        notes.append("this recipe evaluates on the test set each epoch, as the manual does; do not select models by it")
    if s["never_predicted"]:
        notes.append(_never_predicted(s))
    if s["skipped"]:
        images = "1 damaged image was" if s["skipped"] == 1 else f"{s['skipped']} damaged images were"
        notes.append(f"{images} skipped; see {run.path / 'run.json'}")
    listed = "" if s["data"].startswith(MEMORY) else "; cnnlab data duplicates lists them"
    notes += [
        f"{count} of the {split} images are among the training images, pixel for pixel, which inflates the "
        f"accuracy{listed}"
        for split, count in s["shared"].items()
        if count
    ]
    if s["eval_split"] == "train" and not run.recipe.overfit:
        notes.append(f"trained on {s['images']['train']} labelled images; train_subset acc is measured on some of them")
    return [f"note: {note}" for note in notes]


def _findings(s: dict[str, Any]) -> list[str]:
    """Return the most serious findings of the diagnosis, see diagnosis.py; summary.json has all."""
    others = [f for f in s.get("findings", []) if f["name"] != "leak"]  # every result has a note about it, see `_notes`
    return [f"note: {f['text']}; try {f['remedy']}" for f in others[:_SHOWN]]


def _never_predicted(s: dict[str, Any]) -> str:
    names, more = [truncate(escape(name), 40) for name in s["never_predicted"][:5]], len(s["never_predicted"]) - 5
    rest = f" and {more} more" if more > 0 else ""
    return f"in the last epoch no {s['eval_split']} image was predicted as {', '.join(names)}{rest}"


def _verdict(run: Run, s: dict[str, Any]) -> list[str]:
    """Return the line that says whether the network learned the few images of `overfit`; none without it."""
    if not run.recipe.overfit:
        return []
    accuracy, images = s[f"{run.recipe.key}_acc"], plural(s["images"]["train"], "image")
    if accuracy >= _LEARNED:
        return [f"overfit: yes, {run.recipe.model} learned the {images}: accuracy {accuracy:.3f} on them"]
    return [
        f"overfit: no, {run.recipe.model} did not learn the {images}: accuracy {accuracy:.3f} on them. Try another "
        "learning_rate (cnnlab lr-find), more epochs, weight_decay=0 or another network, and look at the labels"
    ]


def _speed(recipe: str, s: dict[str, Any]) -> str:
    """Return the line on the throughput. The manual's recipes print the manual's figure, without data loading."""
    if recipe.startswith("manual/"):
        return f"{s['examples_per_second']:.1f} examples/sec on {s['device']}"
    return f"{s['images_per_second']:.1f} images/s on {s['device']}, wall-clock including data"


def _calibration(s: dict[str, Any]) -> list[str]:
    c = s.get("calibration")
    if c is None:
        return []
    return [
        f"temperature {c['temperature']:.2f}: expected calibration error {c['ece']:.3f}, {c['ece_before']:.3f} without "
        "it, on the validation images that it was fitted on"
    ]


def _next_command(run: Run) -> list[str]:
    """Return the line with what to do next: evaluate once on the test set, or classify images."""
    recipe = run.recipe
    model = f" --model {shlex.quote(run.builder)}" if run.builder else ""
    if recipe.overfit:
        return []
    if is_own(recipe.model) and not model:  # from a console or a notebook: the command does not know it
        return []
    path = shlex.quote(str(run.path))
    measurable = recipe.eval_split == "validation" and not recipe.data.startswith((MEMORY, STORE))
    return [f"next: cnnlab {f'eval {path}' if measurable else f'predict {path} IMAGE'}{model}"]


def trained_model(run: Run, weights: Path, network: Network | None = None) -> nn.Module:
    """Return the run's network with the weights in the file `weights`, in eval mode, on the CPU.

    network: the module or builder that was trained, if it was the caller's own. Raise CnnlabError.
    """
    check_own(run.path, run.recipe, builder=run.builder, model=network)
    info = {k: run.info["model"][k] for k in ("num_classes", "in_channels", "image_size")}
    name = run.info["model"]["name"]
    if ":" not in name and network is None:
        # run.json may ask for a network of any size: compare it with the weights before it takes memory.
        with torch.device("meta"):
            check_weights(weights, build_model(name, **info))
    model = build_model(name, **info) if network is None else build_own(network, **info)
    load_weights(weights, model)
    return model.eval()


def layout_of(run: Run) -> torch.memory_format:
    """Return the memory format in which the run was trained."""
    trained: str = runs.first_session(run).get("memory_format", run.recipe.memory_format)
    return FORMATS.get(trained, torch.contiguous_format)


@dataclass(frozen=True)
class Result:
    """A finished training. Its text is the lines that the command prints.

    summary: final figures, as in summary.json. timings: seconds of each stage of this call (setup, whitening, training,
    finish); empty if the run was finished before. network: the caller's own module or builder, if there is one.
    """

    run: Run
    summary: dict[str, Any]
    timings: dict[str, float] = field(default_factory=dict, compare=False)
    network: Network | None = field(default=None, compare=False, repr=False)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """A row of figures for each epoch."""
        return self.run.metrics()

    @cached_property
    def model(self) -> nn.Module:
        """The network in eval mode on the CPU, with the best weights if validation images chose them, else the last."""
        return trained_model(self.run, self.run.weights(), self.network)

    def report(self, **options: Any) -> Report:
        """Return a page about this training, which a notebook shows. options: see `cnnlab.report`."""
        from cnnlab import report  # a later package: import through the public name

        return report(self.run, **{"model": self.network, **options})

    def inspect(self, images: Any = None, **options: Any) -> Inspection:
        """Look inside the network, which a notebook shows. images, options: see `cnnlab.inspect_run`."""
        from cnnlab import inspect_run  # a later package: import through the public name

        return inspect_run(self.run, images, **{"model": self.network, **options})

    def export(self, **options: Any) -> Export:
        """Write the network to a file for other programs. options: see `cnnlab.export_run`."""
        from cnnlab import export_run  # a later package: import through the public name

        return export_run(self.run, **{"model": self.network, **options})

    def confusion(self, **options: Any) -> Report:
        """Return the confusion matrix alone, whose cells open their images; see `report`."""
        return self.report(**options).only("confusion")

    def __str__(self) -> str:
        s = self.summary
        key = self.run.recipe.key
        lines = [
            f"loss {s['loss']:.3f}, train acc {s['train_acc']:.3f}, {key} acc {s[f'{key}_acc']:.3f}",
            _speed(self.run.recipe.name, s),
            f"{key} balanced acc {s[f'{key}_balanced_acc']:.3f}; {s['total_seconds']:.1f} s in all",
        ]
        lines += _calibration(s)
        lines += _notes(self.run, s) + _findings(s) + _verdict(self.run, s)
        best = f", best epoch {s['best_epoch']} with {metric_label(s['best_by'])} {s['best']:.3f}"
        best = best if s["eval_split"] == "validation" else ""
        lines.append(f"run: {self.run.path} (curve: curves.png{best})")
        lines += _next_command(self.run)
        return "\n".join(lines)


@dataclass(frozen=True)
class SeedsResult:
    """The same recipe trained several times. summary: mean and spread over the runs, as in summary.json."""

    path: Path
    results: list[Result]
    summary: dict[str, Any]
    kind: ClassVar[str] = "seeds"

    def report(self, **options: Any) -> Report:
        """Return a page about these runs side by side, which a notebook shows. options: see `cnnlab.report`."""
        from cnnlab import report  # a later package: import through the public name

        return report(*(r.run for r in self.results), **{"model": self.results[0].network, **options})

    def __str__(self) -> str:
        s = self.summary
        key = KEYS[s["eval_split"]]
        lines = []
        for number, r in zip(s[self.kind], self.results, strict=True):
            row, name = r.summary, f"{self.kind.removesuffix('s')} {number}"
            lines.append(
                f"{name}: loss {row['loss']:.3f}, train acc {row['train_acc']:.3f}, "
                f"{key} acc {row[f'{key}_acc']:.3f}, {row['images_per_second']:.0f} images/s"
            )
            if row["never_predicted"]:
                lines.append(f"note: {name}: {_never_predicted(row)}")

        acc, balanced = _mean_std(s[f"{key}_acc"]), _mean_std(s[f"{key}_balanced_acc"])
        lines.append(
            f"mean ± std of {s['loss']['n']} {self.kind}, last epoch: loss {_mean_std(s['loss'])}, train acc "
            f"{_mean_std(s['train_acc'])}, {key} acc {acc}, balanced {balanced} ({s['eval_split']} split)"
        )
        lines += self._more()
        first = self.results[0]
        lines += _notes(first.run, {**first.summary, "stopped": False, "skipped_updates": 0, "never_predicted": []})
        lines.append(f"runs: {self.path}")
        return "\n".join(lines)

    def _more(self) -> list[str]:
        """Return the lines that only this kind of series has."""
        return []


@dataclass(frozen=True)
class FoldsResult(SeedsResult):
    """The same recipe trained once for each fold, on all other folds.

    summary: also `out_of_fold`, the figures over all images, each predicted by the network that was not trained on it.
    """

    kind: ClassVar[str] = "folds"

    @property
    def predictions(self) -> Path:
        """The table of all images: path, label, predicted, the probability of each class, fold."""
        return self.path / OUT_OF_FOLD

    def _more(self) -> list[str]:
        s = self.summary["out_of_fold"]
        return [
            f"out of fold, {s['weights']} of each: acc {s['accuracy']:.4f} ({s['correct']:,} of "
            f"{plural(s['images'], 'image')}), balanced acc {s['balanced_accuracy']:.4f}; mean ± std of the folds "
            f"{_mean_std(s['per_fold'])}",
            "note: each fold selected its best epoch on the images that it is evaluated on, so the figures are "
            "slightly optimistic",
            f"predictions: {self.predictions}",
        ]


def _mean_std(value: dict[str, Any]) -> str:
    return f"{value['mean']:.4f} ± {value['std']:.4f}" if value["std"] is not None else f"{value['mean']:.4f}"


def summarize(
    run: Run, progress: Progress, images: dict[str, int], support: list[int], shared: dict[str, int], device: str
) -> dict[str, Any]:
    """Return the summary of a finished run.

    images: their number in each split; support: the number of evaluated images of each class; shared: see
    `Session.shared`.
    """
    rows, recipe = progress.rows, run.recipe
    seen = sum(r["images"] for r in rows)
    last, key = rows[-1], recipe.key
    assert progress.best is not None
    stopped_by = "patience" if out_of_patience(rows, run) else "overfit" if learned(rows, recipe) else "on_epoch"
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "parameters": run.info["model"]["parameters"],
        "data": recipe.data,
        "images": images,
        "skipped": len(run.info["data"]["skipped"]),
        "skipped_updates": sum(r.get("skipped_updates", 0) for r in rows),
        "shared": shared,
        "seed": recipe.seed,
        "epochs": len(rows),
        "stopped": progress.stopped,
        "stopped_by": stopped_by if progress.stopped else None,
        "eval_split": recipe.eval_split,
        "loss": last["loss"],
        "train_acc": last["train_acc"],
        f"{key}_loss": last[f"{key}_loss"],
        f"{key}_acc": last[f"{key}_acc"],
        f"{key}_balanced_acc": last[f"{key}_balanced_acc"],
        f"{key}_macro_f1": last[f"{key}_macro_f1"],
        "never_predicted": [run.classes[k] for k in last["never_predicted"] if k < len(run.classes)],
        "best_epoch": progress.best_epoch,
        "best_by": recipe.best_by,
        "best": -progress.best[0] if recipe.best_by.endswith("loss") else progress.best[0],
        "figures": _figures(run, progress, support),
        "examples_per_second": seen / sum(r["compute_seconds"] for r in rows),
        "images_per_second": seen / sum(r["train_seconds"] for r in rows),
        "train_seconds": sum(r["train_seconds"] for r in rows),
        "total_seconds": sum(r["seconds"] for r in rows),
        "device": device,
    }


def _figures(run: Run, progress: Progress, support: list[int]) -> dict[str, Any] | None:
    """Return the scores of the weights that the run predicts with, or None if their row holds no counts per class."""
    weights, key = run.weights().stem, run.recipe.key
    epoch = progress.best_epoch if weights == "best" else len(progress.rows)
    row = next((row for row in progress.rows if row["epoch"] == epoch), {})
    if f"{key}_correct" not in row:
        return None
    try:
        scores = Scores(row[f"{key}_correct"], support, row[f"{key}_predicted"])
        return {"weights": weights, "epoch": epoch, **scores.to_dict(run.classes)}
    except (TypeError, ValueError, OverflowError) as error:
        raise CnnlabError(f"{run.metrics_file} is damaged: {reason(error)}; train again") from error
