import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.curvature import ESTIMATORS, estimate_curvature
from onnx_obd.errors import UsageError
from tests.curvature.networks import calibration, dense_ggn_diag, dense_hessian_diag, linear, mlp, model

KINDS = ("squared", "kl")


@pytest.mark.parametrize("kind", KINDS)
def test_the_ggn_is_the_whole_hessian_at_the_original_weights(kind):
    found, _ = calibration(mlp(), kind=kind)
    for name in ("w0", "b0", "w1", "b1"):
        torch.testing.assert_close(dense_ggn_diag(found, name), dense_hessian_diag(found, name))


def test_and_the_gradient_is_zero_there():
    for kind in KINDS:
        found, _ = calibration(mlp(), kind=kind)
        assert found.loss() == pytest.approx(0, abs=1e-12)
        (batch, *_) = found.batches
        values = found.mirror.evaluate(batch.inputs, outputs=found.objective.slots)
        found.objective.loss(values, batch.targets, batch.count).backward()
        for weight in found.mirror.weights.values():
            assert weight.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_lecun_is_exact_for_one_weighted_node(kind):
    found, singles = calibration(linear(), kind=kind)
    h = estimate_curvature("lecun", found, singles, ["w0", "b0"])
    for name in ("w0", "b0"):
        torch.testing.assert_close(h.diag[name], dense_ggn_diag(found, name))


def test_lecun_is_exact_on_disjoint_paths():
    """Two scalar chains side by side: no two values share a parent, so no cross term is dropped."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["u"], name="first"),
        helper.make_node("Tanh", ["u"], ["v"], name="bend"),
        helper.make_node("Mul", ["v", "b"], ["y"], name="second"),
    ]
    proto = model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, {"a": rng.normal(size=3), "b": rng.normal(size=3)})
    found, singles = calibration(proto)
    h = estimate_curvature("lecun", found, singles, ["a", "b"])
    for name in ("a", "b"):
        torch.testing.assert_close(h.diag[name], dense_ggn_diag(found, name))


@pytest.mark.parametrize("kind", KINDS)
def test_ggn_probes_are_unbiased(kind):
    found, singles = calibration(mlp(), kind=kind)
    h = estimate_curvature("ggn_probes", found, singles, ["w0", "w1"], num_probes=4000)
    for name in ("w0", "w1"):
        exact = dense_ggn_diag(found, name)
        torch.testing.assert_close(h.diag[name], exact, rtol=0.15, atol=0.03 * float(exact.max()))


def test_a_shared_weight_sums_over_its_uses():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["u"]),
        helper.make_node("Tanh", ["u"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["y"]),
    ]
    proto = model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, {"w": rng.normal(size=(3, 3))})
    found, singles = calibration(proto)
    exact = dense_ggn_diag(found, "w")
    probes = estimate_curvature("ggn_probes", found, singles, ["w"], num_probes=4000)
    torch.testing.assert_close(probes.diag["w"], exact, rtol=0.15, atol=0.03 * float(exact.max()))
    both = estimate_curvature("lecun", found, singles, ["w"]).diag["w"]
    assert (both > 0).all()


def test_lecun_scaled_has_the_summed_saliency_of_the_probes():
    found, singles = calibration(mlp())
    scaled = estimate_curvature("lecun_scaled", found, singles, ["w0", "w1"], seed=3, num_probes=5)
    raw = estimate_curvature("lecun", found, singles, ["w0", "w1"], seed=3)
    for name in ("w0", "w1"):
        squares = found.mirror.weights[name].detach().square()
        exact = float((dense_ggn_diag(found, name) * squares).sum())
        assert float((scaled.diag[name] * squares).sum()) == pytest.approx(exact, rel=0.5)
        torch.testing.assert_close(scaled.diag[name], raw.diag[name] * scaled.scale[name])


def test_batching_changes_nothing():
    results = []
    for batch_size in (1, 2, 6):
        found, singles = calibration(mlp(), batch_size=batch_size)
        results.append(estimate_curvature("lecun", found, singles, ["w0"]).diag["w0"])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_unknown_estimator():
    found, singles = calibration(linear())
    with pytest.raises(UsageError, match=r"no curvature 'newton'.*lecun"):
        estimate_curvature("newton", found, singles, ["w0"])


def test_every_estimator_gives_finite_diagonals_of_the_weights_shape():
    found, singles = calibration(mlp(), kind="labels", labels=np.array([0, 1, 2, 2, 1, 0]))
    for name in ESTIMATORS:
        diag = estimate_curvature(name, found, singles, ["w0", "b1"]).diag
        assert diag["w0"].shape == (4, 5)
        assert diag["b1"].shape == (3,)
