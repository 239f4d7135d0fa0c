import pytest
import torch

from onnx_obd.calibration.custom import CustomHead
from onnx_obd.calibration.heads import ProbabilityHead, SigmoidHead, SoftmaxHead, SquaredHead
from onnx_obd.calibration.objective import Objective

COUNT = 3


def rows(z):
    """Classes on axis 1, positions behind: what a segmentation net puts out."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def cubic(z, original, labels):
    """Not a multiple of the identity, not positive everywhere."""
    return ((z - original) ** 2 * (1 + z[:, :1] ** 2)).sum() / len(z)


HEADS = {
    "softmax": (SoftmaxHead("y", 0, rows, 2.5, 0.7), (COUNT, 4, 2)),
    "probability": (ProbabilityHead("y", 0, 1.5, 0.7), (COUNT, 4)),
    "sigmoid": (SigmoidHead("y", 0, 1.5, 0.7), (COUNT, 5)),
    "squared": (SquaredHead("y", 0, 0.3, 0.7), (COUNT, 2, 3)),
    "custom": (CustomHead("y", 0, "m:f", cubic, 0.7), (COUNT, 4)),
}


@pytest.fixture(params=HEADS, ids=str)
def setting(request):
    head, shape = HEADS[request.param]
    generator = torch.Generator().manual_seed(1)
    original, z = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if isinstance(head, ProbabilityHead):
        original, z = original.softmax(-1), z.softmax(-1)
    return head, original, z


def dense_hessian(head, z, target):
    n = z.numel()
    return torch.autograd.functional.hessian(lambda v: head.loss(v, target, COUNT), z).reshape(n, n)


def test_no_loss_and_no_gradient_at_the_original(setting):
    head, original, _ = setting
    target = head.target(original, None)
    leaf = original.clone().requires_grad_()
    loss = head.loss(leaf, target, COUNT)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert leaf.grad.abs().max() < 1e-12


def test_the_diagonal_is_that_of_the_dense_hessian(setting):
    head, original, _ = setting
    target = head.target(original, None)
    dense = dense_hessian(head, original, target).diagonal().reshape(original.shape)
    torch.testing.assert_close(head.hessian_diag(original, target, COUNT), dense)


@pytest.mark.parametrize("setting", ["softmax", "sigmoid", "squared"], indirect=True)  # the others bend away from it
def test_also_away_from_the_original(setting):
    head, original, z = setting
    target = head.target(original, None)
    dense = dense_hessian(head, z, target).diagonal().reshape(z.shape)
    torch.testing.assert_close(head.hessian_diag(z, target, COUNT), dense)


@pytest.mark.parametrize("kind", ["probe", "draw"])
def test_probes_and_draws_have_the_hessian_as_covariance_within_each_sample(setting, kind):
    head, original, _ = setting
    target = head.target(original, None)
    dense = dense_hessian(head, original, target)
    generator = torch.Generator().manual_seed(0)
    make = getattr(Objective((head,)), kind)
    draws = torch.stack([make([original], [target], COUNT, generator)[0].reshape(-1) for _ in range(4000)])
    covariance = draws.T @ draws / len(draws)
    size = original.numel() // COUNT
    for sample in range(COUNT):
        part = slice(sample * size, (sample + 1) * size)
        torch.testing.assert_close(
            covariance[part, part], dense[part, part], rtol=0.1, atol=0.08 * float(dense.abs().max())
        )


def test_the_columns_of_the_factor_make_the_hessian(setting):
    head, original, _ = setting
    target = head.target(original, None)
    dense = dense_hessian(head, original, target)
    total = torch.zeros_like(dense)
    for (column,) in Objective((head,)).columns([original], [target], COUNT):
        blocks = torch.block_diag(*column.reshape(COUNT, -1, 1))
        total += blocks @ blocks.T
    torch.testing.assert_close(total, dense)


def test_labels_make_it_the_cross_entropy():
    head = SoftmaxHead("y", 0, lambda z: z, 1.0)
    z = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 2])
    expected = torch.nn.functional.cross_entropy(z, labels)
    torch.testing.assert_close(head.loss(z, head.target(z, labels), 4), expected)


def test_a_large_custom_output_falls_back_to_an_estimated_diagonal():
    head = CustomHead("y", 0, "m:f", lambda z, original, labels: (z - original).pow(2).sum() / len(z))
    z = torch.zeros(2, 400, dtype=torch.float64)
    torch.testing.assert_close(head.hessian_diag(z, head.target(z, None), 2), torch.ones_like(z))
