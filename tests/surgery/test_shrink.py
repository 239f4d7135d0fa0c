"""Shrinking, judged by onnxruntime: with the consumers of what goes zeroed, original and shrunk model agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from onnx_obd.errors import UsageError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch
from onnx_obd.surgery.shrink import shrink
from onnx_obd.surgery.shrink_confirm import confirmed_units
from onnx_obd.units.find import Unit, UnitMap
from tests.surgery import networks_of_exporters, networks_of_sequences  # noqa: F401  (registers their networks)
from tests.surgery.graphs import Graph, feeds_of
from tests.surgery.networks import NETWORKS
from tests.surgery.oracle import run, some_of_each, zero_consumers

TOLERANCE = 2e-5


def units_of(model: onnx.ModelProto, batch: int = 1) -> UnitMap:
    mirror = Mirror(model)
    feeds = feeds_of(model, batch)
    return confirmed_units(mirror, [to_torch(feeds[name]) for name in mirror.input_names])


def sizes(units: UnitMap) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for members in units.families().values():
        found.setdefault(members[0].kind, []).append(len(members))
    return {kind: sorted(counts) for kind, counts in found.items()}


def is_valid(model: onnx.ModelProto) -> bool:
    """By the checker with shape inference, which does not know every operator."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def check(
    model: onnx.ModelProto, removed: Sequence[Unit], units: UnitMap, tolerance: float = TOLERANCE
) -> onnx.ModelProto:
    """The shrunk model, after it was compared with the original for two batch sizes."""
    before = model.SerializeToString()
    smaller = shrink(model, units, removed)
    assert model.SerializeToString() == before
    if is_valid(model):
        assert is_valid(smaller)
    assert [value.name for value in smaller.graph.output] == [value.name for value in model.graph.output]
    assert_untouched(model, smaller, {piece.tensor for unit in removed for piece in unit.slices})
    stored = {tensor.name for tensor in model.graph.initializer}
    for old, new in zip(model.graph.input, smaller.graph.input, strict=True):
        assert old == new or old.name in stored
    zeroed = zero_consumers(model, removed)
    for batch in (1, 3):
        feeds = feeds_of(model, batch, seed=batch)
        expected = run(zeroed, feeds)
        assert any(np.ptp(value) > 1e-3 for value in expected), "a constant output proves nothing"
        pairs = zip(expected, run(model, feeds), strict=True)
        assert not all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs), "nothing depends on what goes"
        for ours, theirs in zip(run(smaller, feeds), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
    return smaller


def assert_untouched(model: onnx.ModelProto, smaller: onnx.ModelProto, cut: set[str]) -> None:
    """All but the tensors that were cut, and numbers that may spell a size, is what it was, byte for byte.

    A node may be there twice that joins sizes.
    """
    for old, new in zip(model.graph.initializer, smaller.graph.initializer, strict=False):
        assert old.name == new.name
        integers = old.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        assert old == new or old.name in cut or integers
    known = {name for node in model.graph.node for name in node.output}
    again = [node for node in smaller.graph.node if node.output[0] not in known]
    assert {node.op_type for node in again} <= {"Concat"}
    present = [node for node in smaller.graph.node if node.output[0] in known]
    for old, new in zip(model.graph.node, present, strict=True):
        assert (old.op_type, old.name, old.domain) == (new.op_type, new.name, new.domain)
        assert old.output == new.output
        assert all(
            a == b or b.rstrip("_").endswith(("_sizes", "_again")) for a, b in zip(old.input, new.input, strict=False)
        )
    for field in ("ir_version", "producer_name", "opset_import", "metadata_props"):
        assert getattr(model, field) == getattr(smaller, field)


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    build, expected = NETWORKS[name]
    model = build()
    units = units_of(model)
    assert sizes(units) == {kind: sorted(counts) for kind, counts in expected.items()}, units.frozen
    smaller = check(model, some_of_each(units.units, 0.3), units)
    elements = [sum(int(np.prod(t.dims)) for t in m.graph.initializer) for m in (model, smaller)]
    assert elements[1] < elements[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_families_one_by_one(name: str) -> None:
    """All but one of a family at a time."""
    model = NETWORKS[name][0]()
    units = units_of(model)
    for number, members in enumerate(units.families().values()):
        kept = number % len(members)
        check(model, members[:kept] + members[kept + 1 :], units)


def test_again() -> None:
    """A shrunk model is a model: what is left of it shrinks again."""
    model = NETWORKS["attention"][0]()
    for seed in range(2):
        units = units_of(model)
        model = check(model, some_of_each(units.units, 0.4, seed), units)
    assert not units_of(model).units, "one head of one dimension is left"


def test_values_keep_their_slots() -> None:
    """A node may get a tensor of its own; what is compared between the two mirrors by slot stands where it stood."""
    model = NETWORKS["halves_of_one_product"][0]()
    units = units_of(model)
    smaller = shrink(model, units, units.units[:2])
    assert len(smaller.graph.initializer) > len(model.graph.initializer)
    before, after = (Mirror(each).value_names for each in (model, smaller))
    made = {name for node in model.graph.node for name in node.output}
    assert {name: before[name] for name in made} == {name: after[name] for name in made}


def test_refuses_to_empty_an_axis() -> None:
    model = NETWORKS["mlp"][0]()
    units = units_of(model)
    family = units.families()[units.units[0].family]
    with pytest.raises(UsageError, match="one at least must stay"):
        shrink(model, units, family)


def test_refuses_to_empty_an_axis_between_families() -> None:
    """Two groups of two channels, of which the first of one and the second of the other go on."""
    g = Graph()
    y = g.op("Relu", g.conv(g.op("Relu", g.conv(g.input("x", "batch", 3, 8, 10), 3, 4)), 4, 4, group=2))
    some = g.op("MaxPool", g.op("Gather", y, g.ints(0, 3), axis=1), kernel_shape=[1, 1])
    model = g.model(g.pooled(g.op("Concat", y, some, axis=1), 6))
    units = units_of(model)
    (groups,) = (members for members in units.families().values() if members[0].kind == "group")
    (channels,) = (m for m in units.families().values() if m[0].nodes == ("Conv #2",))
    check(model, [groups[0], channels[0]], units)
    with pytest.raises(UsageError, match="nothing would be left of an axis of"):
        shrink(model, units, [groups[0], channels[1]])


def test_refuses_units_of_another_model() -> None:
    units = units_of(NETWORKS["mlp"][0]())
    stranger = units_of(NETWORKS["residual"][0]()).units[0]
    with pytest.raises(UsageError, match="not one of this model's"):
        shrink(NETWORKS["mlp"][0](), units, [stranger])
