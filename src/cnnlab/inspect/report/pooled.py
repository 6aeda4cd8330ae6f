"""The pooled folds of a cross-validation: each image is predicted by the network that was not trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cnnlab.data.imageset import ImageSet
from cnnlab.inference.evaluation import RunEvaluation
from cnnlab.inspect.report.payload import Measured, Options, calibration, evaluation_payload, run_payload
from cnnlab.inspect.report.thumbnails import Thumbnails
from cnnlab.training.evaluate import Evaluation, probabilities
from cnnlab.training.series import is_series, open_series


def is_cross_validation(measured: Sequence[Measured]) -> bool:
    """Return whether these are several folds of one series, each evaluated on the images that it held out.

    Return False for packed sets: pooling would read all their images into memory.
    """
    evaluations = [m.evaluation for m in measured]
    folders = {m.run.path.parent for m in measured}
    return (
        len(measured) > 1
        and len({m.run.path for m in measured}) == len(measured)
        and len(folders) == 1
        and is_series(*folders)
        and open_series(*folders).kind == "folds"
        and all(e is not None and e.split == "validation" and not e.other for e in evaluations)
        and all(e is not None and e.images is not None and isinstance(e.images.images, Tensor) for e in evaluations)
    )


def pooled_payload(measured: Sequence[Measured], thumbnails: Thumbnails, options: Options) -> dict[str, Any]:
    """Return what a report says about the pooled folds: those parts of a run's payload that the figures need.

    evaluation: as for a run, but on the images of all folds; its temperature is None, since each fold has its own.
    """
    first, folder = measured[0], measured[0].run.path.parent
    series = open_series(folder)
    pooled = replace(first, evaluation=_pooled(measured))
    found, _ = evaluation_payload(pooled, thumbnails, options)
    logits = [m.evaluation.result.logits for m in measured if m.evaluation is not None]
    plain = torch.cat([probabilities(one, 1.0) for one in logits if one is not None])
    assert pooled.evaluation is not None
    assert pooled.evaluation.images is not None
    found["calibration"] = calibration(plain, pooled.probabilities, pooled.evaluation.images.labels)
    found |= {"temperature": None, "threshold": 0.0, "recorded": False}
    whole = run_payload(replace(first, evaluation=None), thumbnails, options)
    kept = (
        "model",
        "parameters",
        "input",
        "native",
        "data",
        "recipe",
        "classes",
        "seed",
        "eval_split",
        "epochs",
    )
    return {**{key: whole[key] for key in kept}, "name": folder.resolve().name, "evaluation": found,
            "pooled": [len(measured), len(series.numbers)]}  # fmt: skip


def _pooled(measured: Sequence[Measured]) -> RunEvaluation:
    """Return the folds' evaluations as one, of temperature 1: logits are already divided by each fold's temperature."""
    evaluations = [m.evaluation for m in measured if m.evaluation is not None]
    images = [e.images for e in evaluations if e.images is not None]
    results = [e.result for e in evaluations]
    logits = [e.result.logits / e.temperature for e in evaluations if e.result.logits is not None]
    predicted = [r.predicted for r in results if r.predicted is not None]
    sure = [r.probability for r in results if r.probability is not None]
    confusion = torch.stack([r.confusion for r in results]).sum(0)
    loss = sum(r.loss * r.count for r in results) / int(confusion.sum())
    return replace(
        evaluations[0],
        result=Evaluation(loss, confusion, torch.cat(predicted), torch.cat(sure), torch.cat(logits)),
        images=ImageSet(
            torch.cat([i.images for i in images if isinstance(i.images, Tensor)]),
            torch.cat([i.labels for i in images]),
            [name for i in images for name in i.ids],
            images[0].classes,
            tuple(name for i in images for name in i.skipped),
        ),
        temperature=1.0,
        threshold=0.0,
        seconds=sum(e.seconds for e in evaluations),
    )
