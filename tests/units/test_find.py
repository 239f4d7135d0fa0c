"""Units: what they are called, what is in them, and why others are frozen."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch
from onnx_obd.units.find import UnitMap, find_units
from tests.surgery import networks_of_sequences  # noqa: F401  (registers its networks)
from tests.surgery.graphs import Graph, feeds_of
from tests.surgery.networks import NETWORKS


def found(model: onnx.ModelProto) -> UnitMap:
    mirror, feeds = Mirror(model), feeds_of(model)
    return find_units(mirror, [to_torch(feeds[name]) for name in mirror.input_names])


def reasons(model: onnx.ModelProto) -> dict[str, int]:
    """Why what is frozen is, except for the network's own outputs."""
    return {f.reason: f.count for f in found(model).frozen if not f.reason.startswith("graph output")}


def test_what_is_in_a_unit() -> None:
    """A channel of conv_batchnorm_pool, 3 -> 8 -> 6: its filter, bias, statistics, and where it is summed over."""
    units = found(NETWORKS["conv_batchnorm_pool"][0]())
    unit = next(unit for unit in units.units if unit.nodes == ("Conv #0",) and unit.slices[0].indices == (2,))
    assert unit.kind == "channel"
    assert [(piece.axis, piece.indices, piece.summed) for piece in unit.slices] == [
        (0, (2,), False), (0, (2,), False), *[(0, (2,), False)] * 4, (1, (2,), True),
    ]  # fmt: skip
    assert unit.elements == 3 * 9 + 1 + 4 + 6 * 9
    assert unit.macs == 3 * 9 * 80 + 6 * 9 * 20, "its own products in images of 8x10, those with it in 4x5"
    assert units.macs == 8 * 3 * 9 * 80 + 6 * 8 * 9 * 20 + 6 * 4
    assert not unit.paired


def test_elements_that_two_axes_share_count_once() -> None:
    """Recurrent weights [1, 4 * 5, 5] lose four rows and a column."""
    unit = next(u for u in found(NETWORKS["lstm_with_peepholes"][0]()).units if u.kind == "hidden_size")
    assert unit.elements == 4 * 6 + (100 - 16 * 4) + 8 + 3 + 3


def test_elements_of_several_units_count_once() -> None:
    units = found(NETWORKS["mlp"][0]())
    (first, second) = units.families().values()
    removed = [*first[:3], *second[:4]]
    assert units.elements_of(removed) == 3 * (7 + 1) + (16 * 12 - 13 * 8) + 4 + 4 * 3
    assert units.elements_of(removed) == sum(unit.elements for unit in removed) - 3 * 4


def test_dimensions_of_queries_and_keys_are_paired() -> None:
    units = found(NETWORKS["attention"][0]()).units
    paired = [unit for unit in units if unit.paired]
    assert len(paired) == 4 and not any(piece.summed for unit in paired for piece in unit.slices)
    assert {unit.kind for unit in paired} == {"head dimension"}


def test_units_of_a_head() -> None:
    head = next(unit for unit in found(NETWORKS["attention"][0]()).units if unit.kind == "head")
    assert len(head.nodes) == 3, "queries, keys and values"
    assert sorted(piece.indices for piece in head.slices)[0] == (0, 1, 2, 3)


# ---- frozen


def convs(channels: int = 6) -> tuple[Graph, str]:
    g = Graph()
    return g, g.conv(g.input("x", "batch", 3, 6, 8), 3, channels)


def test_what_leaves_the_graph() -> None:
    g, y = convs()
    (frozen,) = found(g.model(y)).frozen
    assert (frozen.kind, frozen.nodes, frozen.count, frozen.reason) == (
        "channel", ("Conv #0",), 6, f"graph output '{y}' keeps its shape",
    )  # fmt: skip


def test_what_is_added_to_an_input() -> None:
    g, y = convs()
    y = g.op("Add", y, g.input("other", "batch", 6, 6, 8))
    assert reasons(g.model(g.pooled(y, 6))) == {"node Add #1 ties it to what cannot go (graph input 'other')": 6}


@pytest.mark.parametrize(
    "op_type, attributes",
    [
        ("Softmax", {"axis": 1}),
        ("LogSoftmax", {"axis": -3}),
        ("ReduceMean", {"axes": [1]}),
        ("ReduceMax", {"axes": [-3]}),
        ("LpNormalization", {"axis": 1}),
        ("LRN", {"size": 3}),
        ("ArgMax", {"axis": 1}),
        ("MeanVarianceNormalization", {"axes": [1, 2]}),
    ],
)
def test_what_a_node_works_along(op_type: str, attributes: dict) -> None:
    g, y = convs()
    z = g.op(op_type, y, **attributes)
    rest = g.op("Cast", z, to=TensorProto.FLOAT) if op_type == "ArgMax" else z
    y = g.op("Mul", y, g.op("ReduceMax", rest, axes=[1]))
    assert reasons(g.model(g.pooled(y, 6))) == {f"node {op_type} #1 needs the whole axis": 6}


