import pytest

from tests.mirror.harness import case, check, rand

CASES = [
    case("MatMul", 13, rand(3, 4), rand(4, 5)),
    case("MatMul", 9, rand(2, 3, 4), rand(4, 5), weights=(1,)),
    case("MatMul", 13, rand(2, 1, 3, 4), rand(6, 4, 5)),
    case("MatMul", 13, rand(4), rand(2, 4, 5)),
    case("Gemm", 13, rand(3, 4), rand(4, 5), rand(5), weights=(1, 2)),
    case("Gemm", 11, rand(4, 3), rand(5, 4), rand(3, 1), alpha=0.5, beta=-2.0, transA=1, transB=1),
    case("Gemm", 7, rand(3, 4), rand(5, 4), rand(1), transB=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
