"""Second derivatives through an operator made of parts: the recursion goes through the parts one by one.

The exact rule of an LSTM over its steps, or of attention in three operands, needs its whole Jacobian. LeCun's
recursion drops cross terms between nodes; a composite rule drops them between the parts of one node as well, so it
gives exactly what the same network written out as primitive nodes would.

The parts need no description: the operator's function runs once more, and every torch call in it that is not a
movement records, for its backward pass, the squared Jacobian instead of the Jacobian. What autograd then carries back
is h, summed over uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from onnx_obd.mirror.second import Call, SecondRule, elementwise, movement, multilinear
from onnx_obd.mirror.values import is_float


def softmax_rule(dim: int) -> SecondRule:
    """p = softmax(x): dp_j/dx_i = p_j (delta_ij - p_i), so h_in = p^2 ((1 - 2p) h_out + sum_j p_j^2 h_out[j])."""

    def rule(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        p, (h_out,) = call.outputs[0], h
        return [p.square() * ((1 - 2 * p) * h_out + (p.square() * h_out).sum(dim, keepdim=True))]

    return rule


_KINDS = {
    elementwise: """__rdiv__ __rsub__ _threshold add celu clamp cos div elu erf exp gelu hardsigmoid leaky_relu log
        masked_fill mul neg pow relu rsqrt rsub sigmoid silu sin softplus softsign sqrt square sub tanh true_divide
        where""",
    multilinear: "addmm baddbmm bmm einsum linear matmul mm",
    movement: """__get__ __getitem__ broadcast_to cat chunk clone contiguous expand expand_as flatten flip float gather
        index_select movedim narrow pad permute repeat repeat_interleave reshape select split squeeze stack sum
        swapaxes t to transpose type_as unbind unflatten unsqueeze view""",
}
_RULES = {name: rule for rule, names in _KINDS.items() for name in names.split()}


def _rule_of(name: str, args: Sequence[Any], keywords: dict[str, Any]) -> SecondRule | None:
    if name == "softmax":
        return softmax_rule(keywords.get("dim", args[1] if len(args) > 1 else -1))
    return _RULES.get(name)


class _Part(torch.autograd.Function):
    """A torch call whose backward pass carries h by a rule instead of the gradient."""

    @staticmethod
    def forward(ctx: Any, rule: SecondRule, function: Callable, *values: Any) -> Tensor:
        output = function(*values)
        ctx.rule, ctx.function, ctx.values, ctx.output = rule, function, values, output.detach()
        return output

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple:
        wanted = ctx.needs_input_grad[2:]
        call = Call("", ctx.function, {}, ctx.values, (ctx.output,), wanted)
        return None, None, *ctx.rule(call, [h])


class _Parts(TorchFunctionMode):
    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        keywords = kwargs or {}
        name = getattr(function, "__name__", str(function))
        rule = _rule_of(name, args, keywords)
        if rule not in (None, movement) and _carries_gradient(args):
            return _Part.apply(rule, lambda *values: function(*values, **keywords), *args)
        result = function(*args, **keywords)  # of a movement the Jacobian is its own square
        if rule is None and _carries_gradient(result if isinstance(result, (list, tuple)) else (result,)):
            raise NotImplementedError(f"composite: no second-derivative rule for torch's '{name}'")
        return result


def _carries_gradient(values: Sequence[Any]) -> bool:
    return any(is_float(value) and value.requires_grad for value in values)


def composite(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The rule of an operator whose torch calls are its parts.

    While it runs, a torch function mode is active: an operator with a fused kernel must then compute by its parts.
    """

    def run(*values: Any) -> Any:
        with _Parts():
            return call.function(*values)

    return replace(call, function=run, _graph=None).vjp(h)
