"""Recovery on the way from model to file: better or the same, resumable, and its two variants of deletion."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
import pytest
import torch

import onnx_obd
from onnx_obd.candidates import prune_by
from onnx_obd.choice import choose
from onnx_obd.errors import DataError
from onnx_obd.graph.load import load_model
from onnx_obd.options import Options
from onnx_obd.plan.rounds import Rounds
from onnx_obd.recover import recover
from onnx_obd.recovery import Training
from onnx_obd.run import prepare

SAMPLES = Path(__file__).parent.parent / "sample_models"
MODEL, DATA = SAMPLES / "lenet_digits.onnx", SAMPLES / "lenet_digits_calib"
CHOSEN = {"sparsity": 0.9, "method": "magnitude", "repair": False}
COMMON = {**CHOSEN, "recover_epochs": 20, "samples": 120, "benchmark": False}


def made(**options):
    model = load_model(MODEL)
    samples = onnx_obd.load_samples(DATA, model.proto, labels="none", limit=120)
    return prepare(model, samples, Options(**{**CHOSEN, "rounds": 3, **options}))


def test_the_trained_variant_joins_the_others_and_the_best_is_shipped():
    run = made(recover_epochs=40)
    before, candidates = choose(run)
    best, candidates = recover(run, before, candidates)
    assert [each.quality.method for each in candidates] == ["magnitude", "magnitude + recovery"]
    assert best.quality.loss < 0.7 * before.quality.loss
    assert best.plan is before.plan
    for name, mask in best.plan.keep.items():
        assert not best.weights[name][~mask].count_nonzero()
    assert run.held_back.loss() == pytest.approx(best.quality.loss, rel=1e-5)


def test_a_recovery_that_harms_is_not_shipped():
    run = made(recover_epochs=1, learning_rate=1e3, sparsity=0.5)
    before, candidates = choose(run)
    best, candidates = recover(run, before, candidates)
    assert best.quality.loss <= before.quality.loss


def test_interrupted_and_resumed_gives_the_same_file(tmp_path, monkeypatch):
    onnx_obd.prune(MODEL, DATA, tmp_path / "whole.onnx", **COMMON)
    checkpoint = str(tmp_path / "checkpoint")

    epoch = Training._epoch

    def interrupted(self, *args):
        if self.state.epoch == 2:
            raise KeyboardInterrupt
        return epoch(self, *args)

    monkeypatch.setattr(Training, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnx_obd.prune(MODEL, DATA, tmp_path / "resumed.onnx", checkpoint=checkpoint, **COMMON)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.onnx", "checkpoint"}
    monkeypatch.undo()
    result = onnx_obd.prune(MODEL, DATA, tmp_path / "resumed.onnx", checkpoint=checkpoint, resume=True, **COMMON)
    assert result.report.shipped == "magnitude + recovery" and result.report.rounds
    whole, resumed = (onnx.load(tmp_path / name) for name in ("whole.onnx", "resumed.onnx"))
    assert whole.graph == resumed.graph


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    options = {**COMMON, "checkpoint": str(tmp_path / "checkpoint")}
    onnx_obd.prune(MODEL, DATA, tmp_path / "a.onnx", **options)
    with pytest.raises(DataError, match="another options"):
        onnx_obd.prune(MODEL, DATA, tmp_path / "b.onnx", **{**options, "sparsity": 0.5, "resume": True})


@pytest.mark.parametrize("variant", ["delete", "decay", "regrow"])
def test_delete_and_retrain_in_every_variant_beats_deletion_alone(variant):
    plain = prune_by(made(), "magnitude", 0.95, 3)
    trained = prune_by(made(variant=variant, retrain_epochs=4), "magnitude", 0.95, 3)
    assert trained.plan.sparsity == plain.plan.sparsity == pytest.approx(0.95, abs=1e-3)
    assert trained.quality.loss < plain.quality.loss
    for name, mask in trained.plan.keep.items():
        assert not trained.weights[name][~mask].count_nonzero()


def test_what_was_deleted_returns_only_where_it_may(monkeypatch):
    masks = []

    def planned(self, *args):
        masks.append(plan(self, *args))
        return masks[-1]

    plan = Rounds.plan
    monkeypatch.setattr(Rounds, "plan", planned)

    def returned(variant):
        masks.clear()
        run = made(variant=variant)
        found = prune_by(run, "obd", 0.9, 3)
        for name, mask in found.plan.keep.items():  # whatever returned has the value it had
            assert torch.equal(found.weights[name][mask], run.original[name][mask])
        pairs = [(a.keep, b.keep) for a, b in itertools.pairwise(masks)]
        return sum(int((later[name] & ~earlier[name]).sum()) for earlier, later in pairs for name in earlier)

    assert returned("delete") == 0
    assert returned("regrow") > 0


def test_labels_are_used_where_there_are_any():
    model = load_model(MODEL)
    samples = onnx_obd.load_samples(DATA, model.proto, limit=120)
    run = prepare(model, samples, Options(sparsity=0.9, method="magnitude", recover_epochs=20))
    assert run.objective.supervised
    before, candidates = choose(run)
    best, _ = recover(run, before, candidates)
    assert best.quality.loss <= before.quality.loss
    assert torch.isfinite(torch.tensor(best.quality.loss))


def test_nothing_is_trained_when_the_search_has_spent_the_minutes():
    run = made(recover_minutes=1.0)
    run.minutes_left = 0.0
    before, candidates = choose(run)
    assert recover(run, before, candidates) == (before, candidates)
