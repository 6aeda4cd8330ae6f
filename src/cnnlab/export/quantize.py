"""Static quantisation to int8 with onnxruntime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

_TYPES = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Relu", "Clip")
_BATCH = 32


def quantized(model: ModelProto, name: str, images: np.ndarray) -> ModelProto:
    """Return the model with weights and activations in int8, calibrated on images (N, C, size, size) uint8.

    name: the model's input. Nodes before the first convolution or linear layer are not quantised. Each channel of the
    weights has its own scale. Weights have seven bits: CPUs without VNNI add two products in 16 bits, where products of
    eight-bit weights can overflow.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc] # has no types
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = (images[at : at + _BATCH] for at in range(0, len(images), _BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends its own preprocessing, which is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            whole, before, after = (Path(folder) / f"{part}.onnx" for part in ("float32", "folded", "int8"))
            onnx.save(model, whole)
            quant_pre_process(whole, before, skip_symbolic_shape=True)  # folds batch norm into convolutions
            first = onnx.load(before)
            quantize_static(
                before, after, Images(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=list(_TYPES),
                nodes_to_exclude=_before_the_network(first),
            )  # fmt: skip
            return onnx.load(after)
    finally:
        root.setLevel(level)


def _before_the_network(model: ModelProto) -> list[str]:
    """Return the names of the nodes before the first convolution or linear layer: the preprocessing."""
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            return names
        names.append(node.name)
    return []
