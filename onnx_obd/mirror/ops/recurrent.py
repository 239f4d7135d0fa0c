"""Recurrent layers: RNN, GRU, LSTM.

The input projection of all steps is one product; what remains is a loop over time around one cell. Where torch's
fused kernel computes exactly the node, it runs instead.

Shapes: X [T, B, I]; W [D, G*H, I] and R [D, G*H, H] for G gates and D directions; bias B [D, 2*G*H] = Wb, Rb;
states [D, B, H]; Y [T, D, B, H]. With ``layout=1`` the batch comes first: X [B, T, I], states [B, D, H] and
Y [B, T, D, H].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_obd.errors import ModelError
from onnx_obd.mirror.axes import Node
from onnx_obd.mirror.composite import composite
from onnx_obd.mirror.ops import onednn
from onnx_obd.mirror.ops.activations import tanh
from onnx_obd.mirror.ops.linear import addmm, linear
from onnx_obd.mirror.ops.named_activations import Activation, named_activation
from onnx_obd.mirror.products import Bias, Product, product_of_rows
from onnx_obd.mirror.registry import Ints, family
from onnx_obd.mirror.tracing import calls_are_changed

Cell = Callable[..., tuple[Tensor, ...]]
"""(projected input of a step, *states) -> the new states, the hidden state first."""

MIN_FUSED_STEPS = 6
"""Below this, torch's fused kernels cost more to set up than the loop takes."""

_recurrent_op = family(weights=(1, 2), second=composite)


@lru_cache
def layer_activations(
    count: int, directions: int, names: tuple[str, ...], alphas: tuple[float, ...] | None,
    betas: tuple[float, ...] | None, clip: float | None, clipped: int = 2,
) -> list[list[Activation]]:  # fmt: skip
    """The ``count`` activations of each direction, the first ``clipped`` with their arguments limited to [-clip, clip].

    Each takes the next alpha and the next beta if it has one, which is how onnxruntime reads the lists.
    """
    if len(names) < count * directions:
        raise ModelError(f"recurrent layer: {len(names)} activations for {directions} directions of {count}")
    alphas, betas = iter(alphas or ()), iter(betas or ())
    found = [named_activation(name, alphas, betas) for name in names[: count * directions]]
    found = [_tanh if f is tanh else f for f in found]
    if clip:
        found = [_clipped(f, clip) if i % count < clipped else f for i, f in enumerate(found)]
    return [found[i : i + count] for i in range(0, len(found), count)]


MANY_STATES = 1 << 12
"""Elements from which torch's tanh takes longer than four other calls."""


def _tanh(x: Tensor) -> Tensor:
    """2 / (1 + e^-2x) - 1: a third of the time of torch's kernel, and as exact but near 0, where 2^-24 is the error."""
    return torch.sigmoid(x + x).mul_(2).sub_(1) if x.numel() >= MANY_STATES and onednn.applies(x) else tanh(x)


def _clipped(function: Activation, clip: float) -> Activation:
    return lambda x: function(x.clamp(-clip, clip))


