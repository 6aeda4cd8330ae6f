"""Use a finished run: evaluate it on a split, classify images, load its network."""

from cnnlab.inference.classifier import (
    Classifier,
    Predictions,
    load_model,
    load_network,
    probabilities,
)
from cnnlab.inference.evaluation import RunEvaluation, evaluate_run
from cnnlab.inference.run_images import run_splits, validation_images
from cnnlab.inference.split_table import SplitTable, split_table
from cnnlab.inference.stream import Prediction, predict, predict_stream
from cnnlab.inference.threshold import Threshold, set_threshold

__all__ = [
    "Classifier",
    "Prediction",
    "Predictions",
    "RunEvaluation",
    "SplitTable",
    "Threshold",
    "evaluate_run",
    "load_model",
    "load_network",
    "predict",
    "predict_stream",
    "probabilities",
    "run_splits",
    "set_threshold",
    "split_table",
    "validation_images",
]
