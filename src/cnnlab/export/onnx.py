"""One ONNX file: the fit to the square, preprocessing, network, temperature, names of classes, threshold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper

from cnnlab.export.build import Nodes
from cnnlab.export.conversion import not_convertible, quiet
from cnnlab.export.description import utf8
from cnnlab.export.fit import fit_nodes
from cnnlab.export.graph import Answer
from cnnlab.export.quantize import quantized
from cnnlab.export.runtime import DESCRIPTION, INPUT, OUTPUTS
from cnnlab.inference import Classifier
from cnnlab.io.decode import Decoding

OPSET = 20
FITTED, _BEST = "fitted", "best"


def onnx_model(
    classifier: Classifier,
    description: dict[str, Any],
    *,
    fp16: bool = False,
    calibration: np.ndarray | None = None,
) -> ModelProto:
    """Return a classifier as an ONNX model. description: see description.py.

    fp16: convert the classifier's network to float16. calibration: fitted images (N, C, size, size) uint8 on which
    to calibrate an int8 network. Raise CnnlabError for a network that PyTorch's exporter cannot convert.
    """
    model = _network(classifier, fp16)
    if calibration is not None:
        model = quantized(model, FITTED, calibration)
    _join(model, classifier.preprocessing.decoding, classifier.classes)
    helper.set_model_props(model, {DESCRIPTION: json.dumps(description)})
    model.producer_name, model.producer_version = "cnnlab", description["versions"]["cnnlab"]
    onnx.checker.check_model(model)
    return model


def _join(model: ModelProto, how: Decoding, classes: list[str]) -> None:
    """Put the fit before the network, and the names of the classes after it."""
    graph = model.graph
    before, after = Nodes("fit/"), Nodes("answer/")
    fit_nodes(before, INPUT, how, FITTED)
    after.Gather(np.array([utf8(name) for name in classes], object), _BEST, output="label")
    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["B", how.channels, "H", "W"]))
    shapes: dict[str, tuple[int, list[str | int]]] = {
        "probabilities": (TensorProto.FLOAT, ["B", len(classes)]),
        "label": (TensorProto.STRING, ["B"]),
        "none_of_these": (TensorProto.BOOL, ["B"]),
    }
    graph.output.extend(helper.make_tensor_value_info(name, *shapes[name]) for name in OUTPUTS)


def _network(classifier: Classifier, fp16: bool) -> ModelProto:
    """Return the model from fitted images to probabilities, the index of the class, and whether it is none of them."""
    p = classifier.preprocessing
    # Two images: with one, the exporter would treat the batch size as a constant.
    images = torch.zeros(2, p.channels, p.native_size, p.native_size, dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                Answer(classifier, half=fp16).eval(), (images,), dynamo=True, external_data=False,
                verbose=False, opset_version=OPSET, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                input_names=[FITTED],
                output_names=["probabilities", _BEST, "none_of_these"],
            )  # fmt: skip
    except Exception as error:
        raise not_convertible(error, "ONNX") from error
    assert program is not None
    model: ModelProto = program.model_proto
    return model
