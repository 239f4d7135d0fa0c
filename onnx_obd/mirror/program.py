"""A compiled graph: numbered slots for values, and steps that read and write them.

Compiling resolves names, scopes, versions and attributes once, so that running is a loop over calls. A program
has no weights of its own: parameters and constants stand in the slots of the root program's template, and the
body of an If, Loop or Scan captures what it uses from outside as further inputs of its node.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from onnx_obd.errors import OnnxObdError
from onnx_obd.graph.weights import Path
from onnx_obd.mirror.registry import Operator
from onnx_obd.mirror.reuse import run_watched
from onnx_obd.mirror.slices import Watch
from onnx_obd.mirror.tracing import SMALL, run_joined
from onnx_obd.mirror.unrolled import Unrolled, node_failed

MAX_PLANS = 16
"""How many input signatures keep their specialised program."""

Env = list  # the value in each slot; None in slot 0 (an absent input) and where nothing stands yet


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    ``call`` takes the values of ``inputs``: those of the node itself, then what its bodies capture.
    ``attributes`` is what is bound in ``call``, for the second-derivative rules. ``host`` are the positions read on
    the host, ``bodies`` the names of the graph attributes, ``release`` the slots nobody reads afterwards. ``path`` is
    where the node stands in the ModelProto; None inside a function body that ONNX itself defines.
    """

    node: str
    operator: Operator
    call: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    host: tuple[int, ...] = ()
    bodies: tuple[str, ...] = ()
    release: tuple[int, ...] = ()
    path: Path | None = None

    def __call__(self, *values: Any) -> tuple:
        """Run it outside the main loop; the outputs as a tuple.

        Raises:
            ModelError: the operator failed; the message names the node.
        """
        try:
            result = self.call(*self.read_host(values))
        except OnnxObdError:
            raise
        except Exception as error:
            raise node_failed(self.node, error) from error
        return result if isinstance(result, tuple) else (result,)

    def read_host(self, values: Sequence[Any]) -> Sequence[Any]:
        if not self.host:
            return values
        values = list(values)
        for position in self.host:
            if position < len(values):
                values[position] = to_host(values[position])
        return values


def signature(value: Any) -> Any:
    """What a specialised program holds for: shape, strides, element type and device."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(signature, value))
    return getattr(value, "shape", None)


def to_host(value: Any) -> tuple | None:
    """A tensor read on the host: its elements as a tuple of Python numbers; anything else as it is."""
    return tuple(value.detach().reshape(-1).tolist()) if isinstance(value, torch.Tensor) else value


class BoundBody:
    """A graph attribute together with the values it captures: call it with the graph's inputs."""

    def __init__(self, program: Program, captured: Sequence[Any]):
        self.program = program
        self.captured = tuple(captured)

    def __call__(self, *inputs: Any) -> tuple:
        return self.program.run_for_shapes((*inputs, *self.captured))

    @property
    def no_steps(self) -> tuple[torch.Tensor | None, ...]:
        """What each output is when stacked over no iterations at all."""
        return self.program.no_steps


class CallWithBodies:
    """An operator with graph attributes; the captured values arrive after the node's own inputs."""

    def __init__(self, function: Callable, own_inputs: int, bodies: dict[str, tuple[Program, int]]):
        self.function, self.own_inputs, self.bodies = function, own_inputs, bodies

    def split(self, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, BoundBody]]:
        bound, start = {}, self.own_inputs
        for name, (program, count) in self.bodies.items():
            bound[name] = BoundBody(program, values[start : start + count])
            start += count
        return values[: self.own_inputs], bound

    def __call__(self, *values: Any) -> Any:
        own, bound = self.split(values)
        return self.function(*own, **bound)

    def with_captured(
        self, inputs: Sequence[int], fixed: Container[int], env: Env
    ) -> tuple[CallWithBodies, tuple[int, ...]]:
        """The same with the captured values that are fixed put into the bodies; and the inputs it takes then."""
        own, start, bodies = tuple(inputs[: self.own_inputs]), self.own_inputs, {}
        for name, (program, count) in self.bodies.items():
            captured = inputs[start : start + count]
            known = {position: env[slot] for position, slot in enumerate(captured, -count) if slot in fixed}
            bodies[name] = (program.given(known), count - len(known))
            own += tuple(slot for slot in captured if slot not in fixed)
            start += count
        return CallWithBodies(self.function, self.own_inputs, bodies), own


