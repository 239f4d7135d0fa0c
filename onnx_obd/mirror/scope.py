"""What a compiler knows while it reads a graph: the names in sight, the slots and steps so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnx import AttributeProto

from onnx_obd.graph.weights import Path
from onnx_obd.mirror.program import Step


class Builder:
    """Collects the slots and steps of one program; ``parent`` is that of the graph around a body."""

    def __init__(self, parent: Builder | None = None):
        self.parent = parent
        self.size = 1  # slot 0: absent
        self.behind = 0
        self.steps: list[Step] = []
        self.captures: dict[int, int] = {}  # slot in the parent -> slot here

    def slot(self) -> int:
        self.size += 1
        return self.size - 1

    def slot_behind(self) -> int:
        """Of a stored tensor or a new value, in the root: counted downwards, until ``with_those_behind``."""
        self.behind -= 1
        return self.behind

    def with_those_behind(self) -> Callable[[int], int]:
        """Slots as they stay: these behind the others, so that values keep theirs when a file gets more."""
        before, self.size = self.size, self.size - self.behind

        def slot(number: int) -> int:
            return number if number >= 0 else before - 1 - number

        def slots(numbers: Iterable[int]) -> tuple[int, ...]:
            return tuple(map(slot, numbers))

        self.steps = [replace(step, inputs=slots(step.inputs), outputs=slots(step.outputs)) for step in self.steps]
        return slot

    def capture(self, outer: int) -> int:
        if outer == 0:
            return 0
        if outer not in self.captures:
            self.captures[outer] = self.slot()
        return self.captures[outer]

    def from_root(self, slot: int) -> int:
        return slot if self.parent is None else self.capture(self.parent.from_root(slot))


@dataclass
class Scope:
    """The names visible in one graph or function body."""

    builder: Builder
    path: Path | None  # None inside a function body that ONNX itself defines
    opsets: Mapping[str, int]
    names: dict[str, int] = field(default_factory=dict)
    elem_types: dict[str, int] = field(default_factory=dict)
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)
    parent: Scope | None = None
    label: str = ""

    def find(self, name: str) -> int | None:
        if name in self.names:
            return self.names[name]
        if self.parent is None:
            return None
        outer = self.parent.find(name)
        if outer is None:
            return None
        self.names[name] = outer if self.parent.builder is self.builder else self.builder.capture(outer)
        return self.names[name]

    def elem_type(self, name: str) -> int:
        found = self.elem_types.get(name, 0)
        return found or (self.parent.elem_type(name) if self.parent else 0)
