import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from onnx_obd.cells import inspect_cells
from onnx_obd.cli import cli
from onnx_obd.report import render_cells
from tests.curvature.networks import model

_RNG = np.random.default_rng(0)


def network() -> onnx.ModelProto:
    """Nothing reads input variable 1, neuron 2 is silent, and neuron 0 has no weight behind it."""
    first, second = _RNG.normal(size=(4, 5)), _RNG.normal(size=(5, 3))
    first[1], second[0] = 0, 0
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"], name="bend"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="second"),
    ]
    weights = {"w": first, "b": np.array([1, 1, -1e3, 1, 1]), "v": second}
    return model(nodes, {"x": ["N", 4]}, {"y": ["N", 3]}, weights)


@pytest.fixture
def files(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=_RNG.normal(size=(12, 4)).astype(np.float32))
    return str(tmp_path / "m.onnx"), str(tmp_path / "data.npz")


def test_unused_inputs_and_neurons_are_called_so(files):
    x, a = inspect_cells(*files).values
    assert (x.value, x.kind, x.axis, x.shape) == ("x", "input variables", None, (4,))
    assert (a.value, a.kind, a.axis, a.shape, a.read_by) == ("a", "neurons", 1, (5,), "MatMul 'second'")
    assert x.unused == (1,)
    assert a.unused == (0, 2)


def test_the_saliency_of_a_neuron_by_hand(files):
    """½ a² Σ_j v_j² p_j (1 - p_j) / T², with p the softmax of y / T and T the spread of y within its rows."""
    cells = inspect_cells(*files)
    assert cells.objective.startswith("KL divergence of softmax('y'")
    x = np.load(files[1])["x"]
    w, b, v = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in network_weights(files[0]))
    a = np.maximum(x @ w + b, 0)
    y = a @ v
    spread = np.sqrt(np.square(y - y.mean(1, keepdims=True)).mean())
    p = np.exp(y / spread)
    p /= p.sum(1, keepdims=True)
    expected = 0.5 * (a**2 * ((p * (1 - p) / spread**2) @ (v.T**2))).mean(0)
    np.testing.assert_allclose(cells.values[1].saliency, expected, rtol=1e-4)
    assert cells.values[1].largest(1) == [(int(np.argmax(expected)),)]


def network_weights(path):
    return [next(t for t in onnx.load(path).graph.initializer if t.name == name) for name in ("w", "b", "v")]


def test_channels_of_a_convolution(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], name="two"),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    v = _RNG.normal(size=(2, 3, 1, 1))
    v[:, 1] = 0
    proto = model(nodes, {"x": ["N", 2, 3, 4]}, {"y": ["N", 12]}, {"w": _RNG.normal(size=(3, 2, 2, 2)), "v": v})
    onnx.save(proto, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", _RNG.normal(size=(5, 2, 3, 4)).astype(np.float32))
    x, b = inspect_cells(tmp_path / "m.onnx", tmp_path / "x.npy").values
    assert x.shape == (2, 3, 4)
    assert (b.kind, b.axis, b.shape, b.unused) == ("channels", 1, (3,), (1,))


def test_the_table_names_the_most_salient(files):
    cells = inspect_cells(*files)
    text = render_cells(cells, width=120, color=False)
    (row,) = (line for line in text.splitlines() if line.lstrip().startswith("a  "))
    first = cells.values[1].largest(1)[0][0]
    assert "neurons" in row
    assert f"  {first}, " in row


def test_on_the_command_line(files):
    run = CliRunner().invoke(cli, ["inspect", files[0], "--saliency", "--data", files[1], "--json"])
    assert run.exit_code == 0
    found = json.loads(run.stdout)
    assert [each["value"] for each in found["values"]] == ["x", "a"]
    assert found["values"][0]["saliency"][1] == 0
    without = CliRunner().invoke(cli, ["inspect", files[0], "--saliency"])
    assert without.exit_code != 0
    assert "give --data" in without.output
