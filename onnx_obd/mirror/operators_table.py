"""The operators the mirror knows, as the page ``docs/operators.md``.

python -m onnx_obd.mirror.operators_table > docs/operators.md
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx_obd.mirror import ops  # noqa: F401  (importing registers the operators)
from onnx_obd.mirror.axes import ELEMENTWISE, MOVED
from onnx_obd.mirror.composite import composite, through_bodies
from onnx_obd.mirror.registry import Operator, registered

_HEAD = """\
# Operators

This page is made from the registry by `python -m onnx_obd.mirror.operators_table > docs/operators.md`.

A node whose operator is not listed is compiled from the function body that ONNX defines it by, if there is one;
otherwise onnxruntime runs it as a constant, and the weights this hides are reported.

- **versions**: the since-versions of the schema. A node means the newest one not above its opset.
- **gradient**: whether any output depends smoothly on an input.
- **second derivative**: how its diagonal passes back through the node. *exact*: by the squared Jacobian of the node in
  closed form. *composite*: through the node's parts one by one, as if they were nodes. *estimated*: by random probes,
  and the report names the node.
- **axes**: how the axes of inputs and outputs correspond, in the language of `onnx_obd/mirror/axes.py`. *by node*: the
  term follows from the node's shapes and attributes. *none*: nothing that reaches such a node can be removed.
"""


def operators_page() -> str:
    """The page: one table for each domain."""
    operators = registered()
    lines = [_HEAD]
    for domain in sorted({operator.domain for operator in operators}):
        own = [operator for operator in operators if operator.domain == domain]
        lines += [f"## {domain or 'ai.onnx'}: {len({operator.name for operator in own})} operators", ""]
        lines += ["| operator | versions | gradient | second derivative | axes |", "|---|---|---|---|---|"]
        lines += [*map(_row, own), ""]
    return "\n".join(lines)


def _row(operator: Operator) -> str:
    return f"| {' | '.join(_cells(operator))} |"


def _cells(operator: Operator) -> Iterator[str]:
    yield operator.name
    yield ", ".join(map(str, sorted(operator.since)))
    yield "yes" if operator.differentiable else "no"
    yield _second(operator)
    yield _axes(operator)


def _second(operator: Operator) -> str:
    if not operator.differentiable:
        return "none"
    if operator.second is None:
        return "estimated"
    return "composite" if operator.second in (composite, through_bodies) else "exact"


def _axes(operator: Operator) -> str:
    if operator.axes is None:
        return "none"
    if callable(operator.axes):
        return "by node"
    words = {ELEMENTWISE: "elementwise", MOVED: "moved"}
    return words.get(operator.axes) or f"`{operator.axes}`".replace("|", "\\|")


if __name__ == "__main__":
    print(operators_page(), end="")
