import numpy as np
import pytest

from tests.mirror.harness import case, check, rand

_A, _B, _C = rand(3, 4), rand(4, 5), rand(5)

CASES = [
    case("MatMul", 13, rand(3, 4), rand(4, 5)),
    case("MatMul", 9, rand(2, 3, 4), rand(4, 5), weights=(1,)),
    case("MatMul", 1, rand(2, 3, 4), rand(2, 4, 5)),
    case("MatMul", 13, rand(2, 1, 3, 4), rand(6, 4, 5)),
    case("MatMul", 13, rand(3, 4), rand(2, 4, 5)),
    case("MatMul", 13, rand(4), rand(2, 4, 5)),
    case("MatMul", 13, rand(2, 3, 4), rand(4)),
    case("MatMul", 13, rand(4), rand(4)),
    case("MatMul", 9, np.arange(12, dtype=np.uint32).reshape(3, 4), np.full((4, 2), 2**31, np.uint32), gradient=False),
    case("Gemm", 13, rand(3, 4), rand(4, 5), rand(5), weights=(1, 2)),
    case("Gemm", 13, rand(3, 4), rand(4, 5), alpha=0.5),
    case("Gemm", 11, rand(4, 3), rand(5, 4), rand(3, 1), alpha=0.5, beta=-2.0, transA=1, transB=1),
    case("Gemm", 9, rand(4, 3), rand(4, 5), rand(3, 5), transA=1),
    case("Gemm", 7, rand(3, 4), rand(5, 4), rand(1), transB=1),
    # onnxruntime begins at Gemm-7; the older forms differ in how broadcasting is written alone.
    case("Gemm", 6, _A, _B, _C, broadcast=1, alpha=2.0, expected=(2 * _A @ _B + _C,)),
    case("Gemm", 1, _A, _B, rand(3, 5, low=1, high=1), expected=(_A @ _B + 1,)),
    case("Einsum", 12, rand(3, 4), rand(4, 5), equation="ij,jk->ik"),
    case("Einsum", 12, rand(2, 3, 4), rand(2, 5, 4), equation="...ij, ...kj->...ik"),
    case("Einsum", 12, rand(2, 3, 4), rand(4), rand(3, 5), equation="bij,j,ik"),
    case("Einsum", 12, rand(3, 4), rand(5, 4), equation="ij,kj->i"),
    case("Einsum", 12, rand(3, 3), equation="ii->i"),
    case("Einsum", 12, rand(2, 3), rand(4, 2), equation="ba,cb"),
    # newer than what onnxruntime accepts; only the element types were extended
    case("Einsum", 28, _A, _B, equation="ij,jk->ik", expected=(_A @ _B,)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
