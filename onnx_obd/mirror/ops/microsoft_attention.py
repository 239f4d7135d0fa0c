"""com.microsoft: the attention operators that onnxruntime's optimiser and exporters write.

Around ONNX's Attention they add the input projection, biases, masks given by lengths, a mask of finite depth, rotary
embedding and caches. B batch, N heads, S queries, T keys, D head size; hidden size N D.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_obd.errors import ModelError
from onnx_obd.mirror.axes import Node, ShrunkNode
from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import attention as onnx_attention
from onnx_obd.mirror.ops import linear
from onnx_obd.mirror.ops import softmax as onnx_softmax
from onnx_obd.mirror.ops.attention import spelled_heads
from onnx_obd.mirror.products import Product, matrix_product, row_bias
from onnx_obd.mirror.registry import Ints, OutputCount, family

microsoft_op = family(domain="com.microsoft", second=composite)

_attend, _rotate = part(onnx_attention.attention), part(onnx_attention.rotary_embedding)
_matmul, _softmax = part(linear.matmul), part(onnx_softmax.softmax)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, N D] as [B, N, S, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def refuse(**settings) -> None:
    """Refuse what onnxruntime has on other devices or for decoding loops only."""
    for name, value in settings.items():
        if value is not None and value != 0:
            raise ModelError(f"the mirror does not have '{name}' of this attention operator")


def _mask_bias(mask: Tensor | None, queries: int, keys: int, causal: int, depth: float, like: Tensor) -> Tensor | None:
    """What a mask and causality add to the scores, [B or 1, 1, S, T]: ``depth`` where masked, -inf where in the future.

    The mask is [B, T], [B, S, T] or [B, 1, max, max] of 0 and 1, or the lengths [B], or the ends and starts [2 B] of
    the keys that count.
    """
    bias = None
    column, past = torch.arange(keys, device=like.device), keys - queries
    if mask is not None:
        if mask.dim() == 1:
            ends, starts = (mask, mask.new_zeros(())) if len(mask) == len(like) else mask.chunk(2)
            seen = (column < ends[:, None]) & (column >= starts.view(-1, 1))
        else:
            seen = mask[:, 0, past : past + queries, :keys] > 0 if mask.dim() == 4 else mask > 0
        bias = torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, depth)
        bias = bias[:, None, None] if bias.dim() == 2 else bias[:, None]
    if causal:
        future = column > past + torch.arange(queries, device=like.device)[:, None]
        bias = like.new_zeros(1, 1, 1, 1) if bias is None else bias
        bias = bias.masked_fill(future, -math.inf)
    return bias


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _extended(past: Tensor | None, new: Tensor) -> Tensor:
    return new if past is None else torch.cat((past, new), 2)


def _packed_axes(node: Node) -> str:
    """Queries, keys and values of every head side by side in the columns of the weights."""
    width = node.inputs[1].shape[1]
    sizes = [size // node.get("num_heads") for size in node.get("qkv_hidden_sizes") or [width // 3] * 3]
    columns = f"[{' + '.join(f'(num_heads {size})' for size in sizes)}]"
    past = "_ b num_heads _ _"
    return f"b t i, i {columns}, {columns}, _*, {past}, b num_heads _ _ -> b t (num_heads {sizes[2]}), {past}"


def _spelled_widths(node: ShrunkNode) -> dict[str, Any]:
    sizes = node.get("qkv_hidden_sizes")
    left, all_ = node.output_shape()[2], node.outputs[0].shape[2]
    return {"qkv_hidden_sizes": [size * left // all_ for size in sizes]} if sizes else {}


def _projection(position, inputs, attributes) -> Product:
    """Queries, keys and values of all heads are one product."""
    x, w, bias = (*inputs, None)[:3]
    return replace(matrix_product(1, x, w), outputs=None, bias=row_bias(2, bias))


@microsoft_op("Attention", 1, weights=(1,), axes=_packed_axes, spelled=_spelled_widths, product=_projection)
def attention(
    input, weights, bias=None, mask_index=None, past=None, attention_bias=None, past_sequence_length=None, *,
    do_rotary=0, mask_filter_value=-10000.0, num_heads, past_present_share_buffer=0, qkv_hidden_sizes=None,
    rotary_embedding_dim=0, scale=None, unidirectional=0, outputs: OutputCount = 1,
):  # fmt: skip
    """Self-attention of input W + bias = [Q | K | V]; past and present are keys over values [2, B, N, T, D]."""
    refuse(do_rotary=do_rotary, past_present_share_buffer=past_present_share_buffer)
    projected = _matmul(input, weights)
    projected = projected if bias is None else projected + bias
    return self_attention(
        projected, mask_index, past, attention_bias, num_heads, mask_filter_value, qkv_hidden_sizes, scale,
        unidirectional, outputs,
    )  # fmt: skip


def self_attention(
    projected, mask_index, past, attention_bias, num_heads, mask_filter_value, qkv_hidden_sizes, scale,
    unidirectional, outputs,
):  # fmt: skip
    """Attention behind its input projection [B, S, Q | K | V]."""
    q, k, v = projected.split(qkv_hidden_sizes or [projected.shape[-1] // 3] * 3, -1)
    q, k, v = (_split_heads(x, num_heads) for x in (q, k, v))
    if past is not None:
        k, v = _extended(past[0], k), _extended(past[1], v)
    mask = _mask_bias(mask_index, q.shape[2], k.shape[2], unidirectional, mask_filter_value, q)
    (y,) = _attend(q, k, v, _add(mask, attention_bias), scale=scale)
    return _merge_heads(y) if outputs == 1 else (_merge_heads(y), torch.stack((k, v)))


def _projected_axes(node: Node) -> str:
    """By the four forms of the inputs: three of width N D, or keys and values by head, or packed in one."""
    q, k, v = (node.get(name) for name in ("query", "key", "value"))
    heads = node.get("num_heads")
    width = q.shape[-1] if q.dim() == 5 else q.shape[2] // heads
    size = width if v is None else v.shape[2] // heads if v.dim() == 3 else v.shape[3]
    bias = f"[(num_heads {width}) + (num_heads {width}) + (num_heads {size})]"
    cache, own, y = "b num_heads _ _", f"b _ (num_heads {width})", f"b _ (num_heads {size})"
    packed = "b _ num_heads _ _"
    if q.dim() == 5:
        own, keys, values = packed, "", ""
    elif k.dim() == 5:
        keys, values = packed, ""
    else:
        keys, values = (own, y) if k.dim() == 3 else (cache, cache)
    return f"{own}, {keys}, {values}, {bias}, _*, {cache}, {cache}, {cache} -> {y}, {cache}, {cache}"


@microsoft_op("MultiHeadAttention", 1, axes=_projected_axes)
def multi_head_attention(
    query, key=None, value=None, bias=None, key_padding_mask=None, attention_bias=None, past_key=None,
    past_value=None, past_sequence_length=None, cache_indirection=None, *, mask_filter_value=-10000.0, num_heads,
    scale=None, unidirectional=0, outputs: OutputCount = 1,
):  # fmt: skip
    """Attention of projected queries, keys and values; [B, S, N, 3, D] and [B, T, N, 2, D] hold them interleaved."""
    refuse(past_sequence_length=past_sequence_length)
    q, k, v = _unpacked(query, key, value, num_heads)
    if bias is not None:
        width = q.shape[1] * q.shape[3]
        shares = bias.split([width, width, len(bias) - 2 * width])
        q, k, v = (x + share.view(x.shape[1], 1, -1) for x, share in zip((q, k, v), shares, strict=True))
    k, v = _extended(past_key, k), _extended(past_value, v)
    mask = _mask_bias(key_padding_mask, q.shape[2], k.shape[2], unidirectional, mask_filter_value, q)
    (y,) = _attend(q, k, v, _add(mask, attention_bias), scale=scale)
    return (_merge_heads(y), k, v)[:outputs]


def _unpacked(query, key, value, heads: int):
    """Queries, keys and values by head."""
    if query.dim() == 5:
        return (x.transpose(1, 2) for x in query.unbind(3))
    if key.dim() == 5:
        return _split_heads(query, heads), *(x.transpose(1, 2) for x in key.unbind(3))
    if key.dim() == 4:  # keys of a cross-attention, projected once for all steps
        return _split_heads(query, heads), key, value
    return (_split_heads(x, heads) for x in (query, key, value))


def _rotary_axes(node: Node) -> str:
    if node.rank == 4:
        return "b heads _ _, _*, _*, _* -> b heads _ _"
    own = "(num_heads _)" if node.get("num_heads") else f"(heads {2 * node.inputs[2].shape[1]})"
    return f"b _ {own}, _*, _*, _* -> b _ {own}"


@microsoft_op("RotaryEmbedding", 1, axes=_rotary_axes)
def rotary_embedding(
    input, position_ids, cos_cache, sin_cache, *, interleaved=0, is_packed_batching=0, num_heads=0,
    rotary_embedding_dim=0, scale=1.0,
):  # fmt: skip
    """ONNX's RotaryEmbedding; one position alone is that of the first token of every sequence."""
    refuse(is_packed_batching=is_packed_batching)
    length, batch = input.shape[-2], len(input)
    if position_ids.dim() == 1:
        position_ids = (position_ids + torch.arange(length, device=input.device)).expand(batch, length)
    heads = num_heads or input.shape[-1] // (2 * cos_cache.shape[1])
    return _rotate(
        input, cos_cache, sin_cache, position_ids, interleaved=interleaved, num_heads=heads,
        rotary_embedding_dim=rotary_embedding_dim,
    )  # fmt: skip


