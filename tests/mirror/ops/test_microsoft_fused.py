from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.mirror.harness import case, check, rand, run_onnxruntime

microsoft = partial(case, domain="com.microsoft")


def ints(*shape: int, high: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, high, shape).astype(np.int32)


def t(value: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(value)


IMAGE, KERNEL = rand(2, 3, 6, 5), rand(4, 3, 3, 2)
NHWC = np.ascontiguousarray(IMAGE.transpose(0, 2, 3, 1))
Z = rand(2, 4, 4, 4)
GROUP_X, GROUP_SKIP, GROUP_BIAS = rand(2, 3, 5, 4), rand(2, 4), rand(4)
GAMMA, BETA = rand(4), rand(4)
SPLIT_X, SPLIT_BIAS, MATRIX = rand(2, 3, 8), rand(8), rand(8, 4)

CASES = [
    microsoft("FusedConv", 1, IMAGE, KERNEL, rand(4), activation="Relu", pads=[1, 0, 1, 1]),
    microsoft("FusedConv", 1, IMAGE, KERNEL, rand(4), Z, activation="Relu", weights=(1, 2)),
    microsoft("FusedConv", 1, IMAGE, KERNEL, activation="LeakyRelu", activation_params=[0.3], strides=[2, 1]),
    microsoft("FusedConv", 1, IMAGE, KERNEL, activation="Clip", activation_params=[-0.4, 0.5], auto_pad="SAME_UPPER"),
    microsoft("FusedConv", 1, IMAGE, KERNEL, activation="HardSigmoid", activation_params=[0.3, 0.4]),
    microsoft("FusedConv", 1, rand(1, 4, 6, 5), rand(6, 2, 3, 2), activation="Tanh", group=2, dilations=[2, 1]),
    microsoft("NhwcFusedConv", 1, NHWC, KERNEL, BETA, Z.transpose(0, 2, 3, 1).copy(), activation="Relu",
              expected=(F.relu(F.conv2d(t(IMAGE), t(KERNEL), t(BETA)) + t(Z)).movedim(1, -1).numpy(),)),
    microsoft("NhwcMaxPool", 1, ints(2, 6, 5, 3, high=200).astype(np.uint8), kernel_shape=[2, 3], strides=[2, 1],
              pads=[1, 0, 0, 1], gradient=False),
    microsoft("ConvTransposeWithDynamicPads", 1, rand(2, 4, 5, 3), rand(4, 3, 3, 2), np.array([1, 0, 0, 1]), rand(3),
              strides=[2, 2], output_padding=[1, 0]),
    microsoft("FusedGemm", 1, rand(3, 4), rand(5, 4), rand(5), transB=1, alpha=0.5, beta=2.0, activation="Relu"),
    microsoft("FusedGemm", 1, rand(3, 4), rand(4, 5), activation="LeakyRelu", activation_alpha=0.2),
    microsoft("FusedMatMul", 1, rand(2, 3, 4), rand(2, 5, 4), transB=1, alpha=0.3, weights=(1,)),
    microsoft("FusedMatMul", 1, rand(3, 2, 4), rand(2, 4, 5), transBatchA=1),
    microsoft("FusedMatMul", 1, rand(4, 2, 3), rand(5, 2, 4), transA=1, transB=1, transBatchA=1, transBatchB=1),
    microsoft("FusedMatMul", 1, rand(4), rand(2, 4, 5)),
    microsoft("TransposeMatMul", 1, rand(2, 4, 3), rand(4, 5), transA=1),
    microsoft("Gelu", 1, rand(3, 4, low=-3, high=3)),
    microsoft("FastGelu", 1, rand(3, 4, low=-3, high=3)),
    microsoft("FastGelu", 1, rand(2, 3, 4), rand(4)),
    microsoft("BiasGelu", 1, rand(2, 3, 4), rand(4)),
    microsoft("QuickGelu", 1, rand(3, 4, low=-3, high=3)),
    microsoft("QuickGelu", 1, rand(3, 4), alpha=0.8),
    microsoft("SkipLayerNormalization", 1, rand(2, 3, 5), rand(2, 3, 5), rand(5), rand(5), rand(5)),
    microsoft("SkipLayerNormalization", 1, rand(2, 3, 5), rand(1, 3, 5), rand(5), None, rand(5), epsilon=0.1),
    microsoft("SkipSimplifiedLayerNormalization", 1, rand(2, 3, 5), rand(2, 3, 5), rand(5), rand(5), epsilon=0.1),
    microsoft("SkipSimplifiedLayerNormalization", 1, rand(2, 3, 5), rand(2, 3, 5), rand(5)),
    case("SimplifiedLayerNormalization", 17, rand(2, 3, 5), rand(5), epsilon=0.1),
    case("SimplifiedLayerNormalization", 12, rand(2, 3, 5), rand(3, 5), axis=1, outputs=2, exact_second=False),
    case("LayerNormalization", 12, rand(2, 3, 5), rand(5), rand(5), epsilon=0.1),
    microsoft("EmbedLayerNormalization", 1, ints(2, 3, high=7), ints(2, 3, high=2), rand(7, 4), rand(9, 4), rand(2, 4),
              rand(4), rand(4), ints(2, 3, high=2), weights=(2, 3, 4, 5, 6), outputs=2, epsilon=0.1),
    microsoft("EmbedLayerNormalization", 1, ints(2, 3, high=7), None, rand(7, 4), rand(9, 4), None, rand(4), rand(4),
              None, ints(2, 3, high=9), outputs=3, epsilon=0.1, exact_second=False),
]  # fmt: skip
# some writers put it into the other domain
RMS = case("SimplifiedLayerNormalization", 17, rand(2, 3, 5), rand(5))
CASES.append(replace(RMS, domain="com.microsoft", opset=1, expected=tuple(run_onnxruntime(RMS))))
# no kernel for the CPU: by torch, as the documentation of the operator defines it
CASES += [
    microsoft("NhwcConv", 1, NHWC, KERNEL, weights=(1,), strides=[1, 2],
              expected=(F.conv2d(t(IMAGE), t(KERNEL), stride=(1, 2)).movedim(1, -1).numpy(),)),
    microsoft("GemmFastGelu", 1, SPLIT_X, MATRIX, GAMMA, weights=(1,), expected=(
        F.gelu(t(SPLIT_X @ MATRIX + GAMMA), approximate="tanh").numpy(),)),
    microsoft("FusedMatMulActivation", 1, SPLIT_X, MATRIX.T.copy(), transB=1, alpha=0.5, activation="Tanh",
              expected=(np.tanh(0.5 * SPLIT_X @ MATRIX),)),
    microsoft("BiasSplitGelu", 1, SPLIT_X, SPLIT_BIAS, expected=(
        ((t(SPLIT_X) + t(SPLIT_BIAS))[..., :4] * F.gelu((t(SPLIT_X) + t(SPLIT_BIAS))[..., 4:])).numpy(),)),
    microsoft("BiasAdd", 1, SPLIT_X, SPLIT_BIAS, SPLIT_X * 2, expected=(3 * SPLIT_X + SPLIT_BIAS,)),
    microsoft("BiasSoftmax", 1, SPLIT_X, SPLIT_X[:1] * 2, axis=2, is_inner_broadcast=0,
              expected=(torch.softmax(t(SPLIT_X + SPLIT_X[:1] * 2), 2).numpy(),)),
    microsoft("GroupNorm", 1, GROUP_X, GAMMA, BETA, groups=2, activation=1, expected=(
        F.silu(F.group_norm(t(GROUP_X).movedim(-1, 1), 2, t(GAMMA), t(BETA))).movedim(1, -1).numpy(),)),
    microsoft("SkipGroupNorm", 1, GROUP_X, GAMMA, BETA, GROUP_SKIP, GROUP_BIAS, groups=2, activation=0,
              exact_second=False, expected=(
        F.group_norm(t(GROUP_X + GROUP_SKIP[:, None, None] + GROUP_BIAS).movedim(-1, 1), 2, t(GAMMA), t(BETA))
        .movedim(1, -1).numpy(),)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
