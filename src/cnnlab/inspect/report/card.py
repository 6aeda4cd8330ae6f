"""A report as a model card: Markdown that a repository or a model hub shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cnnlab.io.text import escape, markdown, plural, truncate

_CLASSES = 200  # rows of the table of classes


def card(payload: dict[str, Any]) -> str:
    """Return the model card of a report's payload, with a part for each of its runs."""
    runs = payload["runs"]
    parts = ["---\nlibrary_name: cnnlab\npipeline_tag: image-classification\nmetrics:\n- accuracy\n---"]
    if len(runs) > 1:
        parts += [f"# {len(runs)} runs", *_comparison(payload)]
    if payload["pooled"] is not None:
        parts += _pooled(payload["pooled"])
    for run in runs:
        parts += _run(run, "#" if len(runs) == 1 else "##")
    parts.append(
        f"Written by cnnlab {payload['version']}, {payload['created'].replace('+00:00', ' UTC').replace('T', ' ')}."
    )
    return "\n\n".join(parts) + "\n"


def _run(run: dict[str, Any], level: str) -> Iterator[str]:
    """Yield the blocks of one run. level: the marks of its heading."""
    state = "still training" if run["running"] else "unfinished"
    epochs = plural(run["epochs"], "epoch") if run["finished"] else f"{run['epochs']} of {run['of']} epochs ({state})"
    yield f"{level} {_name(run['name'])}"
    yield (
        f"{_name(run['model'])}, {run['parameters']:,} parameters, trained on {_name(run['data'])} for {epochs} by the "
        f"recipe {_name(run['recipe'])} with seed {run['seed']}. Input: {' x '.join(map(str, run['input']))}."
    )
    for text in run["missing"]:
        yield f"Missing: {_name(text)}."
    e = run["evaluation"]
    if e is not None:
        yield f"{level}# Results"
        yield measured_on(run)
        yield _figures(e)
        yield _classes(e)
        yield f"{level}# Limits"
        yield "\n".join(f"- {text}" for text in _limits(run, e))
    yield f"{level}# Training"
    yield _table(("", ""), [(name, value) for name, value in _facts(run) if value])
    changed = [(f"`{key}`", _name(now), _name(was)) for key, now, was in run["settings"] if now != was]
    if changed:
        yield _table(("setting", "value", f"in {_name(run['base'])}"), changed)
    if run["command"]:
        yield f"{level}# Train it again"
        yield f"```console\n$ {escape(run['command']).replace('```', '')}\n```"
        if run["shortened"]:
            yield "Its paths are shortened to their last part: put yours in their place."
    if run["environment"]:
        yield f"{level}# Environment"
        yield _table(("", ""), [(_name(name), _name(value)) for name, value in run["environment"]])


def _pooled(pooled: dict[str, Any]) -> Iterator[str]:
    """Yield the blocks about all folds together."""
    e, (folds, of) = pooled["evaluation"], pooled["pooled"]
    yield "## Out of fold"
    yield (
        f"{e['images']:,} images, each predicted by the network that was not trained on it: {folds} of {of} folds, the "
        f"{e['weights']} weights of each."
    )
    yield _figures(e)
    yield _classes(e)


def measured_on(run: dict[str, Any]) -> str:
    """Return a text on the images, weights and seed with which a run's figures were measured."""
    e = run["evaluation"]
    where = f" of {_name(e['data'])}" if e["data"] is not None else ""
    each = (
        f"The recipe evaluated on the test set after each of {plural(run['epochs'], 'epoch')}. "
        if run["test_evaluations"]["each_epoch"]
        else ""
    )
    return (
        f"Measured on {e['images']:,} {e['split']} images{where} with the {e['weights']} weights, seed {run['seed']}. "
        f"{each}Evaluations on the test set: {run['test_evaluations']['times']}."
    )


