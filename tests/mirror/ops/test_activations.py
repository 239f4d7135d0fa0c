import pytest

from tests.mirror.harness import case, check, rand

CASES = [
    case("Relu", 14, rand(2, 3)),
    case("LeakyRelu", 16, rand(2, 3), alpha=0.2),
    case("Sigmoid", 13, rand(2, 3)),
    case("Tanh", 13, rand(2, 3)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
