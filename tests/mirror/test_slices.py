"""A batch in slices gives what the whole batch gives, and is not cut where samples meet."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from onnx_obd.mirror import slices
from onnx_obd.mirror.mirror import Mirror

_RNG = np.random.default_rng(0)
X = torch.from_numpy(_RNG.standard_normal((6, 3, 5, 4), np.float32))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pairs of the samples below are what a slice has room for."""
    monkeypatch.setattr(slices, "LARGE", 1000)
    monkeypatch.setattr(slices, "SLICE", 700)


def _mirror(nodes: str, shape: str = "6, 3, 5, 4") -> Mirror:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[] y) {{ {nodes} }}'
    )
    weights = {"w": (4, 3, 3, 3), "b": (4,), "m": (20, 7), "each": (6, 3, 5, 4), "four": (5, 6)}
    read = {name for node in model.graph.node for name in node.input}
    for name, size in weights.items():
        if name in read:
            array = _RNG.standard_normal(size, np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return Mirror(model)


def _length(mirror: Mirror, x: torch.Tensor) -> int | None:
    """How many samples a slice has; None if the batch is not cut."""
    run = mirror.plan([x])._unrecorded
    return run.__self__.length if isinstance(getattr(run, "__self__", None), slices.Slices) else None


def _check(mirror: Mirror, x: torch.Tensor = X) -> int | None:
    expected, kept = mirror(x).detach(), x.clone()
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(mirror(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, kept)
    return _length(mirror, x)


NETWORK = """
    v = Identity (w) a = Conv <pads=[1, 1, 1, 1]> (x, v, b) c = Relu (a) d = MaxPool <kernel_shape=[1, 4]> (c)
    e = Flatten (d) f = MatMul (e, m) y = Softmax (f)
"""


def test_a_network_is_run_in_slices():
    assert _check(_mirror(NETWORK)) == 2


def test_a_changed_weight_is_seen():
    mirror = _mirror(NETWORK)
    _check(mirror)
    with torch.no_grad():
        mirror.weights["w"].mul_(-1)
        sliced = mirror(X)
    torch.testing.assert_close(sliced, mirror(X).detach())


def test_gradients_are_those_of_the_whole():
    mirror = _mirror(NETWORK)
    _check(mirror)
    assert mirror(X).requires_grad


def test_a_constant_made_of_the_batch_stays_what_it_is():
    mirror = _mirror("s = Shape <end=1> (x) f = Cast <to=1> (s) a = Div (x, f) y = Relu (a)")
    assert _check(mirror) == 2


def test_a_number_for_each_sample():
    _check(_mirror("s = Constant <value_ints=[-1]> () a = ReduceMax <axes=[1, 2, 3]> (x) y = Reshape (a, s)"))


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Relu (x) y = Softmax <axis=0> (a)",
        "a = ReduceMean <axes=[0]> (x) y = Sub (x, a)",
        "a = Transpose <perm=[1, 0, 2, 3]> (x) b = Relu (a) y = Transpose <perm=[1, 0, 2, 3]> (b)",
        "y = Add (x, each)",
        "a = Flatten (x) y = MatMul (four, a)",
        "a = Concat <axis=0> (x, x) y = Relu (a)",
        "a, i = MaxPool <kernel_shape=[2, 2]> (x) y = Cast <to=1> (i)",
        "s = Constant <value_ints=[6, -1]> () a = Reshape (x, s) y = Relu (a)",
        "s = Constant <value_ints=[-1, 8]> () a = Reshape (x, s) y = Relu (a)",
        "a, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (a, s, z)",
        "k = Constant <value_ints=[5, 4, 3, 2, 1, 0]> () a = Gather <axis=0> (x, k) y = Relu (a)",
        "y, k = TopK <axis=0> (x, n) n = Constant <value_ints=[6]> ()",
    ],
)
def test_samples_that_meet_are_kept_together(nodes):
    assert _check(_mirror(nodes)) is None


def test_batch_statistics_keep_samples_together():
    statistics = "g = ReduceMax <axes=[0, 2, 3], keepdims=0> (x)"
    assert _check(_mirror(f"{statistics} y, m, v = BatchNormalization <training_mode=1> (x, g, g, g, g)")) is None


def test_a_prime_batch_goes_one_by_one():
    mirror = _mirror(NETWORK, shape="N, 3, 5, 4")
    assert _check(mirror, X[:5]) == 1
