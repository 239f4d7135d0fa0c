import numpy as np
import pytest

from tests.mirror.harness import across, case, check, rand

_INT8 = np.random.default_rng(1).integers(-100, 100, (1, 2, 5, 6)).astype(np.int8)
_FEW = rand(1, 1, 2, 2)
_SPREAD = np.zeros((1, 1, 5, 6), np.float32)
_SPREAD[0, 0, 1:5:2, 1:5:2] = _FEW

CASES = [
    case("MaxPool", 12, rand(2, 3, 6, 1), kernel_shape=[2, 1], strides=[2, 1]),
    case("AveragePool", 11, rand(2, 3, 1, 7), kernel_shape=[1, 3], pads=[0, 1, 0, 1]),
    case("MaxPool", 1, rand(2, 3, 6, 7), kernel_shape=[3, 2], strides=[2, 1]),
    case("MaxPool", 8, rand(2, 3, 6, 7), kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 2], outputs=2),
    case("MaxPool", 10, rand(2, 3, 7, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1),
    case("MaxPool", 11, rand(1, 2, 8, 9), kernel_shape=[3, 2], dilations=[2, 3], strides=[1, 2], ceil_mode=1),
    case("MaxPool", 12, rand(1, 2, 8, 9), kernel_shape=[2, 3], storage_order=1, pads=[1, 0, 0, 1], outputs=2),
    case("MaxPool", 12, _INT8, kernel_shape=[2, 3], strides=[2, 2], gradient=False),
    case("MaxPool", 12, rand(2, 3, 11), kernel_shape=[4], strides=[3], auto_pad="SAME_UPPER", outputs=2),
    case("MaxPool", 22, rand(2, 2, 4, 5, 6), kernel_shape=[2, 3, 2], strides=[2, 2, 2], auto_pad="SAME_LOWER"),
    case("MaxPool", 12, rand(1, 2, 3, 4), kernel_shape=[2, 2], pads=[0, 1, 1, 1], strides=[3, 3], ceil_mode=1),
    *across([1, 7], case("AveragePool", 7, rand(2, 3, 6, 7), kernel_shape=[3, 2], strides=[2, 1])),
    case("AveragePool", 7, rand(2, 3, 6, 7), kernel_shape=[3, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", 7, rand(2, 3, 6, 7), kernel_shape=[3, 2], pads=[1, 0, 2, 1], strides=[2, 2]),
    case("AveragePool", 10, rand(2, 3, 7, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1),
    case("AveragePool", 11, rand(1, 2, 9), kernel_shape=[4], strides=[3], auto_pad="SAME_LOWER"),
    case("AveragePool", 19, rand(1, 2, 8, 9), kernel_shape=[3, 2], dilations=[2, 3], strides=[1, 2]),
    case(
        "AveragePool",
        19,
        rand(1, 2, 8, 9),
        kernel_shape=[3, 2],
        dilations=[2, 2],
        pads=[1, 1, 2, 0],
        count_include_pad=1,
    ),
    case(
        "AveragePool",
        22,
        rand(1, 2, 6, 9),
        kernel_shape=[3, 2],
        pads=[0, 1, 1, 0],
        strides=[2, 3],
        ceil_mode=1,
        count_include_pad=1,
    ),
    case("AveragePool", 22, rand(1, 2, 3, 4, 5), kernel_shape=[3, 2, 2], pads=[1, 1, 1, 1, 1, 1]),
    *across([1, 2], case("LpPool", 2, rand(2, 3, 6, 7), kernel_shape=[3, 2], strides=[2, 1])),
    case("LpPool", 11, rand(2, 3, 9), kernel_shape=[4], strides=[2], auto_pad="SAME_UPPER", p=3),
    case("LpPool", 18, rand(1, 2, 7, 8), kernel_shape=[3, 2], dilations=[2, 1], pads=[1, 0, 0, 1], p=1),
    case("LpPool", 22, rand(1, 2, 7, 8), kernel_shape=[3, 2], strides=[3, 3], ceil_mode=1),
    case("GlobalAveragePool", 1, rand(2, 3, 4, 5)),
    case("GlobalAveragePool", 22, rand(2, 3, 4)),
    case("GlobalMaxPool", 1, rand(2, 3, 4, 5)),
    case("GlobalMaxPool", 22, rand(2, 3, 2, 3, 2)),
    *across([1, 2], case("GlobalLpPool", 2, rand(2, 3, 4, 5))),
    *across([2, 22], case("GlobalLpPool", 2, rand(2, 3, 4), p=3)),
    case(
        "MaxUnpool",
        9,
        rand(1, 2, 2, 2),
        np.array([[[[0, 2], [11, 9]], [[16, 19], [24, 31]]]]),
        kernel_shape=[2, 2],
        strides=[2, 2],
    ),
    # onnxruntime takes the indices for those of the larger output, against the definition
    case(
        "MaxUnpool",
        11,
        _FEW,
        np.array([[[[5, 7], [13, 15]]]]),
        np.array([1, 1, 5, 6]),
        kernel_shape=[2, 2],
        strides=[2, 2],
        expected=(_SPREAD,),
    ),
    case("MaxUnpool", 22, rand(1, 1, 3), np.array([[[0, 3, 4]]]), kernel_shape=[3], strides=[2], pads=[1, 0]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
