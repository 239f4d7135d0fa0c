import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from tests.mirror.harness import case, check, rand, same_as

_SEQUENCE = [rand(2, 3), rand(1, 3), rand(4, 3)]
_FLOAT = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)


def at(position: int) -> np.ndarray:
    return np.array(position, np.int64)


def doubled_and_shape() -> onnx.GraphProto:
    return onnx.parser.parse_graph("body (float[N, M] a, float[N, M] b) => (float[N, M] c, int64[2] d) "
                                   "{ c = Add(a, b) d = Shape(a) }")  # fmt: skip


def sequence(op_type: str, opset: int, *inputs, **attributes):
    return case(op_type, opset, *inputs, gradient=False, **attributes)


CASES = [
    sequence("SequenceConstruct", 11, rand(2, 3), rand(3)),
    sequence("SequenceEmpty", 11),
    *(sequence("SequenceAt", 11, _SEQUENCE, at(position)) for position in (1, -1)),
    *(sequence("SequenceInsert", 11, _SEQUENCE, rand(3, 3), at(position)) for position in (0, 3, -1)),
    sequence("SequenceInsert", 11, _SEQUENCE, rand(3, 3)),
    *(sequence("SequenceErase", 11, _SEQUENCE, at(position)) for position in (0, -1, -3)),
    sequence("SequenceErase", 11, _SEQUENCE),
    sequence("SequenceLength", 11, _SEQUENCE),
    *(sequence("ConcatFromSequence", 11, _SEQUENCE, axis=axis) for axis in (0, -2)),
    sequence("ConcatFromSequence", 11, _SEQUENCE[:1] * 2, axis=-1, new_axis=1),
    sequence("SplitToSequence", 11, rand(5, 3)),
    sequence("SplitToSequence", 11, rand(5, 3), keepdims=0, axis=1),
    sequence("SplitToSequence", 11, rand(5, 3), at(2)),
    sequence("SplitToSequence", 11, rand(5, 3), np.array([1, 4]), keepdims=0),
    same_as(11, sequence("SplitToSequence", 24, rand(5, 3), np.array([2, 1]), axis=1)),
    sequence("SequenceMap", 17, _SEQUENCE[:1] * 2, rand(2, 3), body=doubled_and_shape(), outputs=2),
    case("Optional", 15, rand(2, 3)),
    same_as(15, case("Optional", 28, rand(2, 3))),
    sequence("Optional", 15, type=onnx.helper.make_tensor_type_proto(1, [2]), expected=(None,)),
    # onnxruntime takes no optional from outside: a tensor is its own element
    case("OptionalGetElement", 15, _SEQUENCE[0], expected=(_SEQUENCE[0],)),
    case("OptionalGetElement", 18, rand(2, 3)),
    sequence("OptionalGetElement", 18, _SEQUENCE),
    same_as(18, case("OptionalGetElement", 28, rand(2, 3))),
    sequence("OptionalHasElement", 15, _SEQUENCE[0], expected=(np.array(True),)),
    sequence("OptionalHasElement", 18, rand(2, 3)),
    sequence("OptionalHasElement", 18),
    same_as(18, sequence("OptionalHasElement", 28, _SEQUENCE)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def through_sequences() -> onnx.ModelProto:
    """Slices of x, some twice and some not at all, each scaled by w, and put together again."""
    return onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[3, 4] x) => (float[3, n] y)
        <float[4] w = {0.5, -2, 3, 1.5}, int64 one = {1}, int64[2] sizes = {2, 2}>
        {
            parts = SplitToSequence <axis = 1> (x)
            second = SequenceAt (parts, one)
            more = SequenceInsert (parts, second)
            fewer = SequenceErase (more, one)
            whole = ConcatFromSequence <axis = 1> (fewer)
            scaled = Mul (whole, w)
            halves = SplitToSequence <axis = 1> (scaled, sizes)
            given = Optional (halves)
            taken = OptionalGetElement (given)
            squared = SequenceMap <body = b (float[3, 2] a) => (float[3, 2] s) { s = Mul (a, a) }> (taken)
            y = ConcatFromSequence <axis = 1> (squared)
        }""")


def test_derivatives_pass_through_sequences():
    model, x = through_sequences(), rand(3, 4)
    mirror = Mirror(model)
    assert not mirror.boundaries
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(mirror(torch.from_numpy(x)).detach().numpy(), session.run(None, {"x": x})[0], rtol=1e-6)

    mirror, x = mirror.double(), torch.from_numpy(x).double()
    w = mirror.weights["w"].detach()
    plan = mirror.plan([x])
    env = plan.record(plan.start([x]))
    estimated: set[str] = set()
    slots = [plan.inputs[0], mirror.weight_slots()["w"]]
    h = propagate(plan, env, {plan.outputs[0]: torch.ones(3, 4).double()}, slots, estimated=estimated)
    jacobians = torch.autograd.functional.jacobian(lambda x, w: mirror.evaluate([x], weights={"w": w})[0], (x, w))
    assert not estimated
    for slot, jacobian in zip(slots, jacobians, strict=True):
        assert jacobian.count_nonzero()
        torch.testing.assert_close(h[slot], jacobian.square().sum((0, 1)))
