"""Goals other than a sparsity, held against what is measured of the file that comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_obd
from onnx_obd.candidates import prune_by
from onnx_obd.choice import best_of, choose
from onnx_obd.errors import UsageError
from onnx_obd.goals import meets_goal
from onnx_obd.graph.load import load_model
from onnx_obd.graph.weights import find_weights
from onnx_obd.options import Options
from onnx_obd.run import prepare

SAMPLES = Path(__file__).parent.parent / "sample_models"
QUICK = {"benchmark": False, "samples": 120, "method": "magnitude", "repair": False}


def made(**options):
    model = load_model(SAMPLES / "lenet_digits.onnx")
    samples = onnx_obd.load_samples(SAMPLES / "lenet_digits_calib", model.proto, labels="none", limit=120)
    return prepare(model, samples, Options(**{"method": "magnitude", "repair": False, **options}))


def pruned(tmp_path, **options):
    return onnx_obd.prune(
        SAMPLES / "lenet_digits.onnx", SAMPLES / "lenet_digits_calib", tmp_path / "out.onnx", **{**QUICK, **options}
    )


def test_the_accuracy_may_drop_so_far_and_no_further(tmp_path):
    report = pruned(tmp_path, max_drop=0.1).report
    drop = report.dense.accuracy - report.exported.accuracy
    assert 0 <= drop <= 0.1 + 1e-9
    more = prune_by(made(), "magnitude", min(0.99, report.sparsity + 0.1), 1)
    assert 1 - more.quality.agreement > 0.1
    assert report.sparsity > 0.5 and report.target_sparsity == report.sparsity


def test_the_loss_may_rise_by_the_budget():
    run = made(loss_budget=0.02)
    best, (first,) = choose(run)
    assert best is first and 0.01 < best.quality.loss <= 0.02
    assert [r.sparsity for r in first.rounds] == sorted(r.sparsity for r in first.rounds)
    assert run.held_back.loss() == pytest.approx(best.quality.loss, rel=1e-5)


def test_what_is_judged_on_the_way_is_repaired():
    """So repair allows to go further, up to the same limit."""
    plain, repaired = (choose(made(loss_budget=0.02, repair=repair))[1][0] for repair in (False, True))
    assert plain.quality.method == "magnitude" and repaired.quality.method == "magnitude + repair"
    assert plain.plan.sparsity + 0.02 < repaired.plan.sparsity
    assert 0.01 < repaired.quality.loss <= 0.02
    assert any((repaired.weights[name] != 0)[mask].any() for name, mask in repaired.plan.keep.items())
    assert all((repaired.weights[name][~mask] == 0).all() for name, mask in repaired.plan.keep.items())


def test_no_budget_leaves_nearly_everything():
    run = made(loss_budget=0.0)
    original = run.held_back.loss()  # of the outputs against themselves: rounding
    best, _ = choose(run)
    assert best.quality.loss <= original < 1e-7 and best.plan.sparsity < 0.3


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_file_comes_just_below_the_size(tmp_path, share):
    before = (SAMPLES / "lenet_digits.onnx").stat().st_size
    wanted = round(share * before)
    report = pruned(tmp_path, target_size=f"{wanted}B").report
    size = (tmp_path / "out.onnx").stat().st_size
    assert size == report.bytes_after <= wanted
    assert size > wanted - 0.05 * before


def test_a_control_of_the_same_sparsity_but_a_larger_file_is_not_shipped():
    before = (SAMPLES / "lenet_digits.onnx").stat().st_size
    run = made(target_size=f"{before // 2}B")
    best, (first,) = choose(run)
    assert best is first and meets_goal(run, first)
    original = replace(first, weights=run.original, quality=replace(first.quality, loss=0.0, agreement=1.0))
    assert not meets_goal(run, original)
    assert best_of(run, [first, original]) is first


def test_a_size_that_cannot_be_reached(tmp_path):
    with pytest.raises(UsageError, match="still larger"):
        pruned(tmp_path, target_size="1kB")
    assert not list(tmp_path.iterdir())


def test_two_of_four_is_in_the_file_along_the_channels(tmp_path):
    report = pruned(tmp_path, nm="2:4", rounds=2).report
    proto = onnx.load(tmp_path / "out.onnx")
    weights = {name: weight.read(proto) for name, weight in find_weights(proto).items()}
    found = {summary.name: summary for summary in report.weights if summary.sparsity > 0}
    assert found
    for name, summary in found.items():
        weight = weights[name]
        axis = 1 if weight.ndim == 4 else {"Gemm": 1, "MatMul": 0}[summary.op_type]
        groups = np.moveaxis(weight, axis, -1).reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) <= 2).all()
        assert summary.sparsity == pytest.approx(0.5, abs=0.01)
    assert any("TensorRT" in note and "2:4" in note for note in report.notes)


def test_named_tensors_lose_what_was_said_of_them_and_the_others_their_share(tmp_path):
    names = [weight.name for weight in onnx_obd.inspect(SAMPLES / "lenet_digits.onnx").weights if weight.prunable]
    first, last, *others = names[0], names[-1], *names[1:-1]
    options = {"method": "auto", "repair": True, "sparsity": 0.6, "rounds": 2}
    report = pruned(tmp_path, sparsity_of=(f"{first}=0", f"{last}=0.75"), **options).report
    proto = onnx.load(tmp_path / "out.onnx")
    zeros = {name: weight.read(proto) == 0 for name, weight in find_weights(proto).items() if name in names}
    assert not zeros[first].any() and zeros[last].mean() == pytest.approx(0.75, abs=1e-3)
    assert np.concatenate([zeros[name].ravel() for name in others]).mean() == pytest.approx(0.6, abs=1e-3)
    assert report.target_sparsity == report.sparsity
    assert {weight.name: weight.sparsity for weight in report.weights}[last] == zeros[last].mean()


def test_a_name_that_no_weight_has(tmp_path):
    with pytest.raises(UsageError, match="no prunable weight matches 'lstm"):
        pruned(tmp_path, sparsity_of=("lstm*=0.5",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": 0.1, "nm": "2:4"},
        {"target_size": "tiny"},
        {"nm": "5:4"},
        {"max_drop": 1.5},
        {"loss_budget": -1.0},
        {"scope": "row"},
        {"sparsity_of": ("fc=2",)},
        {"variant": "decay"},
        {"variant": "shrink"},
        {"checkpoint": "c"},
        {"resume": True, "recover_epochs": 1},
    ],
)
def test_options_that_cannot_be_meant(options):
    with pytest.raises(UsageError):
        Options(**options)
