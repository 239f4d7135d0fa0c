"""If, Loop and Scan; gradients and second derivatives through their bodies against the same nodes written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import parser

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from onnx_obd.mirror.values import to_torch
from tests.mirror.harness import case, check, rand, run_onnxruntime, second_of_weights


def body(text: str, **initializers: np.ndarray) -> onnx.GraphProto:
    graph = parser.parse_graph(text)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in initializers.items())
    return graph


THEN = body("g () => (float[2, 3] y) { y = Tanh (w) }", w=rand(2, 3))
ELSE = body("g () => (float[2, 3] y) { t = Mul (w, w2) y = Sigmoid (t) }", w=rand(2, 3), w2=rand(2, 3))

# carries a, scans a product of it, and stops by itself after the iteration of number 2
STEP = """step (int64 i, bool c, float[2, 3] a) => (bool go, float[2, 3] b, float[2, 4] s) {
    t = MatMul (a, w)
    b = Sigmoid (t)
    s = MatMul (b, v)
    limit = Constant <value = int64 {2}> ()
    go = Less (i, limit)
}"""
LOOP = body(STEP, w=rand(3, 3), v=rand(3, 4))
CUMULATE = body(
    "step (float[3] a, float[3] x) => (float[3] b, float[3] s) { t = Mul (a, w) b = Add (t, x) s = Tanh (b) }",
    w=rand(3),
)
TWO_INPUTS = body(
    "step (float[2, 3] a, float[2, 3] x, float[3] y) => (float[2, 3] b, float[2, 3] s, float[3] t) "
    "{ p = Mul (a, x) b = Add (p, y) s = Sigmoid (b) t = Mul (y, y) }"
)
TRUE, FALSE = np.array(True), np.array(False)


def count(n: int) -> np.ndarray:
    return np.array(n, np.int64)


def if_case(opset: int, cond: np.ndarray):
    return case("If", opset, cond, then_branch=THEN, else_branch=ELSE)


def loop_case(opset: int, *inputs, **own):
    return case("Loop", opset, *inputs, rand(2, 3), body=LOOP, outputs=2, exact_second=False, **own)


VERSIONS = (11, 13, 16, 19, 21, 23, 24, 25)
CASES = [if_case(opset, TRUE) for opset in VERSIONS] + [if_case(25, FALSE)]
CASES += [loop_case(opset, count(2), TRUE) for opset in VERSIONS]
# onnxruntime has no opset 1: the nodes mean what they mean in 11
CASES += [replace(c, opset=1, expected=tuple(run_onnxruntime(c))) for c in (CASES[0], loop_case(11, count(2), TRUE))]
CASES += [
    loop_case(13, count(9), TRUE),  # the body stops it
    loop_case(13, None, TRUE),
    loop_case(13, count(2), None),
    loop_case(13, None, None),
    loop_case(13, count(0), TRUE),
    loop_case(13, count(5), FALSE),
    case("Scan", 8, None, rand(2, 3), rand(2, 4, 3), body=CUMULATE, num_scan_inputs=1, outputs=2, exact_second=False),
    case("Scan", 8, np.array([2, 4], np.int64), rand(2, 3), rand(2, 4, 3), body=CUMULATE, num_scan_inputs=1,
         directions=[1], outputs=2, exact_second=False),
    case("Scan", 16, rand(2, 3), rand(2, 4, 3), rand(3, 4), body=TWO_INPUTS, num_scan_inputs=2, outputs=3,
         scan_input_axes=[1, -1], scan_input_directions=[1, 0], scan_output_axes=[2, 0],
         scan_output_directions=[1, 1], exact_second=False),
]  # fmt: skip
CASES += [
    case("Scan", opset, rand(3), rand(4, 3), body=CUMULATE, num_scan_inputs=1, outputs=2, exact_second=False)
    for opset in (9, *VERSIONS)
    if opset != 13
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


WEIGHTS = {"w": rand(3, 3), "v": rand(3, 4), "x": rand(2, 3)}
"""Shared between the main graph and the bodies."""


def model(text: str) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 16]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in WEIGHTS.items())
    return proto


CAPTURING = {
    "If": """m (float[2, 3] a, bool flag) => (float[2, 4] y) {
        k = Tanh (a)
        p = If (flag) <
            then_branch = t () => (float[2, 3] o) {
                q = MatMul (k, w)
                o = If (flag) <then_branch = tt () => (float[2, 3] r) { r = Sigmoid (q) },
                               else_branch = te () => (float[2, 3] r) { r = Identity (x) }>
            },
            else_branch = e () => (float[2, 3] o) { o = Mul (k, x) } >
        y = MatMul (p, v)
    }""",
    "Loop": """m (float[2, 3] a, bool flag) => (float[3, 2, 4] y) {
        n = Constant <value = int64 {3}> ()
        last, y = Loop (n, flag, a) <
            body = b (int64 i, bool c, float[2, 3] s) => (bool d, float[2, 3] u, float[2, 4] z) {
                d = Identity (c)
                p = MatMul (s, w)
                q = Add (p, x)
                u = Tanh (q)
                z = MatMul (u, v)
            }>
    }""",
    "Scan": """m (float[2, 3] a, bool flag) => (float[2, 3] y) {
        xs = Unsqueeze (a, one)
        start = Sub (x, x)
        y, z = Scan <num_scan_inputs = 1, scan_input_axes = [0],
            body = b (float[2, 3] s, float[1, 3] e) => (float[2, 3] u, float[1, 3] f) {
                f = Identity (e)
                p = MatMul (s, w)
                q = Mul (p, x)
                u = Add (q, e)
            }> (start, xs)
    }""",
}
WRITTEN_OUT = {
    "If": """m (float[2, 3] a, bool flag) => (float[2, 4] y) {
        k = Tanh (a) q = MatMul (k, w) p = Sigmoid (q) y = MatMul (p, v) }""",
    "Loop": """m (float[2, 3] a, bool flag) => (float[3, 2, 4] y) {
        p1 = MatMul (a, w) q1 = Add (p1, x) u1 = Tanh (q1) z1 = MatMul (u1, v) y1 = Unsqueeze (z1, zero)
        p2 = MatMul (u1, w) q2 = Add (p2, x) u2 = Tanh (q2) z2 = MatMul (u2, v) y2 = Unsqueeze (z2, zero)
        p3 = MatMul (u2, w) q3 = Add (p3, x) u3 = Tanh (q3) z3 = MatMul (u3, v) y3 = Unsqueeze (z3, zero)
        y = Concat <axis = 0> (y1, y2, y3) }""",
    "Scan": """m (float[2, 3] a, bool flag) => (float[2, 3] y) {
        e1, e2 = Split <axis = 0> (a)
        start = Sub (x, x)
        p1 = MatMul (start, w) q1 = Mul (p1, x) u1 = Add (q1, e1)
        p2 = MatMul (u1, w) q2 = Mul (p2, x) y = Add (q2, e2) }""",
}
INTEGERS = {"one": np.array([1], np.int64), "zero": np.array([0], np.int64)}


def _build(text: str) -> onnx.ModelProto:
    proto = model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in INTEGERS.items())
    return proto


def _gradients(proto: onnx.ModelProto, feeds: list) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """The output, and the gradients of the weights for weightings from 1 to 2 of its elements."""
    mirror = Mirror(proto).double()
    (output,) = mirror.evaluate([to_torch(feeds[0]).double(), to_torch(feeds[1])])
    weighting = torch.linspace(1, 2, output.numel()).double().view(output.shape)
    found = torch.autograd.grad(output, list(mirror.weights.values()), weighting, allow_unused=True)
    return output.detach().numpy(), {n: g for n, g in zip(mirror.weights, found, strict=True) if g is not None}


@pytest.mark.parametrize("op_type", CAPTURING)
def test_captured_weights(op_type):
    feeds, proto, written_out = [rand(2, 3), TRUE], _build(CAPTURING[op_type]), _build(WRITTEN_OUT[op_type])
    output, gradients = _gradients(proto, feeds)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(["y"], {"a": feeds[0], "flag": feeds[1]})[0]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    second = second_of_weights(proto, feeds)
    pairs = [(gradients, _gradients(written_out, feeds)[1]), (second, second_of_weights(written_out, feeds))]
    for found, expected in pairs:
        assert expected
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)


def test_the_branch_that_does_not_run_has_no_curvature():
    mirror = Mirror(_build(CAPTURING["If"]))
    feeds = [to_torch(rand(2, 3)), torch.tensor(False)]
    plan = mirror.plan(feeds)
    env = plan.record(plan.start(feeds))
    seeds = {plan.outputs[0]: torch.ones(2, 4)}
    slots = mirror.weight_slots()
    h = propagate(plan, env, seeds, slots.values())
    assert slots["w"] not in h or not h[slots["w"]].any()
    assert h[slots["x"]].all()


def test_nodes_without_a_rule_inside_a_body_are_named():
    text = """m (float[2, 3] a, bool flag) => (float[2, 3] y) {
        y = If (flag) <then_branch = t () => (float[2, 3] o) { p = MatMul (a, w) o = CumSum (p, one) },
                       else_branch = e () => (float[2, 3] o) { o = Identity (x) }> }"""
    mirror = Mirror(_build(text))
    feeds = [to_torch(rand(2, 3)), torch.tensor(True)]
    plan = mirror.plan(feeds)
    env = plan.record(plan.start(feeds))
    estimated: set[str] = set()
    propagate(plan, env, {plan.outputs[0]: torch.ones(2, 3)}, mirror.weight_slots().values(), estimated=estimated)
    assert all("then_branch" in node for node in estimated)
