"""Changing the element type; Identity."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto

from onnx_obd.mirror.axes import ELEMENTWISE
from onnx_obd.mirror.registry import ElemType, ElemTypes, Like, op
from onnx_obd.mirror.second import movement
from onnx_obd.mirror.values import TORCH_DTYPE, ElementType, Quantised, elem_type_of, materialise, plain

NARROW = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}
"""Element types whose carrier is wider than they are, and their width in bits."""


@op("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25, second=movement, axes=ELEMENTWISE)
def identity(x):
    return x


@op("Cast", 1, 6, 9, 13, 19, 21, 23, 24, 25, 28, second=movement, axes=ELEMENTWISE)
def cast(x, *, to: ElemType, saturate=1, round_mode="up", like: Like):
    return convert(_numbers(x, like), to, saturate, round_mode)


@op("CastLike", 15, 19, 21, 23, 24, 25, second=movement, axes=ELEMENTWISE)
def cast_like(x, target_type, *, saturate=1, round_mode="up", elem_types: ElemTypes = (0, 0)):
    dtype = target_type.element_dtype if isinstance(target_type, Quantised) else target_type.dtype
    to = ElementType(elem_types[1] or elem_type_of(target_type), dtype)
    return convert(_numbers(x, target_type), to, saturate, round_mode)


def _numbers(x: torch.Tensor | np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Numbers spelled by strings, which are on the host wherever the mirror is, as a tensor beside ``like``."""
    return torch.from_numpy(x.astype(np.float64)).to(like.device) if isinstance(x, np.ndarray) else x


@op("BitCast", 26, differentiable=False)
def bit_cast(x, *, to: ElemType, elem_types: ElemTypes = (0,)):
    # In a mirror of another precision the floats are first given the width that the model says they have.
    bits = materialise(x).to(TORCH_DTYPE.get(elem_types[0], x.dtype)).view(TORCH_DTYPE[to.elem_type])
    return _wrap(bits, to.elem_type).to(to.dtype)


def convert(x, to: ElementType, saturate=1, round_mode="up"):
    """``x`` as the element type ``to``, by the rules of Cast. A gradient passes between floats."""
    if isinstance(x, Quantised) and _holds(to, x.element_dtype):
        return Quantised.mark(plain(x), to.dtype)
    x = plain(x) if to.dtype.is_floating_point else materialise(x)
    match to.elem_type:
        case TensorProto.FLOAT4E2M1:
            return _round_float4(x.to(to.dtype))
        case TensorProto.FLOAT8E8M0:
            return _round_power_of_two(x.to(to.dtype), saturate, round_mode)
        case narrow if narrow in NARROW:
            return _wrap(x.to(torch.int64), narrow).to(to.dtype)
    if to.dtype.itemsize == 1 and to.dtype.is_floating_point:
        return _to_float8(x if x.is_floating_point() else x.float(), to.dtype, saturate)
    return x.to(to.dtype)


def _holds(to: ElementType, dtype: torch.dtype) -> bool:
    """Do all whole numbers of ``dtype`` belong to ``to``, an integer type that tensors are quantised to?"""
    wide = to.dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32) and to.elem_type not in NARROW
    if dtype.is_floating_point or not wide:
        return False
    given, wanted = torch.iinfo(dtype), torch.iinfo(to.dtype)
    return wanted.min <= given.min and given.max <= wanted.max


def _to_float8(x: torch.Tensor, dtype: torch.dtype, saturate: int) -> torch.Tensor:
    largest = torch.finfo(dtype).max
    if saturate:
        x = x.clamp(-largest, largest)
    elif dtype == torch.float8_e4m3fn:  # torch saturates this one; what would round to more than 448 is NaN
        x = torch.where(x.abs() > 464, torch.nan, x)
    return x.to(dtype)


def _wrap(x: torch.Tensor, elem_type: int) -> torch.Tensor:
    """The low bits of whole numbers, read as the narrow type; other types as they are."""
    if elem_type not in NARROW:
        return x
    size = 1 << NARROW[elem_type]
    x = x & (size - 1)
    return x if TORCH_DTYPE[elem_type] == torch.uint8 else torch.where(x >= size // 2, x - size, x)


def _round_float4(x: torch.Tensor) -> torch.Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with either sign; ties to the even mantissa. NaN becomes 6."""
    size = x.abs().clamp_max(6).nan_to_num(6.0)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    return torch.copysign((size / step).round() * step, x)


def _round_power_of_two(x: torch.Tensor, saturate: int, round_mode: str) -> torch.Tensor:
    """Float8E8M0 has no sign and no mantissa: 2^-127 to 2^127, and NaN."""
    mantissa, exponent = torch.frexp(x.double())  # x = mantissa 2^exponent with the mantissa in [0.5, 1)
    up = {"up": mantissa > 0.5, "down": mantissa < 0, "nearest": mantissa >= 0.75}[round_mode]
    exponent = exponent - 1 + up.to(exponent.dtype)
    exponent = torch.where(x == 0, -128, torch.where(x.isinf(), 128, exponent))
    power = torch.ldexp(torch.ones_like(mantissa), exponent.clamp(-127, 127))
    invalid = x.isnan() if saturate else x.isnan() | (exponent.abs() > 127)
    return torch.where(invalid, torch.nan, power).to(x.dtype)
