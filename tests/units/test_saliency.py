from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.calibration.measure import feeds
from onnx_obd.surgery.mask import restore, snapshot
from onnx_obd.units.find import find_units
from onnx_obd.units.saliency import gate_saliency
from tests.curvature.networks import calibration, mlp, model
from tests.surgery import networks_of_sequences  # noqa: F401  (registers its networks)
from tests.surgery.networks import NETWORKS


def two_consumers():
    """A hidden layer whose neurons are read by two products at once: one gate stands before both."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["u"], name="first"),
        helper.make_node("Tanh", ["u"], ["t"], name="bend"),
        helper.make_node("MatMul", ["t", "w1"], ["v"], name="left"),
        helper.make_node("MatMul", ["t", "w2"], ["w"], name="right"),
        helper.make_node("Mul", ["v", "w"], ["y"], name="meet"),
    ]
    shapes = {"w0": (4, 5), "b0": (5,), "w1": (5, 3), "w2": (5, 3)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", 3]}, weights)


PROTOS = {
    "chain": mlp(),
    "two consumers": two_consumers(),
    "attention": NETWORKS["attention"][0](),
}


@pytest.mark.parametrize("proto", PROTOS.values(), ids=PROTOS.keys())
def test_it_is_half_the_second_derivative_of_a_gate(proto):
    """By central differences in float64: the weights that read the unit are scaled by 1 + e and 1 - e.

    Of a unit that is summed over between two activations, both sides get the root of that.
    """
    found, _ = calibration(proto, count=5)
    mirror = found.mirror
    units = find_units(mirror, feeds(mirror, found.samples.subset([0]), 1)[0][0]).units
    assert len(units) >= 4
    probes = 1500 if len(mirror.weights) < 6 else 200
    saliency = gate_saliency(mirror, found.objective, found.samples, units, num_probes=probes)
    original = snapshot(mirror)
    for unit, s in zip(units, saliency.tolist(), strict=True):

        def loss(gate, unit=unit):
            restore(mirror, original)
            share = gate**0.5 if unit.paired else gate
            with torch.no_grad():
                for piece in unit.slices:
                    if unit.paired or piece.summed:
                        mirror.weights[piece.tensor].index_fill_(piece.axis, torch.tensor(piece.indices), 0.0)
                        part = original[piece.tensor].index_select(piece.axis, torch.tensor(piece.indices))
                        mirror.weights[piece.tensor].index_add_(piece.axis, torch.tensor(piece.indices), share * part)
            return found.loss()

        step = 1e-3
        expected = 0.5 * (loss(1 + step) - 2 * loss(1.0) + loss(1 - step)) / step**2
        assert s == pytest.approx(expected, rel=0.12, abs=1e-6)
    restore(mirror, original)


def test_what_nothing_can_be_said_of_is_infinitely_dear():
    found, _ = calibration(mlp(), count=2)
    units = find_units(found.mirror, feeds(found.mirror, found.samples.subset([0]), 1)[0][0]).units
    elsewhere = [replace(piece, tensor="elsewhere") if piece.summed else piece for piece in units[0].slices]
    unknown = replace(units[0], slices=tuple(elsewhere))
    saliency = gate_saliency(found.mirror, found.objective, found.samples, [unknown, units[1]])
    assert saliency.isinf().tolist() == [True, False]
