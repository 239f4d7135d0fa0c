import numpy as np
import pytest

from tests.mirror.harness import case, check, rand, same_as

_X = rand(3, 4, 5)
_ROW = rand(1, 3)
_SCALAR = np.array(2, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CASES = [
    *(case("Shape", opset, _X, gradient=False) for opset in (1, 13)),
    *(case("Shape", opset, _X, start=-2, end=9, gradient=False) for opset in (15, 19, 21, 23, 24, 25)),
    case("Shape", 21, _X, start=2, end=1, gradient=False),
    case("Shape", 21, _SCALAR, gradient=False),
    *(case("Size", opset, _X, gradient=False) for opset in (1, 13, 19, 21, 23, 24, 25)),
    # onnxruntime has no kernel for Reshape-1, Concat-1, Tile-1 and Split-1: their results are numpy's
    case("Reshape", 1, _X, shape=[5, 0, -1], expected=(_X.reshape(5, 4, 3),)),
    *(case("Reshape", opset, _X, ints(5, 0, -1), weights=(1,)) for opset in (5, 13, 14)),
    *(case("Reshape", opset, _X, ints(2, -1)) for opset in (19, 21, 23, 24, 25)),
    case("Reshape", 14, rand(2, 0, 3), ints(0, 7), allowzero=1, gradient=False),
    case("Reshape", 14, rand(0, 4, 3), ints(-1, 12), gradient=False),
    case("Reshape", 13, np.float32([[2]]), ints()),
    *(case("Flatten", opset, _X, axis=2) for opset in (1, 9, 11, 13, 21, 23, 24, 25)),
    case("Flatten", 13, _X, axis=0),
    case("Flatten", 13, _X, axis=-1),
    case("Flatten", 13, _X, axis=3),
    case("Flatten", 13, rand(0, 3), gradient=False),
    *(case("Squeeze", opset, rand(1, 3, 1, 2), axes=[2]) for opset in (1, 11)),
    *(case("Squeeze", opset, rand(1, 3, 1, 2), ints(-4), weights=(1,)) for opset in (13, 21, 23, 24, 25)),
    case("Squeeze", 11, rand(1, 3, 1, 2)),
    case("Squeeze", 13, rand(1, 3, 1, 2)),
    case("Squeeze", 13, rand(1, 3, 1, 2), ints(0, -2)),
    *(case("Unsqueeze", opset, rand(3, 2), axes=[0, 3]) for opset in (1, 11)),
    *(case("Unsqueeze", opset, rand(3, 2), ints(-1, 0), weights=(1,)) for opset in (13, 21, 23, 24, 25)),
    case("Unsqueeze", 13, rand(3, 2), ints(3, 1, 0)),
    case("Unsqueeze", 13, _SCALAR, ints(0)),
    *(case("Transpose", opset, _X, perm=[1, 2, 0]) for opset in (1, 13, 21, 23, 24, 25)),
    case("Transpose", 13, _X),
    case("Transpose", 13, _SCALAR),
    *(case("Expand", opset, rand(3, 1, 2), ints(4, 1, 5, 1), weights=(1,)) for opset in (8, 13)),
    case("Expand", 13, rand(3, 1), ints(4)),
    case("Expand", 13, rand(3, 1), ints(3, 0), gradient=False),
    case("Expand", 13, _SCALAR, ints(2, 3)),
    *(case("Tile", opset, rand(2, 3), ints(3, 2), weights=(1,)) for opset in (6, 13)),
    case("Tile", 13, rand(2, 3), ints(0, 2), gradient=False),
    case("Tile", 1, _ROW, _SCALAR, np.array(1, np.float32), expected=(np.tile(_ROW, (1, 2)),)),
    case("Trilu", 14, rand(2, 3, 4)),
    case("Trilu", 14, rand(2, 3, 4), np.array(-1, np.int64), upper=0, weights=(1,)),
    case("Trilu", 14, rand(4, 3), np.array(2, np.int64)),
    case("Trilu", 14, rand(0, 3), np.array(1, np.int64), gradient=False),
    case("ReverseSequence", 10, rand(4, 3, 2), ints(1, 4, 2)),
    same_as(10, case("ReverseSequence", 28, rand(3, 4, 2), ints(3, 1, 4), time_axis=1, batch_axis=0)),
    case("DepthToSpace", 1, rand(2, 12, 2, 3), blocksize=2),
    case("DepthToSpace", 11, rand(2, 12, 2, 3), blocksize=2, mode="CRD"),
    case("DepthToSpace", 13, rand(1, 9, 1, 2), blocksize=3),
    same_as(13, case("DepthToSpace", 28, rand(2, 12, 2, 3), blocksize=2, mode="CRD")),
    *(case("SpaceToDepth", opset, rand(2, 3, 4, 6), blocksize=2) for opset in (1, 13)),
    same_as(13, case("SpaceToDepth", 28, rand(2, 3, 4, 6), blocksize=2)),
    case("Concat", 1, _ROW, -_ROW, expected=(np.concatenate([_ROW, -_ROW], 1),)),
    *(case("Concat", opset, rand(2, 3), rand(2, 1), rand(2, 2), axis=1) for opset in (4, 11, 13)),
    case("Concat", 13, rand(2, 3), rand(0, 3), rand(1, 3), axis=-2, weights=(2,), gradient=False),
    case("Concat", 13, rand(2, 3), rand(2, 4), axis=-1, weights=(1,)),
    case("Split", 1, _X, outputs=2, axis=1, split=[1, 3], expected=(_X[:, :1], _X[:, 1:])),
    case("Split", 1, _X, np.float32([3, 2]), outputs=2, axis=2, expected=(_X[..., :3], _X[..., 3:])),
    case("Split", 2, rand(4, 6), outputs=3, axis=1),
    case("Split", 11, rand(4, 6), outputs=2, axis=-1, split=[5, 1]),
    case("Split", 13, rand(4, 6), outputs=2),
    case("Split", 13, rand(4, 6), ints(1, 0, 3), outputs=3, weights=(1,), gradient=False),
    case("Split", 18, rand(4, 7), outputs=3, axis=1, num_outputs=3),
    case("Split", 18, rand(4, 7), ints(3, 4), outputs=2, axis=1),
    case("Split", 13, rand(4), outputs=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
