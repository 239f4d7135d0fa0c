"""The parts of a run whose backward pass carries h, LeCun's second derivatives, instead of gradients.

The recursion is back-propagation with every Jacobian squared, so torch's own engine runs it: a part is a call that
records its rule for the backward pass. Nodes are parts. What only moves elements needs no rule, since of zeros and
ones the square is the same; summing over uses, and dropping what is no longer needed, is the engine's work.

Some nodes are made of parts themselves. The exact rule of an LSTM over its steps, or of attention in three operands,
needs its whole Jacobian. LeCun's recursion drops cross terms between nodes; a composite rule drops them between the
parts of one node as well, so it gives exactly what the same network written out as primitive nodes would. These parts
need no description: every torch call in the operator's function is one. Where the function uses another operator
(``part``), that is one part with its own rule; and the nodes in the bodies of If, Loop and Scan are parts too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from onnx_obd.errors import UsageError
from onnx_obd.mirror.program import BoundBody, CallWithBodies, Env, Program, Step
from onnx_obd.mirror.registry import Operator, operator_of
from onnx_obd.mirror.second import BY_GRAPH, Call, SecondRule, bend, elementwise, movement, multilinear, probes, unit
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


Slopes = list[tuple]
"""Of every part, in the order of the run, the gradients of its outputs."""


class _Part(torch.autograd.Function):
    """One part: forwards it is ``call.function``, backwards it carries h by a rule instead of the gradient."""

    @staticmethod
    def forward(ctx: Any, rule: SecondRule, call: Call, slopes: tuple | None, *values: Any) -> Any:
        call.inputs, call.wanted = values, ctx.needs_input_grad[3:]
        results = call.graph()[1] if rule in BY_GRAPH else call.function(*values)
        single = not isinstance(results, tuple) or (rule in BY_GRAPH and len(results) == 1)
        results = results if isinstance(results, tuple) else (results,)
        if getattr(rule, "reads_outputs", True):
            call.outputs = tuple(value.detach() if isinstance(value, Tensor) else value for value in results)
        ctx.rule, ctx.call, ctx.slopes = rule, call, slopes
        ctx.set_materialize_grads(False)
        results = tuple(value.detach() if isinstance(value, Tensor) else value for value in results)
        return results[0] if single else results

    @staticmethod
    def backward(ctx: Any, *h: Tensor | None) -> tuple:
        call, slopes = ctx.call, ctx.slopes
        ctx.call = ctx.slopes = None  # its values are needed no more
        found = [*ctx.rule(call, h)] if any(value is not None for value in h) else [None] * len(call.inputs)
        if slopes is not None and any(value is not None for value in slopes):
            terms = _bend(call, slopes)
            found = [b if a is None else a if b is None else a + b for a, b in zip(found, terms, strict=False)]
        return None, None, None, *found, *(None,) * (len(call.inputs) - len(found))


def _bend(call: Call, slopes: Sequence[Tensor | None]) -> list[Tensor | None]:
    try:
        return bend(call, slopes)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"node {call.node} has no second derivative ({reason}); use another --curvature") from error


@dataclass
class Recursion:
    """What the parts of one run share.

    ``generator`` draws the probes of estimated rules, and ``estimated`` receives the nodes that have none but these.
    The full form needs two runs: the first, with ``noted``, is an ordinary one that notes the outputs of every part;
    the second, with their gradients as ``slopes``, adds to each part's rule its ``bend``.
    """

    generator: torch.Generator | None = None
    estimated: set[str] | None = None
    noted: list[tuple] | None = None
    slopes: Iterator[tuple] | None = None
    inside: bool = False

    def run_step(self, step: Step, values: Sequence[Any]) -> tuple:
        """The outputs of a node on ``values``."""
        values = step.read_host(values)
        result = self.run_operator(step.node, step.operator, step.call, step.attributes, values)
        return result if isinstance(result, tuple) else (result,)

    def run_operator(
        self, node: str, operator: Operator, function: Callable, attributes: Mapping[str, Any], values: Sequence[Any]
    ) -> Any:
        rule = operator.second
        if not operator.differentiable:
            with torch.no_grad():
                return function(*values)
        if not _carries_gradient(values):
            return function(*values)
        if rule is movement or (rule is unit and _all_differ(values)):
            with self._one_part():  # of a movement the Jacobian is its own square
                return function(*values)
        if rule is composite:
            with _Parts(self, node):
                return function(*values)
        if rule is through_bodies:
            own, bodies = function.split(values)
            parts = {name: _ByRules(body.program, body.captured, self) for name, body in bodies.items()}
            return function.function(*own, **parts)
        if rule is None and self.estimated is not None:
            self.estimated.add(node)
        return self.run_part(node, rule or probes, function, attributes, values)

    def run_part(
        self, node: str, rule: SecondRule, function: Callable, attributes: Mapping[str, Any], values: Sequence[Any]
    ) -> Any:
        with self._one_part():
            if self.noted is not None:
                result = function(*values)
                self.noted.append(result if isinstance(result, tuple) else (result,))
                return result
            call = Call(node, function, attributes, (), (), (), self.generator, self.estimated)
            return _Part.apply(rule, call, None if self.slopes is None else next(self.slopes), *values)

    @contextmanager
    def _one_part(self) -> Iterator[None]:
        """What runs within a part is not made of parts."""
        self.inside, before = True, self.inside
        try:
            yield
        finally:
            self.inside = before


_running: ContextVar[tuple[Recursion, str] | None] = ContextVar("running", default=None)
"""The recursion and the node whose torch calls are parts now."""


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator's function for use in that of another: in a composite rule it is one part, with the operator's rule.

    It is called with the inputs positional and the attributes as keywords.
    """
    operator = operator_of(function)

    def run(*inputs: Any, **attributes: Any) -> Any:
        running = _running.get()
        if running is None or running[0].inside:
            return function(*inputs, **attributes)
        recursion, node = running
        return recursion.run_operator(node, operator, partial(function, **attributes), attributes, inputs)

    return run


