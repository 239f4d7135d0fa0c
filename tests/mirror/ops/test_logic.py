import numpy as np
import pytest

from tests.mirror.harness import across, case, check, rand

A, B = rand(2, 3), rand(2, 3)
B[0, 1] = A[0, 1]  # an equal pair
TIES = np.float32([[1, 3, 3], [2, 2, 0]])
YES, NO = np.array([[True, False, True], [False, False, True]]), np.array([True, True, False])
BITS, MASK = np.array([[12, 7, 255], [1, 128, 90]], np.uint8), np.array([10, 3, 240], np.uint8)
ALONG = np.array([True, False])  # goes with axis 0 under the rules of opset 1


def discrete(opsets, name, *inputs, **options):
    return across(opsets, case(name, max(v for v in opsets if v < 27), *inputs, gradient=False, **options))


CASES = [
    *discrete((7, 11, 13, 19), "Equal", A, B),
    *discrete((7, 9, 13), "Greater", A, B),
    *discrete((7, 9, 13), "Less", A, B),
    *discrete((12, 16), "GreaterOrEqual", A, B),
    *discrete((12, 16), "LessOrEqual", A, B),
    case("Equal", 13, np.array([1, 2]), np.array([[1], [2]]), gradient=False),
    *[c for name in ("And", "Or", "Xor") for c in discrete((7,), name, YES, NO)],
    *[
        case(name, 1, YES, ALONG, axis=0, broadcast=1, gradient=False, expected=(function(YES, ALONG[:, None]),))
        for name, function in (("And", np.logical_and), ("Or", np.logical_or), ("Xor", np.logical_xor))
    ],
    *[
        case(name, 1, A, B[:, 0], axis=0, broadcast=1, gradient=False, expected=(function(A, B[:, :1]),))
        for name, function in (("Greater", np.greater), ("Less", np.less))
    ],
    case("Equal", 1, YES, ALONG, axis=0, broadcast=1, gradient=False, expected=(ALONG[:, None] == YES,)),
    *discrete((1,), "Not", YES),
    *[c for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor") for c in discrete((18,), name, BITS, MASK)],
    *discrete((18,), "BitwiseNot", BITS),
    *discrete((11, 28), "BitShift", BITS, MASK % 8, direction="LEFT"),
    *discrete((11, 28), "BitShift", BITS, MASK % 8, direction="RIGHT"),
    *across((9, 16), case("Where", 16, NO, A, B)),
    case("Where", 16, NO, A, np.float32(2), weights=(2,)),
    *discrete((1, 11, 12, 13), "ArgMax", TIES, axis=1),
    *discrete((1, 11, 12, 13), "ArgMin", TIES, axis=1, keepdims=0),
    case("ArgMax", 13, TIES, axis=-1, select_last_index=1, gradient=False),
    case("ArgMin", 13, TIES, keepdims=0, select_last_index=1, gradient=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
