import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.ops.convolution import LARGE_IMAGES
from tests.mirror.harness import case, check, rand, run_onnxruntime

_LONG, _TAPS = rand(2, 3, 7), rand(3, 1, 4)
(_CAUSAL,) = run_onnxruntime(case("Conv", 11, _LONG, _TAPS, group=3, pads=[3, 0]))

CASES = [
    case("Conv", 11, rand(2, 3, 6, 7), rand(4, 3, 3, 2), rand(4), weights=(1, 2)),
    case("Conv", 1, rand(2, 3, 6, 7), rand(4, 3, 3, 2), pads=[1, 2, 1, 2], strides=[2, 1]),
    case("Conv", 22, rand(1, 2, 7, 5), rand(3, 2, 3, 2), rand(3), pads=[0, 1, 2, 0], dilations=[1, 2], strides=[2, 1]),
    case("Conv", 11, rand(2, 4, 9), rand(6, 2, 4), rand(6), group=2, auto_pad="SAME_UPPER", strides=[2]),
    case("Conv", 11, rand(1, 4, 7, 8), rand(4, 1, 3, 4), group=4, auto_pad="SAME_LOWER", strides=[1, 3]),
    case("Conv", 11, rand(1, 2, 5, 6), rand(3, 2, 3, 4), rand(3), auto_pad="VALID", strides=[2, 1]),
    case("Conv", 11, rand(1, 2, 4, 3, 5), rand(3, 2, 2, 1, 3), rand(3), pads=[1, 0, 2, 0, 0, 2]),
    case("ConvTranspose", 11, rand(2, 3, 4, 3), rand(3, 2, 3, 2), rand(2), weights=(1, 2)),
    case("ConvTranspose", 1, rand(1, 4, 4, 3), rand(4, 3, 3, 3), rand(6), group=2, strides=[2, 3], pads=[1, 0, 1, 0]),
    case("ConvTranspose", 22, rand(1, 2, 4, 3), rand(2, 3, 3, 2), rand(3), strides=[3, 2], output_padding=[2, 1]),
    case("ConvTranspose", 11, rand(1, 2, 4, 3), rand(2, 3, 3, 3), rand(3), strides=[2, 2], pads=[0, 1, 2, 0]),
    case("ConvTranspose", 11, rand(1, 2, 4, 3), rand(2, 3, 3, 3), rand(3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", 11, rand(1, 2, 4), rand(2, 3, 4), rand(3), strides=[3], auto_pad="SAME_LOWER"),
    case("ConvTranspose", 11, rand(1, 2, 4), rand(2, 3, 1), rand(3), strides=[3], auto_pad="SAME_UPPER"),
    case("ConvTranspose", 11, rand(1, 2, 4), rand(2, 3, 3), rand(3), strides=[2], auto_pad="VALID"),
    case("ConvTranspose", 11, rand(1, 2, 4, 3), rand(2, 3, 3, 3), rand(3), strides=[3, 2], output_shape=[10, 8]),
    case("ConvTranspose", 11, rand(1, 2, 4), rand(2, 3, 3), rand(3), strides=[2], output_shape=[6]),
    case("ConvTranspose", 11, rand(1, 2, 4), rand(2, 3, 4), strides=[2], auto_pad="SAME_UPPER", output_shape=[7]),
    case("ConvTranspose", 11, rand(1, 2, 2, 3, 2), rand(2, 3, 2, 1, 3), strides=[1, 2, 2], dilations=[2, 1, 1]),
    case("DeformConv", 19, rand(2, 3, 5, 4), rand(4, 3, 2, 3), rand(2, 12, 4, 2), rand(4), rand(2, 6, 4, 2)),
    case(
        "DeformConv",
        22,
        rand(1, 4, 5, 6),
        rand(4, 2, 2, 2),
        rand(1, 16, 3, 5, high=2.0),
        group=2,
        offset_group=2,
        strides=[2, 1],
        pads=[1, 0, 0, 1],
        dilations=[1, 2],
    ),
    case("Col2Im", 18, rand(2, 12, 20), np.array([5, 6]), np.array([2, 2]), weights=(1, 2)),
    case(
        "Col2Im",
        18,
        rand(1, 12, 4),
        np.array([5, 6]),
        np.array([2, 3]),
        strides=[2, 3],
        pads=[1, 0, 0, 2],
        dilations=[2, 1],
    ),
    case("Col2Im", 18, rand(1, 8, 8), np.array([2, 3, 4]), np.array([1, 2, 2]), strides=[1, 1, 2]),
    # beyond what onnxruntime accepts: against Conv over the padded input
    case("CausalConvWithState", 27, _LONG, _TAPS, rand(3, low=1, high=1), expected=(_CAUSAL + 1,)),
    case(
        "CausalConvWithState",
        27,
        _LONG[:, :, 4:],
        _TAPS,
        None,
        _LONG[:, :, 1:4],
        outputs=2,
        expected=(_CAUSAL[:, :, 4:], _LONG[:, :, 4:]),
    ),
    case(
        "CausalConvWithState",
        27,
        _LONG,
        _TAPS,
        activation="silu",
        exact_second=False,
        expected=(_CAUSAL / (1 + np.exp(-_CAUSAL)),),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_nothing_after_a_convolution_sees_its_memory_layout():
    x = rand(2, 3, 60, 96)
    assert x.size > LARGE_IMAGES
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 12]> g (float[2, 3, 60, 96] x, float[4, 3, 3, 3] w) => (float[2, 4600] y)
        { a = Conv (x, w)
          b = LRN <size = 3, alpha = 0.5> (a)
          s = Constant <value_floats = [1.0, 2.0, 0.5, -1.0]> ()
          c = InstanceNormalization (b, s, s)
          d = MaxPool <kernel_shape = [3, 2], strides = [2, 2]> (c)
          e = Softmax <axis = 2> (d)
          f = Flatten (e)
          m = GlobalMaxPool (c)
          n = Flatten (m)
          y = Concat <axis = 1> (f, n) }"""
    )
    feeds = {"x": x, "w": rand(4, 3, 3, 3)}
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    found = Mirror(model)(*map(torch.from_numpy, feeds.values()))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)
