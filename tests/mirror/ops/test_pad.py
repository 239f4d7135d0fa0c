import numpy as np
import onnx
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from tests.mirror.harness import case, check, rand

_X = rand(2, 3, 4)
_PADDED = np.pad(_X, ((0, 0), (1, 0), (0, 2)), constant_values=0.5)
_AXES = np.array([-1, 0], np.int64)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def value(number: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(number, dtype)


CASES = [
    # onnxruntime has no kernel for Pad-1: numpy's result
    case("Pad", 1, _X, paddings=[0, 1, 0, 0, 0, 2], value=0.5, expected=(_PADDED,)),
    case("Pad", 2, _X, pads=[0, 1, 0, 0, 0, 2], value=0.5),
    case("Pad", 2, _X, pads=[0, 1, 0, 0, 2, 2], mode="reflect"),
    *(case("Pad", opset, _X, ints(0, -1, 1, 0, 2, -2), value(0.5), weights=(1,)) for opset in (11, 13)),
    *(case("Pad", opset, _X, ints(1, 0, 2, 1), value(0.5), _AXES) for opset in (18, 19, 21, 23, 24, 25)),
    case("Pad", 13, _X, ints(0, 0, 0, 0, 0, 0)),
    case("Pad", 13, rand(2, 0), ints(1, 0, 0, 2), gradient=False),
    case("Pad", 13, np.arange(6).reshape(2, 3), ints(1, 0, 0, 2), value(-(2**60) - 1, np.int64), gradient=False),
    case("Pad", 13, np.array([True, False]), ints(1, 2), value(True, bool), gradient=False),
    # reflect, edge and wrap: by torch's kernel for one, two and three axes, and by index where it has none
    *(case("Pad", 19, rand(2, 3, 4), ints(0, 0, 2, 0, 0, 3), mode=mode) for mode in ("reflect", "edge", "wrap")),
    *(case("Pad", 19, rand(1, 2, 3, 4), ints(0, 0, 2, 0, 0, 0, 1, 3), mode=m) for m in ("reflect", "edge", "wrap")),
    *(case("Pad", 19, rand(1, 2, 3, 2, 4), ints(0, 0, 1, 0, 2, 0, 0, 0, 1, 3), mode=m) for m in ("reflect", "edge")),
    *(case("Pad", 19, rand(3, 2, 4), ints(1, 0, 2, 2, 1, 0), mode=mode) for mode in ("reflect", "edge", "wrap")),
    *(case("Pad", 19, rand(3), ints(2, 1), mode=mode) for mode in ("reflect", "edge", "wrap")),
    *(case("Pad", 19, rand(2, 4), ints(0, -1, 0, 2), mode=mode) for mode in ("reflect", "edge", "wrap")),
    case("Pad", 19, np.arange(6).reshape(2, 3), ints(0, 2, 0, 1), mode="reflect", gradient=False),
    case("Crop", 9, rand(2, 3, 7, 9), border=[1, 2, 3, 1]),
    case("Crop", 9, rand(2, 3, 7, 9), border=[1, 2, 3, 1], scale=[2, 5]),
    case("CenterCropPad", 18, rand(5, 4, 3), ints(2, 7, 3)),
    case("CenterCropPad", 18, rand(5, 4, 3), ints(4, 5), axes=[2, -3], weights=(1,)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_wrap_further_than_the_axis_is_long():
    """numpy goes round again; onnxruntime reads beyond the axis."""
    x = rand(1, 2, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (7, 4)), mode="wrap")
    check(case("Pad", 19, x, ints(0, 0, 7, 0, 0, 4), mode="wrap", expected=(padded,)))


def test_what_follows_from_the_padded_shape_is_folded():
    """An optional host input that is absent leaves the shape of the output known."""
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[2, n] x) => (float[k, m] z) <int64[4] pads = {0, 1, 0, 2}, int64[1] two = {2}>
        { y = Pad (x, pads) shape = Shape <start = 1> (y) target = Concat <axis = 0> (shape, two)
          z = Reshape (y, target) }""")
    plan = Mirror(model).plan([torch.zeros(2, 3)])
    assert [step.operator.name for step in plan.steps] == ["Pad", "Reshape"]
