"""The first round's curvature, kept from one run to the next; and the prediction of what rounds do."""

from pathlib import Path

import pytest

import onnx_obd
from onnx_obd.errors import DataError

FOLDER = Path(__file__).parents[1] / "sample_models"
MODEL, DATA = FOLDER / "mlp_wine.onnx", FOLDER / "mlp_wine_calib"
OPTIONS = {"rounds": 2, "benchmark": False}


def test_another_target_uses_the_same_curvature(tmp_path):
    kept = str(tmp_path / "kept.safetensors")
    first = onnx_obd.prune(MODEL, DATA, tmp_path / "a.onnx", sparsity=0.4, save_curvature=kept, **OPTIONS)
    again = onnx_obd.prune(MODEL, DATA, tmp_path / "b.onnx", sparsity=0.4, curvature_from=kept, **OPTIONS)
    assert [r.predicted for r in again.report.rounds] == [r.predicted for r in first.report.rounds]
    onnx_obd.prune(MODEL, DATA, tmp_path / "c.onnx", sparsity=0.6, curvature_from=kept, **OPTIONS)
    with pytest.raises(DataError, match=r"kept\.safetensors"):
        onnx_obd.prune(MODEL, DATA, tmp_path / "d.onnx", sparsity=0.6, curvature_from=kept, seed=1, **OPTIONS)
    assert not (tmp_path / "d.onnx").exists()


def test_small_deletions_do_what_second_derivatives_with_cross_terms_predict(tmp_path):
    report = onnx_obd.prune(MODEL, DATA, tmp_path / "a.onnx", sparsity=0.2, **OPTIONS).report
    for each in report.rounds:
        assert not each.left_band
        assert each.measured_since_original == pytest.approx(each.predicted_jointly, rel=0.3)
