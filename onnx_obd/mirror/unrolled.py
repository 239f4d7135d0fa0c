"""The loop over the steps of a plan, written out.

In a small network half of the time goes into reading steps and packing arguments. Written out as one Python function, a
line for each step, that time is gone: ``env[7] = c3(env[5], env[2]); env[5] = None``. A step whose calls of torch are
known (``tracing``) is written as these calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnx_obd.errors import ModelError, OnnxObdError
from onnx_obd.mirror.tracing import Ref, TorchCall, Trace

if TYPE_CHECKING:
    from onnx_obd.mirror.program import Env, Step

_FIRST_LINE = 2
"""The line of the function that is the first step's."""


class Unrolled:
    """Runs ``steps``, the n-th by ``calls[n]``, from what stands in ``env``, and returns the slots ``outputs``.

    Raises:
        ModelError: a step failed; the message names the node.
    """

    def __init__(self, steps: Sequence[Step], calls: Sequence[Callable | Trace], outputs: Sequence[int]):
        self.steps, self.calls = steps, calls
        names: dict[str, Any] = {"put": _put}
        lines = ["; ".join(_line(number, *pair, names)) for number, pair in enumerate(zip(steps, calls, strict=True))]
        source = "\n ".join(["def run(env):", *lines, f"return ({''.join(f'env[{slot}], ' for slot in outputs)})"])
        exec(compile(source, "<plan>", "exec"), names)
        self._run = names["run"]

    def __call__(self, env: Env) -> tuple:
        try:
            return self._run(env)
        except OnnxObdError:
            raise
        except Exception as error:
            line = error.__traceback__.tb_next.tb_lineno
            raise node_failed(self.steps[line - _FIRST_LINE].node, error) from error


def _line(number: int, step: Step, call: Callable | Trace, names: dict[str, Any]) -> Iterator[str]:
    """The statements that run a step; what they name is put into ``names``."""
    if isinstance(call, Trace):
        yield from _Written(number, step, call, names).statements()
    else:
        names[f"c{number}"] = call
        arguments = "".join(f"env[{slot}], " for slot in step.inputs)
        if step.host:
            names[f"host{number}"], arguments = step.read_host, f"*host{number}(({arguments}))"
        if len(step.outputs) == 1:
            yield f"r = c{number}({arguments})"
            yield f"env[{step.outputs[0]}] = r[0] if isinstance(r, tuple) else r"
        else:
            yield f"put(env, {step.outputs}, c{number}({arguments}))"
    yield from (f"env[{slot}] = None" for slot in step.release)


class _Written:
    """A traced step as statements. What a call returns is dropped after the last call that reads it."""

    def __init__(self, number: int, step: Step, trace: Trace, names: dict[str, Any]):
        self.prefix, self.step, self.trace, self.names = f"c{number}_", step, trace, names
        self.places = {number: f"env[{slot}]" for number, slot in enumerate(step.inputs)}
        for slot, ref in zip(step.outputs, trace.outputs, strict=False):
            if ref is not None:
                self.places.setdefault(ref.number, f"env[{slot}]")

    def statements(self) -> Iterator[str]:
        touched = [(*call.reads(), *call.makes()) for call in self.trace.calls]
        last = {number: index for index, numbers in enumerate(touched) for number in numbers}
        for index, call in enumerate(self.trace.calls):
            yield self._call(call)
            ended = [number for number in touched[index] if last[number] == index and number not in self.places]
            yield from (f"v{number} = None" for number in dict.fromkeys(ended))
        for slot, ref in zip(self.step.outputs, self.trace.outputs, strict=False):
            value = None if ref is None else self._place(ref.number)
            if value != f"env[{slot}]":
                yield f"env[{slot}] = {value}"

    def _call(self, call: TorchCall) -> str:
        arguments = [self._spelled(value) for value in call.args]
        arguments += [f"{key}={self._spelled(value)}" for key, value in call.kwargs.items()]
        text = f"{self._named(call.function)}({', '.join(arguments)})"
        if call.results and isinstance(call.results, tuple):
            return f"{''.join(f'{self._target(number)}, ' for number in call.results)} = {text}"
        return f"{self._place(call.results)} = {text}" if isinstance(call.results, int) else text

    def _target(self, number: int | None) -> str:
        return "_" if number is None else self._place(number)

    def _place(self, number: int) -> str:
        return self.places.get(number, f"v{number}")

    def _spelled(self, value: Any) -> str:
        if isinstance(value, Ref):
            return self._place(value.number)
        if type(value) in (list, tuple):
            items = "".join(f"{self._spelled(item)}, " for item in value)
            return f"[{items}]" if type(value) is list else f"({items})"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        return self._named(value)

    def _named(self, value: Any) -> str:
        name = f"{self.prefix}{len(self.names)}"
        self.names[name] = value
        return name


def _put(env: Env, slots: Sequence[int], result: Any) -> None:
    for slot, value in zip(slots, result if isinstance(result, tuple) else (result,), strict=False):
        env[slot] = value


def node_failed(node: str, error: Exception) -> ModelError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ModelError(f"node {node}: {lines[0] if lines else type(error).__name__}")
