import numpy as np
import pytest
import torch
from onnx import numpy_helper

from onnx_obd.calibration.temperature import spread, supported
from tests.curvature.networks import calibration, mlp


def logits(scale, count=40):
    return scale * torch.randn(count, 5, generator=torch.Generator().manual_seed(0))


def test_the_spread_has_the_scale_of_the_logits():
    assert spread([300 * logits(1.0) + 7]) == pytest.approx(300 * spread([logits(1.0)]))


def test_a_network_that_is_not_too_sure_keeps_its_own_probabilities():
    assert supported([logits(1.0)]) == 1.0


def test_a_saturated_one_becomes_as_sure_as_so_many_samples_can_tell():
    found = supported([logits(3000.0)[:15], logits(3000.0)[15:]])
    sure = (logits(3000.0).double() / found).softmax(-1).max(-1).values.mean()
    assert float(sure) == pytest.approx(41 / 42, abs=1e-3)


def test_rows_that_are_sure_at_any_temperature_end_the_search():
    assert supported([torch.zeros(3, 1)]) > 1


def test_with_labels_a_saturated_network_has_curvature():
    proto = mlp()
    weight = next(each for each in proto.graph.initializer if each.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(1e4 * numpy_helper.to_array(weight), "w1"))
    found, _ = calibration(proto, kind="labels", labels=np.zeros(6, np.int64))
    batch = found.batches[0]
    values = found.mirror.evaluate(batch.inputs, outputs=found.objective.slots)
    temperature = found.objective.heads[0].temperature
    (h,) = found.objective.hessian_diag(values, batch.targets, batch.count)
    assert temperature > 100
    assert temperature**2 * float(h.sum()) > 1e-3
