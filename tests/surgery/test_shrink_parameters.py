"""What spells sizes follows them, wherever it is spelled; where it cannot, the units are frozen."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_obd.graph.declared import declared_shapes
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch
from onnx_obd.surgery.shrink_parameters import CannotShrink, size_edits
from onnx_obd.units.find import find_units
from tests.surgery.graphs import Graph, feeds_of
from tests.surgery.oracle import some_of_each
from tests.surgery.test_shrink import check, sizes, units_of


def shrunk(model: onnx.ModelProto, expected: dict[str, list[int]]) -> onnx.ModelProto:
    units = units_of(model)
    assert sizes(units) == expected, units.frozen
    return check(model, some_of_each(units.units, 0.4), units)


def node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def attribute(model: onnx.ModelProto, op_type: str, name: str):
    return next((helper.get_attribute_value(a) for a in node(model, op_type).attribute if a.name == name), None)


def initializer(model: onnx.ModelProto, name: str) -> list:
    return next(numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.name == name)


def test_a_shape_that_two_nodes_read() -> None:
    """Of two nodes that share the constant 6 one shrinks: it gets a tensor of its own, the other keeps it."""
    g = Graph()
    shared = g.ints(-1, 6)
    x = g.op("Reshape", g.input("x", "batch", 2, 3), shared)
    y = g.op("Reshape", g.op("Unsqueeze", g.dense(x, 6, 6), g.ints(1)), shared)
    smaller = shrunk(g.model(g.dense(g.op("Tanh", y), 6, 3)), {"neuron": [6]})
    own = [node.input[1] for node in smaller.graph.node if node.op_type == "Reshape"]
    assert own[0] == shared and initializer(smaller, shared) == [-1, 6]
    assert own[1] != shared and initializer(smaller, own[1]) == [-1, 4]


def test_a_shape_that_two_nodes_read_and_both_change() -> None:
    g = Graph()
    shared = g.ints(-1, 6)
    y = g.op("Reshape", g.op("Unsqueeze", g.dense(g.input("x", "batch", 5), 5, 6), g.ints(1)), shared)
    y = g.op("Reshape", g.op("Unsqueeze", g.op("Tanh", y), g.ints(1)), shared)
    smaller = shrunk(g.model(g.dense(y, 6, 3)), {"neuron": [6]})
    assert initializer(smaller, shared) == [-1, 4]
    assert len(smaller.graph.initializer) == len(g.initializers)


def test_numbers_that_stay_open_stay_open() -> None:
    g = Graph()
    y = g.op("Reshape", g.op("Relu", g.conv(g.input("x", "batch", 3, 4, 5), 3, 6)), target := g.ints(0, -1))
    smaller = shrunk(g.model(g.dense(y, 120, 3)), {"channel": [6]})
    assert initializer(smaller, target) == [0, -1]


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split(opset: int) -> None:
    """An equal Split gets the sizes of its parts where its version has them: an attribute, or an input."""
    g = Graph(opset=opset)
    extra = {"num_outputs": 2} if opset == 18 else {}
    a, b = g.op("Split", g.dense(g.input("x", "batch", 7), 7, 12), axis=1, outputs=2, **extra)
    model = g.model(g.op("Add", g.dense(g.op("Relu", a), 6, 3), g.dense(g.op("Tanh", b), 6, 3)))
    units = units_of(model)
    first, second = units.families().values()
    smaller = check(model, [*first[:1], *second[1:4]], units)
    if opset == 11:
        assert attribute(smaller, "Split", "split") == [5, 3]
    else:
        assert initializer(smaller, node(smaller, "Split").input[1]) == [5, 3]
    assert attribute(smaller, "Split", "num_outputs") is None


def test_split_stays_equal() -> None:
    g = Graph(opset=13)
    a, b = g.op("Split", g.dense(g.input("x", "batch", 7), 7, 12), axis=1, outputs=2)
    smaller = shrunk(g.model(g.dense(g.op("Mul", a, g.op("Sigmoid", b)), 6, 3)), {"neuron": [6]})
    assert len(node(smaller, "Split").input) == 1


@pytest.mark.parametrize(
    "starts, ends, steps",
    [([2], [7], [1]), ([-6], [-1], [1]), ([0], [2**62], [1]), ([-1], [-(2**62)], [-1]), ([7], [1], [-1])],
)
def test_slice(starts: list[int], ends: list[int], steps: list[int]) -> None:
    """Channels 2 to 6 of 9, the second to sixth last, all, all backwards, 7 to 2 backwards."""
    g = Graph()
    y = g.op("Relu", g.conv(g.input("x", "batch", 3, 6, 8), 3, 9))
    picked = len(range(9)[starts[0] : None if abs(ends[0]) > 99 else ends[0] : steps[0]])
    part = g.op("Slice", y, *(g.ints(*values) for values in (starts, ends, [1], steps)))
    model = g.model(g.op("Add", g.pooled(y, 9), g.pooled(part, picked)))
    units = units_of(model)
    for seed in range(4):
        check(model, some_of_each(units.units, 0.3, seed), units)


def test_channels_gathered_by_index_are_numbered_anew() -> None:
    g = Graph()
    y = g.op("Tanh", g.dense(g.input("x", "batch", 5), 5, 6))
    y = g.op("Gather", y, order := g.ints(5, -6, 3, 2, 4, 1), axis=1)
    model = g.model(g.dense(y, 6, 3))
    units = units_of(model)
    gone = [unit for unit in units.units if any(0 in piece.indices and piece.axis == 1 for piece in unit.slices)]
    smaller = check(model, gone, units)
    assert initializer(smaller, order) == [4, 2, 1, 3, 0]


def test_group_follows() -> None:
    g = Graph()
    y = g.op("Relu", g.conv(g.op("Relu", g.conv(g.input("x", "batch", 3, 6, 8), 3, 6)), 6, 6, group=6))
    smaller = shrunk(g.model(g.pooled(y, 6)), {"channel": [6]})
    assert next(helper.get_attribute_value(a) for a in smaller.graph.node[2].attribute if a.name == "group") == 4


def lengths_of(g: Graph, x: str) -> list[str]:
    return [g.op("Gather", g.op("Shape", x), g.ints(axis)) for axis in range(3)]


def test_a_size_that_is_computed_from_a_width_of_something_else() -> None:
    """The input is as wide as what is made of it, which shrinks: the node that joins the sizes reads one of its own."""
    g = Graph()
    x = g.input("x", "batch", 3, 6)
    batch, length, width = lengths_of(g, x)
    target = g.op("Concat", g.op("Mul", batch, length), width, axis=0)
    model = g.model(g.dense(g.op("Reshape", g.op("Tanh", g.dense(x, 6, 6)), target), 6, 2))
    joined = node(shrunk(model, {"neuron": [6]}), "Concat").input
    assert joined[0] == node(model, "Concat").input[0] and joined[1] != width


def test_a_size_that_is_computed_from_the_width_of_what_is_normalised() -> None:
    """ONNX's shape inference does not know it: the sizes go through a division."""
    g = Graph()
    x = g.input("x", "batch", 3, 6)
    batch, length, width = lengths_of(g, x)
    halves = g.op("Div", g.op("Mul", width, g.ints(4)), g.ints(2))
    y = g.op(
        "Reshape", x, g.op("Concat", batch, g.op("Mul", length, g.ints(2)), g.op("Div", halves, g.ints(4)), axis=0)
    )
    y = g.op("LayerNormalization", y, g.weight(3))
    assert declared_shapes(g.model(y))[y][-1] == 3
    target = g.op("Concat", *lengths_of(g, y), axis=0)
    model = g.model(g.dense(g.op("Reshape", g.op("Tanh", g.dense(y, 3, 3)), target), 3, 2))
    shrunk(model, {"neuron": [3]})


