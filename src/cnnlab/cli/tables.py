"""What the command prints: tables for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cnnlab.chapter.experiments import CLASSICAL, cells, printed_cells
from cnnlab.chapter.reproduce import Plan, Reproduction
from cnnlab.competition.grade import Grades
from cnnlab.data import DATASETS
from cnnlab.inference import Prediction, RunEvaluation
from cnnlab.io import figures as plots
from cnnlab.io.errors import CnnlabError, unknown
from cnnlab.io.tables import as_text, new_table, number, to_json
from cnnlab.io.text import cell
from cnnlab.machine.bench import BenchResult
from cnnlab.models import MODELS
from cnnlab.recipe import SETTINGS, TYPES
from cnnlab.recipes import RECIPES
from cnnlab.training.curves import comparison
from cnnlab.training.evaluate import VIEWS
from cnnlab.training.runs import Run, differences


def confusion(
    classes: Sequence[str],
    rows: Sequence[Sequence[int]],
    class_accuracy: Sequence[float | None],
    others: Sequence[int] = (),
) -> str:
    """The confusion matrix, a row a class; of more than 20 classes, the ten most frequent mistakes.

    others: of each class, images that were called something that is no class; they get a column of their own.
    """
    if len(classes) <= 20:
        table = new_table("true \\ predicted", *(str(k) for k in range(len(classes))), *["other"] * bool(others), "acc")
        for k, (row, accuracy) in enumerate(zip(rows, class_accuracy, strict=True)):
            cells = [str(n) if n else "." for n in [*row, *others[k : k + 1]]]
            name = classes[k] if classes[k] == str(k) else f"{k} {classes[k]}"
            table.add_row(name, *cells, "-" if accuracy is None else f"{accuracy:.3f}")
    else:  # a matrix would not fit: the ten most frequent mistakes instead
        table = new_table("true", "predicted", "images")
        pairs = [(n, i, j) for i, row in enumerate(rows) for j, n in enumerate(row) if n and i != j]
        for n, i, j in sorted(pairs, reverse=True)[:10]:
            table.add_row(classes[i], classes[j], str(n))
    return as_text(table)


def evaluation(found: RunEvaluation) -> str:
    """Accuracy and loss in a line, then each class with its accuracy and its confusion matrix row."""
    e, classes = found.result, found.run.classes
    often = f", {VIEWS[found.views]} looks at each" if VIEWS[found.views] > 1 else ""
    lines = [
        f"{found.split} acc {e.accuracy:.4f} ({e.correct} of {e.count} images{often}), loss {e.loss:.4f}; "
        f"{found.run.path}, {found.weights.name}"
    ]
    lines.append(confusion(classes, e.confusion.tolist(), e.class_accuracy))
    if found.skipped:
        lines.append(f"{len(found.skipped)} damaged images were left out; the first: {found.skipped[0]}")
    if found.split == "test":
        recipe = found.run.recipe
        if recipe.eval_split == "test":
            lines.append(
                f"its recipe looked at the test set after each of {recipe.epochs} epochs; choose nothing by it"
            )
            return "\n".join(lines)
        looks = sum(1 for row in found.run.evaluations() if row.get("split") == "test")
        lines.append(
            f"the test set has been looked at {looks} time{'s' if looks != 1 else ''} with this run; choose by "
            "validation, not by it"
            if found.recorded
            else "this look at the test set could not be recorded: the run's folder cannot be written to"
        )
    return "\n".join(lines)


def prediction_format(name: str) -> Callable[[Sequence[Prediction]], str]:
    """How to print predictions: table, csv or json."""
    formats = {"table": _prediction_table, "csv": _prediction_csv, "json": _prediction_json}
    if name not in formats:
        raise unknown("format", name, formats)
    return formats[name]


def _prediction_table(found: Sequence[Prediction]) -> str:
    table = new_table("image", *(f"{i + 1}." for i in range(len(found[0].top) if found else 1)))
    for p in found:
        table.add_row(str(p.path), *(f"{label} {share:.1%}" for label, share in p.top))
    return as_text(table)


def _prediction_csv(found: Sequence[Prediction]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ranks = range(1, (len(found[0].top) if found else 1) + 1)
    writer.writerow(["image", *(column for i in ranks for column in (f"label_{i}", f"probability_{i}"))])
    for p in found:
        named = (field for label, share in p.top for field in (cell(label), f"{share:.6f}"))
        writer.writerow([cell(str(p.path)), *named])
    return out.getvalue().rstrip("\n")


def _prediction_json(found: Sequence[Prediction]) -> str:
    return to_json(
        [{"image": str(p.path), "top": [{"label": label, "probability": v} for label, v in p.top]} for p in found]
    )


def run_rows(chosen: Sequence[Run]) -> list[dict[str, Any]]:
    """One row of plain values a run."""
    return [_run_row(run) for run in chosen]


def _run_row(run: Run) -> dict[str, Any]:
    rows, summary = run.metrics(), run.summary()
    last = rows[-1] if rows else {}
    return {
        "run": str(run.path),
        "model": run.recipe.model,
        "data": run.recipe.data,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "epochs": len(rows),
        "of": run.recipe.epochs,
        "finished": summary is not None,
        "loss": last.get("loss"),
        "train_acc": last.get("train_acc"),
        "val_acc": last.get("val_acc"),
        "test_acc": last.get("test_acc"),
        "images_per_second": sum(r["images"] for r in rows) / sum(r["train_seconds"] for r in rows) if rows else None,
        "seconds": sum(r["seconds"] for r in rows),
    }


def run_list(chosen: Sequence[Run], runs_dir: Path, compare: bool) -> str:
    """The runs as a table; when comparing, also the settings in which they differ."""
    if not chosen:
        return f"no runs in {runs_dir}; make one: cnnlab train"
    table = new_table(
        "run", "model", "recipe", "seed", "epochs", "loss", "train acc", "val acc", "test acc", "images/s"
    )
    for r in run_rows(chosen):
        epochs = str(r["epochs"]) if r["finished"] else f"{r['epochs']} of {r['of']}"
        table.add_row(r["run"], r["model"], r["recipe"], str(r["seed"]), epochs,
                      *(number(r[k]) for k in ("loss", "train_acc", "val_acc", "test_acc")),
                      number(r["images_per_second"], ",.0f"))  # fmt: skip
    text = as_text(table)
    if compare and len(chosen) > 1:
        changed = differences(chosen)
        table = new_table("setting that differs", *(str(run.path) for run in chosen))
        for key, values in changed.items():
            table.add_row(key, *map(str, values))
        text += "\n\n" + (as_text(table) if changed else "all settings are the same")
    return text


def save_comparison(path: Path, chosen: Sequence[Run]) -> None:
    """Draw the runs' accuracies over the epochs into a PNG file. Raises: CnnlabError where it cannot be written."""
    drawn = [(str(run.path), run.recipe.eval_split, run.metrics()) for run in chosen]
    drawn = [d for d in drawn if d[2]]
    if not drawn:
        raise CnnlabError("none of these runs has finished an epoch: nothing to plot")
    plots.check_png(path)
    plots.save(path, comparison(drawn))


