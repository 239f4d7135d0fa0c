import pytest

from tests.mirror.harness import case, check, rand

CASES = [
    case("Softmax", 1, rand(2, 3, 4)),
    case("Softmax", 11, rand(2, 3, 4), axis=-2),
    case("Softmax", 13, rand(2, 3, 4), axis=1),
    case("LogSoftmax", 1, rand(2, 3, 4), axis=0),
    case("LogSoftmax", 11, rand(2, 3, 4)),
    case("LogSoftmax", 13, rand(2, 3, 4)),
    case("Hardmax", 1, rand(2, 3, 4), gradient=False),
    case("Hardmax", 11, rand(2, 3, 4), axis=2, gradient=False),
    case("Hardmax", 13, rand(2, 3, 4), axis=1, gradient=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
