from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnx_obd.records import Interval, Round
from onnx_obd.report.summary import (
    ZEROS_DO_NOT_SPEED_UP,
    before_after,
    by_reason,
    headline,
    latency_remarks,
    latency_verdict,
    measured_over_predicted,
    prediction_verdict,
    ranked,
    shipped_because,
    size_change,
    sparsity_before,
    subnormal_remark,
    used_by,
    wilson_interval,
)
from tests.report.example import CANDIDATES, CLASSIFIER, LATENCY, REGRESSION, WEIGHTS


def test_wilson_interval_solves_its_defining_equation():
    # The ends are the proportions p whose own standard error puts the observation 1.96 of them away.
    for observed, trials in ((0.9733, 225), (0.5, 7), (1.0, 40), (0.0, 40)):
        for p in wilson_interval(observed, trials):
            if p not in (0.0, 1.0):
                assert abs(observed - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / trials), rel=1e-6)
    low, high = wilson_interval(1.0, 40)
    assert high == 1.0 and low == pytest.approx(0.9124, abs=1e-4)
    assert wilson_interval(1.0, 0) == (0.0, 1.0)


def test_latency_verdict_says_what_the_interval_supports():
    assert latency_verdict(Interval(1.002, 0.981, 1.021)) == "no measurable difference, 1.002× [0.981, 1.021]"
    assert latency_verdict(Interval(1.31, 1.25, 1.38)) == "faster, 1.31× [1.25, 1.38]"
    assert latency_verdict(Interval(0.5, 0.4, 0.625)) == "slower, 2.00× [1.60, 2.50]"
    assert latency_verdict(Interval(math.nan, math.nan, math.nan)) == "not measurable"


def test_zeros_are_not_credited_with_speed():
    assert latency_remarks(CLASSIFIER)[0] == ZEROS_DO_NOT_SPEED_UP
    assert latency_remarks(REGRESSION) == [ZEROS_DO_NOT_SPEED_UP]
    assert ZEROS_DO_NOT_SPEED_UP not in latency_remarks(replace(CLASSIFIER, parameters_after=20111))


def test_subnormal_weights_are_named_as_a_cause_only_if_flushing_them_helps():
    assert subnormal_remark(LATENCY) == ""
    slow = replace(LATENCY, subnormal_weights=1200, original_flushed=Interval(0.03, 0.029, 0.031))
    assert "1,200 subnormal weights" in subnormal_remark(slow) and "0.0300 ms" in subnormal_remark(slow)
    assert "not pruning's" in subnormal_remark(slow)
    same = replace(slow, original_flushed=LATENCY.original)
    assert "no difference" in subnormal_remark(same) and "not pruning's" not in subnormal_remark(same)
    assert "1 subnormal weight," in subnormal_remark(replace(LATENCY, subnormal_weights=1))


def test_shipped_because_compares_with_the_best_other_candidate():
    assert shipped_because(CLASSIFIER) == (
        "Shipped: obd + refit, the lowest held-back loss of 5 candidates: "
        "0.0291 against 0.0587 (obd, curvature per output)."
    )
    assert "although its held-back loss is not the lowest" in shipped_because(replace(CLASSIFIER, shipped="obd"))
    assert shipped_because(REGRESSION) == "Shipped: magnitude, the only candidate."
    tie = replace(CLASSIFIER, shipped="obd", candidates=(CANDIDATES[1], replace(CANDIDATES[1], method="magnitude")))
    assert "equals that of magnitude" in shipped_because(tie)


def test_candidates_that_diverged_come_last():
    diverged = replace(CANDIDATES[0], loss=math.nan)
    assert [each.method for each in ranked([diverged, *CANDIDATES[1:3]])] == ["obd + refit", "obd", "magnitude"]
    report = replace(CLASSIFIER, shipped="obd", candidates=(diverged, CANDIDATES[1]))
    assert "the lowest held-back loss" in shipped_because(report)


