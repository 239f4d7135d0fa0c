"""ai.onnx.ml: the operators that prepare features, stand within a network or name its outputs. Classifiers and trees
are left out: they end a pipeline, without a gradient, and onnxruntime runs them."""

from __future__ import annotations

import math

import torch

from onnx_obd.mirror.composite import composite, part
from onnx_obd.mirror.ops import normalization
from onnx_obd.mirror.registry import Like, family
from onnx_obd.mirror.second import Call, elementwise, movement

ml_op = family(domain="ai.onnx.ml")

_lp_normalization = part(normalization.lp_normalization)


@ml_op("ArrayFeatureExtractor", 1, second=movement)
def array_feature_extractor(x, y):
    """The elements at the places ``y`` of the last axis."""
    picked = x.index_select(-1, y.reshape(-1))
    return picked if x.dim() > 1 else picked.unsqueeze(0)


@ml_op("FeatureVectorizer", 1, second=movement)
def feature_vectorizer(*x, inputdimensions=None, like: Like):
    """The inputs as rows of features, side by side."""
    rows = [value.reshape(1, -1) if value.dim() == 1 else value.flatten(1) for value in x]
    return torch.cat([row.to(like.dtype) for row in rows], 1)


@ml_op("Scaler", 1, second=elementwise)
def scaler(x, *, offset=None, scale=None, like: Like):
    """(x - offset) scale, one number in all or one for each feature."""
    y = x.to(like.dtype)
    y = y if offset is None else y - like.new_tensor(offset)
    return y if scale is None else y * like.new_tensor(scale)


@ml_op("Imputer", 1, second=elementwise)
def imputer(
    x, *, imputed_value_floats=None, imputed_value_int64s=None, replaced_value_float=0.0, replaced_value_int64=0
):
    """Another value, one in all or one for each feature, wherever ``x`` has the one that stands for a missing one."""
    whole = not x.is_floating_point()
    missing = replaced_value_int64 if whole else replaced_value_float
    values = torch.tensor(imputed_value_int64s if whole else imputed_value_floats, dtype=x.dtype, device=x.device)
    return torch.where(x.isnan() if math.isnan(missing) else x == missing, values, x)


def _by_largest_second(call: Call, h):
    """y = x / m with m the largest of a row, at k: dy_j/dx_i = (delta_ij - y_j delta_ik) / m, and y_k is constant."""
    x, y = call.inputs[0], call.outputs[0]
    largest, index = x.max(-1, keepdim=True)
    others = (h[0] * y.square()).sum(-1, keepdim=True) - h[0].gather(-1, index)
    return (h[0].scatter(-1, index, others) / largest.square(),)


def _normalizer_second(call: Call, h):
    return (_by_largest_second if call.attributes.get("norm", "MAX") == "MAX" else composite)(call, h)


@ml_op("Normalizer", 1, second=_normalizer_second)
def normalizer(x, *, norm="MAX", like: Like):
    """Rows of length one, by their sum of absolute values (L1), root of squares (L2) or largest value (MAX)."""
    x = x.to(like.dtype)
    if norm == "MAX":
        return x / x.amax(-1, keepdim=True)
    return _lp_normalization(x, axis=-1, p=1 if norm == "L1" else 2)


@ml_op("ZipMap", 1, differentiable=False)
def zip_map(x, *, classlabels_int64s=None, classlabels_strings=None):
    """Each row as a map from the class labels to its numbers."""
    labels = classlabels_int64s or classlabels_strings
    return [dict(zip(labels, row, strict=True)) for row in x.reshape(-1, len(labels)).tolist()]
