"""Estimators against dense derivatives in float64, on graphs with every kind of weight."""

import gc
import weakref

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn.attention import SDPBackend, sdpa_kernel

from onnx_obd.curvature import estimate_curvature, per_sample
from onnx_obd.curvature.per_sample import probed_samples
from onnx_obd.errors import UsageError
from tests.curvature.graphs import GRAPHS
from tests.curvature.networks import calibration, dense_ggn_diag, dense_hessian_diag, mlp, model

COUNT = 3


def setting(graph, kind="squared"):
    found, _ = calibration(GRAPHS[graph](), count=COUNT, kind=kind, batch_size=COUNT)
    names = [name for name in found.mirror.weights if name not in ("zero", "var", "scales")]
    return found, names


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_exact_ggn_is_the_dense_one_and_the_hessian(graph):
    found, names = setting(graph)
    probed = probed_samples(found, COUNT, names)
    assert probed.batch_size == COUNT, "the samples can be told apart in every one of these graphs"
    h = estimate_curvature("ggn_exact", found, probed, names)
    for name in names:
        exact = dense_ggn_diag(probed_samples(found, COUNT, names).singles(COUNT), name)
        assert exact.abs().max() > 0
        torch.testing.assert_close(h.diag[name], exact, rtol=1e-8, atol=1e-10)
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernel has no second derivative
            hessian = dense_hessian_diag(found, name)
        torch.testing.assert_close(exact, hessian, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_recursion_reaches_every_weight(graph):
    found, names = setting(graph)
    h = estimate_curvature("lecun", found, found, names)
    for name in names:
        exact = dense_ggn_diag(found.singles(COUNT), name)
        assert (h.diag[name] >= 0).all()
        assert h.diag[name].sum() > 0.05 * exact.sum()


@pytest.mark.parametrize("estimator", ["ggn_probes", "fisher_mc"])
@pytest.mark.parametrize("graph", ["conv", "shared", "attention"])
def test_random_estimators_have_the_exact_expectation(graph, estimator):
    found, names = setting(graph, kind="kl")
    exact = estimate_curvature("ggn_exact", found, found, names)
    h = estimate_curvature(estimator, found, found, names, num_probes=1500)
    for name in names:
        torch.testing.assert_close(h.diag[name], exact.diag[name], rtol=0.2, atol=0.05 * float(exact.diag[name].max()))


def test_hutchinson_finds_the_hessian_away_from_the_minimum():
    found, _ = calibration(mlp(sizes=(2, 3, 2)), count=COUNT, kind="squared", batch_size=COUNT)
    with torch.no_grad():
        found.mirror.weights["w1"].mul_(0.2)
    names = ["w0", "w1"]
    h = estimate_curvature("hessian_diag", found, found, names, num_probes=4000)
    for name in names:
        exact = dense_hessian_diag(found, name)
        torch.testing.assert_close(h.diag[name], exact, rtol=0.1, atol=0.05 * float(exact.abs().max()))
    assert (dense_hessian_diag(found, "w0") < 0).any(), "the test should see negative curvature"


def disjoint_paths(seed=0):
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["u"], name="first"),
        helper.make_node("Tanh", ["u"], ["v"], name="bend"),
        helper.make_node("Mul", ["v", "b"], ["y"], name="second"),
    ]
    return model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, {"a": rng.normal(size=3), "b": rng.normal(size=3)})


def test_the_full_form_is_the_hessian_on_disjoint_paths_away_from_the_minimum():
    found, _ = calibration(disjoint_paths(), count=COUNT, kind="squared", batch_size=COUNT)
    with torch.no_grad():
        found.mirror.weights["b"].add_(1.5)
    full, lm = (estimate_curvature(name, found, found, ["a", "b"]) for name in ("lecun_full", "lecun"))
    for name in ("a", "b"):
        torch.testing.assert_close(full.diag[name], dense_hessian_diag(found, name))
        torch.testing.assert_close(lm.diag[name], dense_ggn_diag(found.singles(COUNT), name))
    assert not torch.allclose(full.diag["a"], lm.diag["a"])


