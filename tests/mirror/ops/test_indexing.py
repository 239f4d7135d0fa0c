import numpy as np
import pytest
import torch

from onnx_obd.mirror.ops.indexing import top_k
from tests.mirror.harness import case, check, rand, same_as

_X = rand(4, 5, 6)
_LOWEST = np.iinfo(np.int64).min


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def table(*rows, dtype=np.int64) -> np.ndarray:
    return np.array(rows, dtype=dtype)


def scatter_elements(opset: int, op_type: str = "ScatterElements", **attributes):
    return case(op_type, opset, rand(3, 4), table([2, 0, -1, 1], [0, 1, 1, -1]), rand(2, 4), **attributes)


def scatter_nd(opset: int, *rows, **attributes):
    indices = table(*rows)
    return case("ScatterND", opset, _X, indices, rand(len(rows), *_X.shape[indices.shape[1] :]), **attributes)


def tied(*shape: int) -> np.ndarray:
    """Few different values, so that the order of equal ones shows."""
    return np.random.default_rng(3).integers(0, 4, shape).astype(np.float32)


SLICES = [
    case("Slice", 1, _X, starts=[1, -2], ends=[-1, 100], axes=[0, 2]),
    *(case("Slice", opset, _X, ints(1, -100), ints(-1, 4)) for opset in (10, 11, 13)),
    case("DynamicSlice", 9, _X, ints(1, -2), ints(-1, 100), ints(0, 2)),
    case("Slice", 13, _X, ints(-1, 1), ints(_LOWEST, 5), ints(-1, 1), ints(-2, 3), weights=(1, 2, 3, 4)),
    case("Slice", 13, _X, ints(100), ints(-100), ints(1), ints(-1)),
    case("Slice", 13, _X, ints(-100), ints(-101), ints(1), ints(-1)),
    case("Slice", 13, _X, ints(3), ints(1), ints(0), gradient=False),
    case("Slice", 13, _X, ints(1), ints(3), ints(0), ints(-1), gradient=False),
    case("Slice", 13, rand(0, 3), ints(-1), ints(_LOWEST), ints(0), ints(-1), gradient=False),
]
GATHERS = [
    *(case("Gather", opset, _X, ints(3, 0, 3), axis=1) for opset in (1, 11, 13)),
    case("Gather", 13, _X, table([3, -1], [0, 2], [0, 3]), weights=(0,)),
    case("Gather", 13, _X, np.array(-2), axis=-1),
    case("Gather", 13, _X, np.zeros((2, 0), np.int64), axis=1, gradient=False),
    case("Gather", 13, _X, table([3, -1], dtype=np.int32), axis=2, weights=(1,)),
    *(case("GatherElements", opset, rand(3, 4), table([2, -1, 0], [1, 1, -3]), axis=0) for opset in (11, 13)),
    case("GatherElements", 13, rand(3, 4), table([2, -1, 0], [1, 1, -3]), axis=1),
    *(case("GatherND", opset, _X, table([3, -1], [0, 0], [3, 4])) for opset in (11, 12, 13)),
    case("GatherND", 13, _X, table([[3, -1, 5]], [[0, 0, 1]])),
    case("GatherND", 13, rand(2, 3, 4, 5), np.array([[[1], [0], [2]], [[-1], [3], [1]]]), batch_dims=2),
    case("GatherND", 13, rand(2, 3, 4), table([1], [-1]), batch_dims=1),
]
SCATTERS = [
    scatter_elements(9, "Scatter"),
    *(scatter_elements(opset) for opset in (11, 13, 16, 18)),
    *(scatter_elements(18, reduction=how, axis=1, weights=(0, 2)) for how in ("add", "mul", "max", "min")),
    *(scatter_nd(opset, [3, -1], [0, 0], [2, 4]) for opset in (11, 13, 16, 18)),
    *(scatter_nd(18, [3, -1], [0, 0], [3, 4], reduction=how) for how in ("add", "mul", "max", "min")),
    *(scatter_nd(18, [3, -1, 2], [0, 0, -6], [3, 4, 2], reduction=how) for how in ("add", "mul", "max", "min")),
    scatter_nd(18, [-1], [2], reduction="mul", weights=(0, 2)),
    scatter_nd(18, [-1], [2], weights=(1, 2)),
    case("TensorScatter", 24, rand(2, 3, 5, 2), rand(2, 3, 2, 2), ints(1, 3)),
    case("TensorScatter", 24, rand(2, 5, 3), rand(2, 2, 3), ints(4, 1), mode="circular", axis=1),
    case("TensorScatter", 24, rand(2, 5, 3), rand(2, 2, 3)),
]
CHOICES = [
    *(case("Compress", opset, rand(3, 4), np.array([True, False, True]), axis=-1) for opset in (9, 11)),
    case("Compress", 11, rand(3, 2), np.array([True, False, True, False, True])),
    same_as(11, case("Compress", 28, rand(3, 2), np.array([True, False, True]), axis=0)),
    *(case("NonZero", opset, tied(3, 4), gradient=False) for opset in (9, 13)),
    case("NonZero", 13, np.array(2, np.float32), gradient=False),
    case("NonZero", 13, np.zeros((2, 3), bool), gradient=False),
    case("Unique", 11, tied(3, 4), outputs=4, gradient=False),
    case("Unique", 11, tied(3, 4), outputs=4, sorted=0, gradient=False),
    case("Unique", 11, tied(12, 2).reshape(2, 12), outputs=4, axis=-1, gradient=False),
    case("Unique", 11, tied(12, 2), outputs=3, axis=0, sorted=0, gradient=False),
    case("Unique", 11, rand(5), outputs=2),
    same_as(11, case("Unique", 28, tied(3, 4), outputs=4, gradient=False)),
    case("TopK", 1, rand(3, 5), k=2, outputs=2, axis=0),
    *(case("TopK", opset, rand(3, 5), ints(3), outputs=2) for opset in (10, 11, 24)),
    case("TopK", 11, rand(3, 5), ints(5), outputs=2, largest=0, weights=(1,)),
    case("TopK", 11, tied(3, 9), ints(4), outputs=2, axis=1, gradient=False),
    case("TopK", 11, tied(9, 2), ints(5), outputs=2, axis=-2, largest=0, gradient=False),
    case("TopK", 11, tied(2, 3000), ints(1700), outputs=2, gradient=False),
    case("TopK", 11, tied(2500, 2), ints(7), outputs=2, axis=0, largest=0, gradient=False),
]
CASES = SLICES + GATHERS + SCATTERS + CHOICES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_topk_passes_gradients_where_it_does_not_sort_the_whole_axis():
    x = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values, index = top_k(x, (5,))
    values.sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x).scatter(1, index, 1.0))
