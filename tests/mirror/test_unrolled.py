"""The written-out loop says which node failed, and takes results as operators give them."""

from __future__ import annotations

import onnx
import pytest
import torch

from onnx_obd.errors import ModelError
from onnx_obd.mirror.mirror import Mirror


def _mirror(nodes: str) -> Mirror:
    return Mirror(onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, int64[M] s) => (float[] y, float[] z) {{ {nodes} }}'
    ))  # fmt: skip


def _run_four_times(mirror: Mirror, *inputs: torch.Tensor) -> tuple:
    with torch.no_grad():
        for _ in range(3):
            mirror(*inputs)
        return mirror(*inputs)


def test_several_results_and_those_read_on_the_host():
    y, z = _run_four_times(_mirror("y, z = Split <axis=0> (x, s)"), torch.arange(5.0), torch.tensor([2, 3]))
    assert y.tolist() == [0, 1] and z.tolist() == [2, 3, 4]


def test_one_of_several_results_and_a_tuple_of_one():
    nodes = "k = Constant <value_ints=[2]> () a = Neg (x) y = TopK (a, k) z = Split <axis=0> (a)"
    y, z = _run_four_times(_mirror(nodes), torch.arange(3.0), torch.zeros(1, dtype=torch.int64))
    assert y.tolist() == [0, -1] and z.tolist() == [0, -1, -2]


@pytest.mark.parametrize("gradients", [True, False])
def test_the_node_that_failed_is_named(gradients):
    mirror = _mirror("a = Relu (x) y = Reshape (a, s) z = Exp (y)")
    _run_four_times(mirror, torch.ones(4), torch.tensor([2, 2]))
    with torch.set_grad_enabled(gradients), pytest.raises(ModelError, match="node Reshape #1: "):
        mirror(torch.ones(4), torch.tensor([2, 3]))
