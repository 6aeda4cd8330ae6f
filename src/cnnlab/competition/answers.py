"""Classify a competition's test images with the finished runs, write the submission and upload it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnlab import inference
from cnnlab.competition import client
from cnnlab.competition.submission import Written, has_class_columns, write_probabilities, write_submission
from cnnlab.competition.trainings import weights_hash
from cnnlab.competition.work import Competition
from cnnlab.data.store import Store, mapped
from cnnlab.device.hardware import check_threads
from cnnlab.io.csv import read_header
from cnnlab.io.errors import CnnlabError, expand, reason
from cnnlab.io.files import read_json, read_limited, write_atomic
from cnnlab.training import runs
from cnnlab.training.display import reporting
from cnnlab.training.evaluate import VIEWS
from cnnlab.training.runs import Run


@dataclass(frozen=True)
class Submitted:
    """A submission: the file, the runs whose probabilities were averaged, and Kaggle's answer if it was uploaded."""

    written: Written
    runs: list[Run]
    views: str
    answer: str | None = None


def check_submittable(competition: Competition, upload_to: str | None = None) -> None:
    """Raise CnnlabError if no submission could be written or uploaded. Call it before training."""
    store = competition.open_store()
    if not store.test_ids:
        raise CnnlabError(
            f"{competition.folder} has no test images ({competition.layout.test}); put them there, or name them with "
            "--test"
        )
    if lost := store.info["sample_without_image"]:
        raise CnnlabError(
            f"{len(lost)} ids of {competition.layout.sample} have no test image, the first {lost[0]!r}; a submission "
            "needs a prediction for each; add the missing test images"
        )
    if upload_to:
        client.check_ready(upload_to)


def submit(
    competition: Competition,
    *,
    chosen: Sequence[str | Path] = (),
    views: str | None = None,
    out: str | Path | None = None,
    probabilities: bool = False,
    upload_to: str | None = None,
    message: str = "cnnlab",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 0,
    progress: str = "auto",
) -> Submitted:
    """Classify the test images and write the submission in the order of the competition's sample.

    chosen: runs whose probabilities are averaged. Default: all finished runs. views: test-time augmentation. Default:
    the best on the validation split, from report.json. out: the file to write. Default: submission.csv in the work
    folder. An existing file with other content is renamed. probabilities: write one column per class instead of labels,
    as is always done if the sample has such columns. upload_to: the competition to submit to with the official client,
    unless the same file was submitted before. Raise CnnlabError.
    """
    check_threads(threads)
    check_submittable(competition, upload_to)
    store = competition.open_store()
    models = [runs.open_run(name, competition.path) for name in chosen] if chosen else competition.runs()
    if not models:
        raise CnnlabError(
            f"{competition.path} has no finished run; first: cnnlab kaggle train --name {competition.path.name}"
        )
    for run in models:
        if run.classes != store.train.classes:
            raise CnnlabError(f"{run.path} has other classes than {competition.folder}; leave it out")
    views = views or _best_views(competition, models)
    total = sum(
        _probabilities(competition, run, store, views, device=device, threads=threads, batch_size=batch_size,
                 progress=progress)
        for run in models
    )  # (M, K)  # fmt: skip
    assert isinstance(total, Tensor)
    p = (total / len(models)).numpy()
    row_of = {i: n for n, i in enumerate(store.test_ids)}
    classes, layout = store.train.classes, competition.layout
    # Test images that are not in the sample are left out of a submission.
    ids = store.test_ids if store.sample_ids is None else store.sample_ids
    p = p[[row_of[i] for i in ids]]
    path = expand(out) if out else competition.path / "submission.csv"
    columns = {"id_column": layout.id_column, "label_column": layout.label_column}
    if store.sample is not None and not probabilities:
        header = read_header(store.sample.open("rb"), str(store.sample))
        probabilities = has_class_columns(header, classes, layout.label_column)
    if probabilities:
        written = write_probabilities(path, ids, p, sample=store.sample, classes=classes, **columns)
    else:
        labels = [classes[k] for k in p.argmax(1)]
        written = write_submission(path, ids, labels, sample=store.sample, classes=classes, **columns)
    answer = _upload(competition, written.path, upload_to, message) if upload_to else None
    return Submitted(written, models, views, answer)


def _best_views(competition: Competition, models: list[Run]) -> str:
    """Return the views with the best validation accuracy.

    If that is unknown: `shift` if all runs were trained with flips, else `none`.
    """
    try:
        measured = read_json(competition.path / "report.json")["validation_accuracy_by_views"]
        return max(VIEWS, key=lambda name: float(measured[name]))  # the fewest views among equals
    except (CnnlabError, KeyError, TypeError, ValueError):
        return "shift" if all(run.recipe.flip for run in models) else "none"


def _probabilities(
    competition: Competition, run: Run, store: Store, views: str, *, device: str, threads: int | None, batch_size: int,
    progress: str,
) -> Tensor:  # fmt: skip
    """Return the run's probabilities (M, K) for the test images, and cache them in its folder."""
    key = hashlib.blake2b(f"{weights_hash(run)} {competition.fingerprint}".encode(), digest_size=8).hexdigest()
    path = run.path / f"answers-{views}-{key}.npy"
    shape = (len(store.test_ids), len(store.train.classes))
    with contextlib.suppress(OSError, ValueError):
        saved = mapped(path, shape, "<f4")
        if np.isfinite(saved).all():
            return torch.from_numpy(saved)
    with reporting(progress) as report:
        p = inference.probabilities(
            [run], store.test_images, views=views, device=device, threads=threads, batch_size=batch_size,
            report=report,
        )  # fmt: skip
    buffer = io.BytesIO()
    np.save(buffer, p.numpy())
    with contextlib.suppress(OSError):  # the run may be read-only
        write_atomic(path, buffer.getvalue())
    return p


def _upload(competition: Competition, path: Path, to: str, message: str) -> str:
    """Submit `path`, unless the same file was submitted before: the number of submissions per day is limited."""
    record = competition.path / "uploads.jsonl"
    content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    lines = read_limited(record).decode(errors="replace").splitlines() if record.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            earlier = json.loads(line)
            if (earlier["competition"], earlier["content"]) == (to, content):
                return f"not submitted again: {to} received the same file on {earlier['date']}"
    answer = client.upload(to, path, message)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"date": date, "competition": to, "content": content, "message": message, "answer": answer}
    try:
        write_atomic(record, "".join(f"{line}\n" for line in [*lines, json.dumps(entry)]))
    except OSError as error:  # the file was accepted all the same
        return f"{answer} (not recorded in {record}: {reason(error)}; do not submit the same file again)"
    return answer
