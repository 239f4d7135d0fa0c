"""A run of the mirror on one sample, followed atom by atom.

Every tensor stored in the model is born with an atom for each index of each axis; what the nodes do to the axes unites,
divides and freezes them. The bodies of If, Loop and Scan are followed on their first run, both branches of an If: the
one that is not taken too, if it runs on the sample, else it freezes what it captures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx
import torch

from onnx_obd.errors import OnnxObdError
from onnx_obd.graph.declared import Shape, declared_shapes
from onnx_obd.graph.weights import Path
from onnx_obd.mirror.axes import MOVED, Node, parse
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.program import BoundBody, CallWithBodies, Program, Step, run_step
from onnx_obd.units.apply import Application, Correspondence, Unreadable, moved
from onnx_obd.units.atoms import Atoms, Axis, bare
from onnx_obd.units.watch import Place

SMALL = 4096
"""Values up to this many elements are kept if they follow from constants and shapes: they may spell sizes."""

Value = int
"""The number of a value in a trace; 0 for an absent one. Bodies have values of their own, what they capture has not."""


@dataclass(frozen=True)
class TracedStep:
    """One node as it ran.

    ``folded``: its outputs follow from constants and shapes alone. ``moves``: it was run on labels.
    """

    step: Step
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    node: Node
    correspondence: Correspondence
    folded: bool
    moves: bool


@dataclass
class Trace:
    """What is known after the run.

    ``axes``: value -> its axes, labelled by the atoms as they are in the end. ``stored``: value -> where in the
    ModelProto its tensor stands. ``known``: value -> the small tensors that follow from constants and shapes.
    ``consumed``: the axes (value, axis) of stored tensors that a node sums over. ``passed_by``: the nodes with a branch
    that was followed without being taken. ``body_outputs``: (path of a node, name of its body) -> what it returns.
    """

    atoms: Atoms = field(default_factory=Atoms)
    steps: list[TracedStep] = field(default_factory=list)
    axes: dict[Value, list[Axis]] = field(default_factory=dict)
    stored: dict[Value, Path] = field(default_factory=dict)
    names: dict[str, Value] = field(default_factory=dict)
    known: dict[Value, torch.Tensor] = field(default_factory=dict)
    variable: set[Value] = field(default_factory=set)
    consumed: set[tuple[Value, int]] = field(default_factory=set)
    passed_by: set[Place] = field(default_factory=set)
    body_outputs: dict[tuple[Path | None, str], list[Value]] = field(default_factory=dict)
    count: int = 0
    proto: onnx.ModelProto | None = None

    @cached_property
    def declared(self) -> dict[Value, Shape]:
        """The lengths of values of the main graph that are the same for all inputs; None for the others."""
        shapes = declared_shapes(self.proto) if self.proto else {}
        return {self.names[name]: shape for name, shape in shapes.items() if name in self.names}

    def value(self) -> Value:
        """The number of a new value."""
        self.count += 1
        return self.count

    def freeze(self, values: Sequence[Value], why: str) -> None:
        for value in values:
            for axis in self.axes.get(value, ()):
                self.atoms.freeze(axis, why)

    def settle(self) -> None:
        """Resolve all axes once and for all: no labels meet any more."""
        self.axes = {value: list(map(self.atoms.resolve, axes)) for value, axes in self.axes.items()}
        for step in self.steps:
            names = step.correspondence.names
            names |= {name: self.atoms.resolve(axis) for name, axis in names.items()}


def trace(mirror: Mirror, inputs: Sequence[Any]) -> Trace:
    """Run the mirror on ``inputs`` (as for calling it) and follow the atoms of every stored tensor."""
    return Tracer(mirror).run(inputs)


class Tracer:
    def __init__(self, mirror: Mirror):
        self.mirror, self.found = mirror, Trace()
        self.atoms = self.found.atoms
        self.followed: set[tuple[Value, str]] = set()

    def run(self, inputs: Sequence[Any]) -> Trace:
        found, program = self.found, self.mirror.program.with_release()
        env = self.mirror.start(inputs, program)
        ids = [0] * len(env)
        computed = {slot for step in program.steps for slot in step.outputs}
        for slot, path in self.mirror.stored_slots().items():
            if slot not in computed:  # integers stand behind a step from the parameter that holds their values
                ids[slot] = self.store(env[slot], path)
        for name, slot in zip(self.mirror.input_names, program.inputs, strict=True):
            ids[slot] = self.opaque(env[slot], f"graph input '{name}'")
            found.variable.add(ids[slot])
        with torch.no_grad():
            self.program(program, env, ids)
        for name, slot in zip(self.mirror.output_names, program.outputs, strict=True):
            found.freeze([ids[slot]], f"graph output '{name}' keeps its shape")
        found.settle()
        found.proto = self.mirror.proto
        found.names = {name: ids[slot] for name, slot in self.mirror.value_names.items() if ids[slot]}
        return found

    # ---- values

    def store(self, value: Any, path: Path) -> Value:
        number = self.found.value()
        self.found.stored[number] = path
        if isinstance(value, torch.Tensor):
            self.found.axes[number] = [
                self.atoms.born(length, frozenset({(number, axis)})) for axis, length in enumerate(value.shape)
            ]
            self._keep(number, value)
        return number

    def opaque(self, value: Any, why: str) -> Value:
        number = self.found.value()
        if isinstance(value, torch.Tensor):
            self.found.axes[number] = [bare(length, why) for length in value.shape]
        return number

    def _keep(self, number: Value, value: Any) -> None:
        if _is_small(value) and number not in self.found.variable:
            self.found.known[number] = value.detach()

    # ---- programs

    def program(self, program: Program, env: list, ids: list[Value]) -> None:
        for step in program.steps:
            values = step.read_host([env[slot] for slot in step.inputs])
            sources = tuple(ids[slot] for slot in step.inputs)
            if step.bodies:
                result, outputs = self._with_bodies(step, values, sources)
            else:
                result = run_step(step, env)
                outputs = self.step(step, values, sources, result)
            for slot, value, number in zip(step.outputs, result, outputs, strict=False):
                env[slot], ids[slot] = value, number if slot else 0
            for slot in step.release:
                env[slot] = None

    def _with_bodies(self, step: Step, values: Sequence[Any], sources: tuple[Value, ...]) -> tuple[tuple, list[Value]]:
        call: CallWithBodies = step.call
        own, bodies = call.split(values)
        count, captured = call.own_inputs, {}
        for name, (_, number) in call.bodies.items():
            captured[name] = sources[count : count + number]
            count += number
        followed = {
            name: _Followed(self, f"{name} of node {step.node}", body, captured[name]) for name, body in bodies.items()
        }
        result = call.function(*own, **followed)
        why = f"node {step.node}"
        self.found.freeze(sources[: call.own_inputs], why)
        for name, body in followed.items():
            taken = body.ran
            if not taken and body.follow_untaken():
                self.found.passed_by.add((step.path, step.node))
            elif not taken:
                self.found.freeze(captured[name], f"{why}: its {name} does not run on the sample")
            self.found.body_outputs[step.path, name] = body.outputs
        result = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        outputs = [self._from_bodies(why, value, i, list(followed.values())) for i, value in enumerate(result)]
        self.found.variable.update(outputs)
        return result, outputs

    def _from_bodies(self, why: str, value: Any, index: int, bodies: Sequence[_Followed]) -> Value:
        """What one of several branches returns: their axes are one another's. A loop returns something else."""
        returned = [body.outputs[index] for body in bodies if index < len(body.outputs)]
        axes = [self.found.axes.get(number) for number in returned]
        shapes = {None if each is None else tuple(axis.length for axis in each) for each in axes}
        if len(bodies) < 2 or len(returned) < len(bodies) or len(shapes) > 1 or None in shapes:
            why = f"{why}: its branches return it in different shapes" if len(returned) > 1 else f"{why} returns it"
            self.found.freeze([number for body in bodies for number in body.outputs[index:]], why)
            return self.opaque(value, why)
        number, (first, *others) = self.found.value(), axes
        for each in others:
            first = [self.atoms.unite(a, b, why) for a, b in zip(first, each, strict=True)]
        self.found.axes[number] = [replace(axis, origin=frozenset()) for axis in first]
        return number

    # ---- nodes

    def step(self, step: Step, values: Sequence[Any], sources: tuple[Value, ...], result: tuple) -> list[Value]:
        found = self.found
        constant = [number not in found.variable for number in sources]
        folded = not step.operator.random and (step.operator.shape_only or all(constant))
        if folded and step.path and not step.inputs and isinstance(result[0], torch.Tensor):
            name = next(name for name in step.attributes if "value" in name)
            return [self.store(result[0], (*step.path, name))]
        node = Node(step.operator, step.attributes, tuple(values), result, constant)
        for position in step.host:
            found.freeze(sources[position : position + 1], f"node {step.node} reads it as a parameter")
        rule = node.rule
        moves = rule is not None and rule.startswith(MOVED)
        axes, correspondence = self._axes(step, node, sources, rule)
        outputs = []
        for value, of_value in zip(result, axes, strict=True):
            number = found.value()
            outputs.append(number)
            if of_value is not None:
                found.axes[number] = of_value
            if not folded:
                found.variable.add(number)
            self._keep(number, value)
        found.consumed |= correspondence.consumed
        own = TracedStep(step, sources, tuple(outputs), _without_values(node, moves), correspondence, folded, moves)
        found.steps.append(own)
        return outputs

    def _axes(
        self, step: Step, node: Node, sources: tuple[Value, ...], rule: str | None
    ) -> tuple[list[list[Axis] | None], Correspondence]:
        """The axes of the outputs; without a rule that fits, everything freezes."""
        axes = [None if p in step.host else self.found.axes.get(number) for p, number in enumerate(sources)]
        why = f"node {step.node} has no rule for its axes"
        try:
            if rule is not None and rule.startswith(MOVED):
                return self._moved(step, node, axes, rule.removeprefix(MOVED))
            if rule is not None:
                return Application(self.atoms, parse(rule), node, step.node, axes).run()
        except Unreadable as error:
            why = f"node {step.node}: {error}"
        self.found.freeze(() if step.operator.shape_only else sources, why)
        bare_axes = [[bare(n, why) for n in y.shape] if isinstance(y, torch.Tensor) else None for y in node.outputs]
        return bare_axes, Correspondence()

    def _moved(self, step: Step, node: Node, axes: list, rest: str) -> tuple[list[list[Axis] | None], Correspondence]:
        """The first input's axes by running, what ``rest`` says of the others."""
        outputs = moved(self.atoms, node, step.call, step.node, axes)
        if not rest:
            return outputs, Correspondence()
        others, correspondence = Application(self.atoms, parse(rest), node, step.node, [None, *axes[1:]]).run()
        for mine, theirs in zip(outputs, others, strict=True):
            for position, axis in enumerate(theirs or ()):
                if axis.labelled:
                    mine[position] = self.atoms.unite(mine[position], axis, f"node {step.node}")
        return outputs, correspondence


