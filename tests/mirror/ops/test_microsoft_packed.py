"""Weights of a few bits against onnxruntime; integer weights as parameters: tests/mirror/test_integer_weights.py."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
import torch

from onnx_obd.mirror.ops.microsoft_packed import pack, unpack
from tests.mirror.harness import case, check_forward, check_gradient, rand

microsoft = partial(case, domain="com.microsoft")
RNG = np.random.default_rng(7)


def bytes_(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def n_bits(k: int, n: int, bits: int, *others, block_size=16, **attributes):
    """A product with a matrix [n, k]; ``others``: zero points, then (after an unused one) the bias."""
    blocks = -(-k // block_size)
    b, scales = bytes_(n, blocks, block_size * bits // 8), rand(n, blocks, low=0.01, high=0.1)
    settings = {"K": k, "N": n, "bits": bits, "block_size": block_size}
    weights = tuple(i for i in (1, 2, 3) if i < 3 + len(others))
    return microsoft("MatMulNBits", 1, rand(2, 3, k), b, scales, *others, weights=weights, **settings, **attributes)


def table(data, *others, **attributes):
    weights = (0, 2, 3)[: 1 + len(others)]
    indices = np.array([[1, 4], [0, 1]])
    return microsoft("GatherBlockQuantized", 1, data, indices, *others, weights=weights, **attributes)


CASES = [
    n_bits(40, 5, 4),
    n_bits(40, 5, 4, bytes_(5, 2), None, rand(5)),
    n_bits(40, 5, 4, rand(5, 3, low=0, high=15)),
    n_bits(64, 3, 8, bytes_(3, 2), block_size=32),
    n_bits(64, 3, 2, bytes_(3, 1)),
    n_bits(40, 5, 4, accuracy_level=4),
    n_bits(40, 5, 8, bytes_(5, 3), accuracy_level=4),
    n_bits(40, 5, 2, accuracy_level=4),
    table(bytes_(6, 16), rand(6, 2, low=0.01, high=0.1), block_size=16),
    table(bytes_(6, 16), rand(6, 2, low=0.01, high=0.1), bytes_(6, 1), block_size=16),
    table(bytes_(6, 16), rand(6, 1, low=0.01, high=0.1), bytes_(6, 1), block_size=16, bits=8),
    table(RNG.integers(-8, 8, (6, 3, 32)).astype(ml_dtypes.int4), rand(6, 3, 2), block_size=16, quantize_axis=2),
    table(RNG.integers(0, 16, (32, 6)).astype(ml_dtypes.uint4), rand(2, 6),
          RNG.integers(0, 16, (2, 6)).astype(ml_dtypes.uint4), block_size=16, quantize_axis=0, gather_axis=1),
    *(microsoft("MatMulBnb4", 1, rand(2, 3, 20), bytes_(50), rand(7, low=0.5, high=1), K=20, N=5, block_size=16,
                quant_type=kind, weights=(1,)) for kind in (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.op_type == "MatMulBnb4"], ids=str)
def test_gradient(case):
    check_gradient(case)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpack_undoes_pack(bits):
    packed = torch.from_numpy(bytes_(3, 5))
    numbers = unpack(packed, bits)
    assert int(numbers.max()) < 1 << bits
    assert torch.equal(pack(numbers, bits), packed)
    assert unpack(torch.tensor([[0x21]], dtype=torch.uint8), 4).tolist() == [[1, 2]]  # the low bits are the first
