"""com.microsoft: weights of a few bits, several to a byte, with a scale for each block.

Numbers q of ``bits`` bits stand in a byte from the low bits upwards; the weight is (q - zero_point) scale, where scale
and zero point belong to ``block_size`` neighbours along an axis. Without a zero point it is the middle, 2^(bits - 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from onnx_obd.mirror.axes import Node
from onnx_obd.mirror.composite import composite
from onnx_obd.mirror.registry import ElemTypes, Stored, family
from onnx_obd.mirror.values import Quantised, plain

microsoft_op = family(domain="com.microsoft", second=composite)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes [..., n] as whole numbers [..., n * 8 / bits]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """The inverse of ``unpack``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=numbers.device)
    return (numbers.to(torch.uint8).unflatten(-1, (-1, 8 // bits)) << shifts).sum(-1, dtype=torch.uint8)


def in_blocks(parameter: Tensor, size: int, axis: int, length: int) -> Tensor:
    """A number for each block, repeated for its elements along the axis."""
    return parameter.repeat_interleave(size, axis).narrow(axis, 0, length)


# ---- a matrix [N, K], stored as [N, blocks of K, bytes]


def _matrix_numbers(b: Tensor, *, N, K, bits=4, **_) -> Tensor:
    return plain(b) if isinstance(b, Quantised) else unpack(b.view(N, -1), bits)[:, :K]


def _matrix_bytes(q: Tensor, b: Tensor, *, N, K, bits=4, **_) -> Tensor:
    """The bytes to store for q; what fills the last block up stays as it is in ``b``."""
    return pack(torch.cat((q, unpack(b.view(N, -1), bits)[:, K:]), 1), bits).view(b.shape)


def _matrix_grid(q: Tensor, scales, zero_points=None, *, N, K, block_size, bits=4, **_) -> tuple[Tensor, Tensor]:
    scales = scales.view(N, -1)
    if zero_points is None:
        zero_points = torch.full_like(scales, 1 << (bits - 1))
    elif zero_points.dtype == torch.uint8:
        zero_points = unpack(zero_points.view(N, -1), bits)[:, : scales.shape[1]]
    else:
        zero_points = zero_points.view(N, -1)
    return in_blocks(scales, block_size, 1, K), in_blocks(zero_points.to(scales.dtype), block_size, 1, K)


def _matrix_axes(node: Node) -> str:
    """The columns of W are packed in blocks."""
    scales = "N _" if node.inputs[2].dim() == 2 else "(N _)"
    return f"... i _, N _ _, {scales}, (N _), _, N -> ... i N"


@microsoft_op(
    "MatMulNBits", 1, weights=(1,), constants=(2,),
    stored=(Stored(1, (2, 3), _matrix_grid, _matrix_numbers, _matrix_bytes, lambda bits=4, **_: bits),),
    axes=_matrix_axes,
)  # fmt: skip
def matmul_nbits(
    a, b, scales, zero_points=None, g_idx=None, bias=None, *, K, N, accuracy_level=0, bits=4, block_size,
    weight_prepacked=0,
):  # fmt: skip
    """a W^T + bias. At accuracy level 4 the kernel rounds a to 8 bits, block by block."""
    q = _matrix_numbers(b, N=N, K=K, bits=bits)
    scale, zero_point = _matrix_grid(q, scales, zero_points, N=N, K=K, block_size=block_size, bits=bits)
    packed = zero_points is None or zero_points.dtype == torch.uint8
    if accuracy_level == 4 and bits > 2 and packed:
        a = _roundedin_blocks(a, block_size)
    return F.linear(a, (q.to(scale.dtype) - zero_point) * scale, bias)


def _roundedin_blocks(a: Tensor, size: int) -> Tensor:
    """``a`` rounded to 127 steps either way of the largest of each block; the gradient passes straight through."""
    value = a.detach()
    blocks = F.pad(value, (0, -a.shape[-1] % size)).unflatten(-1, (-1, size))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    rounded = (blocks / step.masked_fill(step == 0, 1)).round() * step
    return a + (rounded.flatten(-2)[..., : a.shape[-1]] - value)


# ---- a table of any rank


def _is_packed(elem_types) -> bool:
    """Bytes hold several numbers each; the element types int4 and uint4 one."""
    return elem_types[0] == TensorProto.UINT8


def _table_numbers(data: Tensor, *, bits=4, elem_types=(0,), **_) -> Tensor:
    if isinstance(data, Quantised):
        return plain(data)
    return unpack(data, bits) if _is_packed(elem_types) else data


def _table_bytes(q: Tensor, data: Tensor, *, bits=4, elem_types=(0,), **_) -> Tensor:
    return pack(q, bits) if _is_packed(elem_types) else q


def _table_bits(*, bits=4, elem_types=(0,), **_) -> int | None:
    return bits if _is_packed(elem_types) else None


def _table_grid(
    q: Tensor, scales, zero_points=None, *, bits=4, block_size=128, quantize_axis=1, elem_types=(0,), **_
) -> tuple[Tensor, Tensor]:
    packed, axis = _is_packed(elem_types), quantize_axis % q.dim()
    if zero_points is None:
        zero_points = torch.full_like(scales, 1 << (bits - 1) if packed else 0)
    elif packed:
        zero_points = unpack(zero_points, bits)[..., : scales.shape[-1]]
    length = q.shape[axis]
    return tuple(in_blocks(value.to(scales.dtype), block_size, axis, length) for value in (scales, zero_points))


@microsoft_op(
    "GatherBlockQuantized", 1, weights=(0,), constants=(2,),
    stored=(Stored(0, (2, 3), _table_grid, _table_numbers, _table_bytes, _table_bits),),
)  # fmt: skip
def gather_block_quantized(
    data, indices, scales, zero_points=None, *, bits=4, block_size=128, gather_axis=0, quantize_axis=1,
    elem_types: ElemTypes = (0, 0, 0, 0),
):  # fmt: skip
    """Gather of (q - zero_point) scale, in blocks along ``quantize_axis``; bytes are packed along the last axis."""
    settings = {"bits": bits, "elem_types": elem_types}
    q = _table_numbers(data, **settings)
    scale, zero_point = _table_grid(
        q, scales, zero_points, block_size=block_size, quantize_axis=quantize_axis, **settings
    )
    axis, index = gather_axis % q.dim(), indices.reshape(-1)
    q, scale, zero_point = (value.index_select(axis, index) for value in (q, scale, zero_point))
    values = (q.to(scale.dtype) - zero_point) * scale
    return values.reshape(*values.shape[:axis], *indices.shape, *values.shape[axis + 1 :])


# ---- a codebook


_CODEBOOKS = {
    0: (0.0, 0.0052083333, 0.6666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
        -0.0, -0.0052083333, -0.6666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25),
    1: (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
}  # fmt: skip
"""The levels of FP4 and of NF4 (Dettmers et al. 2023)."""


@microsoft_op("MatMulBnb4", 1)
def matmul_bnb4(a, b, absmax, *, K, N, block_size, quant_type, training_mode=0, transB=1):
    """a W^T (a W without ``transB``), W [N, K] of levels from a codebook; the first of two has the high bits."""
    levels = torch.tensor(_CODEBOOKS[quant_type], dtype=absmax.dtype, device=absmax.device)
    index = torch.stack((b >> 4, b & 15), -1).flatten()[: N * K]
    weight = (levels[index.long()] * in_blocks(absmax, block_size, 0, N * K)).view(N, K)
    return F.linear(a, weight if transB else weight.mT)
