import numpy as np
import pytest

from tests.mirror.harness import across, case, check, rand

X = rand(2, 3, 4, low=0.3, high=2)
SIGNED = X * np.float32([1, -1, -1, 1])
ONE = np.array([1])
ATTRIBUTE = {
    "ReduceSum": (1, 11), "ReduceMean": (1, 11, 13), "ReduceProd": (1, 11, 13), "ReduceMax": (1, 11, 12, 13),
    "ReduceMin": (1, 11, 12, 13), "ReduceL1": (1, 11, 13), "ReduceL2": (1, 11, 13), "ReduceSumSquare": (1, 11, 13),
    "ReduceLogSum": (1, 11, 13), "ReduceLogSumExp": (1, 11, 13),
}  # fmt: skip
INPUT = dict.fromkeys(ATTRIBUTE, (18,)) | {
    "ReduceSum": (13,), "ReduceMax": (18, 20), "ReduceMin": (18, 20), "ReduceLogSum": (18, 28),
    "ReduceLogSumExp": (18, 28),
}  # fmt: skip


def data(name):
    return X if name == "ReduceLogSum" else SIGNED


CASES = [
    *[c for name, opsets in ATTRIBUTE.items() for c in across(opsets, case(name, 11, data(name), axes=[0, -1]))],
    *[c for name, opsets in INPUT.items() for c in across(opsets, case(name, opsets[0], data(name), ONE, keepdims=0))],
    *[case(name, opsets[0], data(name)) for name, opsets in INPUT.items()],
    *[case(name, opsets[0], data(name)[0, 0, 0]) for name, opsets in INPUT.items()],
    *[case(name, 11, data(name), keepdims=0) for name in ATTRIBUTE],
    *[case(name, opsets[0], np.array([[3, -5], [2, 1]]), ONE, gradient=False) for name, opsets in INPUT.items()
      if not name.startswith("ReduceLog")],
    # Of no elements.
    *[case(name, 18, np.zeros((2, 0), np.float32), ONE, gradient=False, expected=(np.full((2, 1), value, np.float32),))
      for name, value in (("ReduceMax", -np.inf), ("ReduceMin", np.inf), ("ReduceProd", 1), ("ReduceLogSum", -np.inf),
                          ("ReduceLogSumExp", -np.inf), ("ReduceL2", 0))],
    case("ReduceMax", 18, np.zeros((0, 2), np.int8), 0 * ONE, gradient=False, expected=(np.int8([[-128, -128]]),)),
    case("ReduceMin", 20, np.array([[True, False], [True, True]]), ONE, gradient=False,
         expected=(np.array([[False], [True]]),)),
    # Without axes "noop" leaves out the reduction alone: what the operator does to each element remains.
    *[case(name, INPUT[name][0], data(name), noop_with_empty_axes=1, expected=(function(data(name)),))
      for name, function in (("ReduceSum", np.array), ("ReduceMean", np.array), ("ReduceMax", np.array),
                             ("ReduceProd", np.array), ("ReduceL1", np.abs), ("ReduceL2", np.abs),
                             ("ReduceSumSquare", np.square), ("ReduceLogSum", np.log), ("ReduceLogSumExp", np.array))],
    *across((11, 14), case("CumSum", 14, SIGNED, np.array(1))),
    *[case("CumSum", 14, SIGNED, np.array(-1), exclusive=e, reverse=r) for e, r in ((1, 0), (0, 1), (1, 1))],
    case("CumSum", 14, np.array([1, 2, 3], np.int32), np.array([0]), gradient=False),
    case("CumProd", 26, SIGNED, np.array(1), expected=(np.cumprod(SIGNED, 1),)),
    case("CumProd", 26, SIGNED, np.array(1), reverse=1, exclusive=1, expected=(
        np.stack([SIGNED[:, 1] * SIGNED[:, 2], SIGNED[:, 2], np.ones_like(SIGNED[:, 2])], 1),)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
