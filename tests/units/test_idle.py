"""Units and input features that do nothing on the data."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.surgery.shrink import shrink
from onnx_obd.units.find import UnitMap, find_units
from onnx_obd.units.idle import idle_units, unused_inputs
from tests.surgery import networks_of_sequences  # noqa: F401  (registers its networks)
from tests.surgery.graphs import Graph, body
from tests.surgery.networks import NETWORKS
from tests.surgery.oracle import run

BATCHES = [[torch.rand(6, 7, generator=torch.Generator().manual_seed(seed))] for seed in range(2)]


def units_of(model: onnx.ModelProto) -> tuple[Mirror, UnitMap]:
    mirror = Mirror(model)
    return mirror, find_units(mirror, [BATCHES[0][0][:1]])


def changed(model: onnx.ModelProto, name: str, index: tuple, value: float) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = np.array(numpy_helper.to_array(tensor))
    array[index] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def mlp() -> tuple[onnx.ModelProto, list[str]]:
    """Seven inputs, five and four neurons; the names of the matrices and of the first bias."""
    g = Graph()
    names = [g.weight(7, 5), g.weight(5, positive=True), g.weight(5, 4), g.weight(4), g.weight(4, 3)]
    y = g.op("Relu", g.op("Gemm", g.input("x", "batch", 7), *names[:2]))
    return g.model(g.op("MatMul", g.op("Sigmoid", g.op("Gemm", y, *names[2:4])), names[4])), names


def test_neurons_that_are_never_active_or_never_heard() -> None:
    model, names = mlp()
    changed(model, names[0], (slice(None), 1), -1.0)  # on inputs between 0 and 1
    changed(model, names[1], (1,), 0.0)
    changed(model, names[2], (3, slice(None)), 0.0)
    mirror, units = units_of(model)
    idle = idle_units(mirror, units, BATCHES)
    kind = {unit.id: (unit.family, number) for number, unit in enumerate(units.units)}
    first = min(family for family, _ in kind.values())
    assert sorted(kind[unit] for unit in idle) == [(first, 1), (first, 3)]
    smaller = shrink(model, units, [unit for unit in units.units if unit.id in idle])
    for (x,) in BATCHES:
        ours, theirs = run(smaller, {"x": x.numpy()}), run(model, {"x": x.numpy()})
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)


def test_active_on_one_sample_is_active() -> None:
    model, names = mlp()
    changed(model, names[0], (slice(None), 1), 0.0)
    changed(model, names[0], (0, 1), 1.0)
    changed(model, names[1], (1,), -0.9 * float(BATCHES[0][0][:, 0].max()))
    mirror, units = units_of(model)
    weak = [0.5 * BATCHES[0][0]]
    assert len(idle_units(mirror, units, [weak])) == 1
    assert not idle_units(mirror, units, [weak, BATCHES[0]])


def test_idle_inside_a_branch() -> None:
    g = Graph()
    inner = Graph(seed=1, prefix="inner_")
    weights = inner.weight(7, 6), inner.weight(6, 3)
    inner.op("MatMul", inner.op("Relu", inner.op("MatMul", g.input("x", "batch", 7), weights[0])), weights[1])
    branch = body(inner.nodes, [inner.nodes[-1].output[0]], inner.initializers)
    same = body([onnx.helper.make_node("MatMul", ["x", g.weight(7, 3)], ["other"])], ["other"])
    g.nodes.append(onnx.helper.make_node("If", [g.tensor(np.array(True))], ["y"], then_branch=branch, else_branch=same))
    model = g.model("y")
    (attribute,) = (each for each in model.graph.node[0].attribute if each.name == "then_branch")
    tensor = attribute.g.initializer[0]
    array = np.array(numpy_helper.to_array(tensor))
    array[:] = np.abs(array)
    array[:, 2] = -1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    mirror, units = units_of(model)
    (idle,) = idle_units(mirror, units, BATCHES)
    pieces = next(unit for unit in units.units if unit.id == idle).slices
    assert {piece.indices for piece in pieces} == {(2,)}


def test_none_is_idle_in_networks_of_dense_random_weights() -> None:
    model = NETWORKS["attention"][0]()
    mirror = Mirror(model)
    x = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(0))
    assert not idle_units(mirror, find_units(mirror, [x]), [[x]])


def test_input_features() -> None:
    """One meets weights of 0, one is always 0."""
    model, names = mlp()
    changed(model, names[0], (2, slice(None)), 0.0)
    batches = [[x.clone()] for (x,) in BATCHES]
    for (x,) in batches:
        x[:, 5] = 0
    unused = unused_inputs(Mirror(model), batches)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in unused.items()} == {"x": [2, 5]}
    assert not unused_inputs(Mirror(mlp()[0]), BATCHES)


def test_integer_inputs_have_no_features() -> None:
    model = NETWORKS["embedding"][0]()
    assert unused_inputs(Mirror(model), [[torch.zeros(2, 5, dtype=torch.int64)]]) == {}
