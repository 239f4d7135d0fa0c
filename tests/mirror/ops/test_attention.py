import numpy as np
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from onnx_obd.mirror.values import is_float, to_torch
from tests.mirror.harness import Case, case, check, rand, run_onnxruntime

NO = -np.inf
_BIAS = np.array([[0, NO, 0.5, 1, 0], [NO, NO, NO, NO, NO], [0.3, 0, NO, 0, -1]], np.float32)


def attention(opset: int, *inputs, **attributes) -> Case:
    """The rule is exact for all inputs but the query: see below."""
    return case("Attention", opset, *inputs, exact_second=False, **attributes)


def qkv(heads=2, kv_heads=2, length=3, keys=5, size=4, value_size=3):
    return rand(2, heads, length, size), rand(2, kv_heads, keys, size), rand(2, kv_heads, keys, value_size)


_QKV = qkv()
_BAND = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], bool)
_PADDED = run_onnxruntime(attention(23, *_QKV, np.concatenate((_BIAS[:, :4], np.full((3, 1), NO, np.float32)), 1)))
_BANDED = run_onnxruntime(attention(23, *_QKV, _BAND))

CASES = [
    attention(23, *qkv()),
    attention(23, *qkv(4, 2), is_causal=1, scale=0.3),
    attention(23, *qkv(), _BIAS),
    attention(23, *qkv(), _BIAS > -1, weights=(3,)),
    attention(23, *qkv(), rand(2, 1, 3, 5), softcap=0.7),
    attention(23, *qkv(keys=3), None, rand(2, 2, 2, 4), rand(2, 2, 2, 3), is_causal=1, outputs=3),
    attention(23, rand(2, 3, 8), rand(2, 5, 4), rand(2, 5, 6), q_num_heads=4, kv_num_heads=2),
    *(attention(23, *qkv(), rand(3, 5), outputs=4, qk_matmul_output_mode=mode, softcap=0.9) for mode in range(4)),
    # onnxruntime refuses a mask shorter than the keys, and has no sliding window: the same as explicit masks
    attention(24, *_QKV, _BIAS[:, :4], expected=_PADDED),
    attention(24, *qkv(), None, None, None, np.array([4, 2]), is_causal=1),
    attention(25, *_QKV, left_window_size=1, right_window_size=2, expected=_BANDED),
    case("RotaryEmbedding", 23, rand(2, 3, 4, 6), rand(7, 3), rand(7, 3), np.array([[0, 2, 4, 6], [1, 3, 0, 1]])),
    case(
        "RotaryEmbedding",
        23,
        rand(2, 4, 12),
        rand(7, 2),
        rand(7, 2),
        np.array([[0, 2, 4, 6], [1, 3, 0, 1]]),
        num_heads=2,
        rotary_embedding_dim=4,
        interleaved=1,
    ),
    case("RotaryEmbedding", 23, rand(2, 3, 4, 6), rand(2, 4, 3), rand(2, 4, 3)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def _second(case):
    """h of each float input by the rule, and by the squared Jacobian in float64."""
    mirror = Mirror(case.model()).double()
    inputs = [to_torch(value) for value in case.feeds().values()]
    inputs = [value.double() if is_float(value) else value for value in inputs]
    plan = mirror.plan(inputs)
    with torch.no_grad():
        env = plan.record(plan.start(inputs))
    seeds = {slot: torch.rand_like(env[slot]) for slot in plan.outputs}
    free = [i for i, value in enumerate(inputs) if is_float(value)]
    h = propagate(plan, env, seeds, [plan.inputs[i] for i in free])
    weights = torch.cat([seed.flatten() for seed in seeds.values()])
    for i in free:
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: torch.cat([y.flatten() for y in mirror.evaluate([*inputs[:i], v, *inputs[i + 1 :]])]),
            inputs[i],
        ).reshape(len(weights), -1)
        yield h[plan.inputs[i]], (weights @ jacobian.square()).reshape(inputs[i].shape)


@pytest.mark.parametrize("case", [c for c in CASES if not c.exact_second], ids=str)
def test_second_rule_is_exact_but_for_the_query(case):
    torch.manual_seed(0)
    _, *others = _second(case)
    for found, expected in others:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_second_rule_of_the_query_is_close_even_if_keys_share_a_large_part():
    torch.manual_seed(0)
    drawn = np.random.default_rng(0).uniform(-1, 1, (2, 2, 44, 6)).astype(np.float32)
    q, k, v = np.split(drawn, (12, 28), 2)
    found, expected = next(_second(attention(23, 4 * q, 2 * k + 3, v)))
    assert 0.6 < found.mean() / expected.mean() < 1.4
    assert torch.corrcoef(torch.stack((found.flatten(), expected.flatten())).log())[0, 1] > 0.9


def test_a_query_that_may_attend_nothing_gives_zeros_and_finite_gradients():
    q, k, v = qkv()
    mirror = Mirror(attention(23, q, k, v, _BIAS).model())
    inputs = [to_torch(value).requires_grad_() for value in (q, k, v, _BIAS)]
    y = mirror(*inputs)
    assert torch.equal(y[:, :, 1], torch.zeros_like(y[:, :, 1]))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.square().sum(), inputs))
