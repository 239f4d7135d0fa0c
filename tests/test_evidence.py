"""What the control criteria look at, against plain loops over the samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.errors import UsageError
from onnx_obd.evidence import gather, input_norms, mean_gradient, mean_squared_gradient
from onnx_obd.saliency import find_criterion
from tests.curvature.networks import calibration, mlp, model

LABELS = np.array([0, 2, 1, 1, 0, 2])


@pytest.fixture(scope="module")
def labelled():
    return calibration(mlp(), kind="labels", labels=LABELS, temperature=1.0)[0]


def sample_gradients(found, name):
    """∂L_n/∂w for each sample by torch.autograd, one sample at a time."""
    mirror, gradients = found.mirror, []
    x = torch.cat([batch.inputs[0] for batch in found.batches]).double()
    for row, label in zip(x, LABELS, strict=True):
        loss = torch.nn.functional.cross_entropy(mirror(row[None]), torch.tensor([label]))
        gradients.append(torch.autograd.grad(loss, mirror.weights[name])[0])
    return torch.stack(gradients)


@pytest.mark.parametrize("name", ["w0", "w1"])
def test_gradients_are_those_of_the_samples(labelled, name):
    found = sample_gradients(labelled, name)
    torch.testing.assert_close(mean_gradient(labelled, [name])[name], found.mean(0))
    torch.testing.assert_close(mean_squared_gradient(labelled, [name])[name], found.square().mean(0))


def test_without_labels_there_is_no_gradient_to_look_at():
    found = calibration(mlp())[0]
    for name in ("snip", "taylor"):
        with pytest.raises(UsageError, match="needs labels"):
            gather(find_criterion(name), found, ["w0"])
    assert gather(find_criterion("magnitude"), found, ["w0"]) == {}


def test_input_norms_of_a_matrix_and_of_a_grouped_convolution():
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], group=2, strides=[2, 1]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    weights = {"k": rng.normal(size=(6, 2, 3, 2)), "w": rng.normal(size=(3, 6 * 2 * 3))}
    found = calibration(model(nodes, {"x": ["N", 4, 5, 4]}, {"y": ["N", 3]}, weights))[0]
    norms = input_norms(found, ["k", "w"])
    x = torch.cat([batch.inputs[0] for batch in found.batches])
    f = torch.cat([found.mirror.evaluate(batch.inputs, outputs=["f"])[0] for batch in found.batches])
    torch.testing.assert_close(norms["w"], f.square().sum(0).sqrt().expand(3, -1), check_dtype=False)
    for channel in range(6):  # outputs 0..2 see inputs 0 and 1, outputs 3..5 see inputs 2 and 3
        for c, i, j in np.ndindex(2, 3, 2):
            seen = x[:, 2 * (channel // 3) + c, i : i + 3 : 2, j : j + 3]
            assert float(norms["k"][channel, c, i, j]) == pytest.approx(float(seen.square().sum().sqrt()), rel=1e-5)
