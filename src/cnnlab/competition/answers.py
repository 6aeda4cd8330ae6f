"""Answering a competition: every test image named by the finished runs, the submission written and handed in."""

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
from cnnlab.competition.submission import Written, write_submission
from cnnlab.competition.trainings import weights_hash
from cnnlab.competition.work import Competition
from cnnlab.data.store import Store, mapped
from cnnlab.device.hardware import check_threads
from cnnlab.io.errors import CnnlabError, expand
from cnnlab.io.files import read_json, read_limited, write_atomic
from cnnlab.training import runs
from cnnlab.training.display import make_display
from cnnlab.training.evaluate import VIEWS
from cnnlab.training.runs import Run


@dataclass(frozen=True)
class Submitted:
    """A submission: the file, the runs whose probabilities were averaged, and Kaggle's answer, if it was uploaded."""

    written: Written
    runs: list[Run]
    views: str
    answer: str | None = None


def check_submittable(competition: Competition, upload_to: str | None = None) -> None:
    """Before hours of training: could a submission be written, and handed in? Raises: CnnlabError where not."""
    store = competition.images()
    if not store.test_ids:
        raise CnnlabError(
            f"{competition.folder} has no test images ({competition.layout.test}) to answer; put them there, or name "
            "them with --test"
        )
    if lost := store.info["sample_without_image"]:
        raise CnnlabError(
            f"{len(lost)} ids of {competition.layout.sample} have no test image, the first {lost[0]!r}; a submission "
            "needs an answer for each: complete the test images"
        )
    if upload_to:
        client.check_ready(upload_to)


def submit(
    competition: Competition,
    *,
    chosen: Sequence[str | Path] = (),
    views: str | None = None,
    out: str | Path | None = None,
    upload_to: str | None = None,
    message: str = "cnnlab",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 0,
    progress: str = "auto",
) -> Submitted:
    """Name every test image and write the submission, in the order of the competition's sample.

    chosen: runs; unsaid, all that are finished. Their probabilities are averaged, over `views` of each image (unsaid:
    those that were best on the validation images, in report.json). out: the file, unsaid submission.csv in the work
    folder; one that is there and differs is kept under another name. upload_to: hand it in to that competition with
    the official client, unless just that was handed in before. Raises: CnnlabError.
    """
    check_threads(threads)
    check_submittable(competition, upload_to)
    store = competition.images()
    models = [runs.open_run(name, competition.path) for name in chosen] if chosen else competition.runs()
    if not models:
        raise CnnlabError(
            f"{competition.path} has no finished run; first: cnnlab kaggle train --name {competition.path.name}"
        )
    for run in models:
        if run.classes != store.train.classes:
            raise CnnlabError(f"{run.path} tells other classes apart than {competition.folder} has")
    views = views or _best_views(competition, models)
    total = sum(
        _answers(competition, run, store, views, device=device, threads=threads, batch_size=batch_size,
                 progress=progress)
        for run in models
    )  # (M, K)  # fmt: skip
    assert isinstance(total, Tensor)
    answers = dict(zip(store.test_ids, total.argmax(1).tolist(), strict=True))
    classes, layout = store.train.classes, competition.layout
    # Test images that the sample does not name are no part of a submission.
    ids = store.test_ids if store.sample_ids is None else store.sample_ids
    written = write_submission(
        expand(out) if out else competition.path / "submission.csv",
        ids,
        [classes[answers[i]] for i in ids],
        sample=store.sample,
        classes=classes,
        id_column=layout.id_column,
        label_column=layout.label_column,
    )
    answer = _upload(competition, written.path, upload_to, message) if upload_to else None
    return Submitted(written, models, views, answer)


def _best_views(competition: Competition, models: list[Run]) -> str:
    """The views with the best validation accuracy; where that was not measured, six if all learned mirrored ones."""
    try:
        measured = read_json(competition.path / "report.json")["validation_accuracy_by_views"]
        return max(VIEWS, key=lambda name: float(measured[name]))  # of equal ones the fewest looks
    except (CnnlabError, KeyError, TypeError, ValueError):
        return "shift" if all(run.recipe.flip for run in models) else "none"


def _answers(
    competition: Competition, run: Run, store: Store, views: str, *, device: str, threads: int | None, batch_size: int,
    progress: str,
) -> Tensor:  # fmt: skip
    """The run's probabilities of the test images (M, K), kept in its folder for the next time."""
    key = hashlib.blake2b(f"{weights_hash(run)} {competition.fingerprint}".encode(), digest_size=8).hexdigest()
    path = run.path / f"answers-{views}-{key}.npy"
    shape = (len(store.test_ids), len(store.train.classes))
    with contextlib.suppress(OSError, ValueError):
        kept = mapped(path, shape, "<f4")
        if np.isfinite(kept).all():
            return torch.from_numpy(kept)
    display = make_display(progress)
    try:
        p = inference.probabilities(
            [run], store.test_images, views=views, device=device, threads=threads, batch_size=batch_size,
            report=display.read,
        )  # fmt: skip
    finally:
        display.end()
    buffer = io.BytesIO()
    np.save(buffer, p.numpy())
    with contextlib.suppress(OSError):  # a run in a read-only place answers all the same
        write_atomic(path, buffer.getvalue())
    return p


def _upload(competition: Competition, path: Path, to: str, message: str) -> str:
    """Hand `path` in, unless just that was handed in before: submissions a day are few."""
    record = competition.path / "uploads.jsonl"
    content = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    lines = read_limited(record).decode(errors="replace").splitlines() if record.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            earlier = json.loads(line)
            if (earlier["competition"], earlier["content"]) == (to, content):
                return f"not handed in again: {to} got just this on {earlier['date']}"
    answer = client.upload(to, path, message)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"date": date, "competition": to, "content": content, "message": message, "answer": answer}
    write_atomic(record, "".join(f"{line}\n" for line in [*lines, json.dumps(entry)]))
    return answer
