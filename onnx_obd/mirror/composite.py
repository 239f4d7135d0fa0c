"""Second derivatives through an operator made of parts: the recursion goes through the parts one by one.

The exact rule of an LSTM over its steps, or of attention in three operands, needs its whole Jacobian. LeCun's
recursion drops cross terms between nodes; a composite rule drops them between the parts of one node as well, so it
gives exactly what the same network written out as primitive nodes would.

The parts need no description: the operator's function runs once more, and every torch call in it that is not a
movement records, for its backward pass, the squared Jacobian instead of the Jacobian. What autograd then carries back
is h, summed over uses. Where the function uses another operator (``part``), that is one part with its own rule; and
with the nodes of its bodies for parts, the same serves If, Loop and Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from onnx_obd.mirror.program import BoundBody, CallWithBodies, Env, Program, Step
from onnx_obd.mirror.registry import Operator, operator_of
from onnx_obd.mirror.second import Call, SecondRule, elementwise, movement, multilinear, probes
from onnx_obd.mirror.values import is_float

_KINDS = {
    elementwise: """__rdiv__ __rsub__ _threshold add celu clamp cos div elu erf exp gelu hardsigmoid hardswish
        leaky_relu log masked_fill mish mul neg pow relu rsqrt rsub sigmoid silu sin softplus softsign sqrt square sub
        tanh true_divide where""",
    multilinear: "addmm baddbmm bmm einsum linear matmul mm",
    movement: """__get__ __getitem__ as_subclass broadcast_to cat chunk clone contiguous embedding expand expand_as
        flatten flip float gather index_select movedim narrow pad permute repeat repeat_interleave reshape scatter
        select split squeeze stack sum swapaxes t to transpose type_as unbind unflatten unfold unsqueeze view""",
}
_RULES = {name: rule for rule, names in _KINDS.items() for name in names.split()}


class _Part(torch.autograd.Function):
    """One part: forwards it is ``part.function``, backwards it carries h by a rule instead of the gradient."""

    @staticmethod
    def forward(ctx: Any, rule: SecondRule, part: Call, *values: Any) -> Any:
        result = part.function(*values)
        outputs = result if isinstance(result, tuple) else (result,)
        outputs = tuple(value.detach() if isinstance(value, Tensor) else value for value in outputs)
        ctx.rule, ctx.call = rule, replace(part, inputs=values, outputs=outputs)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> tuple:
        call = replace(ctx.call, wanted=ctx.needs_input_grad[2:])
        found = tuple(ctx.rule(call, h))
        return None, None, *found, *(None,) * (len(call.inputs) - len(found))


def _run_part(whole: Call, node: str, operator: Operator, function: Callable, attributes: Any, values: Sequence) -> Any:
    """Run an operator inside of ``whole`` as one part of it, with the operator's rule."""
    if not operator.differentiable:
        with torch.no_grad():
            return function(*values)
    if not _carries_gradient(values):
        return function(*values)
    if operator.second is None and whole.estimated is not None:
        whole.estimated.add(node)
    call = replace(whole, node=node, function=function, attributes=dict(attributes), _graph=None)
    return _Part.apply(operator.second or probes, call, *values)


_whole: ContextVar[Call | None] = ContextVar("whole", default=None)
"""The call whose composite rule is running."""


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator's function for use in that of another: in a composite rule it is one part, with the operator's rule.

    It is called with the inputs positional and the attributes as keywords.
    """
    operator = operator_of(function)

    def run(*inputs: Any, **attributes: Any) -> Any:
        whole = _whole.get()
        if whole is None:
            return function(*inputs, **attributes)
        return _run_part(whole, whole.node, operator, partial(function, **attributes), attributes, inputs)

    return run


class _Parts(TorchFunctionMode):
    def __init__(self, whole: Call):
        super().__init__()
        self.whole = whole

    def __enter__(self) -> Any:
        self.token = _whole.set(self.whole)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _whole.reset(self.token)
        super().__exit__(*error)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        keywords = kwargs or {}
        name = getattr(function, "__name__", str(function))
        rule = _RULES.get(name)
        if rule not in (None, movement) and _carries_gradient(args):
            call = Call(name, lambda *values: function(*values, **keywords), {}, (), (), ())
            return _Part.apply(rule, call, *args)
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
        with _Parts(call):
            return call.function(*values)

    return replace(call, function=run, _graph=None).vjp(h)


def through_bodies(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The rule of an operator that runs graphs (If, Loop, Scan): their nodes are its parts.

    The operator itself may only move values: choose, slice, stack, hand on.
    """
    operator: CallWithBodies = call.function

    def run(*values: Any) -> Any:
        own, bodies = operator.split(values)
        parts = {name: _ByRules(body.program, body.captured, call) for name, body in bodies.items()}
        return operator.function(*own, **parts)

    return replace(call, function=run, _graph=None).vjp(h)


class _ByRules(BoundBody):
    """A body whose nodes carry h backwards by their rules."""

    def __init__(self, program: Program, captured: Sequence[Any], call: Call):
        super().__init__(program, captured)
        self.call = call

    def __call__(self, *inputs: Any) -> tuple:
        program = self.program
        env = program.start((*inputs, *self.captured))
        for step in program.steps:
            for slot, value in zip(step.outputs, self._run(step, env), strict=False):
                env[slot] = value
        return tuple(env[slot] for slot in program.outputs)

    def _run(self, step: Step, env: Env) -> tuple:
        values = step.read_host([env[slot] for slot in step.inputs])
        result = _run_part(self.call, step.node, step.operator, step.call, step.attributes, values)
        return result if isinstance(result, tuple) else (result,)