class _Parts(TorchFunctionMode):
    """While it is active every torch call is a part, but for movements."""

    def __init__(self, recursion: Recursion, node: str):
        super().__init__()
        self.recursion, self.node = recursion, node

    def __enter__(self) -> Any:
        self.token = _running.set((self.recursion, self.node))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _running.reset(self.token)
        super().__exit__(*error)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        keywords = kwargs or {}
        if self.recursion.inside:
            return function(*args, **keywords)
        name = getattr(function, "__name__", str(function))
        rule = _RULES.get(name)
        if rule not in (None, movement) and _carries_gradient(args):
            run = partial(function, **keywords) if keywords else function
            return self.recursion.run_part(self.node, rule, run, {}, args)
        result = function(*args, **keywords)
        if rule is None and _carries_gradient((result,)):
            raise NotImplementedError(f"composite: no second-derivative rule for torch's '{name}'")
        return result


def _carries_gradient(values: Sequence[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                return True
        elif isinstance(value, (list, tuple)) and _carries_gradient(value):
            return True
    return False


def _all_differ(values: Sequence[Any]) -> bool:
    return len({id(value) for value in values}) == len(values)


def composite(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The rule of an operator whose torch calls are its parts.

    While it runs, a torch function mode is active: an operator with a fused kernel must then compute by its parts.
    """

    def run(*values: Any) -> Any:
        with _Parts(Recursion(call.generator, call.estimated), call.node):
            return call.function(*values)

    return replace(call, function=run, _graph=None).vjp(h)


def through_bodies(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The rule of an operator that runs graphs (If, Loop, Scan): their nodes are its parts.

    The operator itself may only move values: choose, slice, stack, hand on.
    """
    operator: CallWithBodies = call.function
    recursion = Recursion(call.generator, call.estimated)

    def run(*values: Any) -> Any:
        own, bodies = operator.split(values)
        parts = {name: _ByRules(body.program, body.captured, recursion) for name, body in bodies.items()}
        return operator.function(*own, **parts)

    return replace(call, function=run, _graph=None).vjp(h)


class _ByRules(BoundBody):
    """A body whose nodes carry h backwards by their rules."""

    def __init__(self, program: Program, captured: Sequence[Any], recursion: Recursion):
        super().__init__(program, captured)
        self.recursion = recursion

    def __call__(self, *inputs: Any) -> tuple:
        env = self.program.start((*inputs, *self.captured))
        run_by_rules(self.program, env, self.recursion)
        return tuple(env[slot] for slot in self.program.outputs)


def run_by_rules(program: Program, env: Env, recursion: Recursion, kept: Sequence[int] = ()) -> None:
    """Run every step so that what torch then carries back is h; values are dropped after their last use but ``kept``.

    A value in ``kept`` that no gradient reaches becomes one whose h can be asked for.
    """
    kept = frozenset(kept)
    for step in program.steps:
        results = recursion.run_step(step, [env[slot] for slot in step.inputs])
        for slot, value in zip(step.outputs, results, strict=False):
            env[slot] = own(value) if slot in kept else value
        for slot in step.release:
            if slot not in kept:
                env[slot] = None


def own(value: Any) -> Any:
    """A value as a tensor of its own whose h can be asked for; a sequence's item by item."""
    if isinstance(value, list):
        return [own(item) for item in value]
    if not is_float(value):
        return value
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