def test_at_the_original_weights_both_forms_agree():
    found, names = setting("residual")
    full, lm = (estimate_curvature(name, found, found, names) for name in ("lecun_full", "lecun"))
    for name in names:
        torch.testing.assert_close(full.diag[name], lm.diag[name])


def test_the_empirical_fisher_squares_the_gradient_of_each_sample():
    labels = np.array([0, 2, 1])
    found, singles = calibration(mlp(), count=COUNT, kind="labels", batch_size=COUNT, labels=labels, temperature=1.0)
    h = estimate_curvature("empirical_fisher", found, found, ["w0"]).diag["w0"]
    expected = torch.zeros_like(h)
    for batch in singles.batches:
        (z,) = found.mirror.evaluate(batch.inputs, outputs=found.objective.slots)
        loss = torch.nn.functional.cross_entropy(z, batch.labels)
        (gradient,) = torch.autograd.grad(loss, found.mirror.weights["w0"])
        expected += gradient.square() / COUNT
    torch.testing.assert_close(h, expected)


def test_it_needs_labels():
    found, _ = calibration(mlp())
    with pytest.raises(UsageError, match="labels"):
        estimate_curvature("empirical_fisher", found, found, ["w0"])


def test_the_exact_ggn_is_for_few_outputs():
    found, _ = calibration(mlp(sizes=(2, 600)), count=2)
    with pytest.raises(UsageError, match=r"600 output elements.*ggn_probes"):
        estimate_curvature("ggn_exact", found, found, ["w0"])


def test_samples_that_a_graph_mixes_go_one_by_one():
    """Softmax over the whole batch: no sample's gradient is its own."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["u"]),
        helper.make_node("Softmax", ["u"], ["v"], axis=0),
        helper.make_node("MatMul", ["v", "w2"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    proto = model(
        nodes, {"x": ["N", 3]}, {"y": ["N", 2]}, {"w": rng.normal(size=(3, 4)), "w2": rng.normal(size=(4, 2))}
    )
    found, _ = calibration(proto, count=4, batch_size=4)
    assert probed_samples(found, 4, ["w", "w2"]).batch_size == 1


def test_a_flattened_time_axis_in_front_is_found_out():
    """Time before batch, then flattened: the samples of a batch no longer stand one behind the other."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["u"]),
        helper.make_node("Reshape", ["u", "steps"], ["v"]),
        helper.make_node("ReduceMean", ["v"], ["y"], axes=[0], keepdims=0),
    ]
    proto = model(nodes, {"x": ["N", 3, 2]}, {"y": ["N", 4]}, {"w": np.random.default_rng(0).normal(size=(2, 4))})
    for name, value in (("rows", [-1, 2]), ("steps", [3, -1, 4])):
        proto.graph.initializer.append(helper.make_tensor(name, 7, [len(value)], value))
    found, _ = calibration(proto, count=4, batch_size=4)
    probed = probed_samples(found, 4, ["w"])
    assert probed.batch_size == 1
    h = estimate_curvature("ggn_exact", found, probed, ["w"]).diag["w"]
    torch.testing.assert_close(h, dense_ggn_diag(found.singles(4), "w"))


def test_columns_of_many_samples_go_back_a_part_of_the_samples_at_a_time(monkeypatch):
    monkeypatch.setattr("onnx_obd.curvature.ggn_exact.SAMPLES", 2)
    found, _ = calibration(GRAPHS["conv"](), count=5, kind="kl", batch_size=5)
    names = list(found.mirror.weights)
    h = estimate_curvature("ggn_exact", found, found, names)
    for name in names:
        torch.testing.assert_close(h.diag[name], dense_ggn_diag(found.singles(5), name), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_of_a_batch_outlives_it(graph, monkeypatch):
    found, names = setting(graph)
    runs = []

    def remembering(*arguments):
        run, values = run_together(*arguments)
        runs.append(weakref.ref(run))
        return run, values

    run_together = per_sample._run_together
    monkeypatch.setattr(per_sample, "_run_together", remembering)
    estimate_curvature("ggn_probes", found, found, names)
    gc.collect()
    assert [run() for run in runs] == [None]
