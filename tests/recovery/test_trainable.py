"""What training may move: kernels, biases and the scale and bias of normalisations, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.recovery import trainable_weights
from tests.curvature.networks import model

RNG = np.random.default_rng(0)


def trained(nodes, weights, shape=("N", 3, 6, 6), outputs=("N", None)):
    proto = model(nodes, {"x": list(shape)}, {"y": list(outputs)}, weights)
    mirror = Mirror(proto)
    return set(trainable_weights(mirror, mirror.program.outputs))


def test_statistics_bounds_and_sizes_stay():
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Clip", ["b", "low", "high"], ["c"]),
        helper.make_node("Resize", ["c", "", "sizes"], ["d"], mode="linear"),
        helper.make_node("Add", ["d", "position"], ["e"]),
        helper.make_node("Pow", ["e", "exponent"], ["y"]),
    ]
    weights = {
        "kernel": RNG.normal(size=(4, 3, 1, 1)),
        "bias": np.zeros(4),
        "scale": np.ones(4),
        "shift": np.zeros(4),
        "mean": np.zeros(4),
        "var": np.ones(4),
        "low": np.array(0.0),
        "high": np.array(6.0),
        "sizes": np.array([1.0, 1.0, 2.0, 2.0]),
        "position": RNG.random(size=(4, 12, 12)),
        "exponent": np.full(12, 2.0),
    }
    assert trained(nodes, weights, outputs=("N", 4, 12, 12)) == {"kernel", "bias", "scale", "shift", "position"}


def test_quantisation_scales_stay():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "zero"], ["d"]),
        helper.make_node("QuantizeLinear", ["w", "w_scale", "zeros"], ["wq"], axis=1),
        helper.make_node("DequantizeLinear", ["wq", "w_scale", "zeros"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    weights = {"x_scale": np.array(0.1), "w_scale": np.full(5, 0.02), "w": RNG.normal(size=(3, 5))}
    proto = model(nodes, {"x": ["N", 3]}, {"y": ["N", 5]}, weights)
    proto.graph.initializer.extend(
        [helper.make_tensor("zero", 2, [], [0]), helper.make_tensor("zeros", 3, [5], [0] * 5)]
    )
    mirror = Mirror(proto)
    assert trainable_weights(mirror, mirror.program.outputs) == ["w"]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_number_is_a_bias_only_beside_a_matrix(shape):
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "bias"], ["y"]),
    ]
    weights = {"factor": np.full(shape, 0.5), "w": RNG.normal(size=(3, 1)), "bias": np.zeros(1)}
    assert trained(nodes, weights, ("N", 3), ("N", 1)) == {"w", "bias"}


def test_what_no_gradient_reaches_stays():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["x", "v"], ["other"]),
    ]
    weights = {"w": RNG.normal(size=(3, 2)), "v": RNG.normal(size=(3, 4))}
    assert trained(nodes, weights, ("N", 3), ("N", 2)) == {"w"}
