"""What is ranked against what: all weights together, each tensor by itself, or named tensors on their own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from onnx_obd.errors import UsageError
from onnx_obd.plan.elementwise import plan_elements, schedule
from onnx_obd.records import Plan, Saliency

SCOPES = ("global", "tensor")


@dataclass(frozen=True)
class Pool:
    """Weights that are ranked against each other, and the fraction of their elements that goes in the end."""

    names: tuple[str, ...]
    sparsity: float

    def targets(self, rounds: int, keep: Mapping[str, Tensor]) -> list[float]:
        """The pool's sparsity after each round (see ``schedule``), from the zeros it starts with."""
        masks = [keep[name] for name in self.names]
        total = sum(mask.numel() for mask in masks)
        zeros = total - sum(int(mask.sum()) for mask in masks)
        found = schedule(self.sparsity, rounds, start=zeros / total if total else 0.0)
        return found + found[-1:] * (rounds - len(found))


def make_pools(
    names: Sequence[str], sparsity: float, *, scope: str = "global", sparsity_of: Mapping[str, float] | None = None
) -> list[Pool]:
    """The pools of the named weights.

    Args:
        sparsity: of the weights that no pattern of ``sparsity_of`` names.
        scope: "global" ranks these together, "tensor" each tensor by itself.
        sparsity_of: name pattern -> sparsity; the tensors that match one are ranked each by itself. Of several matching
            patterns the last counts.

    Raises:
        UsageError: a pattern that matches none of the names, or no such scope.
    """
    if scope not in SCOPES:
        raise UsageError(f"no scope '{scope}'; there are {', '.join(SCOPES)}")
    own: dict[str, float] = {}
    for pattern, value in (sparsity_of or {}).items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"no prunable weight matches '{pattern}'; 'onnx-obd inspect' lists the names")
        own |= dict.fromkeys(matching, value)
    rest = tuple(name for name in names if name not in own)
    pools = [Pool((name,), sparsity) for name in rest] if scope == "tensor" else [Pool(rest, sparsity)] if rest else []
    return pools + [Pool((name,), value) for name, value in own.items()]


def parse_sparsity_of(items: Sequence[str]) -> dict[str, float]:
    """["fc*=0.9"] as {"fc*": 0.9}.

    Raises:
        UsageError: not of that form, or not a sparsity.
    """
    found = {}
    for item in items:
        pattern, equals, value = item.rpartition("=")
        try:
            found[pattern] = float(value)
        except ValueError:
            equals = ""
        if not equals or not pattern or not 0 <= found[pattern] < 1:
            raise UsageError(f"'{item}' is not of the form PATTERN=SPARSITY with a sparsity in [0, 1), as in 'fc*=0.9'")
    return found


def plan_pools(
    saliency: Saliency, pools: Sequence[Pool], targets: Sequence[float], keep: Mapping[str, Tensor] | None = None
) -> Plan:
    """Each pool planned by itself to its target sparsity (see ``plan_elements``); one plan of all."""
    masks: dict[str, Tensor] = {}
    predicted = 0.0
    for pool, target in zip(pools, targets, strict=True):
        change = saliency.loss_change
        own = Saliency(
            {name: saliency.scores[name] for name in pool.names},
            saliency.criterion,
            None if change is None else {name: change[name] for name in pool.names},
        )
        plan = plan_elements(own, target, keep)
        masks |= plan.keep
        predicted += plan.predicted_loss_change or 0.0
    order = {name: masks[name] for name in saliency.scores if name in masks}
    return Plan(order, None if saliency.loss_change is None else predicted)
