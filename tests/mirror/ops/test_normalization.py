import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from onnx_obd.mirror.mirror import Mirror
from tests.mirror.harness import across, case, check, rand, run_onnxruntime


def _batch(channels, *, statistics=True):
    vectors = [rand(channels), rand(channels)]
    return vectors + ([rand(channels), rand(channels, low=0.5, high=2.0)] if statistics else [])


def _trained(x, scale, bias, mean, var, momentum=0.9, axes=(0, 2, 3)):
    """y, running mean, running variance, batch mean, batch variance, written out in float64."""
    x = x.astype(np.float64)
    m, v = x.mean(axes), x.var(axes)
    shape = [1, -1] + [1] * (x.ndim - 2)
    y = (x - m.reshape(shape)) / np.sqrt(v.reshape(shape) + 1e-5) * scale.reshape(shape) + bias.reshape(shape)
    found = (y, mean * momentum + m * (1 - momentum), var * momentum + v * (1 - momentum), m, v)
    return tuple(value.astype(np.float32) for value in found)


_X, _V = rand(2, 3, 4, 5), _batch(3)
_IMAGE = [rand(3, 2, 2) for _ in range(3)] + [rand(3, 2, 2, low=0.5, high=2.0)]
_FLAT = rand(2, 3, 2, 2)
_Y = _trained(_X, *_V)
_EVEN = rand(1, 5, 2, 2, low=1, high=4)  # a window of 4 channels reaches from 1 before to 2 after
_SQUARES = np.pad(_EVEN**2, ((0, 0), (1, 2), (0, 0), (0, 0)))
_LOCAL = sum(_SQUARES[:, i : i + 5] for i in range(4))

CASES = [
    # onnxruntime begins at BatchNormalization-7, and refuses to train
    *across([1, 6], case("BatchNormalization", 7, _X, *_V)),
    case(
        "BatchNormalization",
        1,
        _X,
        *_V,
        is_test=1,
        consumed_inputs=[0, 0, 0, 1, 1],
        expected=tuple(run_onnxruntime(case("BatchNormalization", 7, _X, *_V))),
    ),
    case("BatchNormalization", 6, _X, *_V, outputs=5, expected=_Y),
    case("BatchNormalization", 7, rand(2, 3, 4), *_batch(3), weights=(1, 2, 3, 4)),
    case(
        "BatchNormalization",
        7,
        _FLAT,
        *_IMAGE,
        spatial=0,
        expected=((_FLAT - _IMAGE[2]) / np.sqrt(_IMAGE[3] + 1e-5) * _IMAGE[0] + _IMAGE[1],),
    ),
    case("BatchNormalization", 9, rand(4, 3), *_batch(3), epsilon=0.1),
    case("BatchNormalization", 9, _X, *_V, outputs=5, expected=_Y),
    case("BatchNormalization", 14, rand(2, 3, 2, 3, 2), *_batch(3), weights=(1, 2, 3, 4)),
    case("BatchNormalization", 15, _X, *_V, outputs=3, training_mode=1, momentum=0.9, expected=_Y[:3]),
    case(
        "BatchNormalization",
        14,
        _X,
        *_V,
        outputs=3,
        training_mode=1,
        momentum=0.7,
        expected=_trained(_X, *_V, momentum=0.7)[:3],
    ),
    case("BatchNormalization", 15, rand(2, 3, 4, 5), *_batch(3)),
    *across([1], case("InstanceNormalization", 6, _X, *_V[:2])),
    case("InstanceNormalization", 6, rand(2, 3, 4, 5), *_batch(3, statistics=False), weights=(1, 2)),
    case("InstanceNormalization", 22, rand(2, 3, 4), *_batch(3, statistics=False), epsilon=0.1),
    case("GroupNormalization", 18, rand(2, 6, 2, 3), *_batch(2, statistics=False), num_groups=2),
    case("GroupNormalization", 21, rand(2, 6, 3), *_batch(6, statistics=False), num_groups=3, weights=(1, 2)),
    case("LayerNormalization", 17, rand(2, 3, 4), rand(4), rand(4), weights=(1, 2)),
    case("LayerNormalization", 17, rand(2, 3, 4), rand(3, 4), axis=1),
    case("LayerNormalization", 17, rand(2, 3, 4), rand(3, 4), rand(3, 4), axis=-2, outputs=3, epsilon=0.1),
    case("LayerNormalization", 17, rand(2, 3, 4), rand(4), axis=1),
    case("LayerNormalization", 17, rand(2, 3, 4), rand(4), rand(4), outputs=2),
    case("RMSNormalization", 23, rand(2, 3, 4), rand(4), weights=(1,)),
    case("RMSNormalization", 23, rand(2, 3, 4), rand(3, 4), axis=1, epsilon=0.1),
    case("MeanVarianceNormalization", 9, rand(2, 3, 4, 5)),
    case("MeanVarianceNormalization", 13, rand(2, 3, 4, 5), axes=[2, 3]),
    case("MeanVarianceNormalization", 1, rand(2, 3, 4, 5)),
    case("MeanVarianceNormalization", 1, rand(2, 3, 4, 5), across_channels=1, normalize_variance=0),
    case("LpNormalization", 1, rand(2, 3, 4)),
    case("LpNormalization", 22, rand(2, 3, 4), p=1, axis=1),
    case("LRN", 1, rand(2, 6, 3, 2), size=3),
    case("LRN", 13, rand(1, 5, 2, 2, low=1, high=4), size=3, alpha=2.0, beta=0.5, bias=2.0),
    # onnxruntime refuses even windows
    case("LRN", 13, _EVEN, size=4, alpha=2.0, beta=0.5, bias=2.0, expected=(_EVEN / np.sqrt(2 + 0.5 * _LOCAL),)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


@pytest.mark.parametrize("node", ["InstanceNormalization (t, s, b)", "GroupNormalization <num_groups = 2> (t, s, b)"])
def test_scale_alone_has_a_gradient_behind_a_transpose(node):
    """torch's own kernel crashes on that: channels last, and no gradient of x."""
    text = f"""<ir_version: 10, opset_import: ["" : 21]> m (float[2, 5, 6, 4] x) => (float[2, 4, 5, 6] y) {{
        t = Transpose <perm = [0, 3, 1, 2]> (x) y = {node} }}"""
    model = parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(rand(4), name) for name in "sb")
    mirror = Mirror(model)
    mirror(torch.from_numpy(rand(2, 5, 6, 4))).square().sum().backward()
    assert mirror.weights["s"].grad.all()
