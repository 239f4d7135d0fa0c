"""Operators that draw random numbers, each from a generator of its own.

Torch's global random state is never read or moved. The generator is made from the attribute ``seed``, or, where the
node has none, from its name: a second run of the mirror, and the derivative of a run, see the same numbers. They are
not the numbers onnxruntime draws; only their distribution is the same.
"""

from __future__ import annotations

import torch

from onnx_obd.mirror.axes import ELEMENTWISE
from onnx_obd.mirror.registry import DType, Floats, Ints, Like, OutputCount, Seed, family
from onnx_obd.mirror.second import elementwise

random_op = family(random=True, differentiable=False)
dropout_op = family(random=True, second=elementwise, axes=ELEMENTWISE)


def _generator(seed: float, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(hash(seed))


def _normal(shape, dtype, device, mean, scale, seed):
    return torch.randn(shape, generator=_generator(seed, device), dtype=dtype, device=device) * scale + mean


def _uniform(shape, dtype, device, low, high, seed):
    return torch.rand(shape, generator=_generator(seed, device), dtype=dtype, device=device) * (high - low) + low


@random_op("RandomNormal", 1, 22)
def random_normal(*, shape, dtype: DType = torch.float32, mean=0.0, scale=1.0, seed: Seed = None, like: Like):
    return _normal(shape, dtype, like.device, mean, scale, seed)


@random_op("RandomUniform", 1, 22)
def random_uniform(*, shape, dtype: DType = torch.float32, low=0.0, high=1.0, seed: Seed = None, like: Like):
    return _uniform(shape, dtype, like.device, low, high, seed)


@random_op("RandomNormalLike", 1, 22)
def random_normal_like(x, *, dtype: DType = None, mean=0.0, scale=1.0, seed: Seed = None):
    return _normal(x.shape, dtype or x.dtype, x.device, mean, scale, seed)


@random_op("RandomUniformLike", 1, 22)
def random_uniform_like(x, *, dtype: DType = None, low=0.0, high=1.0, seed: Seed = None):
    return _uniform(x.shape, dtype or x.dtype, x.device, low, high, seed)


@random_op("Bernoulli", 15, 22)
def bernoulli(x, *, dtype: DType = None, seed: Seed = None):
    return torch.bernoulli(x, generator=_generator(seed, x.device)).to(dtype or x.dtype)


@random_op("Multinomial", 7, 22)
def multinomial(x, *, dtype: DType = torch.int32, sample_size=1, seed: Seed = None):
    """``x``: unnormalised log-probabilities, one row per draw of ``sample_size`` classes."""
    generator = _generator(seed, x.device)
    return torch.multinomial(x.softmax(-1), sample_size, replacement=True, generator=generator).to(dtype)


@dropout_op("Dropout", 12, 13, 22)
def dropout(data, ratio: Floats = None, training_mode: Ints = None, *, seed: Seed = None, outputs: OutputCount = 1):
    ratio = ratio[0] if ratio else 0.5
    if training_mode and training_mode[0] and ratio:
        return _drop(data, ratio, seed)
    return data if outputs == 1 else (data, torch.ones_like(data, dtype=torch.bool))


@dropout_op("Dropout", 10)
def dropout_10(data, *, ratio=0.5, outputs: OutputCount = 1):
    return data if outputs == 1 else (data, torch.zeros_like(data, dtype=torch.bool))  # the mask is "not filled"


@dropout_op("Dropout", 7)
def dropout_7(data, *, ratio=0.5, outputs: OutputCount = 1):
    return data if outputs == 1 else (data, torch.zeros_like(data))


@dropout_op("Dropout", 1, 6)
def dropout_6(data, *, is_test=0, ratio=0.5, seed: Seed = None, outputs: OutputCount = 1):
    if is_test or ratio == 0:
        return dropout_7(data, outputs=outputs)
    y, mask = _drop(data, ratio, seed)
    return y, mask.to(data.dtype)


def _drop(data, ratio, seed):
    draws = torch.rand(data.shape, generator=_generator(seed, data.device), device=data.device)
    mask = draws >= ratio
    return torch.where(mask, data / (1 - ratio), 0), mask