def _grouped_axes(node: Node) -> str:
    """Queries, keys and values apart, or side by side in one input."""
    share, cache = node.get("num_heads") // node.get("kv_num_heads"), "b kv_num_heads _ _"
    packed = node.get("key") is None
    size = node.outputs[0].shape[2] // node.get("num_heads")
    q, k = f"(kv_num_heads share={share} {size})", f"(kv_num_heads {size})"
    inputs = f"b _ [{q} + {k} + {k}], , " if packed else f"b _ {q}, b _ {k}, b _ {k}"
    others = "_*, _*, _*, _*, _*, b (kv_num_heads share) _ _, (kv_num_heads share)"
    return f"{inputs}, {cache}, {cache}, {others} -> b _ {q}, {cache}, {cache}"


@microsoft_op(
    "GroupQueryAttention", 1,
    axes=_grouped_axes, spelled=lambda node: {"num_heads": spelled_heads(node, node.get("num_heads"))},
)  # fmt: skip
def group_query_attention(
    query, key, value, past_key, past_value, seqlens_k, total_sequence_length: Ints, cos_cache=None, sin_cache=None,
    position_ids=None, attention_bias=None, head_sink=None, k_scale=None, v_scale=None, q_norm_weight=None,
    k_norm_weight=None, *, causal=1, do_rotary=0, k_quant_type="NONE", kv_cache_bit_width=None, kv_num_heads,
    local_window_size=-1, num_heads, qk_norm_epsilon=1e-6, qk_output=0, rotary_interleaved=0, scale=None,
    sliding_window_cache=0, smooth_softmax=-1, softcap=0.0, v_quant_type="NONE", outputs: OutputCount = 1,
):  # fmt: skip
    """Attention in which groups of query heads share keys and values, over a cache that holds ``seqlens_k`` + 1 keys.

    In the first step (S = total sequence length) the cache is empty. ``head_sink`` (zeros with ``smooth_softmax``) is
    one more score of every query, which takes its share of the softmax and has no value.
    """
    refuse(k_scale=k_scale, q_norm_weight=q_norm_weight, sliding_window_cache=sliding_window_cache)
    if key is None:
        heads = num_heads + 2 * kv_num_heads
        q, k, v = _split_heads(query, heads).split([num_heads, kv_num_heads, kv_num_heads], 1)
    else:
        q, k, v = _split_heads(query, num_heads), _split_heads(key, kv_num_heads), _split_heads(value, kv_num_heads)
    length, total = q.shape[2], total_sequence_length[0]
    before = seqlens_k.reshape(-1, 1) * 0 if length == total else seqlens_k.reshape(-1, 1) + 1 - length
    positions = before + torch.arange(length, device=q.device)
    if do_rotary:
        own = positions if position_ids is None or length == total else position_ids
        q, k = (_rotate(x, cos_cache, sin_cache, own, interleaved=rotary_interleaved) for x in (q, k))
    k, v = _cached(past_key, k, positions, total), _cached(past_value, v, positions, total)
    column = torch.arange(total, device=q.device)
    ahead = column - positions[:, None, :, None]
    seen = column <= seqlens_k.view(-1, 1, 1, 1)
    if causal:
        seen = seen & (ahead <= 0)
    if local_window_size > 0:
        seen = seen & (ahead > -local_window_size)
    bias = _add(torch.zeros_like(ahead, dtype=q.dtype).masked_fill(~seen, -math.inf), attention_bias)
    share = num_heads // kv_num_heads
    keys, values = (x[:, :, :total].repeat_interleave(share, 1) for x in (k, v))
    if head_sink is None and smooth_softmax != 1:
        (y,) = _attend(q, keys, values, bias, scale=scale, softcap=softcap)
    else:
        sink = q.new_zeros(num_heads) if head_sink is None else head_sink
        y = _attend_with_sink(q, keys, values, bias, sink, scale, softcap)
    return (_merge_heads(y), k, v)[:outputs]


def _cached(past: Tensor | None, new: Tensor, positions: Tensor, total: int) -> Tensor:
    """The cache with the new rows at their positions, nothing behind them; it grows where it is too short."""
    if past is None:
        return new
    room = F.pad(past, (0, 0, 0, max(0, total - past.shape[2])))
    unused = torch.arange(room.shape[2], device=new.device) > positions[:, -1:]
    room = room.masked_fill(unused[:, None, :, None], 0)
    return room.scatter(2, positions[:, None, :, None].expand(new.shape).long(), new)


def _attend_with_sink(q, k, v, bias, sink, scale: float | None, softcap: float) -> Tensor:
    scores = _matmul(q, k.mT) * (scale or q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    sink = sink.view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return _matmul(_softmax(torch.cat((scores + bias, sink), -1), axis=-1)[..., :-1], v)
