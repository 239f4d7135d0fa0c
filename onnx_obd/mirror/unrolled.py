"""The loop over the steps of a plan, written out.

In a small network half of the time goes into reading steps and packing arguments. Written out as one Python function, a
line for each step, that time is gone: ``env[7] = c3(env[5], env[2]); env[5] = None``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnx_obd.errors import ModelError, OnnxObdError

if TYPE_CHECKING:
    from onnx_obd.mirror.program import Env, Step

_FIRST_LINE = 2
"""The line of the function that is the first step's."""


class Unrolled:
    """Runs ``steps``, the n-th by ``calls[n]``, from what stands in ``env``, and returns the slots ``outputs``.

    Raises:
        ModelError: a step failed; the message names the node.
    """

    def __init__(self, steps: Sequence[Step], calls: Sequence[Callable], outputs: Sequence[int]):
        self.steps, self.calls = steps, calls
        lines = [_line(number, step) for number, step in enumerate(steps)]
        source = "\n ".join(["def run(env):", *lines, f"return ({''.join(f'env[{slot}], ' for slot in outputs)})"])
        names = {"put": _put} | {f"c{number}": call for number, call in enumerate(calls)}
        names |= {f"host{number}": step.read_host for number, step in enumerate(steps) if step.host}
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


def _line(number: int, step: Step) -> str:
    arguments = "".join(f"env[{slot}], " for slot in step.inputs)
    result = f"c{number}(*host{number}(({arguments})))" if step.host else f"c{number}({arguments})"
    if len(step.outputs) == 1:
        parts = [f"r = {result}", f"env[{step.outputs[0]}] = r[0] if isinstance(r, tuple) else r"]
    else:
        parts = [f"put(env, {step.outputs}, {result})"]
    return "; ".join([*parts, *(f"env[{slot}] = None" for slot in step.release)])


def _put(env: Env, slots: Sequence[int], result: Any) -> None:
    for slot, value in zip(slots, result if isinstance(result, tuple) else (result,), strict=False):
        env[slot] = value


def node_failed(node: str, error: Exception) -> ModelError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ModelError(f"node {node}: {lines[0] if lines else type(error).__name__}")