@dataclass
class Program:
    """Slots and steps. ``inputs`` are filled by the caller: the graph's inputs, then for a body its captures.

    ``no_steps``: of a body, what each output is when stacked over no iterations at all, by its declared type.
    ``steady``: of a specialised program, what its steps compute in shapes and strides that follow from the inputs'.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]
    template: Env
    no_steps: tuple[torch.Tensor | None, ...] = ()
    steady: frozenset[int] = frozenset()
    _recorded: Unrolled | None = field(init=False, default=None, repr=False)
    _unrecorded: Callable[[Env], tuple] | None = field(init=False, default=None, repr=False)
    _plans: dict[tuple, Program | None] = field(init=False, default_factory=dict, repr=False)

    def start(self, inputs: Iterable[Any]) -> Env:
        env = self.template.copy()
        for slot, value in zip(self.inputs, inputs, strict=True):
            env[slot] = value
        return env

    def run(self, inputs: Iterable[Any]) -> tuple:
        """The outputs. A value is dropped from memory after its last use."""
        return self.finish(self.start(inputs))

    def run_for_shapes(self, inputs: tuple) -> tuple:
        """As ``run``, by the program specialised for these shapes from the second time they are met."""
        key = tuple(map(signature, inputs))
        plan = self._plans.get(key)
        if plan is not None:
            return plan.run(inputs)
        if key in self._plans:
            self._plans[key], outputs = self.specialise(self.start(inputs), frozenset())
            return outputs
        if len(self._plans) < MAX_PLANS:
            self._plans[key] = None
        return self.run(inputs)

    def given(self, known: Mapping[int, Any]) -> Program:
        """The same program with the values of some inputs, by position, put in their place."""
        slots = {self.inputs[position]: value for position, value in known.items()}
        template = [slots.get(slot, value) for slot, value in enumerate(self.template)]
        inputs = tuple(slot for slot in self.inputs if slot not in slots)
        return replace(self, inputs=inputs, template=template)

    def finish(self, env: Env, *, reuse: bool = True) -> tuple:
        """Run every step from what ``start`` made; without gradients, writing into buffers that nobody reads again.

        And without gradients large batches are run in slices, where samples do not meet (see ``slices``).
        """
        functional = torch._C._are_functorch_transforms_active() or torch._C._is_torch_function_mode_enabled()
        if not (reuse and self.steady) or torch.is_grad_enabled() or functional:
            self._recorded = self._recorded or Unrolled(self.steps, [step.call for step in self.steps], self.outputs)
            return self._recorded(env)
        if self._unrecorded is not None:
            return self._unrecorded(env)
        watch = Watch(self, env)
        calls, outputs = run_watched(self, env, watch.step)
        slices = watch.slices(env, outputs)
        self._unrecorded = slices.run if slices else partial(self._run_joined, calls, watch.largest_of_all <= SMALL)
        return outputs

    def _run_joined(self, calls: Sequence[Callable], small: bool, env: Env) -> tuple:
        """Run each step by its call, some as one; ``small`` ones from then on by the calls of torch that these make."""
        steps, calls, outputs = run_joined(self, calls, env, trace=small)
        self._unrecorded = Unrolled(steps, calls, self.outputs)
        return outputs

    def record(self, env: Env) -> Env:
        """Run every step and keep every value."""
        for step in self.steps:
            for slot, value in zip(step.outputs, run_step(step, env), strict=False):
                env[slot] = value
        return env

    def restricted(self, outputs: Sequence[int]) -> Program:
        """The same program computing other outputs, without the steps they do not need."""
        needed, steps = set(outputs), []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
                steps.append(step)
        return Program(self.inputs, tuple(outputs), tuple(reversed(steps)), self.template)

    def part(self, steps: Sequence[Step], outputs: Sequence[int]) -> Program:
        """Some of the steps as a program, which is started with what the others have computed in its slots."""
        own = {slot for step in steps for slot in step.outputs}
        return replace(self, steps=tuple(steps), outputs=tuple(outputs), steady=self.steady & own).with_release()

    def specialise(self, env: Env, volatile: frozenset[int]) -> tuple[Program, tuple]:
        """Run from ``env``, and return with the outputs the program for inputs of these shapes.

        In that program what depends on the shapes alone is already computed. ``volatile`` are the slots of the
        parameters: they keep their shape but may change value. A value is *fixed* if it follows from constants and
        fixed shapes; a shape is fixed if it follows from fixed shapes and fixed host inputs.
        """
        fixed = {slot for slot, value in enumerate(env) if value is not None} - volatile - set(self.inputs) | {0}
        shaped = fixed | set(self.inputs) | volatile
        host: dict[int, tuple[int, Any]] = {}  # slot -> the slot that holds its value as a tuple, and that tuple
        kept = []
        for step in self.with_release().steps:
            ins = step.inputs
            step = _read_host_once(step, env, fixed | volatile, host)
            if step.bodies:
                call, taken = step.call.with_captured(step.inputs, fixed, env)
                step = replace(step, call=call, inputs=taken)
            for slot, value in zip(step.outputs, run_step(step, env, host), strict=False):
                env[slot] = value
            operator = step.operator
            same_shapes = all(slot in shaped for slot in ins) and not operator.random
            if same_shapes and (operator.shape_only or all(slot in fixed for slot in ins)):
                fixed.update(step.outputs)
                shaped.update(step.outputs)
                continue
            if same_shapes and not (step.host or operator.data_dependent_shape or step.bodies):
                shaped.update(step.outputs)
            kept.append(step)
            for slot in step.release:
                if slot not in fixed:
                    env[slot] = None
        template = [value if slot in fixed else None for slot, value in enumerate(env)]
        for slot in volatile:
            template[slot] = self.template[slot]
        template += [value for _, value in host.values()]
        outputs = tuple(env[slot] for slot in self.outputs)
        steady = shaped.intersection(slot for step in kept for slot in step.outputs)
        program = Program(self.inputs, self.outputs, tuple(kept), template, steady=frozenset(steady))
        return program.with_release(), outputs

    def with_release(self) -> Program:
        """The same program dropping each value after its last use."""
        permanent = set(self.inputs) | set(self.outputs)
        permanent |= {slot for slot, value in enumerate(self.template) if value is not None} | {0}
        steps, seen = [], set(permanent)
        for step in reversed(self.steps):
            touched = dict.fromkeys((*step.inputs, *step.outputs))
            last = tuple(slot for slot in touched if slot not in seen)
            seen.update(last)
            steps.append(replace(step, release=last))
        return replace(self, steps=tuple(reversed(steps)))


def _read_host_once(step: Step, env: Env, known: set[int] | frozenset[int], host: dict[int, tuple[int, Any]]) -> Step:
    """The step taking its host inputs, where they are known, as tuples from slots of their own behind ``env``."""
    given = [p for p in step.host if p < len(step.inputs)]
    ready = {p for p in given if step.inputs[p] in known}
    inputs = list(step.inputs)
    for position in ready:
        if slot := inputs[position]:
            if slot not in host:
                host[slot] = (len(env) + len(host), to_host(env[slot]))
            inputs[position] = host[slot][0]
    return replace(step, inputs=tuple(inputs), host=tuple(p for p in given if p not in ready))


def run_step(step: Step, env: Env, host: Mapping[int, tuple[int, Any]] = MappingProxyType({})) -> tuple:
    """The outputs of one step on the values in ``env``; what goes wrong is told with the node's name."""
    tuples = dict(host.values())
    return step(*(tuples[slot] if slot in tuples else env[slot] for slot in step.inputs))
