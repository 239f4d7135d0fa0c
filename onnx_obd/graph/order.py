"""The order in which the nodes of a graph can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import AttributeProto

from onnx_obd.errors import ModelError


def run_order(nodes: Sequence[onnx.NodeProto]) -> Sequence[int]:
    """The indices of ``nodes`` so that each stands after those whose outputs it, or a graph inside it, reads.

    That is how a file has to store them, but onnxruntime takes them in any order, and its tools write such files.

    Raises:
        ModelError: nodes wait for one another.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in reads(node) if name in maker} for node in nodes]
    if all(max(needed, default=-1) < index for index, needed in enumerate(needs)):
        return range(len(nodes))
    try:
        return tuple(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError as error:
        names = [nodes[index].name or f"{nodes[index].op_type} #{index}" for index in error.args[1]]
        raise ModelError(f"nodes wait for one another's outputs: {' <- '.join(names)}") from error


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names a node reads, those that its graphs take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graph = attribute.g
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own |= {tensor.values.name for tensor in graph.sparse_initializer}
            own |= {name for inner in graph.node for name in inner.output}
            read = [name for inner in graph.node for name in reads(inner)]
            yield from (name for name in (*read, *(value.name for value in graph.output)) if name not in own)
