import numpy as np
import onnx
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from tests.mirror.harness import case, check, rand, same_as


def tensor(array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(array))


def sparse() -> onnx.SparseTensorProto:
    values, indices = onnx.numpy_helper.from_array(np.float32([2, 3]), "v"), tensor(np.array([1, 4]))
    return onnx.helper.make_sparse_tensor(values, indices, [2, 3])


def constant(opset: int, **attributes):
    return case("Constant", opset, gradient=False, **attributes)


def range_(opset: int, *numbers, dtype=np.float32, **traits):
    return case("Range", opset, *(np.array(number, dtype) for number in numbers), **traits)


def one_hot(opset: int, indices, **traits):
    return case("OneHot", opset, np.array(indices), np.array(4), np.float32([0.25, 2]), **traits)


_SHAPE = np.array([2, 3], np.int64)
_INDICES = [[1, -1, 0], [5, -5, 3]]

CASES = [
    *(constant(o, value=tensor(np.float32(7))) for o in (1, 9, 11, 12, 13, 19, 21, 23, 24, 25)),
    constant(13, value=tensor(np.arange(6).reshape(2, 3))),
    constant(13, value=tensor(rand(2, 3))),
    constant(12, value_float=0.1),
    constant(12, value_floats=[0.1]),
    constant(13, value_floats=[0.1, 0.2]),
    constant(13, value_int=-7),
    constant(13, value_ints=[7, 2**40]),
    constant(13, value_string="a"),
    constant(13, value_strings=["a", "b"]),
    # onnxruntime wants its sparse constants of rank two in another form: the dense tensor
    constant(13, sparse_value=sparse(), expected=(np.float32([[0, 2, 0], [0, 3, 0]]),)),
    *(case("ConstantOfShape", o, _SHAPE, gradient=False) for o in (9, 20, 21, 23, 24, 25)),
    case("ConstantOfShape", 9, _SHAPE, value=tensor(np.array([7])), weights=(0,), gradient=False),
    case("ConstantOfShape", 9, _SHAPE[:0], value=tensor(np.array([True])), gradient=False),
    case("ConstantOfShape", 9, _SHAPE * 0, gradient=False),
    *(case("EyeLike", opset, rand(3, 4), k=-1, gradient=False) for opset in (9, 22)),
    case("EyeLike", 9, rand(3, 4), k=1, dtype=onnx.TensorProto.INT32, gradient=False),
    case("EyeLike", 9, rand(2, 3), k=5, gradient=False),
    range_(11, 1, 10, 3, dtype=np.int64, gradient=False),
    range_(11, 5, -4, -2, dtype=np.int32, gradient=False),
    range_(11, 5, 6, -2, dtype=np.int16, gradient=False),
    range_(11, 0.5, 2.8, 0.25),
    same_as(11, range_(27, 0.5, 2.8, 0.25)),
    # a half-precision range is computed in float32 and rounded once
    range_(27, 0, 3000, 1, dtype=np.float16, gradient=False, expected=(np.arange(3000).astype(np.float16),)),
    *(one_hot(opset, _INDICES) for opset in (9, 11)),
    one_hot(11, _INDICES, axis=0),
    one_hot(11, _INDICES, axis=-2, weights=(1, 2)),
    one_hot(11, 2, expected=(np.float32([0.25, 0.25, 2, 0.25]),)),  # onnxruntime has no scalar indices
    case("OneHot", 11, np.float32([1, 3]), np.array(4, np.float32), np.float32([0.25, 2]), gradient=False),
    same_as(11, one_hot(28, _INDICES, axis=1)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_made_tensors_follow_the_precision_of_the_model():
    for made in (constant(13, value_float=0.5), case("ConstantOfShape", 9, _SHAPE)):
        found = Mirror(made.model()).double()(*(torch.from_numpy(v) for v in made.feeds().values()))
        assert found.dtype == torch.float64
