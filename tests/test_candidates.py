from dataclasses import replace
from pathlib import Path

import pytest

from onnx_obd.calibration.folder import load_samples
from onnx_obd.candidates import prune_by
from onnx_obd.graph.load import load_model
from onnx_obd.options import Options
from onnx_obd.records import Round
from onnx_obd.run import prepare

SAMPLES = Path(__file__).parent.parent / "sample_models"


@pytest.fixture(scope="module")
def run():
    model = load_model(SAMPLES / "mlp_diabetes.onnx")
    samples = load_samples(SAMPLES / "mlp_diabetes_calib", model.proto, labels="none", model_path=model.path)
    return prepare(model, samples, Options(method="obd"))


def pruned(run, trust, sparsity=0.95, rounds=3):
    return prune_by(replace(run, options=replace(run.options, trust=trust)), "obd", sparsity, rounds)


def test_a_small_deletion_does_what_was_predicted_with_cross_terms(run):
    (only,) = pruned(run, "note", 0.2, 1).rounds
    assert only.predicted_together == pytest.approx(only.measured_scoring, rel=0.2)
    assert only.predicted_together == pytest.approx(only.predicted_jointly)
    assert not only.went_too_far


def test_later_rounds_are_predicted_from_the_weights_before_them(run):
    rounds = pruned(run, "note", 0.7, 8).rounds
    assert rounds[1].predicted_together == pytest.approx(rounds[1].measured_scoring, rel=0.2)
    assert rounds[1].predicted_together != pytest.approx(rounds[1].predicted_jointly, rel=0.2)
    total = sum(each.measured_scoring for each in rounds)
    assert rounds[-1].measured_since_original == pytest.approx(total, rel=1e-3)


@pytest.fixture
def belied(monkeypatch):
    """Derivatives that promise far too much."""
    monkeypatch.setattr("onnx_obd.candidates.predict_jointly", lambda *_: 1e3)


def test_a_round_that_belies_its_prediction_is_halved(run, belied):
    noted, refined = pruned(run, "note"), pruned(run, "refine")
    assert all(each.went_too_far for each in noted.rounds)
    assert len(refined.rounds) == 2 * len(noted.rounds)
    steps = [each.sparsity for each in refined.rounds]
    assert steps[1::2] == [each.sparsity for each in noted.rounds]
    assert steps == sorted(set(steps))


def test_or_the_run_stops_before_it_and_says_so(run, belied):
    noted, stopped = pruned(run, "note"), pruned(run, "stop")
    (only,) = stopped.rounds
    assert stopped.plan.sparsity == only.sparsity == noted.rounds[0].sparsity
    assert stopped.notes == (
        f"stopped at {100 * only.sparsity:.0f} %: going on to {100 * noted.rounds[1].sparsity:.0f} % changed the loss "
        f"by {noted.rounds[1].measured_scoring:.3g} where derivatives predict 1e+03",
    )
    assert stopped.quality.loss == pytest.approx(only.loss_held_back)


@pytest.mark.parametrize(
    ("predicted", "measured", "far"),
    [(0.1, 0.19, False), (0.1, 0.21, True), (0.1, 0.04, True), (0.1, -0.1, True), (1e-6, 9e-5, False), (None, 1, 0)],
)
def test_the_band_is_a_factor_of_two_and_what_nobody_notices_is_within_it(predicted, measured, far):
    assert Round(0.5, None, measured, 0.0, 0.0, 0.0, predicted_together=predicted).went_too_far == far
