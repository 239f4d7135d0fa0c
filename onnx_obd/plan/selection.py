"""Which weights may be pruned, and why the others may not."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from onnx_obd.errors import UsageError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.uses import Use, reaching, uses_of
from onnx_obd.records import WeightSummary


def select_weights(
    mirror: Mirror,
    outputs: Sequence[int] | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prune_biases: bool = False,
) -> list[WeightSummary]:
    """Every weight of the model, prunable or with the reason why not.

    Prunable is what multiplies data: the kernel of a Conv, an operand of a MatMul, Gemm, LSTM and so on. Biases and
    the parameters of normalisations are prunable only with ``prune_biases``.

    Args:
        outputs: slots of the objective; the graph outputs by default.
        include: name patterns (``*``, ``?``, ``[...]``) of weights to prune; all if empty.
        exclude: name patterns of weights to leave alone.

    Raises:
        UsageError: a pattern that matches no weight.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in mirror.weights):
            raise UsageError(f"no weight matches '{pattern}'; 'onnx-obd inspect' lists the names")
    reached = reaching(mirror.program, tuple(outputs or mirror.program.outputs))
    found = []
    for name, weight in mirror.weights.items():
        slot = mirror.weight_slots()[name]
        uses = uses_of(mirror.program, slot)
        use = next((use for use in uses if use.multiplies), uses[0] if uses else None)
        reason = _reason(name, weight.numel(), use, slot in reached, include, exclude, prune_biases)
        zeros = float((weight == 0).float().mean()) if weight.numel() else 0.0
        found.append(
            WeightSummary(
                name,
                tuple(weight.shape),
                use.node if use else "",
                use.operator.name if use else "",
                not reason,
                reason,
                sparsity=zeros,
                sparsity_before=zeros,
            )
        )
    return found


def _reason(
    name: str,
    size: int,
    use: Use | None,
    reached: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    prune_biases: bool,
) -> str:
    """Why the weight is not prunable; empty if it is."""
    if use is None:
        return "not used by any node"
    if not reached:
        return f"no gradient reaches it past {use.node}"
    if not use.multiplies and (not prune_biases or size < 2):
        return f"operand {use.position} of {use.operator.name}: a bias, statistic or constant"
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "excluded by name"
    if include and not any(fnmatchcase(name, pattern) for pattern in include):
        return "not among the included names"
    return ""
