import pytest
import torch

from onnx_obd.surgery import least_squares
from onnx_obd.surgery.least_squares import inverse_diagonal, solve_supported


@pytest.fixture(params=[1 << 24, 20], ids=["one batch", "row by row"])
def systems(request, monkeypatch):
    """Two groups of four rows over six columns, one row without survivors."""
    monkeypatch.setattr(least_squares, "CHUNK_NUMBERS", request.param)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 6, dtype=torch.float64, generator=generator)
    targets = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    support = torch.rand(2, 4, 6, generator=generator) > 0.4
    support[1, 2] = False
    return x.mT @ x, targets, support


def dense(gram, support, g, r):
    s = support[g, r]
    return s, gram[g][s][:, s] + 0.05 * gram[g].diagonal().mean() * torch.eye(int(s.sum()))


def assert_solved(gram, targets, support):
    found = solve_supported(gram, targets, support, ridge=0.05)
    for g in range(2):
        for r in range(4):
            s, a = dense(gram, support, g, r)
            torch.testing.assert_close(found[g, r, s], torch.linalg.solve(a, targets[g, r, s]))
            assert (found[g, r, ~s] == 0).all()


def test_rows_are_solved_on_their_own_supports(systems):
    gram, targets, support = systems
    assert_solved(gram, targets, support)


@pytest.mark.parametrize("deleted", [1, 5, 6], ids=["few", "most", "all"])
def test_whether_few_or_most_are_deleted_makes_no_difference(systems, deleted):
    """Of a row that kept more than half the system of the deleted columns is solved."""
    gram, targets, _ = systems
    support = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(1)).argsort(-1) >= deleted
    assert_solved(gram, targets, support)


def test_inverse_diagonals_are_those_of_the_survivors(systems):
    gram, _, support = systems
    found = inverse_diagonal(gram, support, ridge=0.05)
    for g in range(2):
        for r in range(4):
            s, a = dense(gram, support, g, r)
            torch.testing.assert_close(found[g, r, s], torch.linalg.inv(a).diagonal())
            assert found[g, r, ~s].isinf().all()


def test_a_singular_gram_is_no_obstacle():
    found = solve_supported(torch.zeros(1, 3, 3).double(), torch.zeros(1, 2, 3).double(), torch.ones(1, 2, 3) > 0)
    assert (found == 0).all()


def test_rows_that_share_a_support_are_solved_together(systems, monkeypatch):
    gram, targets, _ = systems
    support = torch.tensor([True, False, True, True, False, True]).expand(2, 4, 6).clone()
    support[1, 0] = False
    monkeypatch.setattr(least_squares, "_solve_rows", lambda _, targets, support: torch.zeros_like(targets))
    monkeypatch.setattr(least_squares, "SHARED_BY", 2)
    assert_solved(gram, targets, support)
