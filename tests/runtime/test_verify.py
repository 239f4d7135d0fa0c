"""The mirror against onnxruntime on samples: what counts as a difference, and where it is said to begin."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.calibration.samples import Samples
from onnx_obd.errors import MirrorMismatchError
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.runtime import verify
from onnx_obd.runtime.verify import compare_with_onnxruntime, difference
from tests.curvature.networks import mlp, model


def samples(count):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(1, 6)).astype(np.float32)} for _ in range(count)]
    return Samples.from_feeds(feeds, source="made", batchable=True)


def test_a_mirror_agrees_and_one_with_another_weight_does_not():
    proto = mlp(sizes=(6, 8, 7, 3))
    mirror = Mirror(proto)
    assert compare_with_onnxruntime(mirror, proto, samples(3)) < 1e-6
    with torch.no_grad():
        mirror.weights["w1"][2, 3] += 1.0
    with pytest.raises(MirrorMismatchError, match=r"in output 'y'; they part at node 'gemm1' \(Gemm, output 'y1'\)"):
        compare_with_onnxruntime(mirror, proto, samples(3))


def test_a_difference_in_single_precision_alone_is_another():
    """x + 2^30 - 2^30: nothing is left of small samples, of large ones all."""
    nodes = [helper.make_node("Add", ["x", "c"], ["a"]), helper.make_node("Sub", ["a", "c"], ["b"])]
    nodes += [helper.make_node("MatMul", ["b", "w"], ["y"])]
    weights = {"c": np.array([2.0**30]), "w": np.eye(6)}
    mirror = Mirror(model(nodes, {"x": ["N", 6]}, {"y": ["N", 6]}, weights))
    for scale, report in ((1e-3, True), (2.0**9, False)):
        feed = {"x": np.full((1, 6), scale, np.float32)}
        assert (verify._advice(mirror, feed, 0, 1e-3) == "please report it") == report


def of_onnxruntime(monkeypatch, plain, optimised):
    """The answers of the two sessions to sample after sample; the mirror answers 1."""
    answers = {False: iter(plain), True: iter(optimised)}
    monkeypatch.setattr(verify, "open_session", lambda proto, optimize: optimize)
    monkeypatch.setattr(verify, "outputs_of", lambda session, *_: [np.array([next(answers[session])])])
    monkeypatch.setattr(verify, "first_divergence", lambda *_: "somewhere")
    monkeypatch.setattr(verify, "_advice", lambda *_: "please report it")
    return SimpleNamespace(input_names=["x"], evaluate=lambda inputs: [torch.ones(1, dtype=torch.float64)])


@pytest.mark.parametrize("other", [0, 1])
def test_what_onnxruntime_differs_from_itself_by_on_any_sample_counts_as_none(monkeypatch, other):
    """Rounding to integers goes either way, on one sample and not on the next."""
    optimised = [0.98, 0.98]
    optimised[other] = 0.968
    mirror = of_onnxruntime(monkeypatch, [0.98, 0.98], optimised)
    assert compare_with_onnxruntime(mirror, mlp(), samples(2)) == pytest.approx(0.02)
    optimised[other] = 0.972
    mirror = of_onnxruntime(monkeypatch, [0.98, 0.98], optimised)
    with pytest.raises(MirrorMismatchError, match=r"differ by 0\.02 in output 'y'; somewhere"):
        compare_with_onnxruntime(mirror, mlp(), samples(2))


def test_differences_are_relative_to_the_largest_element():
    a = np.array([1.0, -50.0])
    assert difference(a + [0.0, 1.0], a) == pytest.approx(1 / 50)
    assert difference(np.array([0.25]), np.array([0.5])) == 0.25
    assert difference(a[:1], a) == difference(np.array([np.nan]), np.array([1.0])) == np.inf
    assert difference(np.array([1, 2]), np.array([1, 3])) == np.inf and difference(a, [a]) == 0
    assert difference(np.zeros(0), np.zeros(0)) == 0