def test_measured_over_predicted_skips_rounds_without_a_positive_prediction():
    pairs = ((0.01, 0.02), (None, 1.0), (0.0, 1.0), (0.02, 0.1), (0.1, 0.3))
    rounds = [Round(0.1, p, m, 2 * m, 0.5, 0.0) for p, m in pairs]
    assert measured_over_predicted((m, p) for p, m in pairs) == pytest.approx([2.0, 5.0, 3.0])
    alone = "ver ½ Σ h w² alone: 3.0 (median of 3 rounds, from 2.0 to 5.0). 1 would be exact."
    assert prediction_verdict(rounds) == "Measured o" + alone
    together = [replace(each, predicted_together=0.02, measured_scoring=n) for n, each in enumerate(rounds, 1)]
    first = "Measured over predicted: 150 (median of 5 rounds, from 50 to 250); over that on held-back samples: 30 ("
    assert prediction_verdict(together).startswith(first)
    assert prediction_verdict(REGRESSION.rounds) == "This criterion predicts no loss change."
    assert prediction_verdict(()) == ""


def test_rounds_that_nobody_would_notice_tell_nothing_of_the_prediction():
    assert measured_over_predicted([(-3e-8, 5e-11), (2e-4, 5e-11), (5e-5, 2e-4)]) == pytest.approx([4e6, 0.25])
    rounds = [Round(0.1, 5e-11, -3e-8, 2e-8, 0.5, 0.0, predicted_together=1e-30)]
    assert prediction_verdict(rounds) == "No round changed the loss by 0.0001 or was predicted to."
    unforeseen = replace(rounds[0], measured_scoring=1.0, predicted=0.0)
    assert prediction_verdict([unforeseen]).startswith("Measured over predicted: 1.0")
    fallen = replace(rounds[0], measured_scoring=1.0, predicted=-1.0, predicted_together=-1.0)
    assert prediction_verdict([fallen]) == "No rise of the loss was predicted."


def test_before_after_has_what_was_measured_and_nothing_else():
    labels = [row.label for row in before_after(CLASSIFIER)]
    assert labels == ["sparsity", "file size", "agreement", "accuracy", "loss", "output change", "latency"]
    assert [row.label for row in before_after(REGRESSION)] == ["sparsity", "file size", "loss", "output change"]
    rows = {row.label: row for row in before_after(replace(CLASSIFIER, sparsity=0.8, parameters_after=20111))}
    assert "not reached" in rows["sparsity"].remark
    assert (rows["parameters"].before, rows["parameters"].after) == ("61,706", "20,111")
    assert rows["accuracy"].remark == "-0.9 points"


def test_where_only_units_went_nothing_is_said_of_zeros():
    units = replace(CLASSIFIER, sparsity=0.0, target_sparsity=0.0, parameters_after=20111)
    assert "sparsity" not in [row.label for row in before_after(units)]
    assert "sparsity" in [row.label for row in before_after(replace(units, target_sparsity=0.5))]


def test_zeros_of_the_original_are_counted():
    assert sparsity_before(CLASSIFIER) == pytest.approx(0.021 * 10080 / 61470)
    assert sparsity_before(replace(CLASSIFIER, weights=())) == CLASSIFIER.dense.sparsity


def test_headline():
    assert headline(CLASSIFIER) == (
        "90.0 % of the prunable weights are zero; 97.3 % of the held-back answers are unchanged; "
        "the file is 5.01× smaller."
    )
    assert "the outputs moved by 8.7 % of their spread; the file is the same size" in headline(REGRESSION)


def test_size_change():
    assert size_change(100, 150) == "1.50× larger"
    assert size_change(1000, 1002) == "the same size"
    assert size_change(0, 10) == "10 B instead of 0 B"


def test_unprunable_tensors_are_grouped_by_reason_largest_first():
    groups = by_reason(WEIGHTS)
    assert [(reason, len(group)) for reason, group in groups] == [
        ("a bias (--prune-biases)", 3),
        ("no gradient passes node '/nms'", 1),
    ]


def test_the_operator_is_named_once():
    assert used_by(WEIGHTS[0]) == "/features/0/Conv"
    assert used_by(replace(WEIGHTS[0], node="Conv 'first'")) == "Conv 'first'"
    assert used_by(replace(WEIGHTS[0], node="first")) == "Conv first"
    assert used_by(replace(WEIGHTS[0], node="")) == "Conv"
