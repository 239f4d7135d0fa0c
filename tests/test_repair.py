"""Candidates before and after repair, and the choice between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import onnx_obd
from onnx_obd.candidates import Candidate, prune_by, repair
from onnx_obd.choice import best_of, choose
from onnx_obd.graph.load import load_model
from onnx_obd.options import Options
from onnx_obd.records import Plan, Quality
from onnx_obd.run import prepare

SAMPLES = Path(__file__).parent.parent / "sample_models"


@pytest.fixture(scope="module")
def lenet():
    model = load_model(SAMPLES / "lenet_digits.onnx")
    samples = onnx_obd.load_samples(SAMPLES / "lenet_digits_calib", model.proto, labels="none", limit=80)
    return prepare(model, samples, Options(sparsity=0.9, rounds=3, method="auto"))


def test_repair_lowers_the_loss_and_keeps_the_zeros(lenet):
    pruned = prune_by(lenet, "obd", 0.9, 3)
    repaired = repair(lenet, pruned)
    assert repaired.quality.method == "obd + repair"
    assert repaired.quality.loss < pruned.quality.loss
    assert repaired.plan is pruned.plan
    for name, mask in pruned.plan.keep.items():
        assert (repaired.weights[name][~mask] == 0).all()
    assert any("were refitted" in note for note in repaired.notes)


def test_the_acceptance_part_is_not_fitted_on(lenet):
    def rows(calibration):
        return {tuple(next(iter(feed.values())).reshape(-1)) for feed in calibration.samples.feeds}

    fitting, acceptance, held_back = map(rows, (lenet.fitting, lenet.acceptance, lenet.held_back))
    assert not fitting & acceptance
    assert fitting | acceptance == rows(lenet.scoring)
    assert not held_back & (fitting | acceptance)


def test_auto_deletes_by_the_reading_of_lowest_loss_and_is_not_worse_than_each(lenet):
    """In a single round from the same curvature, exactly the best of its criteria."""
    auto = prune_by(lenet, "auto", 0.8, 1)
    losses = {}
    for name in ("obd", "per_output", "per_input", "factored", "per_tensor"):
        prune_by(lenet, name, 0.8, 1)
        losses[name] = lenet.scoring.loss()
    assert len(set(losses.values())) > 1
    for name, weight in auto.weights.items():
        with torch.no_grad():
            lenet.mirror.weights[name].copy_(weight)
    assert lenet.scoring.loss() == min(losses.values())


def test_choice_compares_the_method_its_rival_the_control_and_their_repairs(lenet):
    best, candidates = choose(lenet)
    methods = ["auto + repair", "obs + repair", "magnitude", "magnitude + repair"]
    assert [each.quality.method for each in candidates] == methods
    assert best.quality.loss <= candidates[0].quality.loss
    assert all(torch.equal(lenet.mirror.weights[name], weight) for name, weight in best.weights.items())


def test_repair_in_rounds_keeps_the_zeros_and_beats_repair_at_the_end(lenet):
    late, early = repair(lenet, prune_by(lenet, "auto", 0.9, 4)), prune_by(lenet, "auto", 0.9, 4, repaired=True)
    assert early.quality.method == late.quality.method == "auto + repair"
    assert early.quality.loss < late.quality.loss
    assert early.plan.sparsity == late.plan.sparsity
    assert all((early.weights[name][~mask] == 0).all() for name, mask in early.plan.keep.items())
    assert any("were refitted" in note for note in early.notes)


TIED = """<ir_version: 8, opset_import: ["" : 17]> network (float[N, 6] x) => (float[N, 3] y)
    <float[6, 6] tied, float[6, 6] branch, float[6, 3] last, bool yes = {1}>
{
    a = MatMul (x, tied)
    b = MatMul (a, tied)
    c = If (yes) <then_branch = t () => (float[N, 6] o) { o = MatMul (b, branch) },
                  else_branch = e () => (float[N, 6] p) { p = Identity (b) }>
    d = Tanh (c)
    y = MatMul (d, last)
}"""


def test_what_cannot_be_refitted_is_in_the_report_and_the_rest_is_refitted(tmp_path):
    """Weights that multiply in two nodes, or inside a subgraph, are pruned as others are."""
    proto, rng = onnx.parser.parse_model(TIED), np.random.default_rng(0)
    shapes = {"tied": (6, 6), "branch": (6, 6), "last": (6, 3)}
    for name, shape in shapes.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    onnx.save(proto, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", rng.normal(size=(80, 6)).astype(np.float32))
    options = {"method": "obd", "sparsity": 0.4, "rounds": 4, "benchmark": False}
    report = onnx_obd.prune(tmp_path / "model.onnx", tmp_path / "x.npy", tmp_path / "out.onnx", **options).report
    assert report.shipped == "obd + repair"
    notes = " ".join(report.notes)
    assert "1 of 3 weights were refitted" in notes
    assert "not refitted, 1 times: multiplies in 2 nodes" in notes
    assert "not refitted, 1 times: its node lies in a subgraph" in notes
    assert {weight.name for weight in report.weights if weight.sparsity > 0} == set(shapes)


def test_obs_deletes_with_its_update(lenet):
    obs = prune_by(lenet, "obs", 0.9, 3)
    masks, weights = obs.plan.keep, obs.weights
    assert any(not torch.equal(weights[name][mask], lenet.original[name][mask]) for name, mask in masks.items())
    assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())
    assert obs.quality.loss < prune_by(lenet, "magnitude", 0.9, 1).quality.loss


def made_up(loss, agreement, accuracy=None):
    quality = Quality(f"{loss}", 0.5, loss, agreement, accuracy, 0.0)
    return Candidate(quality, Plan({}, None), {}, ())


def test_a_low_loss_does_not_excuse_wrong_classes(lenet):
    """20 held-back samples: near an agreement of 0.9 the margin is 0.15."""
    assert lenet.held_back.num_samples == 20
    collapsed, good, near = made_up(0.1, 0.1), made_up(0.5, 0.9), made_up(0.4, 0.8)
    assert best_of(lenet, [collapsed, good]) is good
    assert best_of(lenet, [good, near, collapsed]) is near
    labelled = [made_up(0.1, 0.9, accuracy=0.2), made_up(0.5, 0.5, accuracy=0.9)]
    assert best_of(lenet, labelled) is labelled[1]
    unclassed = [replace(each, quality=replace(each.quality, agreement=None)) for each in (good, collapsed)]
    assert best_of(lenet, unclassed) is unclassed[1]
