"""cnnlab: modern convolutional networks for small images, from the textbook's figure to a trained model.

The public names are those in `__all__`; docs/api.md shows them in use. They are imported lazily, so that
`import cnnlab` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cnnlab.data import DATASETS, ImageSet, load_images
    from cnnlab.data.batches import loader
    from cnnlab.export.export import Export, export_run
    from cnnlab.inference import (
        Classifier,
        Prediction,
        Predictions,
        RunEvaluation,
        Threshold,
        evaluate_run,
        load_model,
        predict,
        set_threshold,
    )
    from cnnlab.inspect.inspection import Inspection, inspect_run
    from cnnlab.inspect.report import Report, report
    from cnnlab.io.errors import CnnlabError, TrainingInterrupted
    from cnnlab.models import MODELS, build_model
    from cnnlab.recipe import Recipe
    from cnnlab.recipes import RECIPES
    from cnnlab.training.evaluate import Evaluation
    from cnnlab.training.lr_find import RangeTest, lr_find
    from cnnlab.training.results import FoldsResult, Result, SeedsResult
    from cnnlab.training.resume import resume
    from cnnlab.training.runs import Run, list_runs, open_run
    from cnnlab.training.step import train_step
    from cnnlab.training.train import train
    from cnnlab.training.train_series import train_folds, train_seeds

__all__ = [
    "DATASETS",
    "MODELS",
    "RECIPES",
    "Classifier",
    "CnnlabError",
    "Evaluation",
    "Export",
    "FoldsResult",
    "ImageSet",
    "Inspection",
    "Prediction",
    "Predictions",
    "RangeTest",
    "Recipe",
    "Report",
    "Result",
    "Run",
    "RunEvaluation",
    "SeedsResult",
    "Threshold",
    "TrainingInterrupted",
    "__version__",
    "build_model",
    "evaluate_run",
    "export_run",
    "inspect_run",
    "list_runs",
    "load_images",
    "load_model",
    "loader",
    "lr_find",
    "open_run",
    "predict",
    "report",
    "resume",
    "set_threshold",
    "train",
    "train_folds",
    "train_seeds",
    "train_step",
]

_HOMES = {
    "data": ("DATASETS", "ImageSet", "load_images"),
    "data.batches": ("loader",),
    "export.export": ("Export", "export_run"),
    "inference": (
        "Classifier",
        "Prediction",
        "Predictions",
        "RunEvaluation",
        "Threshold",
        "evaluate_run",
        "load_model",
        "predict",
        "set_threshold",
    ),
    "inspect.inspection": ("Inspection", "inspect_run"),
    "inspect.report": ("Report", "report"),
    "io.errors": ("CnnlabError", "TrainingInterrupted"),
    "models": ("MODELS", "build_model"),
    "recipe": ("Recipe",),
    "recipes": ("RECIPES",),
    "training.evaluate": ("Evaluation",),
    "training.lr_find": ("RangeTest", "lr_find"),
    "training.results": ("FoldsResult", "Result", "SeedsResult"),
    "training.runs": ("Run", "list_runs", "open_run"),
    "training.step": ("train_step",),
    "training.resume": ("resume",),
    "training.train": ("train",),
    "training.train_series": ("train_folds", "train_seeds"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cnnlab' has no attribute {name!r}")
    value = getattr(import_module(f"cnnlab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
