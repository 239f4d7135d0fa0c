"""Scaled dot-product attention and rotary position embedding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_obd.mirror.axes import Node, ShrunkNode
from onnx_obd.mirror.registry import DType, OutputCount, op
from onnx_obd.mirror.second import Call


class Mask(NamedTuple):
    """What is added to the scores (bool: where False, minus infinity) and the query rows that may attend nothing."""

    bias: Tensor
    dead: Tensor

    def safe(self, dtype: torch.dtype) -> Tensor:
        """The bias with dead rows opened: their softmax is finite, and so is its gradient."""
        if self.bias.dtype == torch.bool:
            return self.bias | self.dead
        return self.bias.to(dtype).masked_fill(self.dead, 0)

    def additive(self, dtype: torch.dtype) -> Tensor:
        if self.bias.dtype != torch.bool:
            return self.bias.to(dtype)
        return torch.zeros_like(self.bias, dtype=dtype).masked_fill(~self.bias, -math.inf)


def make_mask(bias: Tensor | None, allowed: Tensor | None) -> Mask | None:
    """``bias`` (additive, or bool) where ``allowed`` (bool)."""
    if bias is None or bias.dtype == torch.bool:
        masks = [mask for mask in (bias, allowed) if mask is not None]
        if not masks:
            return None
        bias = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        return Mask(bias, ~bias.any(-1, keepdim=True))
    bias = bias if allowed is None else bias.masked_fill(~allowed, -math.inf)
    return Mask(bias, bias.isneginf().all(-1, keepdim=True))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float) -> Tensor:
    """softmax(scale q k^T + mask) v; zeros for a query that may attend nothing."""
    y = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.safe(q.dtype), scale=scale)
    return y if mask is None else y.masked_fill(mask.dead, 0)


class Scores(NamedTuple):
    """The four stages of the scores, as ``qk_matmul_output_mode`` numbers them."""

    product: Tensor
    capped: Tensor
    biased: Tensor
    softmax: Tensor


def scores(q, k, mask: Mask | None, scale: float, softcap: float = 0.0, precision=None) -> Scores:
    root = math.sqrt(scale)  # on either side, lest the product overflows in half precision
    product = (q * root) @ (k * root).mT
    capped = softcap * torch.tanh(product / softcap) if softcap else product
    if mask is None:
        return Scores(product, capped, capped, torch.softmax(capped, -1, dtype=precision).to(q.dtype))
    additive = mask.additive(q.dtype)
    safe = capped + additive.masked_fill(mask.dead, 0)
    softmax = torch.softmax(safe, -1, dtype=precision).to(q.dtype).masked_fill(mask.dead, 0)
    return Scores(product, capped, capped + additive, softmax)


def attend_second(q, k, v, stages: Scores, scale: float, h_y, h_stage=None, softcap: float = 0.0, mode: int = 3):
    """h of q, k, v and the bias from that of y = P v, P = softmax(S), S = scale q k^T (capped) + bias.

    dy_id/dS_ij = P_ij (v_jd - y_id), so h_S is exact, and with it those of v, k and the bias. That of q drops the
    cross terms between keys; as P does not see what all keys share, they are taken about their mean under P, which
    leaves those terms small. ``h_stage`` is the h of the stage ``mode``, where that is an output too.
    """
    p = stages.softmax
    y, square = p @ v, p.square()
    h_s = square * (h_y @ v.square().mT - 2 * (h_y * y) @ v.mT + (h_y * y.square()).sum(-1, keepdim=True))
    if h_stage is not None and mode == 3:
        h_s = h_s + square * (h_stage * (1 - 2 * p) + (square * h_stage).sum(-1, keepdim=True))
    if h_stage is not None and mode == 2:
        h_s = h_s + h_stage
    h_bias = h_s
    if h_stage is not None and mode == 1:
        h_s = h_s + h_stage
    if softcap:
        h_s = h_s * (1 - (stages.capped / softcap).square()).square()
    if h_stage is not None and mode == 0:
        h_s = h_s + h_stage
    h_s, mean = h_s * scale**2, p @ k
    h_q = h_s @ k.square() - 2 * mean * (h_s @ k) + mean.square() * h_s.sum(-1, keepdim=True)
    return h_q, h_s.mT @ q.square(), square.mT @ h_y, h_bias


# ---- ai.onnx


def _split_heads(x, heads):
    """[N, L, heads size] as [N, heads, L, size]."""
    return x if x.dim() == 4 else x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _arrange(q, k, v, past_key, past_value, q_num_heads, kv_num_heads):
    """Queries, present keys and present values by head; and keys and values repeated for every query head."""
    q, k, v = _split_heads(q, q_num_heads), _split_heads(k, kv_num_heads), _split_heads(v, kv_num_heads)
    if past_key is not None:
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    share = q.shape[1] // k.shape[1]
    return q, k, v, *((k, v) if share == 1 else (x.repeat_interleave(share, 1) for x in (k, v)))


def _allowed(q, k, past_key, nonpad, is_causal, left, right):
    """Which key each query may attend by position alone: [L, S] or [N, 1, L, S], None if every one."""
    if not is_causal and left < 0 and right < 0 and nonpad is None:
        return None
    length, total = q.shape[2], k.shape[2]
    row, column = torch.arange(length, device=q.device)[:, None], torch.arange(total, device=q.device)
    offset = 0 if past_key is None else past_key.shape[2]
    if nonpad is not None:
        nonpad = nonpad.view(-1, 1, 1, 1)
        offset = nonpad - length if past_key is None else offset
    ahead = column - row - offset
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if is_causal:
        allowed = ahead <= 0
    if left >= 0:
        allowed = allowed & (ahead >= -left)
    if right >= 0:
        allowed = allowed & (ahead <= right)
    return allowed if nonpad is None else allowed & (column < nonpad)


def _pad_mask(mask, total):
    """A mask shorter than the keys forbids the rest."""
    missing = 0 if mask is None else total - mask.shape[-1]
    return F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -math.inf) if missing > 0 else mask


def _attention_second(call: Call, h):
    get = call.attributes.get
    given = [*call.inputs, *[None] * 7][:7]
    wanted = [*call.wanted, *[False] * 7][:7]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() if x is not None and x.is_floating_point() else x for x in given[:6]]
        parts = _arrange(*leaves[:3], *leaves[4:6], get("q_num_heads"), get("kv_num_heads"))
        q, _, _, k, v = (x.detach() for x in parts)
        bias = _pad_mask(leaves[3], k.shape[2])
    allowed = _allowed(q, k, given[4], given[6], get("is_causal", 0), get("left_window_size", -1),
                       get("right_window_size", -1))  # fmt: skip
    mask = make_mask(None if bias is None else bias.detach(), allowed)
    scale, softcap = get("scale") or q.shape[-1] ** -0.5, get("softcap", 0.0)
    stages = scores(q, k, mask, scale, softcap)
    h_y, h_key, h_value, h_stage = [*h, *[None] * 4][:4]
    h_y = torch.zeros_like(call.outputs[0]) if h_y is None else h_y
    found = attend_second(q, k, v, stages, scale, _split_heads(h_y, q.shape[1]), h_stage, softcap,
                          get("qk_matmul_output_mode", 0))  # fmt: skip
    ends = [(parts[0], found[0]), (parts[1], h_key), (parts[2], h_value), (parts[3], found[1]), (parts[4], found[2])]
    if wanted[3]:
        ends.append((bias, found[3].sum_to_size(bias.shape)))
    ends = [(end, value) for end, value in ends if value is not None]
    targets = [leaf for leaf, want in zip(leaves, wanted, strict=False) if want]
    result = iter(torch.autograd.grad([e for e, _ in ends], targets, [value for _, value in ends], allow_unused=True))
    return [next(result) if want else None for want in wanted][: len(call.inputs)]


def _attention_axes(node: Node) -> str:
    """Heads go by groups: every key head with all the query heads that share it, or one query head of each group."""
    if node.rank == 4:
        q, k = f"b (head share={node.inputs[0].shape[1] // node.inputs[1].shape[1]}) _ _", "b head _ _"
        return f"{q}, {k}, {k}, {q}, {k}, {k} -> {q}, {k}, {k}, {q}"
    share = node.get("q_num_heads") // node.get("kv_num_heads")
    q, k = f"b _ (kv_num_heads share={share} _)", "b _ (kv_num_heads _)"
    cache, scores = "b kv_num_heads _ _", "b (kv_num_heads share) _ _"
    return f"{q}, {k}, {k}, {scores}, {cache}, {cache} -> {q}, {cache}, {cache}, {scores}"


def _spelled_query_heads(node: ShrunkNode) -> dict[str, Any]:
    if node.rank == 4:
        return {}
    return {"q_num_heads": spelled_heads(node, node.get("q_num_heads"))}


def spelled_heads(node: ShrunkNode, heads: int) -> int:
    """As many heads as are left of an output [N, L, heads size]."""
    return int(node.kept_outputs[0][2].sum()) * heads // node.outputs[0].shape[2]


@op("Attention", 23, 24, 25, second=_attention_second, axes=_attention_axes, spelled=_spelled_query_heads)
def attention(
    q, k, v, attn_mask=None, past_key=None, past_value=None, nonpad_kv_seqlen=None, *, is_causal=0,
    kv_num_heads=None, left_window_size=-1, q_num_heads=None, qk_matmul_output_mode=0, right_window_size=-1,
    scale=None, softcap=0.0, softmax_precision: DType | None = None, outputs: OutputCount = 1,
):  # fmt: skip
    merged, dtype = q.dim() == 3, q.dtype
    q, present_key, present_value, k, v = _arrange(q, k, v, past_key, past_value, q_num_heads, kv_num_heads)
    if dtype.itemsize < 4:  # rounded once, at the end
        q, k, v = q.float(), k.float(), v.float()
    scale, stage = scale or q.shape[-1] ** -0.5, None
    staged = softcap or softmax_precision or outputs > 3
    windowed = left_window_size >= 0 or right_window_size >= 0
    if is_causal and not staged and not windowed and attn_mask is past_key is nonpad_kv_seqlen is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        allowed = _allowed(q, k, past_key, nonpad_kv_seqlen, is_causal, left_window_size, right_window_size)
        mask = make_mask(_pad_mask(attn_mask, k.shape[2]), allowed)
        if staged:
            stages = scores(q, k, mask, scale, softcap, softmax_precision)
            y, stage = stages.softmax @ v, stages[qk_matmul_output_mode].to(dtype)
        else:
            y = attend(q, k, v, mask, scale)
    y = y.transpose(1, 2).flatten(2) if merged else y
    return (y.to(dtype), present_key, present_value, stage)[:outputs]


def _rotate(x, cos, sin, interleaved, sign=-1):
    """The pairs (a, b) of x turned: (a cos - b sin, a sin + b cos); ``sign`` +1 for the squared form."""
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    real, imaginary = a * cos + sign * (b * sin), a * sin + b * cos
    if interleaved:
        return torch.stack((real, imaginary), -1).flatten(-2)
    return torch.cat((real, imaginary), -1)


def _rotary(x, cos_cache, sin_cache, position_ids, interleaved, num_heads, rotary_embedding_dim, sign):
    heads = _split_heads(x, num_heads)
    size = rotary_embedding_dim or heads.shape[-1]
    cos, sin = (
        (cache if position_ids is None else cache[position_ids])[..., : size // 2].unsqueeze(1)
        for cache in (cos_cache, sin_cache)
    )
    turned = _rotate(heads[..., :size], cos, sin, interleaved, sign)
    y = turned if size == heads.shape[-1] else torch.cat((turned, heads[..., size:]), -1)
    return y.transpose(1, 2).reshape(x.shape) if x.dim() == 3 else y


def _rotary_second(call: Call, h):
    """Sums of products of one x and one cos or sin: the same at squares, with no difference but sums."""
    get = call.attributes.get
    squares = [value.square() if value.is_floating_point() else value for value in call.inputs]

    def squared(x, cos, sin, position_ids=None):
        return _rotary(x, cos, sin, position_ids, get("interleaved", 0), get("num_heads"),
                       get("rotary_embedding_dim", 0), 1)  # fmt: skip

    return Call(call.node, squared, {}, tuple(squares), call.outputs, call.wanted).vjp(h)


@op(
    "RotaryEmbedding", 23, second=_rotary_second,
    axes=lambda node: "b heads _ _" if node.rank == 4 else "b _ (num_heads _), _*, _*, _* -> b _ (num_heads _)",
)  # fmt: skip
def rotary_embedding(
    x, cos_cache, sin_cache, position_ids=None, *, interleaved=0, num_heads=None, rotary_embedding_dim=0
):
    return _rotary(x, cos_cache, sin_cache, position_ids, interleaved, num_heads, rotary_embedding_dim, -1)