class Layer:
    """A node's run over time: what its cell leaves open. Tensors are held time first."""

    def __init__(self, x, w, r, b, lengths, initial, direction: str, layout: int):
        self.x, self.w, self.r, self.b, self.direction, self.layout = x, w, r, b, direction, layout
        if layout:
            self.x = x.transpose(0, 1)
            initial = [None if state is None else state.transpose(0, 1) for state in initial]
        self.steps, batch = self.x.shape[:2]
        self.lengths = None if lengths is None or set(lengths) == {self.steps} else lengths
        self.states = [x.new_zeros(len(r), batch, r.shape[2]) if state is None else state for state in initial]

    def bias(self, d: int) -> tuple[Tensor, ...]:
        """Wb and Rb of a direction, or nothing."""
        return () if self.b is None else self.b[d].chunk(2)

    def project(self, d: int, rows: int | None = None) -> Tensor:
        """X W^T + Wb + Rb of a direction for all steps; Rb for the first ``rows`` of the gates only, if given."""
        if self.b is None:
            return linear(self.x, self.w[d])
        wb, rb = self.bias(d)
        rb = rb if rows is None else F.pad(rb[:rows], (0, len(rb) - rows))
        return linear(self.x, self.w[d], wb + rb)

    def loop(self, cells: Sequence[Cell], projections: Sequence[Tensor]) -> tuple:
        """Y, Y_h (and Y_c), one cell and one projection for each direction."""
        lengths = None if self.lengths is None else torch.tensor(self.lengths, device=self.x.device)
        hidden, finals = [], []
        for d, (cell, projected) in enumerate(zip(cells, projections, strict=True)):
            backwards = self.direction == "reverse" or d == 1
            y, states = _sweep(projected, [state[d] for state in self.states], cell, lengths, backwards)
            hidden.append(y)
            finals.append(states)
        return self.arrange(_stack(hidden, 1), [_stack(states) for states in zip(*finals, strict=True)])

    def arrange(self, y: Tensor, states: Sequence[Tensor]) -> tuple:
        """[T, D, B, H] and [D, B, H] in the layout of the node."""
        if self.layout:
            return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
        return y, *states

    def fusable(self) -> bool:
        """Whether torch's fused kernels apply: not to ragged sequences, nor under torch.func or a composite rule."""
        return (
            self.lengths is None
            and self.steps >= MIN_FUSED_STEPS
            and not onednn.multiplies(self.states[0][0], self.r.shape[1])
            and not torch._C._are_functorch_transforms_active()
            and not calls_are_changed()
        )

    def fused(self, kernel: Callable[..., tuple], order: Sequence[int]) -> tuple:
        """The same as ``loop`` by a kernel of torch, whose gates stand in another ``order``."""
        reverse, directions = self.direction == "reverse", len(self.r)
        x = self.x.flip(0) if reverse else self.x
        weights = [_reorder(part, order) for d in range(directions) for part in (self.w[d], self.r[d], *self.bias(d))]
        states = [state.contiguous() for state in self.states]
        recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *states, *weights))
        # cuDNN's kernels cannot be differentiated twice
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recorded):
            initial = states if len(states) > 1 else states[0]
            y, *finals = kernel(x, initial, weights, self.b is not None, 1, 0.0, recorded, directions == 2, False)
        y = y.unflatten(2, (directions, -1)).transpose(1, 2)
        return self.arrange(y.flip(0) if reverse else y, finals)


def _reorder(gates: Tensor, order: Sequence[int]) -> Tensor:
    parts = gates.chunk(len(order))
    return torch.cat([parts[i] for i in order]) if len(order) > 1 else gates