def _figures(e: dict[str, Any]) -> str:
    rows = [
        (name, f"{e[key]:.4f}", "{:.3f}-{:.3f}".format(*e["intervals"][key]))
        for name, key in (
            ("accuracy", "accuracy"),
            ("balanced accuracy", "balanced_accuracy"),
            ("macro F1", "macro_f1"),
        )
    ]
    c = e["calibration"]
    rows += [
        ("loss", f"{e['loss']:.4f}", ""),
        (
            "expected calibration error"
            + (f", temperature {e['temperature']:.2f}" if e["temperature"] is not None else ""),
            f"{c['ece']:.4f}",
            f"{c['ece_before']:.4f} before",
        ),
    ]
    return _table(("figure", "value", "95% interval"), rows)


def _classes(e: dict[str, Any]) -> str:
    rows = []
    for row in e["classes"][:_CLASSES]:
        figures = [
            "-" if row[key] is None else "{:.3f} ({:.2f}-{:.2f})".format(row[key], *row[f"{key}_interval"])
            for key in ("precision", "recall", "f1")
        ]
        rows.append((_name(row["class"]), *figures, f"{row['support']:,}"))
    more = len(e["classes"]) - _CLASSES
    return _table(("class", "precision", "recall", "F1", "images"), rows) + (
        f"\n\nand {more} more classes" if more > 0 else ""
    )


def _limits(run: dict[str, Any], e: dict[str, Any]) -> Iterator[str]:
    yield "The intervals cover only the choice of these images: another seed gives another network."
    if e["split"] == "validation" and not e["other_data"]:
        yield "The epoch was selected on these images, so the figures are slightly optimistic."
    if e["split"] == "train" and not e["other_data"]:
        yield "The network was trained on these images: the figures say nothing about new images."
    if run["test_evaluations"]["each_epoch"]:
        yield "The test set was evaluated during the training: do not select models by it."
    if e["never_predicted"]:
        yield f"Never predicted: {', '.join(map(_name, e['never_predicted'][:20]))}."
    yield from (f"{_name(text)}." for text in run["findings"])
    shared = {split: n for split, n in run["checks"]["shared"].items() if n}
    yield from (
        f"{n:,} of the {_name(split)} images are among the training images, pixel for pixel."
        for split, n in shared.items()
    )
    yield from (f"{_name(text)}." for text in run["checks"]["warnings"])


def _facts(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    speed, checks = run["speed"], run["checks"]
    yield "images", ", ".join(f"{n:,} {_name(split)}" for split, n in checks["images"].items())
    yield "classes", f"{len(run['classes']):,}"
    if speed:
        yield "throughput", f"{speed['images_per_second']:,.0f} images/s"
        yield "time", f"{speed['total_seconds']:,.1f} s"
    yield "fingerprint of the training images", _name(checks["fingerprint"])
    yield "published weights", _name(run["published"] or "")
    yield "starts from", _name(run["from"] or "")


def _comparison(payload: dict[str, Any]) -> Iterator[str]:
    rows = []
    for run in payload["runs"]:
        e = run["evaluation"]
        figures = ["", "", "", ""]
        if e is not None:
            low, high = e["intervals"]["accuracy"]
            figures = [f"{e['accuracy']:.4f}", f"{low:.3f}-{high:.3f}", f"{e['images']:,} {e['split']}", e["weights"]]
        rows.append((_name(run["name"]), *figures, str(run["seed"])))
    yield _table(("run", "accuracy", "95% interval", "images", "weights", "seed"), rows)
    together = payload["compare"]
    if together["settings"]:
        names = [_name(run["name"]) for run in payload["runs"]]
        yield _table(
            ("setting that differs", *names),
            [(f"`{key}`", *map(_name, values)) for key, values in together["settings"]],
        )
    if together["tests"]:
        tests = []
        for test in together["tests"]:
            pair = " and ".join(_name(payload["runs"][i]["name"]) for i in test["runs"])
            tests.append((pair, f"{test['first_only']:,}", f"{test['second_only']:,}", f"{test['p']:.3g}"))
        yield _table(("McNemar's exact test", "only the first right", "only the second right", "p"), tests)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(text: object) -> str:
    """Return untrusted text, shortened and escaped for Markdown."""
    return markdown(truncate(str(text), 200)).replace("*", "\\*").replace("_", "\\_")
