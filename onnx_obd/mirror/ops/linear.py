"""Matrix products."""

from __future__ import annotations

from onnx_obd.mirror.registry import family, op
from onnx_obd.mirror.second import Call, multilinear

multilinear_op = family(second=multilinear)


@multilinear_op("MatMul", 1, 9, 13)
def matmul(a, b):
    return a @ b


def _gemm_second(call: Call, h):
    """y = alpha a b + beta c: the products as for MatMul, the scalars squared once more."""
    attributes = dict(call.attributes)
    for name in ("alpha", "beta"):
        attributes[name] = attributes.get(name, 1.0) ** 2
    squared = Call(call.node, lambda *values: gemm(*values, **attributes), {}, call.inputs, call.outputs, call.wanted)
    return multilinear(squared, h)


@op("Gemm", 7, 9, 11, 13, second=_gemm_second)
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    a = a.mT if transA else a
    b = b.mT if transB else b
    if c is not None and alpha == 1.0 and beta == 1.0 and c.dim() <= 1 and a.is_floating_point():
        return c.addmm(a, b) if c.dim() else a @ b + c
    y = a @ b
    y = y if alpha == 1.0 else alpha * y
    return y if c is None else y + (c if beta == 1.0 else beta * c)
