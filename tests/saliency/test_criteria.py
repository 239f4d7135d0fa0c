import pytest
import torch

from onnx_obd.errors import UsageError
from onnx_obd.records import Curvature
from onnx_obd.saliency import score
from onnx_obd.saliency.registry import criterion

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


def scores(name, weight, **evidence):
    given = {need: {"w": torch.tensor(value)} for need, value in evidence.items()}
    return score(name, {"w": torch.tensor(weight)}, None, given).scores["w"]


def test_snip_is_weight_times_gradient():
    found = scores("snip", [[1.0, -2.0], [0.0, 3.0]], gradient=[[0.5, 0.25], [9.0, -1.0]])
    assert found.tolist() == [[0.5, 0.5], [0.0, 3.0]]


def test_taylor_squares_sample_by_sample():
    """Two samples with gradients (1, -2) and (-1, 2): their mean is zero, the mean of their squares is not."""
    assert scores("taylor", [3.0, -0.5], squared_gradient=[1.0, 4.0]).tolist() == [9.0, 1.0]


def test_wanda_is_weight_times_the_norm_of_its_input():
    assert scores("wanda", [[-2.0, 1.0]], input_norm=[[3.0, 5.0]]).tolist() == [[6.0, 5.0]]


def test_random_depends_on_the_seed_alone_and_differs_between_tensors():
    weights = {"a": torch.zeros(3, 5), "b": torch.ones(3, 5)}
    first, again, other = (score("random", weights, seed=seed).scores for seed in (1, 1, 2))
    assert torch.equal(first["a"], again["a"]) and not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])
    assert first["a"].shape == (3, 5) and 0 <= float(first["a"].min()) <= float(first["a"].max()) < 1


@pytest.mark.parametrize("name", ["snip", "taylor", "wanda"])
def test_what_a_criterion_needs_is_asked_for(name):
    with pytest.raises(UsageError, match=f"'{name}' needs"):
        score(name, W)


def test_a_criterion_may_not_ask_for_what_nobody_provides():
    with pytest.raises(ValueError, match="luck"):
        criterion("lucky")(lambda weight, luck: weight)