def test_layer_normalisation() -> None:
    """The statistics of what stays would change."""
    g = Graph()
    y = g.op("LayerNormalization", g.dense(g.input("x", "batch", 5, 7), 7, 6), g.weight(6), g.weight(6))
    assert reasons(g.model(g.dense(g.op("Relu", y), 6, 3))) == {"node LayerNormalization #2 needs the whole axis": 6}


def test_axes_that_a_node_does_not_work_along_stay_free() -> None:
    g, y = convs()
    y = g.op("Softmax", y, axis=2)
    assert reasons(g.model(g.pooled(g.op("InstanceNormalization", y, g.weight(6), g.weight(6)), 6))) == {}


def test_nodes_without_rule() -> None:
    g, y = convs(1)
    g.op("Identity", y)
    y, *_ = g.op("Unique", g.op("Relu", g.conv(g.op("Relu", y), 1, 6)), outputs=4)
    g.nodes.append(helper.make_node("Cast", [y], ["y"], to=TensorProto.FLOAT))
    assert reasons(g.model("y")) == {"node Unique #5 has no rule for its axes": 6}


def test_boundaries() -> None:
    """A node that onnxruntime runs for the mirror."""
    g = Graph()
    y = g.op("Tanh", g.dense(g.input("x", "batch", 7), 7, 6))
    y = g.op("Normalizer", y, domain="ai.onnx.ml", norm="L2")
    model = g.model(g.dense(y, 6, 3), imports={"ai.onnx.ml": 3}, infer=False)
    assert reasons(model) == {"node Normalizer #3 has no rule for its axes": 6}


def test_a_lookup_that_depends_on_data() -> None:
    g = Graph()
    index = g.input("index", "batch", elem_type=TensorProto.INT64)
    y = g.op("Gather", g.dense(g.tensor(np.eye(4, 7, dtype=np.float32)), 7, 6), index, axis=1)
    assert "node Gather #2 needs the whole axis" in reasons(g.model(g.op("ReduceMax", y, axes=[0], keepdims=0)))


def test_positions_of_a_sequence_cannot_go() -> None:
    g = Graph()
    y = g.op("Add", g.dense(g.input("x", "batch", 5, 7), 7, 6), g.weight(1, 5, 6))
    units = found(g.model(g.dense(g.op("Relu", y), 6, 3))).units
    assert {unit.kind for unit in units} == {"neuron"} and len(units) == 6


def test_a_block_cannot_be_taken_out_of_depth_to_space() -> None:
    """Blocks meet nothing that works along them here, but the operator has a block size, not two."""
    g = Graph()
    y = g.op("DepthToSpace", g.op("Relu", g.conv(g.input("x", "batch", 3, 6, 8), 3, 8)), blocksize=2)
    y = g.op("SpaceToDepth", g.op("Relu", y), blocksize=2)
    assert reasons(g.model(g.pooled(y, 8))) == {"node DepthToSpace #2 cannot do without it": 4}


def test_the_last_of_its_kind_cannot_go() -> None:
    """One group of three channels beside another of one."""
    g, y = convs(3)
    g.conv(y, 3, 1)
    once = g.op("Relu", g.conv(g.op("Relu", y), 3, 1))
    units = found(g.model(g.pooled(once, 1)))
    assert len(units.units) == 3, "of the second Conv one channel is all there is"


@pytest.mark.parametrize("packed", ["queries, keys, values", "keys, values"])
def test_packed_projections(packed: str) -> None:
    """Forms of MultiHeadAttention that onnxruntime's CPU has no kernel for."""
    g, heads, size = Graph(), 3, 4
    x, parts = g.input("x", "batch", 5, 7), packed.count(",") + 1
    inputs = [g.op("Reshape", g.dense(x, 7, heads * parts * size), g.ints(0, 0, heads, parts, size))]
    inputs = [g.dense(x, 7, heads * size), *inputs] if parts == 2 else inputs
    y = g.op("MultiHeadAttention", *inputs, domain="com.microsoft", num_heads=heads)
    model = g.model(g.dense(y, heads * size, 3), imports={"com.microsoft": 1}, infer=False)
    assert [len(members) for members in found(model).families().values()] == [heads]


def test_multiplications_shared_by_units_count_once() -> None:
    """7 x 16, 16 x 12, 12 x 3: a neuron of the first kind and one of the second meet in one of the products."""
    units = found(NETWORKS["mlp"][0]())
    first, second = (members[0] for members in units.families().values())
    assert units.macs == 7 * 16 + 16 * 12 + 12 * 3
    assert units.macs_of([first]) == first.macs == 7 + 12 and units.macs_of([second]) == second.macs == 16 + 3
    assert units.macs_of([first, second]) == 7 + 12 + 16 + 3 - 1
    assert units.macs_of(units.units) == units.macs and units.macs_of([]) == 0
