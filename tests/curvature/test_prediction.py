import pytest
import torch

from onnx_obd.curvature.prediction import predict_jointly
from tests.curvature.graphs import GRAPHS
from tests.curvature.networks import calibration


@pytest.mark.parametrize("graph", ["residual", "attention", "shared", "loop", "embedding"])
@pytest.mark.parametrize("kind", ["squared", "kl"])
def test_it_is_the_loss_to_second_order(graph, kind):
    """The rise of the loss for a step of length t is t² times the prediction, but for terms of t³."""
    found, _ = calibration(GRAPHS[graph](), count=4, kind=kind, batch_size=2)
    original = {name: weight.detach().clone() for name, weight in found.mirror.weights.items()}
    generator = torch.Generator().manual_seed(0)
    masks = {n: (torch.rand(w.shape, generator=generator) < 0.4).double() for n, w in original.items()}
    deleted = {name: weight * (1 - masks[name]) for name, weight in original.items()}
    predicted = predict_jointly(found, original, deleted)
    assert predicted > 0
    step = 1e-4
    with torch.no_grad():
        for name, weight in found.mirror.weights.items():
            weight.copy_(original[name] + step * (deleted[name] - original[name]))
    assert found.loss() / step**2 == pytest.approx(predicted, rel=2e-3)
