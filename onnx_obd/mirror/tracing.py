"""A step as the calls of torch that it makes.

An operator's function reads shapes and attributes to decide which of torch's kernels to call, and how. Where the shapes
are fixed the decision is always the same, and in a small network it takes as long as the kernels. So one run is watched
for the calls it makes of torch, and later runs make these alone. A function that looks at the values of its operands,
in Python or through their shapes, cannot be told by one run; it is called as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from onnx_obd.mirror.values import Quantised

if TYPE_CHECKING:
    from onnx_obd.mirror.program import Env, Program, Step

_METADATA = {
    "__get__", "__len__", "dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "nelement",
    "numel", "size", "stride",
}  # fmt: skip
"""Calls that tell of a tensor what is fixed, if what they return is no tensor."""

SMALL = 1 << 20
"""Bytes of the largest value up to which tracing a plan is worth the memory; beyond, the kernels take the time."""

MOST_CALLS = 500
"""A step of more calls (a loop over a long sequence) is not written out."""

_BY_VALUES = {"argwhere", "bincount", "masked_select", "nonzero", "unique", "unique_consecutive"}
"""Calls that make shapes out of values."""

_PLAIN = (
    int, float, complex, str, slice, type(None), type(...), torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip
"""What an argument may be that is no tensor."""


class Ref(NamedTuple):
    """A tensor among the arguments of a call: an operand of the step, by position, or behind these a call's result."""

    number: int


