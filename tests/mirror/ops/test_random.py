import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from onnx_obd.mirror.mirror import Mirror
from tests.mirror.harness import across, case, check, check_gradient, check_second, rand

X = rand(200, 150, low=0.1, high=0.9)
SMALL = rand(3, 4)
YES, HALF = np.array(True), np.float32(0.3)

DISTRIBUTIONS = [  # case, mean, standard deviation
    *[(case("RandomNormal", v, shape=[200, 150], mean=2.0, scale=3.0), 2, 3) for v in (1, 22)],
    *[(case("RandomUniform", v, shape=[200, 150], low=-1.0, high=3.0, seed=7.5), 1, 4 / 12**0.5) for v in (1, 22)],
    *[(case("RandomNormalLike", v, X, mean=-1.0, dtype=TensorProto.DOUBLE), -1, 1) for v in (1, 22)],
    *[(case("RandomUniformLike", v, X), 0.5, 1 / 12**0.5) for v in (1, 22)],
    *[(case("Bernoulli", v, np.full((200, 150), 0.3, np.float32), dtype=TensorProto.INT32), 0.3, 0.21**0.5)
      for v in (15, 22)],
    *[(case("Multinomial", v, np.log(np.float32([[1, 2, 1]])), sample_size=30000), 1, 0.5**0.5) for v in (7, 22)],
]  # fmt: skip

INFERENCE = [
    *[case("Dropout", v, SMALL, ratio=0.4, outputs=outputs) for v in (7, 10) for outputs in (1, 2)],
    *across((12, 13, 22), case("Dropout", 13, SMALL, HALF, outputs=2)),
    *[case("Dropout", v, SMALL, is_test=1, expected=(SMALL,)) for v in (1, 6)],
    case("Dropout", 13, SMALL, np.float32(0), YES, outputs=2),
]
TRAINING = [
    *[case("Dropout", v, X, np.float32(0.3), YES, weights=(1, 2), outputs=2, seed=3) for v in (12, 13, 22)],
    *[case("Dropout", v, X, ratio=0.3, outputs=2) for v in (1, 6)],
]
CASES = [c for c, *_ in DISTRIBUTIONS] + INFERENCE + TRAINING


@pytest.mark.parametrize(("case", "mean", "deviation"), DISTRIBUTIONS, ids=str)
def test_distribution(case, mean, deviation):
    mirror = Mirror(case.model())
    drawn = mirror(*map(torch.from_numpy, case.feeds().values()))
    assert drawn.numel() == 30000
    assert drawn.double().mean().item() == pytest.approx(mean, abs=4 * deviation / 30000**0.5)
    assert drawn.double().std().item() == pytest.approx(deviation, rel=0.03)
    declared = case.attributes.get("dtype", TensorProto.INT32 if case.op_type == "Multinomial" else TensorProto.FLOAT)
    assert drawn.numpy().dtype == helper.tensor_dtype_to_np_dtype(declared)


@pytest.mark.parametrize("case", INFERENCE, ids=str)
def test_dropout_in_inference(case):
    check(case)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_dropout_in_training(case):
    y, mask = Mirror(case.model())(torch.from_numpy(X))
    assert mask.double().mean().item() == pytest.approx(0.7, abs=0.015)
    torch.testing.assert_close(y, torch.from_numpy(X) * mask / 0.7)
    assert mask.dtype == (torch.bool if case.opset >= 10 else torch.float32)


def test_the_mask_of_a_derivative_is_that_of_the_run():
    small = case("Dropout", 13, SMALL, HALF, YES)
    check_gradient(small)
    check_second(small)


def test_torch_random_state_is_neither_read_nor_moved():
    state = torch.random.get_rng_state()
    mirror = Mirror(DISTRIBUTIONS[0][0].model())
    first = mirror()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1234)
    assert torch.equal(mirror(), first)
    torch.random.set_rng_state(state)


def test_nodes_without_a_seed_draw_different_numbers_and_nodes_of_one_seed_the_same():
    nodes = [
        helper.make_node("RandomNormal", [], [f"y{i}"], f"node{i}", shape=[50], **({"seed": 0.5} if i > 1 else {}))
        for i in range(4)
    ]
    outputs = [onnx.ValueInfoProto(name=f"y{i}") for i in range(4)]
    graph = helper.make_graph(nodes, "draws", [], outputs)
    a, b, c, d = Mirror(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)]))()
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(c, d)


def test_a_random_constant_follows_the_precision_of_the_mirror():
    assert Mirror(DISTRIBUTIONS[0][0].model()).double()().dtype == torch.float64
