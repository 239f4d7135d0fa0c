"""The lengths that a model declares, and those that follow from them for every input."""

from __future__ import annotations

from contextlib import suppress

import onnx

Shape = tuple[int | None, ...]
"""None: a length that may differ from input to input."""

NORMALISING = ("LayerNormalization", "RMSNormalization")
"""Operators whose second input is broadcast to the last axes of the first and of the result."""


def declared_shapes(proto: onnx.ModelProto) -> dict[str, Shape]:
    """Values of the main graph, as far as their rank is known (ONNX's shape inference with data propagation)."""
    graph = proto.graph
    with suppress(Exception):  # of several unrelated kinds; a model beyond 2 GiB cannot be serialised for it
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    found = {
        value.name: tuple(n if isinstance(n, int) else None for n in map(length, value.type.tensor_type.shape.dim))
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.tensor_type.HasField("shape")
    }
    scales = {tensor.name: tensor.dims[-1] for tensor in proto.graph.initializer if tensor.dims}
    for node in proto.graph.node:  # what ONNX does not infer: where values are normalised, the scale has their width
        width = scales.get(node.input[1], 1) if node.op_type in NORMALISING and len(node.input) > 1 else 1
        if width > 1 and found.get(node.output[0]):
            found[node.output[0]] = (*found[node.output[0]][:-1], width)
    return found


def length(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A fixed length, the symbol of an open one, None for one without a symbol."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # -1 is how some exporters write "any length"
        return dim.dim_value
    return dim.dim_param or None
