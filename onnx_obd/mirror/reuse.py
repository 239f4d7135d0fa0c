"""Which steps may write their result over an input.

Without gradients, an elementwise node whose operand nobody reads again needs no memory of its own; for large values
fresh memory costs more than the arithmetic. An operand is free if this step is the last to read it, if it fills its
storage, and if no other value shares that storage. Views make this a question of the values themselves, so it is
answered by watching one run. It holds for every run of the plan because only *steady* values take part: those whose
shape and strides follow from those of the inputs.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from onnx_obd.mirror.program import Env, Program, Step


KEPT = 256 << 20
"""Bytes of freed memory that the C library may keep, where it would keep 64 MiB at most by itself."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones instead of giving it back to the system.

    Blocks of up to 32 MiB, the most that glibc takes, are then cut from memory it keeps, where each would otherwise be
    mapped anew, page by page. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


def run_watched(program: Program, env: Env, told: Callable[..., None]) -> tuple[list[Callable], tuple]:
    """Run the program from ``env``: each step's call, overwriting an input where it may; and the outputs.

    ``told`` is called with each step, its inputs and its outputs.
    """
    owners = Counter(storage for value in env for storage in _storages(value))
    found = []
    for step in program.steps:
        values = [env[slot] for slot in step.inputs]
        free = [
            (operand, function)
            for slot, operand, function in zip(step.inputs, values, step.operator.in_place, strict=False)
            if slot in step.release and slot in program.steady
            and _fills_its_storage(operand) and owners[next(_storages(operand))] == 1
        ]  # fmt: skip
        outputs = step(*values)
        told(step, values, outputs)
        over = next((function for operand, function in free if _alike(operand, outputs[0])), None)
        found.append(_bound(over, step) if over else step.call)
        for slot, value in zip(step.outputs, outputs, strict=False):
            env[slot] = value
            owners.update(_storages(value))
        for slot in step.release:
            owners.subtract(_storages(env[slot]))
            env[slot] = None
    return found, tuple(env[slot] for slot in program.outputs)


def _bound(function: Callable, step: Step) -> Callable:
    return partial(function, **step.attributes) if step.attributes else function


def _storages(value: Any) -> Iterator[int]:
    """The storages under a value: those of all its items if it is a sequence."""
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage().data_ptr()
    elif isinstance(value, list):
        for item in value:
            yield from _storages(item)


def _fills_its_storage(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.nbytes == value.untyped_storage().nbytes()


def _alike(value: torch.Tensor, result: Any) -> bool:
    return result.shape == value.shape and result.stride() == value.stride() and result.dtype == value.dtype