def test_a_size_that_is_read_as_it_was_computed() -> None:
    """The end of a slice, as where nn.MultiheadAttention packs keys and values: there is no node that joins."""
    g = Graph()
    x = g.input("x", "batch", 3, 6)
    _, _, width = lengths_of(g, x)
    packed = g.dense(x, 6, 12)
    halves = [(g.ints(0), width), (width, g.op("Mul", width, g.ints(2)))]
    first, second = (g.op("Slice", packed, *ends, g.ints(2)) for ends in halves)
    model = g.model(g.dense(g.op("Mul", g.op("Tanh", first), second), 6, 2))
    smaller = shrunk(model, {"neuron": [6]})
    assert initializer(smaller, node(smaller, "Slice").input[2]) == [4]


@pytest.mark.parametrize(("gone", "copies"), [((2, 2, 2), 0), ((0, 1, 0), 1), ((1, 2, 1), 1), ((1, 2, 3), 2)])
def test_layers_that_read_one_shape_get_their_own_where_they_differ(gone: tuple[int, ...], copies: int) -> None:
    g = Graph()
    y = x = g.input("x", "batch", 3, 5)
    target = g.op("Concat", *lengths_of(g, x)[:2], g.ints(6), axis=0)
    for _ in gone:
        y = g.dense(g.op("Reshape", g.op("Tanh", g.dense(y, 5, 6)), target), 6, 5)
    model = g.model(g.dense(y, 5, 2))
    units = units_of(model)
    assert sizes(units) == {"neuron": [5] * 3 + [6] * 3}
    families = [family for family in units.families().values() if len(family) == 6]
    removed = [unit for count, family in zip(gone, families, strict=True) for unit in family[:count]]
    smaller = check(model, removed, units)
    assert len([each for each in smaller.graph.node if each.op_type == "Concat"]) == 1 + copies
    assert len({name for each in smaller.graph.node for name in each.output}) == len(smaller.graph.node)


