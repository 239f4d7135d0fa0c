"""RNN, GRU and LSTM; the second-derivative rule against the same layer written out as primitive nodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
import torch

from tests.mirror.harness import Case, case, check, rand, run_onnxruntime, second_of_weights

STEPS, BATCH, INPUT, HIDDEN = 6, 3, 2, 3
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def layer(op_type: str, opset: int, *extra: str, steps=STEPS, directions=1, lens=None, **attributes) -> Case:
    """A layer with random weights; ``extra`` names the optional inputs it has: B, h, c, P."""
    gates, states = GATES[op_type] * HIDDEN, (directions, BATCH, HIDDEN)
    x = rand(steps, BATCH, INPUT)
    if attributes.get("layout"):
        x, states = x.swapaxes(0, 1).copy(), (BATCH, directions, HIDDEN)
    inputs = [x, rand(directions, gates, INPUT), rand(directions, gates, HIDDEN)]
    inputs.append(rand(directions, 2 * gates) if "B" in extra else None)
    inputs.append(None if lens is None else np.array(lens, np.int32))
    inputs.append(rand(*states) if "h" in extra else None)
    if op_type == "LSTM":
        inputs.append(rand(*states) if "c" in extra else None)
        inputs.append(rand(directions, 3 * HIDDEN) if "P" in extra else None)
    while inputs[-1] is None:
        inputs.pop()
    weights = tuple(i for i in (1, 2, 3) if i < len(inputs) and inputs[i] is not None)
    direction = attributes.pop("direction", "bidirectional" if directions == 2 else "forward")
    outputs = 3 if op_type == "LSTM" else 2
    attributes |= {"hidden_size": HIDDEN, "direction": direction}
    return case(op_type, opset, *inputs, weights=weights, outputs=outputs, exact_second=False, **attributes)


rnn, gru, lstm = (partial(layer, op_type) for op_type in GATES)
RAGGED = [4, 6, 1]

CASES = [
    rnn(7),
    rnn(14, "B", "h", directions=2, activations=["Relu", "Tanh"]),
    rnn(22, "B", directions=2, activations=["Relu", "Relu"]),
    rnn(22, "B", "h", direction="reverse"),
    rnn(14, "B", lens=RAGGED, directions=2),
    rnn(14, "B", clip=0.4),
    rnn(14, steps=2, direction="reverse"),
    gru(7, "B"),
    gru(14, "B", "h", directions=2, linear_before_reset=1),
    gru(22, "B", "h", directions=2),
    gru(14, "B", "h", lens=RAGGED, direction="reverse", linear_before_reset=1),
    gru(14, "B", clip=0.3, activations=["HardSigmoid", "Softsign"]),
    gru(14, steps=1, linear_before_reset=1),
    lstm(7),
    lstm(14, "B", "h", "c", directions=2),
    lstm(22, "B", "h", "c", "P", directions=2),
    lstm(14, "B", "h", "c", "P", steps=3, direction="reverse"),
    lstm(14, "B", "h", "c", lens=RAGGED, directions=2),
    lstm(14, "B", lens=[6, 6, 6]),
    lstm(14, "B", clip=0.3),
    lstm(14, "B", "P", input_forget=1),
    lstm(14, "B", steps=1),
]
# every activation, with its own alpha and beta and with the defaults; onnxruntime has one alpha list for all
CASES += [
    rnn(14, "B", steps=3, activations=[name], **arguments)
    for name, arguments in [
        ("Affine", {"activation_alpha": [0.5], "activation_beta": [0.1]}),
        ("Elu", {}),
        ("Elu", {"activation_alpha": [0.7]}),
        ("HardSigmoid", {"activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("LeakyRelu", {}),
        ("LeakyRelu", {"activation_alpha": [0.3]}),
        ("ScaledTanh", {"activation_alpha": [0.9], "activation_beta": [1.3]}),
        ("Sigmoid", {}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("ThresholdedRelu", {"activation_alpha": [0.2]}),
    ]
]
MIXED = ["HardSigmoid", "ScaledTanh", "Tanh", "Sigmoid", "LeakyRelu", "Softsign"]
CASES.append(
    lstm(14, "B", directions=2, activations=MIXED, activation_alpha=[0.3, 0.8, 0.02], activation_beta=[0.4, 1.2])
)


def _batch_first(case: Case) -> Case:
    """The same node with layout 1, which onnxruntime lacks: its inputs, and the transposed outputs to expect."""
    y, *states = run_onnxruntime(case)
    expected = (y.transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in states))
    inputs = [value.swapaxes(0, 1).copy() if i in (0, 5, 6) and value is not None else value
              for i, value in enumerate(case.inputs)]  # fmt: skip
    return replace(case, inputs=tuple(inputs), attributes={**case.attributes, "layout": 1}, expected=expected)


def _older(case: Case, opset: int) -> Case:
    """The same node in a version that onnxruntime no longer has."""
    return replace(case, opset=opset, expected=tuple(run_onnxruntime(case)))


CASES += [_batch_first(rnn(14, "B", "h", directions=2)), _batch_first(gru(22, "B", "h", steps=3))]
CASES += [_batch_first(lstm(14, "B", "h", "c"))]
CASES += [_older(rnn(7, "B"), 1), _older(gru(7, "B"), 1), _older(gru(7, "B"), 3), _older(lstm(7, "B", "P"), 1)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


class _Nodes(list):
    """Builds a graph node by node: ``add("Mul", a, b)`` returns the name of the product."""

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        names = [f"v{len(self)}_{i}" for i in range(outputs)]
        self.append(onnx.helper.make_node(op_type, inputs, names, **attributes))
        return names[0] if outputs == 1 else names


def _primitive_lstm(case: Case) -> onnx.ModelProto:
    """The LSTM of ``case`` (one direction, with B, h, c, P) as MatMul, Add, Mul, Sigmoid and Tanh."""
    nodes = _Nodes()
    add = nodes.add
    x, w, r, b, _, h, c, p = (f"in{i}" for i in range(8))
    w, r, b, h, c, p = (add("Squeeze", name, "zero") for name in (w, r, b, h, c, p))
    projected = add("MatMul", x, add("Transpose", w))
    projected = add("Add", projected, add("Add", *add("Split", b, "two", outputs=2, axis=0)))
    peepholes = add("Split", p, "three", outputs=3, axis=0)
    steps, hidden = len(case.inputs[0]), []
    for step in add("Split", projected, "steps", outputs=steps, axis=0):
        gates = add("Add", add("Squeeze", step, "zero"), add("MatMul", h, add("Transpose", r)))
        i, o, f, g = add("Split", gates, "four", outputs=4, axis=1)
        i = add("Sigmoid", add("Add", i, add("Mul", peepholes[0], c)))
        f = add("Sigmoid", add("Add", f, add("Mul", peepholes[2], c)))
        c = add("Add", add("Mul", f, c), add("Mul", i, add("Tanh", g)))
        o = add("Sigmoid", add("Add", o, add("Mul", peepholes[1], c)))
        h = add("Mul", o, add("Tanh", c))
        hidden.append(add("Unsqueeze", h, "zero_one"))
    add("Concat", *hidden, axis=0)
    add("Unsqueeze", h, "zero")
    add("Unsqueeze", c, "zero")
    return _model(case, nodes, [node.output[0] for node in nodes[-3:]])


def _primitive_gru(case: Case) -> onnx.ModelProto:
    """The GRU of ``case`` (one direction, with B and h) likewise."""
    nodes = _Nodes()
    add, after = nodes.add, case.attributes.get("linear_before_reset")
    x, w, r, b, _, h = (f"in{i}" for i in range(6))
    w, r, b, h = (add("Squeeze", name, "zero") for name in (w, r, b, h))
    parts = add("Split", b, "six", outputs=6, axis=0)
    projected = add("Add", add("MatMul", x, add("Transpose", w)), add("Concat", *parts[:3], axis=0))
    matrices = [add("Transpose", part) for part in add("Split", r, "three", outputs=3, axis=0)]
    steps, hidden = len(case.inputs[0]), []
    for step in add("Split", projected, "steps", outputs=steps, axis=0):
        z, reset, n = add("Split", add("Squeeze", step, "zero"), "three", outputs=3, axis=1)
        z = add("Sigmoid", add("Add", add("Add", z, parts[3]), add("MatMul", h, matrices[0])))
        reset = add("Sigmoid", add("Add", add("Add", reset, parts[4]), add("MatMul", h, matrices[1])))
        if after:
            n = add("Add", n, add("Mul", reset, add("Add", add("MatMul", h, matrices[2]), parts[5])))
        else:
            n = add("Add", add("Add", n, parts[5]), add("MatMul", add("Mul", reset, h), matrices[2]))
        h = add("Add", add("Mul", add("Sub", "one", z), add("Tanh", n)), add("Mul", z, h))
        hidden.append(add("Unsqueeze", h, "zero_one"))
    add("Concat", *hidden, axis=0)
    add("Unsqueeze", h, "zero")
    return _model(case, nodes, [node.output[0] for node in nodes[-2:]])


def _model(case: Case, nodes: list, outputs: list[str]) -> onnx.ModelProto:
    """The model of the case with its node replaced by others."""
    model, steps = case.model(), len(case.inputs[0])
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    constants = {"zero": [0], "zero_one": [0, 1], "one": np.float32(1), "steps": [1] * steps}
    constants |= {"two": [4 * HIDDEN] * 2, "three": [HIDDEN] * 3, "four": [HIDDEN] * 4, "six": [HIDDEN] * 6}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    return model


@pytest.mark.parametrize(
    ("case", "primitive"),
    [
        (lstm(14, "B", "h", "c", "P", steps=3), _primitive_lstm),
        (gru(14, "B", "h", steps=3), _primitive_gru),
        (gru(14, "B", "h", linear_before_reset=1), _primitive_gru),  # as many steps as the fused kernel takes
    ],
)
def test_second_derivatives_equal_those_of_the_primitive_nodes(case, primitive):
    feeds = list(case.feeds().values())
    expected = second_of_weights(primitive(case), feeds)
    for name, value in second_of_weights(case.model(), feeds).items():
        torch.testing.assert_close(value, expected[name])