class _Followed:
    """A body that is followed the first time it runs."""

    def __init__(self, tracer: Tracer, name: str, body: BoundBody, captured: Sequence[Value]):
        self.tracer, self.name, self.body, self.captured, self.ran = tracer, name, body, captured, False
        self.outputs: list[Value] = []

    @property
    def no_steps(self) -> tuple:
        return self.body.no_steps

    def __call__(self, *inputs: Any) -> tuple:
        if self.ran:
            return self.body(*inputs)
        self.ran, program, tracer = True, self.body.program, self.tracer
        env = program.start((*inputs, *self.body.captured))
        ids = [0] * len(env)
        own = [tracer.opaque(value, f"input of {self.name}") for value in inputs]
        tracer.found.variable.update(own)
        for slot, number in zip(program.inputs, (*own, *self.captured), strict=True):
            ids[slot] = number
        tracer.program(program, env, ids)
        self.outputs = [ids[slot] for slot in program.outputs]
        return tuple(env[slot] for slot in program.outputs)

    def follow_untaken(self) -> bool:
        """Run a branch for its axes alone. One that fails freezes whatever it has come to."""
        found = self.tracer.found
        if len(self.body.program.inputs) > len(self.captured):
            return False
        values, steps = found.count, len(found.steps)
        try:
            self()
        except OnnxObdError:
            found.freeze(range(values + 1, found.count + 1), f"{self.name} does not run on the sample")
            return False
        for step in found.steps[steps:]:
            step.correspondence.work.clear()
        return True


def _is_small(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() <= SMALL


def _without_values(node: Node, moves: bool) -> Node:
    """The node with shapes instead of tensors, but for small constants: what is kept when it has run.

    What says where a node moves the elements of its first input is kept whatever its size: it is run again.
    """

    def shape(value: Any, kept: bool = False) -> Any:
        return value if kept or not isinstance(value, torch.Tensor) else torch.empty(()).expand(value.shape)

    inputs = tuple(
        shape(value, (moves and position > 0) or (node.constant[position] and _is_small(value)))
        for position, value in enumerate(node.inputs)
    )
    return Node(node.operator, node.attributes, inputs, tuple(map(shape, node.outputs)), node.constant)
