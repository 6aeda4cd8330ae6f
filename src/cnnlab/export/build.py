"""Write ONNX nodes as nested calls: `g.Mul(g.Add(x, 1.0), y)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

DOUBLE = helper.np_dtype_to_tensor_dtype(np.dtype(np.float64))
INT64 = helper.np_dtype_to_tensor_dtype(np.dtype(np.int64))
UINT8 = helper.np_dtype_to_tensor_dtype(np.dtype(np.uint8))


class Nodes:
    """A list of nodes. Calling a method with the name of an ONNX operator appends a node.

    Arguments are names of values, or numbers and arrays, which become constants; floats become float64. The call
    returns the name of the node's output. prefix: the beginning of all names.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []

    def __getattr__(self, operator: str) -> Callable[..., str]:
        def add(*inputs: Any, output: str = "", **attributes: Any) -> str:
            names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
            return self._add(operator, names, output, **attributes)

        return add

    def branch(self, name: str) -> Nodes:
        """Return an empty list for a branch of `If`."""
        return Nodes(f"{self.prefix}{name}/")

    def graph(self, result: str) -> GraphProto:
        """Return a branch that ends in the value `result`."""
        shapeless = helper.make_empty_tensor_value_info(result)
        return helper.make_graph(self.nodes, self.prefix.strip("/"), [], [shapeless])

    def _constant(self, value: Any) -> str:
        array = np.asarray(value, np.float64) if isinstance(value, float) else np.asarray(value)
        return self._add("Constant", [], "", value=numpy_helper.from_array(array))

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        output = output or f"{self.prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output
