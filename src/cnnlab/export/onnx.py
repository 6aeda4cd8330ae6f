"""One ONNX file: the fit to the square, preprocessing, network, temperature, names of classes, threshold."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper

from cnnlab.export.build import Nodes
from cnnlab.export.fit import fit_nodes
from cnnlab.export.graph import Answer
from cnnlab.export.runtime import DESCRIPTION, INPUT, OUTPUTS
from cnnlab.inference import Classifier
from cnnlab.io.errors import CnnlabError, reason

OPSET = 20
_FITTED, _BEST = "fitted", "best"


def onnx_model(classifier: Classifier, description: dict[str, Any]) -> ModelProto:
    """Return the model of a classifier. description: what it says of itself, see description.py.

    Raise CnnlabError for a network that PyTorch's exporter cannot convert.
    """
    model = _network(classifier)
    graph = model.graph
    before, after = Nodes("fit/"), Nodes("answer/")
    how = classifier.preprocessing.decoding
    fit_nodes(before, INPUT, how, _FITTED)
    after.Gather(np.array(classifier.classes, object), _BEST, output="label")
    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["B", how.channels, "H", "W"]))
    shapes: dict[str, tuple[int, list[str | int]]] = {
        "probabilities": (TensorProto.FLOAT, ["B", len(classifier.classes)]),
        "label": (TensorProto.STRING, ["B"]),
        "none_of_these": (TensorProto.BOOL, ["B"]),
    }
    graph.output.extend(helper.make_tensor_value_info(name, *shapes[name]) for name in OUTPUTS)
    helper.set_model_props(model, {DESCRIPTION: json.dumps(description)})
    model.producer_name, model.producer_version = "cnnlab", description["versions"]["cnnlab"]
    onnx.checker.check_model(model)
    return model


def _network(classifier: Classifier) -> ModelProto:
    """Return the model from fitted images to probabilities, the number of the class and whether it is none."""
    p = classifier.preprocessing
    # Two images: with one, the exporter would take the batch for a constant.
    images = torch.zeros(2, p.channels, p.native_size, p.native_size, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                Answer(classifier).eval(), (images,), dynamo=True, external_data=False, verbose=False,
                opset_version=OPSET, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), input_names=[_FITTED],
                output_names=["probabilities", _BEST, "none_of_these"],
            )  # fmt: skip
    except Exception as error:  # the exporter raises many kinds, each around the one that tells something
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise CnnlabError(
            f"PyTorch's exporter cannot convert this network to ONNX: {reason(error, 200)}; --to safetensors needs no "
            "exporter"
        ) from error
    assert program is not None
    model: ModelProto = program.model_proto
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says about itself, which nobody can act on."""
    names = ("torch.onnx", "onnxscript", "torch.export")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        # torch.export copies its own deprecated tree specifications.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
