import pytest
import torch

from onnx_obd.curvature import estimate_curvature
from onnx_obd.errors import UsageError
from onnx_obd.evidence import gather
from onnx_obd.saliency import METHODS, criteria_of, find_criterion, score
from onnx_obd.surgery.operands import find_operands
from tests.curvature.networks import calibration, mlp


def scores(name):
    found, probed = calibration(mlp(sizes=(5, 4, 3)), count=12)
    names = ["w0", "w1"]
    operands, _ = find_operands(found.mirror, found.batches[0], names)
    curvature = estimate_curvature("lecun", found, probed, names)
    evidence = gather(find_criterion(name), found, names, curvature, operands)
    weight = found.mirror.weights["w0"].detach()
    saliency = score(name, {name: found.mirror.weights[name] for name in names}, curvature, evidence)
    return saliency.scores["w0"], weight, curvature.diag["w0"]


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("per_output", lambda h: h.mean(0, keepdim=True)),  # Gemm: [inputs, outputs]
        ("per_input", lambda h: h.mean(1, keepdim=True)),
        ("factored", lambda h: h.mean(0, keepdim=True) * h.mean(1, keepdim=True) / h.mean()),
        ("per_tensor", lambda h: h.mean()),
    ],
)
def test_readings_average_over_the_axes_of_the_node(name, reading):
    found, weight, h = scores(name)
    torch.testing.assert_close(found, 0.5 * reading(h) * weight.square())


def test_factored_is_exact_where_the_curvature_is_a_product():
    a, b, w = torch.rand(5, 1).double(), torch.rand(1, 3).double(), torch.rand(5, 3).double()
    h = a * b
    found = find_criterion("factored").function(w, h, h.mean(0, keepdim=True), h.mean(1, keepdim=True))
    torch.testing.assert_close(found, 0.5 * h * w.square())


def test_weights_without_a_known_node_keep_their_own_curvature():
    found, probed = calibration(mlp(), count=4)
    curvature = estimate_curvature("lecun", found, probed, ["w0"])
    evidence = gather(find_criterion("per_output"), found, ["w0"], curvature, operands=[])
    assert torch.equal(evidence["h_of_output"]["w0"], curvature.diag["w0"])


def test_methods_are_criteria_or_several_of_them():
    assert criteria_of("obd") == ("obd",)
    assert criteria_of("auto") == METHODS["auto"]
    for name in METHODS["auto"]:
        find_criterion(name)
    with pytest.raises(UsageError, match=r"no criterion 'best'.*auto"):
        criteria_of("best")
