import numpy as np
import pytest

from tests.mirror.harness import case, check, rand

CASES = [
    case("ImageScaler", 1, rand(2, 3, 4, 5), bias=[1.0, -2.0, 0.5], scale=0.7),
    # onnxruntime never had these two
    case("ConstantFill", 1, shape=[2, 3], value=0.5, expected=(np.full((2, 3), 0.5, np.float32),), gradient=False),
    case(
        "ConstantFill",
        1,
        rand(2, 3),
        dtype=7,
        value=4.0,
        extra_shape=[5],
        expected=(np.full((2, 3, 5), 4, np.int64),),
        gradient=False,
    ),
    case(
        "ConstantFill", 1, np.array([4, 2]), input_as_shape=1, expected=(np.zeros((4, 2), np.float32),), gradient=False
    ),
    case(
        "GivenTensorFill",
        1,
        shape=[2, 3],
        values=[float(i) for i in range(6)],
        expected=(np.arange(6, dtype=np.float32).reshape(2, 3),),
        gradient=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
