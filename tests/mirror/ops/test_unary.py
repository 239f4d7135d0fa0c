import numpy as np
import pytest

from tests.mirror.harness import across, case, check, rand

X = rand(2, 3, low=-2, high=2)
INSIDE = rand(2, 3, low=-0.9, high=0.9)
POSITIVE = rand(2, 3, low=0.3, high=2)
ABOVE_ONE = rand(2, 3, low=1.2, high=3)
HALVES = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.2])
SPECIAL = np.float32([[1, np.nan, np.inf], [-np.inf, 0, np.nan]])
MATRICES = rand(2, 3, 3)


def unary(opsets, name, x, **options):
    return across(opsets, case(name, opsets[0] if opsets[0] > 6 else 13, x, **options))


CASES = [
    *unary((1, 6, 13), "Neg", X),
    *unary((1, 6, 13), "Abs", X),
    *unary((1, 6, 13), "Reciprocal", POSITIVE),
    *unary((1, 6, 13), "Sqrt", POSITIVE),
    *unary((1, 6, 13), "Exp", X),
    *unary((1, 6, 13), "Log", POSITIVE),
    *[c for name in ("Sin", "Cos", "Tan", "Atan") for c in unary((7, 22), name, INSIDE)],
    *[c for name in ("Asin", "Acos") for c in unary((7, 22), name, INSIDE)],
    *[c for name in ("Sinh", "Cosh", "Asinh") for c in unary((9, 22), name, X)],
    *unary((9, 22), "Acosh", ABOVE_ONE),
    *unary((9, 22), "Atanh", INSIDE),
    *unary((9, 13), "Sign", np.float32([-2, 0, 3]), gradient=False),
    *unary((1, 6, 13), "Floor", HALVES, gradient=False),
    *unary((1, 6, 13), "Ceil", HALVES, gradient=False),
    *unary((11, 22), "Round", HALVES, gradient=False),
    *unary((9, 13, 20), "IsNaN", SPECIAL, gradient=False),
    *unary((10, 20), "IsInf", SPECIAL, gradient=False),
    case("IsInf", 10, SPECIAL, detect_negative=0, gradient=False),
    case("IsInf", 10, SPECIAL, detect_positive=0, gradient=False),
    case("IsInf", 10, SPECIAL, detect_positive=0, detect_negative=0, gradient=False),
    *unary((11, 22), "Det", MATRICES),
    case("Neg", 13, np.array([3, -4]), gradient=False),
    case("Exp", 13, X.astype(np.float16), tolerance=2e-3),
    case("Exp", 13, X.astype(np.float64)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