def plan(planned: Plan) -> str:
    """What a reproduction is going to train, and how long that may take."""
    table = new_table("experiment", "recipe", "epochs", "seeds", "images", "estimated time")
    for name, recipe in planned.recipes.items():
        images = f"at most {recipe.limit:,}" if recipe.limit else "all"
        seconds = planned.seconds[name]
        table.add_row(name, recipe.name, str(recipe.epochs), str(planned.seeds), images, duration(seconds))
    for name in planned.methods:
        images = f"at most {planned.limit:,}" if planned.limit else "all"
        table.add_row(name, "", "", "1", images, "not estimated")
    if not planned.recipes:
        return as_text(table)
    besides = ", the classical baseline not counted" if planned.methods else ""
    return f"{as_text(table)}\nabout {duration(planned.total)} in all on this machine{besides}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def reproduction(found: Reproduction) -> str:
    """The table: a line for ours and a line for what the manual prints, then what the rows are worth."""
    table = new_table("experiment", "", "loss", "train acc", "test acc", "examples/s", "images/s with data")
    notes = []
    for row in found.rows:
        if "failed" in row:
            table.add_row(row["title"], "failed", *[""] * 5)
            notes.append(f"{row['title']} failed: {row['failed']}")
        else:
            n = row["test_acc"]["n"]
            table.add_row(row["title"], f"{n} seed{'s' if n > 1 else ''}", *cells(row))
            if row["limited"]:
                notes.append(f"{row['title']} was limited: {row['limited']}; not comparable with the printed figures")
        printed = printed_cells(row)
        if any(printed):
            table.add_row("", "published" if row["name"] in CLASSICAL else "printed", *printed, "")
    whole = [row["title"] for row in found.rows if "failed" not in row and not row["limited"]]
    if whole:
        notes.append(f"in full: {', '.join(whole)}")
    for row in found.rows:
        if "val_acc" in row:
            accuracy = row["val_acc"]["mean"]
            notes.append(f"{row['title']}: settings chosen on validation images, val acc {accuracy:.4f}")
        for what in ("gamma", "beta"):
            if what in row:
                values = ", ".join(f"{v:.3f}" for v in row[what])
                notes.append(f"{row['title']}, seed {row['seeds'][0]}, first layer's {what}: {values}")
    if any("failed" not in row and row["name"] not in CLASSICAL for row in found.rows):
        notes.append("the manual's recipes look at the test set after each epoch; choose nothing by it")
    return "\n".join([as_text(table), "", *notes, f"kept in {found.path} (results.json, table.md, every run)"])


