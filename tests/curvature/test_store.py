import json

import pytest
import safetensors.torch
import torch

from onnx_obd.curvature.store import CurvatureKey, load_curvature, save_curvature
from onnx_obd.errors import DataError
from onnx_obd.records import Curvature

KEY = CurvatureKey("a" * 64, "b" * 64, {"curvature": "lecun_scaled", "seed": 0, "temperature": None})
WEIGHTS = {"layer.0/w": torch.randn(3, 2), "b": torch.randn(4)}
CURVATURE = Curvature(
    {name: torch.rand(weight.shape) for name, weight in WEIGHTS.items()}, "lecun_scaled", 7, ("node 3",), {"b": 0.25}
)


@pytest.fixture
def path(tmp_path):
    save_curvature(CURVATURE, tmp_path / "c.safetensors", KEY)
    return tmp_path / "c.safetensors"


def test_what_is_saved_comes_back(path):
    found = load_curvature(path, KEY, WEIGHTS)
    assert (found.estimator, found.num_samples, found.estimated_nodes) == ("lecun_scaled", 7, ("node 3",))
    assert found.scale == {"b": 0.25}
    for name, diag in CURVATURE.diag.items():
        assert torch.equal(found.diag[name], diag)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (CurvatureKey("c" * 64, KEY.calibration_sha256, KEY.options), "another model"),
        (CurvatureKey(KEY.model_sha256, "c" * 64, KEY.options), "other samples"),
        (CurvatureKey(KEY.model_sha256, KEY.calibration_sha256, {**KEY.options, "seed": 1}), "seed = 0, not 1"),
    ],
)
def test_what_belongs_to_something_else_is_refused(path, key, message):
    with pytest.raises(DataError, match=message):
        load_curvature(path, key, WEIGHTS)


def test_a_weight_of_another_shape_is_refused(path):
    with pytest.raises(DataError, match=r"'b' in its shape \(5,\)"):
        load_curvature(path, KEY, {"b": torch.zeros(5)})


def test_files_that_are_none(tmp_path):
    broken, foreign, missing = (tmp_path / name for name in ("broken", "foreign", "missing"))
    broken.write_bytes(b"\xff" * 40)
    safetensors.torch.save_file({"b": torch.zeros(4)}, foreign, metadata={"x": json.dumps({})})
    for path in (broken, foreign, missing):
        with pytest.raises(DataError, match=path.name):
            load_curvature(path, KEY, WEIGHTS)
