import pytest
import torch

from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature
from onnx_obd.saliency import score

W = {"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)}
H = Curvature({"w": torch.tensor([[4.0, 0.0], [2.0, 1.0]], dtype=torch.float64)}, "exact", 1)


def test_undamped_obd_is_the_exact_change_of_a_separable_quadratic():
    """E(w) = sum 1/2 h w^2 has no cross terms: deleting w_i from the minimum at w raises it by 1/2 h_i w_i^2."""
    w, h = W["w"], H.diag["w"]
    found = score("obd_undamped", W, H)

    def energy(v):
        return 0.5 * (h * (v - w).square()).sum()

    for index in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        changed = w.clone()
        changed[index] = 0
        assert float(found.scores["w"][index]) == pytest.approx(float(energy(changed)))


def test_damping_gives_weights_without_curvature_a_price_that_grows_with_them():
    scores = score("obd", {"w": torch.tensor([1.0, 2.0, 1.0])}, Curvature({"w": torch.tensor([0.0, 0.0, 3.0])}, "", 1))
    small, large, curved = scores.scores["w"].tolist()
    assert 0 < small < large
    assert small < curved
    assert scores.loss_change["w"].tolist() == [0, 0, 1.5]


def test_magnitude_needs_no_curvature():
    assert score("magnitude", W, None).scores["w"].tolist() == [[1, 2], [0.5, 3]]


def test_bad_requests():
    with pytest.raises(UsageError, match=r"no criterion 'best'.*magnitude"):
        score("best", W, H)
    with pytest.raises(UsageError, match="needs a curvature"):
        score("obd", W, None)