def bench(found: BenchResult) -> str:
    """The machine, a line for each network and precision, then time to accuracy and what was left out."""
    about, lines = found.environment, []
    memory = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
    lines.append(
        f"{about['device_name']}, {about['cores']} cores{memory}, torch {about['versions']['torch']}; "
        f"images: {found.images}"
    )
    for precision, best in found.peaks.items():
        way = "torch.mm" if best["by"] == "mm" else "1x1 convolution"
        n = best["size"]
        lines.append(
            f"peak, {precision}: {best['flops_per_second'] / 1e9:,.0f} GFLOP/s ({way}, {n} x {n}, "
            f"threads {best['threads']})"
        )
    compiled = any(row.get("compile", "off") != "off" for row in found.rows)
    table = new_table("network", "pixels", "batch", "precision", "memory format", "threads", "images/s with data",
                   "compute only", "of the peak", "peak memory", *(["compiled in"] if compiled else []))  # fmt: skip
    for row in found.rows:
        what = [row["model"], str(row["image_size"]), str(row["batch_size"]), row["precision"]]
        if "failed" in row:
            table.add_row(*what, row["failed"])
            continue
        held = row["peak_memory_bytes"]
        table.add_row(
            *what,
            row["memory_format"],
            str(row["threads"]),
            f"{row['images_per_second']:,.0f}",
            f"{row['examples_per_second']:,.0f}",
            f"{row['fraction_of_peak']:.1%}",
            "" if held is None else f"{held / 2**20:,.0f} MiB",
            *([f"{row['first_step_seconds']:.0f} s"] if compiled else []),
        )
    lines += ["", as_text(table), ""]
    for row in found.to_accuracy:
        lines.append(
            f"recipe {row['recipe']}, {row['epochs']} epochs: {row['split']} acc {row['accuracy']:.4f} after "
            f"{row['seconds']:.1f} s"
        )
    return "\n".join([*lines, *(f"left out: {text}" for text in found.left_out)]).rstrip()


def grades(found: Grades) -> str:
    """A line for each student, then how many there are of each kind."""
    table = new_table("student", "accuracy", "right", "note")
    table.columns[-1].justify = "left"
    for row in found.rows:
        score = row.score
        table.add_row(
            row.student,
            f"{score.accuracy:.4f}" if score else row.status,
            f"{score.correct:,} of {score.count:,}" if score else "",
            row.note,
        )
    return f"{as_text(table)}\n\n{found}"


def known_things(what: str | None) -> dict[str, dict[str, str]]:
    """Names with a line each: models, data, recipes, settings. Raises: CnnlabError for another word."""
    known: dict[str, dict[str, str]] = {
        "models": {
            **{name: _builder_line(builder) for name, builder in MODELS.items()},
            "timm:NAME": "any network of timm; timm:NAME.TAG starts from published weights",
            "torchvision:NAME": "any of torchvision's; torchvision:NAME.TAG starts from published weights",
        },
        "data": {
            **{name: _first_line(load, of_module=True) for name, load in DATASETS.items()},
            "folder:PATH": "your own images, one sub-folder per class",
            "store:PATH": "a competition's images, as cnnlab kaggle prepare makes them",
        },
        "recipes": {name: _recipe_line(name) for name in RECIPES},
        "settings": {
            name: f"{f.metadata['help']}; {', '.join(f.metadata['choices']) or TYPES[name].__name__}; "
            f"default {f.default}"
            for name, f in SETTINGS.items()
        },
    }
    if what is None:
        return known
    if what not in known:
        raise unknown("list", what, known)
    return {what: known[what]}


def known_list(known: dict[str, dict[str, str]]) -> str:
    """The same for people."""
    parts = []
    for kind, things in known.items():
        width = max(map(len, things))
        parts.append("\n".join([f"{kind}:", *(f"  {name:<{width}}  {line}" for name, line in things.items())]))
    return "\n\n".join(parts)


def _recipe_line(name: str) -> str:
    r = RECIPES[name]
    watch = {"test": "looks at the test set each epoch", "validation": "chosen on validation", "train": "on all images"}
    how = f"{r.epochs} epochs, batch {r.batch_size}, {r.optimizer} {r.learning_rate:g}"
    return f"{r.model} on {r.data}, {how}; {watch[r.eval_split]}"


# What a variant's options mean, for `cnnlab list models`.
_VARIANTS = {
    "from_scratch": "our own batch norm in place of the framework's",
    "ratio": "a quarter of the channels, as the manual trains it",
    "last_relu": "without the last ReLU",
    "manual": "the manual's variant: biases, bare 1x1 convolutions",
    "deep": "three convolutions a group, and a shortcut",
    "cifar": "a small stem, for images of about 32 pixels",
}


def _builder_line(builder: Any) -> str:
    if not isinstance(builder, partial):
        return _first_line(builder).partition(": (B, C")[0]
    first = _first_line(builder.func).partition(":")[0].partition(",")[0]
    return ", ".join([first, *(_VARIANTS.get(key, key) for key in builder.keywords if key != "image_size")])


def _first_line(thing: Any, *, of_module: bool = False) -> str:
    if of_module:
        import sys

        return (sys.modules[thing.__module__].__doc__ or "").partition("\n")[0].partition(": ")[2].rstrip(".")
    return (thing.__doc__ or "").partition("\n")[0].rstrip(".")
