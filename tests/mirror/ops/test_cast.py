import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import TensorProto, parser

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_numpy, to_torch
from tests.mirror.harness import across, case, check, rand

X = rand(2, 3, low=-3, high=3)
WHOLE = np.array([[200, -56, 3], [0, -1, 129]], np.int16)
# Exactly representable, halfway, beyond the largest of every type, not finite.
EIGHT = np.float32([0.0, -0.40625, 1.0625, 449.0, 470.0, -1e6, np.inf, -np.inf, np.nan])
FLOAT8 = {
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
}


def saturated(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(EIGHT, -largest, largest).astype(dtype)


CASES = [
    *across((1, 13, 14, 16, 19, 21, 23, 24, 25), case("Identity", 16, X)),
    case("Cast", 1, X, to="DOUBLE", expected=(X.astype(np.float64),)),  # version 1 spelled the type
    *across((6, 9, 13, 19, 21, 23, 24, 25, 28), case("Cast", 13, X, to=TensorProto.DOUBLE)),
    case("Cast", 13, X, to=TensorProto.FLOAT16),
    case("Cast", 13, X, to=TensorProto.BFLOAT16, expected=(X.astype(ml_dtypes.bfloat16),)),
    case("Cast", 13, X.astype(np.float16), to=TensorProto.FLOAT),
    *[case("Cast", 13, X, to=to, gradient=False) for to in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)],
    *[case("Cast", 13, WHOLE, to=getattr(TensorProto, to), gradient=False) for to in ("INT8", "UINT8", "FLOAT")],
    case("Cast", 13, np.array([True, False]), to=TensorProto.FLOAT16, gradient=False),
    *[case("Cast", 19, EIGHT, to=to, gradient=False, expected=(saturated(dtype),)) for to, dtype in FLOAT8.items()],
    *[case("Cast", 19, EIGHT, to=to, saturate=0, gradient=False, expected=(EIGHT.astype(dtype),))
      for to, dtype in FLOAT8.items()],
    *[case("Cast", 19, EIGHT[:3].astype(dtype), to=TensorProto.FLOAT, gradient=False,
           expected=(EIGHT[:3].astype(dtype).astype(np.float32),)) for dtype in FLOAT8.values()],
    # Narrow integers keep the low bits; they are carried by the next wider type.
    case("Cast", 21, WHOLE, to=TensorProto.INT4, gradient=False, expected=(np.int8([[-8, -8, 3], [0, -1, 1]]),)),
    case("Cast", 21, WHOLE, to=TensorProto.UINT4, gradient=False, expected=(np.uint8([[8, 8, 3], [0, 15, 1]]),)),
    case("Cast", 25, WHOLE, to=TensorProto.UINT2, gradient=False, expected=(np.uint8([[0, 0, 3], [0, 3, 1]]),)),
    case("Cast", 23, np.float32([0.3, -0.75, 2.5, 5, -9, 0.2]), to=TensorProto.FLOAT4E2M1, gradient=False,
         expected=(np.float32([0.5, -1, 2, 4, -6, 0]),)),
    *[case("Cast", 24, np.float32([1, 1.4, 1.5, 3.1, 0]), to=TensorProto.FLOAT8E8M0, round_mode=mode, gradient=False,
           expected=(np.float32(powers),))
      for mode, powers in (("up", [1, 2, 2, 4, 2**-127]), ("down", [1, 1, 1, 2, 2**-127]),
                           ("nearest", [1, 1, 2, 4, 2**-127]))],
    case("Cast", 13, np.array(["1.5", "-2", "inf"], object), to=TensorProto.FLOAT, gradient=False),
    *across((15, 19, 21, 23, 24, 25), case("CastLike", 19, X, np.float64([1]), expected=(X.astype(np.float64),))),
    case("CastLike", 19, X, np.int32([1]), gradient=False, expected=(X.astype(np.int32),)),
    case("CastLike", 21, WHOLE, np.array([1], ml_dtypes.int4), weights=(1,), gradient=False,
         expected=(np.int8([[-8, -8, 3], [0, -1, 1]]),)),
    case("BitCast", 26, X, to=TensorProto.INT32, gradient=False, expected=(X.view(np.int32),)),
    case("BitCast", 26, np.int64([1, 2]), to=TensorProto.DOUBLE, gradient=False,
         expected=(np.int64([1, 2]).view(np.float64),)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)


def test_bits_are_those_of_the_declared_type_in_a_mirror_of_another_precision():
    mirror = Mirror(case("BitCast", 26, X, to=TensorProto.INT32).model()).double()
    np.testing.assert_array_equal(to_numpy(mirror(to_torch(X))), X.view(np.int32))


@pytest.mark.parametrize(
    ("to", "stays"), [(TensorProto.UINT8, True), (TensorProto.INT32, True), (TensorProto.INT8, False)]
)
def test_whole_numbers_carried_by_floats_stay_so_where_the_type_holds_them(to, stays):
    text = f"""<ir_version: 10, opset_import: ["" : 21]> m (float[2] x, float s) => (float[2] y) {{
        q = QuantizeLinear (x, s) c = Cast <to = {to}> (q) y = Cast <to = 1> (c) }}"""
    mirror = Mirror(parser.parse_model(text))
    x = torch.tensor([0.3, 0.72], requires_grad=True)
    (y,) = mirror.evaluate([x, torch.tensor(0.1)])
    assert y.tolist() == [3, 7]
    assert y.requires_grad == stays