def _sweep(
    projected: Tensor, states: Sequence[Tensor], cell: Cell, lengths: Tensor | None, backwards: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """One direction: the hidden state after each step [T, B, H], 0 beyond a sequence's end, and the last states."""
    steps = projected.unbind(0)
    hidden: list[Tensor] = list(steps)
    for time in reversed(range(len(steps))) if backwards else range(len(steps)):
        new = cell(steps[time], *states)
        if lengths is None:
            states, hidden[time] = new, new[0]
        else:
            inside = (time < lengths)[:, None]
            states = tuple(torch.where(inside, now, before) for now, before in zip(new, states, strict=True))
            hidden[time] = torch.where(inside, new[0], 0.0)
    return _stack(hidden), states


def _stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    return tensors[0].unsqueeze(axis) if len(tensors) == 1 else torch.stack(tensors, axis)


def _recurrent_axes(gates: int) -> Callable[[Node], str]:
    """The hidden units stand in the rows of every gate, and what R sums over are the units of the step before."""

    def rule(node: Node) -> str:
        batch_first = node.get("layout")
        x, y = ("b t i", "b t _ hidden_size") if batch_first else ("t b i", "t _ b hidden_size")
        state = "b _ hidden_size" if batch_first else "_ b hidden_size"
        w, r = f"_ ({gates} hidden_size) i", f"_ ({gates} hidden_size) hidden_size'"
        bias = f"_ ({2 * gates} hidden_size)"
        return f"{x}, {w}, {r}, {bias}, b, {state}, {state}, _ (3 hidden_size) -> {y}, {state}, {state}"

    return rule


def _projection(function: Callable[..., tuple]) -> Callable[..., Product | None]:
    """What enters the gates before their activation: X W^T for W, the hidden states of the step before times R^T for R.

    None where sequences may have several lengths: what stands beyond their ends is no data.
    """

    def rule(position: int, inputs: Sequence, attributes: Mapping) -> Product | None:
        x, w, r, b, lengths = (*inputs, None, None)[:5]
        x = x.transpose(0, 1) if attributes.get("layout") else x
        if lengths is not None:
            return None
        if position == 2:
            return product_of_rows(_states_before(function, inputs, attributes).flatten(1, 2), lambda r: r)
        rows = w.shape[1]
        bias = None if b is None else Bias(3, 1.0, lambda b: b[:, :rows])
        return product_of_rows(x.flatten(0, 1).expand(len(r), -1, -1), lambda w: w, bias=bias)

    return rule


def _states_before(function: Callable[..., tuple], inputs: Sequence, attributes: Mapping) -> Tensor:
    """The hidden state that each step starts from, [D, T, B, H]."""
    x, w, r, b, _, initial = (*inputs, None, None, None)[:6]
    y = function(x, w, r, b, None, *inputs[5:], **attributes)[0]
    y = y.permute(2, 1, 0, 3) if attributes.get("layout") else y.transpose(0, 1)
    if initial is None:
        initial = y.new_zeros(len(y), *y.shape[2:])
    elif attributes.get("layout"):
        initial = initial.transpose(0, 1)
    backwards = [attributes.get("direction") == "reverse" or d == 1 for d in range(len(y))]
    found = [
        torch.cat((h[1:], first[None]) if back else (first[None], h[:-1]))
        for h, first, back in zip(y, initial, backwards, strict=True)
    ]
    return torch.stack(found)


def _gru_projection(position: int, inputs: Sequence, attributes: Mapping) -> Product | None:
    """As for the others; where the reset gate comes before R, what the candidate's rows of R multiply is r H_{t-1}."""
    if position == 1 or attributes.get("linear_before_reset"):
        return _projection(gru)(position, inputs, attributes)
    x, w, r, b = (*inputs, None)[:4]
    names = attributes.get("activations") or _GRU_ACTIVATIONS * len(r)
    plain = tuple(name.lower() for name in names) == _GRU_ACTIVATIONS * len(r)
    if not plain or attributes.get("clip") or _projection(gru)(position, inputs, attributes) is None:
        return None
    h, size = _states_before(gru, inputs, attributes), r.shape[2]
    layer = Layer(x, w, r, b, None, [None], attributes.get("direction", "forward"), attributes.get("layout", 0))
    reset = [
        (layer.project(d)[..., size : 2 * size] + h[d] @ r[d, size : 2 * size].mT).sigmoid() for d in range(len(r))
    ]
    seen = torch.stack((h, h, torch.stack(reset) * h), 1)  # [D, 3, T, B, H]
    return product_of_rows(seen.flatten(0, 1).flatten(1, 2), lambda r: r.reshape(-1, size, size))


@_recurrent_op("RNN", 1, 7, 14, 22, axes=_recurrent_axes(1), product=lambda *node: _projection(rnn)(*node))
def rnn(
    x, w, r, b=None, sequence_lens: Ints | None = None, initial_h=None, *, activation_alpha=None, activation_beta=None,
    activations=("Tanh", "Tanh"), clip=None, direction="forward", hidden_size=None, layout=0, output_sequence=0,
):  # fmt: skip
    """H_t = f(X_t W^T + H_{t-1} R^T + Wb + Rb)."""
    layer = Layer(x, w, r, b, sequence_lens, [initial_h], direction, layout)
    kernel = _RNN_KERNELS.get(tuple(name.lower() for name in activations[: len(r)]))
    if kernel is not None and not clip and layer.fusable():
        return layer.fused(kernel, (0,))

    def cell(matrix: Tensor, f: Activation) -> Cell:
        return lambda x, h: (f(addmm(x, h, matrix)),)

    functions = layer_activations(1, len(r), activations, activation_alpha, activation_beta, clip)
    cells = [cell(matrix.t(), f) for matrix, (f,) in zip(r.unbind(), functions, strict=True)]
    return layer.loop(cells, [layer.project(d) for d in range(len(r))])


_RNN_KERNELS = {names * d: getattr(torch._VF, f"rnn_{names[0]}") for names in (("tanh",), ("relu",)) for d in (1, 2)}


@_recurrent_op("GRU", 1, 3, 7, 14, 22, axes=_recurrent_axes(3), product=lambda *node: _gru_projection(*node))
def gru(
    x, w, r, b=None, sequence_lens: Ints | None = None, initial_h=None, *, activation_alpha=None, activation_beta=None,
    activations=None, clip=None, direction="forward", hidden_size=None, layout=0, linear_before_reset=0,
    output_sequence=0,
):  # fmt: skip
    """Gates z, r, h: z, r = f(X_t W^T + H_{t-1} R^T + Wb + Rb); H_t = (1 - z) n + z H_{t-1}.

    n = g(X_t Wh^T + Wbh + r (H_{t-1} Rh^T + Rbh)) with ``linear_before_reset``, otherwise
    n = g(X_t Wh^T + Wbh + (r H_{t-1}) Rh^T + Rbh).
    """
    layer = Layer(x, w, r, b, sequence_lens, [initial_h], direction, layout)
    size = r.shape[2]
    names = activations or _GRU_ACTIVATIONS * len(r)
    plain = tuple(name.lower() for name in names) == _GRU_ACTIVATIONS * len(r)
    if plain and linear_before_reset and not clip and layer.fusable():
        return layer.fused(torch._VF.gru, (1, 0, 2))

    def cell(d: int, f: Activation, g: Activation) -> Cell:
        if linear_before_reset:  # one product for all gates
            bias = None if b is None else F.pad(layer.bias(d)[1][2 * size :], (2 * size, 0))

            def step(x: Tensor, h: Tensor) -> tuple[Tensor]:
                (x_gates, x_new), (h_gates, h_new) = (y.split((2 * size, size), 1) for y in (x, linear(h, r[d], bias)))
                update, reset = f(x_gates + h_gates).chunk(2, 1)
                return (_mixed(update, h, g(x_new + reset * h_new)),)

            return step
        gates, candidate = r[d, : 2 * size].t(), r[d, 2 * size :].t()

        def step(x: Tensor, h: Tensor) -> tuple[Tensor]:
            x_gates, x_new = x.split((2 * size, size), 1)
            update, reset = f(addmm(x_gates, h, gates)).chunk(2, 1)
            return (_mixed(update, h, g(addmm(x_new, reset * h, candidate))),)

        return step

    functions = layer_activations(2, len(r), names, activation_alpha, activation_beta, clip)
    cells = [cell(d, f, g) for d, (f, g) in enumerate(functions)]
    rows = 2 * size if linear_before_reset else None
    return layer.loop(cells, [layer.project(d, rows) for d in range(len(r))])


_GRU_ACTIVATIONS = ("sigmoid", "tanh")


def _mixed(share: Tensor, h: Tensor, new: Tensor) -> Tensor:
    """share h + (1 - share) new."""
    return torch.lerp(new, h, share) if onednn.applies(h) else (1 - share) * new + share * h


@_recurrent_op("LSTM", 1, 7, 14, 22, axes=_recurrent_axes(4), product=lambda *node: _projection(lstm)(*node))
def lstm(
    x, w, r, b=None, sequence_lens: Ints | None = None, initial_h=None, initial_c=None, p=None, *,
    activation_alpha=None, activation_beta=None, activations=None, clip=None, direction="forward", hidden_size=None,
    input_forget=0, layout=0, output_sequence=0,
):  # fmt: skip
    """Gates i, o, f, c, with peepholes P [D, 3*H] = Pi, Po, Pf from the cell state C:

    i = f(X_t Wi^T + H_{t-1} Ri^T + Pi C_{t-1} + bi), likewise f (or 1 - i with ``input_forget``);
    C_t = f C_{t-1} + i g(X_t Wc^T + H_{t-1} Rc^T + bc);
    o = f(X_t Wo^T + H_{t-1} Ro^T + Po C_t + bo); H_t = o h(C_t).
    """
    layer = Layer(x, w, r, b, sequence_lens, [initial_h, initial_c], direction, layout)
    names = activations or LSTM_ACTIVATIONS * len(r)
    plain = tuple(name.lower() for name in names) == LSTM_ACTIVATIONS * len(r)
    if plain and p is None and not input_forget and not clip and layer.fusable():
        return layer.fused(torch._VF.lstm, (0, 2, 3, 1))

    def gates(d: int) -> Callable[[Tensor, Tensor], Tensor]:
        matrix = r[d].t()
        return lambda x, h: addmm(x, h, matrix)

    # onnxruntime limits what enters the gates, not the cell state that enters h
    functions = layer_activations(3, len(r), names, activation_alpha, activation_beta, clip, clipped=2)
    cells = [
        lstm_cell(gates(d), *three, None if p is None else p[d], input_forget) for d, three in enumerate(functions)
    ]
    return layer.loop(cells, [layer.project(d) for d in range(len(r))])


LSTM_ACTIVATIONS = ("sigmoid", "tanh", "tanh")


def lstm_cell(
    gates: Callable[[Tensor, Tensor], Tensor], f: Activation, g: Activation, h_of: Activation, p: Tensor | None,
    input_forget: int,
) -> Cell:  # fmt: skip
    """The cell whose gates before their activation are ``gates(projected input, hidden state)``, [B, 4*H]."""
    peepholes = None if p is None else p.chunk(3)

    def plain_step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        size, values = 3 * h.shape[1], gates(x, h)
        i, o, forget = f(values[:, :size]).chunk(3, 1)
        c = forget * c + i * g(values[:, size:])
        return o * h_of(c), c

    def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, o, forget, new = gates(x, h).chunk(4, 1)
        if peepholes:
            i, forget = i + peepholes[0] * c, forget + peepholes[2] * c
        i = f(i)
        c = (1 - i if input_forget else f(forget)) * c + i * g(new)
        o = f(o + peepholes[1] * c if peepholes else o)
        return o * h_of(c), c

    return step if peepholes or input_forget else plain_step
