"""How diagonal second derivatives pass back through a node: the rules that families of operators share.

For y = f(x) and an objective E, LeCun's recursion keeps the diagonal of the Hessian alone:

    h_in[i] = sum_j (dy_j/dx_i)^2 h_out[j]  (+ sum_j d2y_j/dx_i^2 g_out[j] in the full form)

with h = d2E/dx_i^2 and g = dE/dy_j. The Levenberg-Marquardt form drops the second term and cannot turn negative.
(Le Cun, Denker, Solla 1989, eqs. 7 to 10.) A rule gets the call and the h of its outputs, and returns the h of the
inputs that are wanted, None for the others. It gives the first term; the second, ``bend``, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from onnx_obd.mirror.values import is_float

SecondRule = Callable[["Call", Sequence["Tensor | None"]], Sequence["Tensor | None"]]


@dataclass
class Call:
    """One execution of a node, as a rule sees it.

    ``function`` has the attributes bound; ``inputs`` are its arguments (host inputs as tuples), ``wanted`` says
    which of them need an h. ``outputs`` are the results. ``generator`` draws the probes of estimated rules, and
    ``estimated`` receives the nodes inside that had to be estimated. ``_graph`` is what ``differentiate`` returned for
    these inputs, if they have been differentiated already.
    """

    node: str
    function: Callable[..., Any]
    attributes: dict[str, Any]
    inputs: tuple
    outputs: tuple
    wanted: tuple[bool, ...]
    generator: torch.Generator | None = None
    estimated: set[str] | None = None
    _graph: tuple | None = field(default=None, repr=False)

    def differentiate(self, inputs: Sequence[Any] | None = None) -> tuple[list, tuple]:
        """Leaves for the wanted inputs and the outputs computed from them, with gradients recorded.

        A value that arrives twice, as in Mul(x, x), is one leaf, in its first place.
        """
        values = list(self.inputs if inputs is None else inputs)
        leaves, known = [], {}
        with torch.enable_grad():
            for position, wanted in enumerate(self.wanted):
                value, leaf = values[position], None
                if wanted and id(value) not in known:
                    leaf = known[id(value)] = _leaf(value)
                leaves.append(leaf)
            values = [known.get(id(value), value) for value in values]
            result = self.function(*values)
        return leaves, result if isinstance(result, tuple) else (result,)

    def graph(self) -> tuple[list, tuple]:
        """``differentiate`` at the call's own inputs, once."""
        self._graph = self._graph or self.differentiate()
        return self._graph

    def vjp(self, cotangents: Sequence[Tensor | None], inputs: Sequence[Any] | None = None) -> list[Tensor | None]:
        """Jacobian-transposed products for the wanted inputs: sum_j (dy_j/dx_i) c[j]. A sequence's is a list."""
        if inputs is None:
            leaves, results = self.graph()
        else:
            leaves, results = self.differentiate(inputs)
        pairs = [
            (result, cotangent)
            for result, cotangent in _paired(results, cotangents)
            if cotangent is not None and is_float(result) and result.requires_grad
        ]
        targets = [leaf for leaf, _ in _paired(leaves, leaves) if is_float(leaf)]
        if not pairs or not targets:
            return [None] * len(leaves)
        found = torch.autograd.grad(
            [r for r, _ in pairs], targets, [c.to(r.dtype) for r, c in pairs], retain_graph=True, allow_unused=True
        )
        gradients = iter(found)
        return [_arranged(leaf, gradients) for leaf in leaves]


def without_outputs(rule: SecondRule) -> SecondRule:
    """Says that a rule does not read ``Call.outputs``, which then need not be kept for it."""
    rule.reads_outputs = False
    return rule


def carries_h(value: Any) -> bool:
    """Is it a float tensor, or a sequence with one in it?"""
    return any(map(is_float, value)) if isinstance(value, list) else is_float(value)


def _leaf(value: Any) -> Any:
    if isinstance(value, list):
        return [_leaf(item) for item in value]
    return value.detach().requires_grad_() if is_float(value) else value


