"""Class-activation maps as an output of an exported network (B. Zhou et al., CVPR 2016, arXiv:1512.04150).

In a network that ends in global average pooling and one linear layer, the weights of a class, applied at each place of
the last feature maps, give the evidence for the class at that place.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OUTPUT = "map"
_BELOW = {"Softmax", "Div", "Mul", "Reshape", "Flatten", "Squeeze", "Identity", "Cast"}
"""Operators between pooling and probabilities that leave the maps as they are, up to a scale."""


def add_map(model: ModelProto) -> bool:
    """Add the output `map` (B, K, h, w) float32 to an exported model. Return False if its network has no such map."""
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    node, weight = makers.get("probabilities"), None
    while node is not None:
        if node.op_type in ("GlobalAveragePool", "ReduceMean"):
            break
        if node.op_type in ("Gemm", "MatMul") and weight is None and node.input[1] in constants:
            weight = _weight(node, numpy_helper.to_array(constants[node.input[1]]))
        elif node.op_type == "Add" and weight is None and node.input[1] in constants:  # a bias is the same everywhere
            pass
        elif node.op_type not in _BELOW:
            return False
        node = makers.get(node.input[0])
    if node is None or not _pools(node, constants):
        return False
    features = OUTPUT if weight is None else "map/features"  # without a linear layer, the features are the maps
    graph.node.append(helper.make_node("Cast", [node.input[0]], [features], to=TensorProto.FLOAT))  # from float16
    if weight is not None:
        graph.initializer.append(numpy_helper.from_array(weight[:, :, None, None], "map/weight"))
        graph.node.append(helper.make_node("Conv", [features, "map/weight"], [OUTPUT]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", "K", "h", "w"]))
    return True


def _weight(node: NodeProto, values: np.ndarray) -> np.ndarray:
    """Return the weights (K, C) of a linear layer."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return np.ascontiguousarray(values if transposed else values.T, np.float32)


def _pools(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    """Return whether a node is the mean over height and width."""
    if node.op_type == "GlobalAveragePool":
        return True
    axes = constants.get(node.input[1]) if len(node.input) > 1 else None
    return axes is not None and sorted(int(a) % 4 for a in numpy_helper.to_array(axes)) == [2, 3]
