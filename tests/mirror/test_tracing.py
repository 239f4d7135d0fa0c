"""A plan run by the calls of torch it was seen to make: for any values, and only where the values decide nothing."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from torch.overrides import TorchFunctionMode

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.tracing import SMALL, Ref, Trace, Tracer

X, Y = torch.linspace(-2, 2, 12).reshape(3, 4), torch.tensor([[0.5, -1, 2, 0.25]]).repeat(3, 1)


def _trace(function, *operands):
    with torch.no_grad(), Tracer(operands) as tracer:
        result = function(*operands)
    return tracer.trace(result if isinstance(result, tuple) else (result,))


def _mirror(nodes: str, **weights: np.ndarray) -> Mirror:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[] y) {{ {nodes} }}'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return Mirror(model)


def _calls(mirror: Mirror, x: torch.Tensor) -> list:
    with torch.no_grad():
        for _ in range(3):
            mirror(x)
    return mirror.plan([x])._unrecorded.calls


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0].sum(),
        lambda x: x.nonzero().sum(),
        lambda x: x + x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x + torch.from_numpy(x.numpy() + 1),
        lambda x: x + x.tolist()[0][0],
    ],
    ids=["mask", "nonzero", "item", "branch", "numpy", "list"],
)
def test_what_looks_at_values_is_not_traced(function):
    assert _trace(function, X.clone()) is None


def test_shapes_may_decide():
    trace = _trace(lambda x: x.mT.contiguous() if x.dim() == 2 and len(x) == 3 else -x, X)
    assert [call.function.__name__ for call in trace.calls] == ["__get__", "contiguous"]


def test_calls_whose_results_nobody_reads_are_left_out():
    def step(x):
        y = x.clone()
        y[0] = 0
        y.view(-1)[1:].add_(x.mT.is_contiguous())
        return y

    assert [call.function.__name__ for call in _trace(step, X).calls] == [
        "clone", "__setitem__", "view", "__getitem__", "add_",
    ]  # fmt: skip


def test_an_operand_may_come_out_as_it_is():
    assert _trace(lambda x: x, X) == Trace((), (Ref(0),))


def test_a_tensor_from_elsewhere_is_not_traced():
    hidden = torch.ones(4)
    assert _trace(lambda x: x + hidden, X) is None


def test_weights_and_inputs_may_change_between_calls():
    w, b = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2), np.float32([1, 2])
    mirror = _mirror("p = MatMul (x, w) s = Add (b, p) y = Softmax (s)", w=w, b=b)
    calls = _calls(mirror, X)
    assert len(calls) == 2 and all(isinstance(call, Trace) for call in calls)  # the product and the sum are one
    mirror.weights["w"].data = mirror.weights["w"].data * 3
    with torch.no_grad():
        torch.testing.assert_close(mirror(Y), mirror.evaluate([Y], weights={"b": torch.from_numpy(b)})[0])
        torch.testing.assert_close(mirror(Y), torch.softmax(Y @ mirror.weights["w"] + torch.from_numpy(b), -1))


def test_a_mirror_that_has_run_can_be_copied():
    mirror = _mirror("t = Unsqueeze (x, a) p = MatMul (t, w) y = Add (p, b)", a=np.array([0]), w=np.eye(4, dtype="f"),
                     b=np.ones(4, "f"))  # fmt: skip
    _calls(mirror, X)
    copied = copy.deepcopy(mirror)
    copied.weights["w"].data.zero_()
    with torch.no_grad():
        assert torch.equal(copied(Y)[0], torch.ones(3, 4)) and torch.equal(mirror(Y)[0], Y + 1)


def test_a_sum_that_others_read_too_stays_apart():
    eye, ones = np.eye(4, dtype=np.float32), np.ones(4, np.float32)
    mirror = _mirror("p = MatMul (x, w) s = Add (p, b) y = Mul (s, p)", w=eye, b=ones)
    assert len(_calls(mirror, X)) == 3
    with torch.no_grad():
        torch.testing.assert_close(mirror(Y), (Y + 1) * Y)


def test_a_plan_of_large_values_is_run_as_it_is():
    """There the kernels take the time, and what tracing allocates between the values takes memory."""
    mirror, many = _mirror("a = Sigmoid (x) y = Neg (a)"), torch.zeros(SMALL, 4)
    assert not any(isinstance(call, Trace) for call in _calls(mirror, many))
    assert all(isinstance(call, Trace) for call in _calls(mirror, many[:8]))


def test_a_function_mode_sees_every_operator():
    """Whoever changes what torch's calls do gets the operators as they are written, not the kernels of a trace."""
    mirror, seen = _mirror("a = Sigmoid (x) y = Neg (a)"), []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    _calls(mirror, X)
    with torch.no_grad(), Mode():
        mirror(X)
    assert {"sigmoid", "neg"} <= set(seen)
