"""ONNX values as torch values and back.

A tensor is a torch.Tensor; a string tensor stays a numpy array of objects; a sequence is a list; an absent
optional is None. Element types torch lacks are carried by the next wider one: int4 and int2 by int8, uint4 and
uint2 by uint8, float4 and float8e8m0 by float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch.overrides import get_default_nowrap_functions

TORCH_DTYPE: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
for _name, _dtype in (
    ("INT2", torch.int8),
    ("UINT2", torch.uint8),
    ("FLOAT4E2M1", torch.float32),
    ("FLOAT8E8M0", torch.float32),
):
    if hasattr(TensorProto, _name):  # newer than the oldest onnx we accept
        TORCH_DTYPE[getattr(TensorProto, _name)] = _dtype


FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The dtypes that can carry a gradient."""


class ElementType(NamedTuple):
    """An ONNX element type and the torch dtype that carries it here."""

    elem_type: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Precision:
    """Which torch dtype stands for which, and where: what ``.double()`` or ``.to("cuda")`` change."""

    dtypes: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)
    device: torch.device | None = None

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtypes.get(dtype, dtype)

    def native(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of a model that ``dtype`` stands for; single precision before others."""
        return next((own for own in FLOAT_DTYPES if self.dtype(own) == dtype), dtype)

    @cached_property
    def is_own(self) -> bool:
        """Is everything what and where the model says?"""
        return not self.dtypes and self.device is None

    def value(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device=self.device, dtype=self.dtype(value.dtype))
        return [*map(self.value, value)] if isinstance(value, list) else value


_ONNX_TYPE = {dtype: elem_type for elem_type, dtype in reversed(TORCH_DTYPE.items())}

_SAME_BITS = {  # numpy extension types whose bits torch can reinterpret
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
}
_WIDER = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}
_WIDER |= {"float4_e2m1fn": np.float32, "float8_e8m0fnu": np.float32}


class Quantised(torch.Tensor):
    """Whole numbers of a narrow element type, carried by floats so that a gradient passes straight through rounding.

    Operators that only move or select values need not know: what they return is marked too. Those that compute with
    the numbers take ``plain`` of them. It becomes a tensor of ``element_dtype`` where it leaves the mirror.
    """

    element_dtype: torch.dtype

    @staticmethod
    def mark(value: torch.Tensor, element_dtype: torch.dtype) -> Quantised:
        marked = value.as_subclass(Quantised)
        marked.element_dtype = element_dtype
        return marked

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func is torch.autograd.grad or func in get_default_nowrap_functions():
            return result
        operands = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else (arg,))]
        source = next((value for value in operands if isinstance(value, Quantised)), None)
        return result if source is None else _mark_floats(result, source.element_dtype)


def _mark_floats(result: Any, element_dtype: torch.dtype) -> Any:
    if isinstance(result, (list, tuple)):
        marked = [_mark_floats(item, element_dtype) for item in result]
        return type(result)(*marked) if hasattr(result, "_fields") else type(result)(marked)
    return Quantised.mark(result, element_dtype) if is_float(result) else result


def plain(value: Any) -> Any:
    """A quantised tensor as the floats that carry it; anything else as it is."""
    if not isinstance(value, Quantised):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def materialise(value: Any) -> Any:
    """A quantised tensor as a tensor of its element type; anything else as it is."""
    return plain(value).to(value.element_dtype) if isinstance(value, Quantised) else value


def is_float(value: Any) -> bool:
    """Is it a tensor that can carry a gradient?"""
    return isinstance(value, torch.Tensor) and value.dtype in FLOAT_DTYPES


def elem_type_of(value: Any) -> int:
    """The TensorProto.DataType of a value as it stands; 0 for what is not a tensor."""
    if isinstance(value, torch.Tensor):
        return _ONNX_TYPE.get(value.element_dtype if isinstance(value, Quantised) else value.dtype, 0)
    return TensorProto.STRING if isinstance(value, np.ndarray) else 0


def to_torch(value: Any) -> Any:
    """A numpy value (array, scalar, list of them, None) as a torch value. The data are copied."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list):
        return [to_torch(item) for item in value]
    if isinstance(value, dict):
        return value
    array = np.array(value, order="C")
    if array.dtype.kind in "OUS":
        return array.astype(object)
    name = array.dtype.name
    if name in _SAME_BITS:
        bits, dtype = _SAME_BITS[name]
        return torch.from_numpy(array.view(bits)).view(dtype)
    return torch.from_numpy(array.astype(_WIDER[name]) if name in _WIDER else array)


def to_numpy(value: Any) -> Any:
    """A torch value as numpy (bfloat16 and float8 as their ml_dtypes); lists item by item."""
    if isinstance(value, (list, tuple)):
        return [to_numpy(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = materialise(value).detach().cpu().resolve_conj().resolve_neg().contiguous()
    elem_type = elem_type_of(value)
    name = str(value.dtype).removeprefix("torch.")
    if name in _SAME_BITS:
        bits = torch.int16 if _SAME_BITS[name][0] is np.int16 else torch.uint8
        return value.view(bits).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    return value.numpy()


def from_tensor_proto(tensor: TensorProto) -> Any:
    return to_torch(onnx.numpy_helper.to_array(tensor))
