"""The road from end to end, against what onnxruntime says of the file that was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_obd
from onnx_obd import candidates
from onnx_obd.calibration.folder import load_samples
from onnx_obd.calibration.samples import Samples
from onnx_obd.candidates import prune_by
from onnx_obd.graph.load import load_model
from onnx_obd.graph.session import open_session
from onnx_obd.options import Options
from onnx_obd.run import MIXTURES, prepare

SAMPLES = Path(__file__).parent.parent / "sample_models"


@pytest.fixture(scope="module")
def lenet():
    model = load_model(SAMPLES / "lenet_digits.onnx")
    samples = onnx_obd.load_samples(SAMPLES / "lenet_digits_calib", model.proto, labels="none", limit=160)
    return prepare(model, samples, Options(rounds=4))


def test_the_stages_one_by_one(tmp_path):
    """The Python API as the README shows it."""
    result = onnx_obd.prune(
        SAMPLES / "lenet_digits.onnx",
        SAMPLES / "lenet_digits_calib",
        tmp_path / "small.onnx",
        sparsity=0.7,
        rounds=3,
        samples=120,
        benchmark=False,
    )
    assert result.path == tmp_path / "small.onnx"
    report = result.report
    assert report.sparsity == pytest.approx(0.7, abs=1e-3)
    assert report.bytes_after == result.path.stat().st_size < report.bytes_before
    assert report.exported.accuracy is not None
    with np.load(next((SAMPLES / "lenet_digits_test").glob("*.npz"))) as test:
        names = set(test.files)
        (label,) = names & {"labels", "y", "label"}
        (name,) = names - {label}
        labels, x = test[label], test[name].astype(np.float32)
    found = open_session(result.path).run(None, {name: x})[0].argmax(-1)
    assert (found == labels).mean() > 0.9


def test_no_labels_no_gradient_at_the_start(lenet):
    assert lenet.scoring.loss() == pytest.approx(0, abs=1e-6)
    assert not lenet.objective.supervised


def test_obd_beats_magnitude_at_high_sparsity(lenet):
    obd = prune_by(lenet, "obd", 0.85, 4)
    magnitude = prune_by(lenet, "magnitude", 0.85, 1)
    assert obd.plan.deleted == magnitude.plan.deleted
    assert obd.quality.loss < magnitude.quality.loss


def test_every_round_records_what_it_did(lenet):
    rounds = prune_by(lenet, "obd", 0.6, 4).rounds
    assert len(rounds) == 4
    assert [r.sparsity for r in rounds] == sorted(r.sparsity for r in rounds)
    assert all(r.predicted >= 0 for r in rounds)
    total = sum(r.measured_held_back for r in rounds)
    assert rounds[-1].loss_held_back == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_rounds_that_nobody_is_told_of_are_not_foretold(lenet):
    told, quiet = (prune_by(lenet, "obd", 0.6, 3, foretold=foretold) for foretold in (True, False))
    assert all(each.predicted_together is not None for each in told.rounds)
    assert all(each.predicted_together is None for each in quiet.rounds)
    assert quiet.quality.loss == told.quality.loss


def test_the_curvature_of_the_original_is_estimated_once(lenet, monkeypatch):
    prune_by(lenet, "obd", 0.6, 1)
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "estimate_curvature", None)
        prune_by(lenet, "per_output", 0.6, 1)
        with pytest.raises(TypeError):
            prune_by(lenet, "obd", 0.6, 2)


def test_the_original_is_restored_between_candidates(lenet):
    first = prune_by(lenet, "magnitude", 0.5, 1)
    prune_by(lenet, "obd", 0.8, 2)
    again = prune_by(lenet, "magnitude", 0.5, 1)
    assert first.quality.loss == again.quality.loss


def test_a_fixed_batch_of_one_is_calibrated_all_the_same():
    model = load_model(SAMPLES / "mlp_wine.onnx")
    name = onnx_obd.Mirror(model.proto).input_names[0]
    rng = np.random.default_rng(0)
    shape = [d.dim_value for d in next(v for v in model.proto.graph.input if v.name == name).type.tensor_type.shape.dim]
    assert shape[0] == 1
    samples = Samples.from_feeds(
        [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(12)], source="t", batchable=False
    )
    run = prepare(model, samples, Options())
    candidate = prune_by(run, "obd", 0.5, 2)
    assert candidate.plan.sparsity == pytest.approx(0.5, abs=0.01)


def test_everything_but_the_weights_stays(tmp_path):
    """Field by field: the result differs from the original in tensor data and our own metadata alone."""
    source = SAMPLES / "mlp_diabetes.onnx"
    onnx_obd.prune(
        source, SAMPLES / "mlp_diabetes_calib", tmp_path / "o.onnx", rounds=1, format="dense", benchmark=False
    )
    before, after = onnx.load(source), onnx.load(tmp_path / "o.onnx")
    changed = 0
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):
        changed += a.raw_data != b.raw_data
        b.raw_data = a.raw_data
    for index in reversed(range(len(after.metadata_props))):
        if after.metadata_props[index].key.startswith("onnx_obd."):
            del after.metadata_props[index]
    assert changed
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def test_mixtures_join_the_refits_of_dense_layers_alone():
    """A convolution has many positions in a sample; a dense layer has one."""
    for name, times in (("mlp_diabetes", 1 + MIXTURES), ("lenet_digits", 1)):
        model = load_model(SAMPLES / f"{name}.onnx")
        run = prepare(model, load_samples(SAMPLES / f"{name}_calib", model.proto, labels="none"), Options())
        assert run.refitting.num_samples == times * run.fitting.num_samples
        assert run.refit_acceptance.num_samples == times * run.acceptance.num_samples