@pytest.mark.parametrize("length", [2, "length"])
def test_a_size_that_depends_on_an_open_length_stays_computed(length: int | str) -> None:
    """On the sample the open length is 1 and the size that of the units alone, on others it is not."""
    g, times = Graph(), 2 if length == 2 else 1
    x = g.input("x", "batch", length, 6)
    batch, positions, width = lengths_of(g, x)
    target = g.op("Concat", batch, g.op("Mul", positions, width), axis=0)
    y = g.op("Reshape", g.op("Tanh", g.dense(x, 6, 6)), target)
    model = g.model(g.dense(y, 6 * times, 3))
    if length == 2:
        shrunk(model, {"neuron": [6]})
        return
    units = units_of(model)
    assert sizes(units) == {}
    assert any("parameter 1 is 6 where 5 is needed" in frozen.reason for frozen in units.frozen), units.frozen


def test_a_size_from_the_data_cannot_be_changed() -> None:
    """The target of a Reshape is an input of the model."""
    g = Graph()
    y = g.op("Tanh", g.dense(g.input("x", 2, 5), 5, 6))
    target = g.input("target", 2, elem_type=onnx.TensorProto.INT64)
    model = g.model(g.dense(g.op("Reshape", y, target), 6, 3))
    mirror = Mirror(model)
    inputs = [to_torch(feeds_of(model)["x"]), to_torch(np.array([2, 6]))]
    units = find_units(mirror, inputs)
    with pytest.raises(CannotShrink, match="Reshape #3: parameter 1 is computed from data"):
        size_edits(units.trace, units.kept(units.units[:2]))


def test_attributes_of_a_function_that_two_calls_share() -> None:
    """One call shrinks: the group count inside the function cannot be two numbers."""
    g = Graph()
    nodes = [helper.make_node("Conv", ["a", "w"], ["product"], group=6, pads=[1] * 4)]
    nodes.append(helper.make_node("Relu", ["product"], ["y"]))
    imports = [helper.make_opsetid("", 17)]
    g.functions.append(helper.make_function("local", "Depthwise", ["a", "w"], ["y"], nodes, imports))
    y = g.op("Relu", g.conv(g.input("x", "batch", 3, 6, 8), 3, 6))
    y = g.conv(g.op("Depthwise", y, g.weight(6, 1, 3, 3), domain="local"), 6, 6)
    y = g.op("Depthwise", y, g.weight(6, 1, 3, 3), domain="local")
    model = g.model(g.pooled(y, 6), imports={"local": 1}, infer=False)
    units = units_of(model)
    assert not units.units
    assert any("would have to differ between two calls" in frozen.reason for frozen in units.frozen)
