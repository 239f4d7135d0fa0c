from __future__ import annotations

import pytest

from onnx_obd.graph.load import Model, load_model
from tests.export.models import dense_net, every_place, save_external


@pytest.fixture
def source(tmp_path) -> Model:
    """``every_place`` as a file in a folder of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(every_place().SerializeToString())
    return load_model(folder / "m.onnx")


@pytest.fixture
def external_source(tmp_path) -> Model:
    folder = tmp_path / "external"
    folder.mkdir()
    save_external(dense_net(), folder / "m.onnx")
    return load_model(folder / "m.onnx")
