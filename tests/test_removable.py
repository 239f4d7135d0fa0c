"""What could be removed whole: the whole way, from the file to the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnx_obd.cli import cli
from onnx_obd.removable import inspect_units
from tests.surgery.graphs import Graph


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Seven inputs; nine neurons, of which the first is never active on inputs that are not negative."""
    g = Graph()
    weights = np.abs(g.generator.standard_normal((7, 9))).astype(np.float32)
    weights[:, 0] *= -1
    hidden = g.op("Relu", g.op("MatMul", g.input("x", "batch", 7), g.tensor(weights)))
    onnx.save(g.model(g.dense(hidden, 9, 3)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The sixth feature is always 0."""
    x = np.random.default_rng(0).random((40, 7)).astype(np.float32)
    x[:, 5] = 0
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path / "data.npz"


def test_without_data(model: Path) -> None:
    found = inspect_units(model)
    (family,) = found.families
    assert (family.kind, family.count, family.elements_each, family.idle) == ("neuron", 9, 10, None)
    assert family.macs_share_each == pytest.approx(1 / 9) and found.macs == 9 * 10
    assert found.macs_share == 1 and found.elements_share == pytest.approx(90 / 93)
    assert [(group.kind, group.count) for group in found.frozen] == [("neuron", 3)]
    assert found.samples is None and not found.unused


def test_with_data(model: Path, data: Path) -> None:
    found = inspect_units(model, data)
    assert found.samples == 40 and found.families[0].idle == 1
    assert [(each.name, each.count, each.of, each.first) for each in found.unused] == [("x", 1, 7, ((5,),))]


def test_the_command(model: Path, data: Path) -> None:
    page = CliRunner().invoke(cli, ["inspect", str(model), "--units", "--data", str(data)])
    assert page.exit_code == 0 and "1 of 9 neurons" in page.output
    found = json.loads(CliRunner().invoke(cli, ["inspect", str(model), "--units", "--json"]).output)
    assert found["families"][0]["count"] == 9