class TorchCall(NamedTuple):
    """``function(*args, **kwargs)``, with a ``Ref`` in the place of each tensor.

    ``results``: the numbers of what it returns, one (or none, where it returns an operand) or a tuple of them.
    A call that returns nothing new is made for what it writes.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: Mapping[str, Any]
    results: int | tuple[int | None, ...] | None

    def reads(self) -> Iterator[int]:
        """The numbers of the tensors among its arguments."""
        yield from _numbers((self.args, tuple(self.kwargs.values())))

    def makes(self) -> tuple[int, ...]:
        """The numbers of the tensors it returns that are new."""
        results = self.results if isinstance(self.results, tuple) else (self.results,)
        return tuple(number for number in results if number is not None)


@dataclass(frozen=True)
class Trace:
    """The calls that compute a step, in order, and its outputs: a ``Ref`` or None each."""

    calls: tuple[TorchCall, ...]
    outputs: tuple[Ref | None, ...]

    def __deepcopy__(self, memo: Any) -> Trace:
        return self  # it holds no tensors, and not every function of torch can be copied


class _Untraceable(Exception):
    pass


_watching: ContextVar[bool] = ContextVar("watching", default=False)


def calls_are_changed() -> bool:
    """Is a torch function mode active, other than one that only watches?"""
    return torch._C._is_torch_function_mode_enabled() and not _watching.get()


class Tracer(TorchFunctionMode):
    """Notes the calls that a function makes of torch on ``operands`` whose shapes and strides are fixed."""

    def __init__(self, operands: Sequence[Any]):
        super().__init__()
        self.seen: dict[int, tuple[int, weakref.ref]] = {}  # by id, which may be a dead one's
        self.count = len(operands)
        for number, operand in enumerate(operands):
            if isinstance(operand, Tensor) and self._number(operand) is None:
                self.seen[id(operand)] = number, weakref.ref(operand)
        self.calls: list[TorchCall] | None = [] if all(map(_traceable, operands)) else None

    def __enter__(self) -> Tracer:
        self.token = _watching.set(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _watching.reset(self.token)
        super().__exit__(*error)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self.calls is not None:
            try:
                self._note(function, args, kwargs, result)
            except _Untraceable:
                self.calls = None
        return result

    def trace(self, outputs: Sequence[Any]) -> Trace | None:
        """The step that returned ``outputs``, if calls of torch are all it did."""
        if self.calls is None or any(value is not None and self._number(value) is None for value in outputs):
            return None
        found = tuple(map(self._referred, outputs))
        return Trace(_needed(self.calls, found), found)

    def _note(self, function: Callable, args: tuple, kwargs: dict, result: Any) -> None:
        name = getattr(function, "__name__", "")
        if len(self.calls) == MOST_CALLS or name in _BY_VALUES or (name == "__getitem__" and _picks_by_value(args[1])):
            raise _Untraceable
        made = result if isinstance(result, (list, tuple)) else (result,)
        if name == "__setitem__" or any(isinstance(value, Tensor) for value in made):
            arguments = self._referred(args), {key: self._referred(value) for key, value in kwargs.items()}
            self.calls.append(TorchCall(function, *arguments, self._numbered(result)))
        elif name not in _METADATA:
            raise _Untraceable

    def _number(self, value: Any) -> int | None:
        number, tensor = self.seen.get(id(value), (None, None))
        return number if tensor is not None and tensor() is value else None

    def _referred(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = self._number(value)
            if number is None:
                raise _Untraceable  # from somewhere that is not watched
            return Ref(number)
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(map(self._referred, value))
        if isinstance(value, slice):
            self._referred((value.start, value.stop, value.step))
        if not isinstance(value, _PLAIN) and not isinstance(value, torch.Size):
            raise _Untraceable
        return value

    def _numbered(self, result: Any) -> int | tuple | None:
        if isinstance(result, (list, tuple)):
            if any(isinstance(value, (list, tuple)) for value in result):
                raise _Untraceable
            return tuple(map(self._numbered, result))
        if result is None or self._number(result) is not None:
            return None
        if not _traceable(result) or not isinstance(result, Tensor):
            raise _Untraceable
        self.seen[id(result)] = self.count, weakref.ref(result)
        self.count += 1
        return self.count - 1


def run_joined(
    program: Program, calls: Sequence[Callable], env: Env, *, trace: bool
) -> tuple[list[Step], list[Callable | Trace], tuple]:
    """Run the program from ``env``, each step by its call: the steps, for each its call or its trace, and the outputs.

    Of two steps, the second of which alone reads what the first makes, an operator may know to make one (``then``).
    """
    known = {slot for slot, value in enumerate(program.template) if value is not None}
    known.update((0, *program.inputs, *program.steady))  # the slots whose shapes and strides are fixed
    steps, found = [], []
    pending = [replace(step, call=call) for step, call in zip(program.steps, calls, strict=True)][::-1]
    while pending:
        step = pending.pop()
        fixed = known.issuperset(step.inputs) and not (step.host or step.bodies or step.operator.random)
        joining = fixed
        while joining and pending and (both := _joined(step, pending[-1], env)):
            joining = both.call is step.call  # the second did nothing: on to the third
            step = both
            pending.pop()
        values = [env[slot] for slot in step.inputs]
        seen = None
        if trace and fixed:
            with Tracer(values) as tracer:
                outputs = step(*values)
            seen = tracer.trace(outputs)
        else:
            outputs = step(*values)
        steps.append(step)
        found.append(seen or step.call)
        for slot, value in zip(step.outputs, outputs, strict=False):
            env[slot] = value
        for slot in step.release:
            env[slot] = None
    return steps, found, tuple(env[slot] for slot in program.outputs)


def _joined(step: Step, reader: Step, env: Env) -> Step | None:
    """The two steps as one, if the first knows how to go on as the second does."""
    rule, made = step.operator.then.get(reader.operator.name), step.outputs[0]
    if rule is None or reader.operator.domain != step.operator.domain or len(step.outputs) > 1:
        return None
    others = tuple(slot for slot in reader.inputs if slot != made)
    if made not in reader.release or len(others) != len(reader.inputs) - 1 or reader.host:
        return None
    operands = ([env[slot] for slot in slots] for slots in (step.inputs, others))
    call = rule(step, reader, *operands)
    if call is None:
        return None
    release = tuple(slot for slot in (*step.release, *reader.release) if slot != made)
    inputs = (*step.inputs, *others)
    return replace(step, call=call, inputs=inputs, outputs=reader.outputs, release=tuple(dict.fromkeys(release)))


def _needed(calls: Sequence[TorchCall], outputs: Sequence[Ref | None]) -> tuple[TorchCall, ...]:
    """The calls without those whose results nobody reads (a transpose that was only asked how it lies)."""
    read, kept = set(_numbers(outputs)), []
    for call in reversed(calls):
        made = call.makes()
        if not made or not read.isdisjoint(made):
            read.update(call.reads())
            kept.append(call)
    return tuple(reversed(kept))


def _traceable(value: Any) -> bool:
    """Not a sequence, whose length may change, nor strings, nor a tensor that is more than its numbers."""
    return not isinstance(value, (list, Quantised, np.ndarray))


def _picks_by_value(index: Any) -> bool:
    if isinstance(index, (list, tuple)):
        return any(map(_picks_by_value, index))
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _numbers(tree: Any) -> Iterator[int]:
    if isinstance(tree, Ref):
        yield tree.number
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _numbers(item)