def _paired(values: Sequence[Any], others: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Tensor by tensor; those of a sequence one by one."""
    for value, other in zip(values, others, strict=False):
        if isinstance(value, list) and other is not None:
            yield from zip(value, other, strict=True)
        elif not isinstance(value, list):
            yield value, other


def _arranged(leaf: Any, found: Iterator[Tensor | None]) -> Any:
    if isinstance(leaf, list):
        return [_arranged(item, found) for item in leaf]
    return next(found) if is_float(leaf) else None


def movement(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Outputs that are sums of disjoint inputs, or copies: every Jacobian entry is 0 or 1, its own square."""
    return call.vjp(h)


def multilinear(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Outputs that are sums of products of one element of each operand, with coefficient 1.

    (dy_j/dx_i)^2 is then the same derivative of the same function at squared operands.
    """
    return call.vjp(h, [value.square() if is_float(value) else value for value in call.inputs])


def elementwise(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Outputs that depend, element by element, on the broadcast inputs: h_in = f'^2 h_out."""
    h_out = h[0]
    pairs = list(zip(call.inputs, call.wanted, strict=False))
    if all(value.shape == h_out.shape for value, wanted in pairs if wanted):
        leaves, results = call.graph()
    else:
        values = [value.expand(h_out.shape) if wanted else value for value, wanted in pairs]
        leaves, results = call.differentiate(values)
    found = []
    for leaf, value in zip(leaves, call.inputs, strict=False):
        once = None if leaf is None else _along(results[0], leaf, h_out)
        twice = None if once is None else _along(results[0], leaf, once)
        found.append(None if twice is None else twice.sum_to_size(value.shape))
    return found


def _along(result: Tensor, leaf: Tensor, h: Tensor) -> Tensor | None:
    """The Jacobian of an elementwise function is diagonal and its own transpose: applied twice it is squared."""
    return torch.autograd.grad(result, leaf, h.to(result.dtype), retain_graph=True, allow_unused=True)[0]


def unit(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Elementwise with slopes 0 or 1 in each operand: like a movement, unless an operand stands twice."""
    twice = len({id(value) for value in call.inputs}) < len(call.inputs)
    return elementwise(call, h) if twice else movement(call, h)


def scaled_movement(coefficient: Callable[[Call], float]) -> SecondRule:
    """Like ``movement`` where every non-zero Jacobian entry is the same number c: h_in = c vjp(h_out)."""

    def rule(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        c = coefficient(call)
        return [None if value is None else c * value for value in call.vjp(h)]

    return rule


def reduction(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """One output, and each input element belongs to one element of it (sum, norm, product, maximum over axes).

    With J the one non-zero entry in an element's column, J^2 h_out = J(1) J(h_out): two Jacobian-transposed products.
    """
    slopes, products = call.vjp([torch.ones_like(call.outputs[0])]), call.vjp(h)
    return [None if slope is None else slope * product for slope, product in zip(slopes, products, strict=True)]


def viewed(prepare: Callable[..., Sequence[Any]], rule: SecondRule = elementwise) -> SecondRule:
    """``rule`` for an operator that first views its inputs in other shapes (aligned, repeated): y = f(prepare(x)).

    ``prepare`` gets the inputs and attributes of the operator, and leaves as they are inputs already prepared.
    """

    def second(call: Call, h: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        pairs = zip(call.inputs, call.wanted, strict=True)
        with torch.enable_grad():
            known = {id(value): _leaf(value) for value, wanted in pairs if wanted}
            leaves = [known.get(id(value), value) for value in call.inputs]
            views = prepare(*leaves, **call.attributes)
        values = {id(view): view.detach() if isinstance(view, Tensor) else view for view in views}
        found = rule(replace(call, inputs=tuple(values[id(view)] for view in views), _graph=None), h)
        return [
            torch.autograd.grad(view, leaf, back)[0] if wanted and back is not None else None
            for view, leaf, back, wanted in zip(views, leaves, found, call.wanted, strict=False)
        ]

    return second


def probes(call: Call, h: Sequence[Tensor | None], num_probes: int = 8) -> Sequence[Tensor | None]:
    """Any operator, estimated: E[(J^T (v * sqrt(h)))^2] = diag(J^T diag(h) J) for random signs v.

    Unbiased; the relative standard deviation of an element is at most sqrt(2 / num_probes). A negative h (full form)
    is passed as the difference of two non-negative parts.
    """
    total: list[Tensor | None] = [None] * len(call.inputs)
    for sign in (1.0, -1.0):
        roots = [None if value is None else (sign * value).clamp_min(0).sqrt() for value in h]
        if not any(root is not None and bool(root.any()) for root in roots):
            continue
        for _ in range(num_probes):
            found = call.vjp([None if root is None else root * _signs(root, call.generator) for root in roots])
            for position, gradient in enumerate(found):
                if gradient is not None:
                    term = gradient.square() * (sign / num_probes)
                    total[position] = term if total[position] is None else total[position] + term
    return total


def broadcast_squares(
    shape: torch.Size, gradients: Sequence[Tensor], slope: Tensor | None, count: int, axis: int
) -> Tensor:
    """Sum over directions and samples of the squared gradient of an operand that was broadcast, element by element.

    Args:
        shape: the operand's, aligned with the last axes of the output.
        gradients: of the output, one for each direction.
        slope: dy/dw, to broadcast against the output; 1 if None.
        count, axis: so many samples stand along that axis of the output.
    """
    total = 0
    for gradient in gradients:
        gradient = gradient if slope is None else gradient * slope
        aligned = (1,) * (gradient.dim() - len(shape)) + tuple(shape)
        parted = gradient.unflatten(axis, (count, -1)).movedim(axis, 0)
        shared = [d for d, size in enumerate(aligned, 1) if size == 1]
        summed = parted.sum(shared, keepdim=True) if shared else parted
        total = total + summed.square().sum(0)
    return total.reshape(shape)


def sum_of_squares(gradients: Sequence[Tensor]) -> Tensor:
    total = gradients[0].square()
    for gradient in gradients[1:]:
        total.addcmul_(gradient, gradient)
    return total


def elementwise_sample_squares(
    call: Call, gradients: Sequence[Sequence[Tensor] | None], count: int, axis: int
) -> list[Tensor | None]:
    """``sample_squares`` of an elementwise operator: the slope once, for all samples and columns."""
    gradient = gradients[0][0]
    values = [v.expand(gradient.shape) if wanted else v for v, wanted in zip(call.inputs, call.wanted, strict=True)]
    slopes = zip(call.inputs, call.vjp([torch.ones_like(gradient)], values), strict=True)
    return [None if s is None else broadcast_squares(v.shape, gradients[0], s, count, axis) for v, s in slopes]


def sum_sample_squares(
    call: Call, gradients: Sequence[Sequence[Tensor] | None], count: int, axis: int
) -> list[Tensor | None]:
    """``sample_squares`` of sums and differences, whose slopes are 1 and -1."""
    shapes = zip(call.inputs, call.wanted, strict=True)
    return [broadcast_squares(x.shape, gradients[0], None, count, axis) if wanted else None for x, wanted in shapes]


BY_GRAPH: tuple[SecondRule, ...] = (unit, movement, elementwise, reduction, probes)
"""The rules that go back through the graph of the node's own run, which is then recorded as it runs forward."""


def bend(call: Call, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The second term of the full form: sum_j d2y_j/dx_i^2 g[j] for the wanted inputs, by double back-propagation.

    With phi(x) = <f(x), g>, it is v * (d2phi/dx2 v) for random signs v: exact where the Hessian of phi in one input is
    diagonal (every elementwise and multilinear operator), else unbiased from one draw. The inputs of a sequence keep
    the first term alone.
    """
    leaves, results = call.differentiate()
    pairs = [
        (result, g)
        for result, g in _paired(results, gradients)
        if g is not None and is_float(result) and result.requires_grad
    ]
    found: list[Tensor | None] = [None] * len(leaves)
    targets = [(position, leaf) for position, leaf in enumerate(leaves) if is_float(leaf)]
    if not pairs or not targets:
        return found
    outputs, vectors = [r for r, _ in pairs], [g for _, g in pairs]
    slopes = torch.autograd.grad(outputs, [leaf for _, leaf in targets], vectors, create_graph=True, allow_unused=True)
    for (position, leaf), slope in zip(targets, slopes, strict=True):
        if slope is not None and slope.requires_grad:
            v = _signs(leaf, call.generator)
            (product,) = torch.autograd.grad(slope, leaf, v, retain_graph=True, allow_unused=True)
            found[position] = None if product is None else v * product
    return found


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    bits = torch.randint(0, 2, like.shape, generator=generator, device=device)
    return (2 * bits - 1).to(like)
