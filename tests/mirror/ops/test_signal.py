import numpy as np
import pytest

from tests.mirror.harness import case, check, rand

_MEL = [np.array(8), np.array(32), np.array(8000), np.array(20.0, np.float32), np.array(3600.0, np.float32)]
_LENGTH, _STEP = np.array(6), np.array(3)

CASES = [
    case("DFT", 17, rand(2, 7, 3, 1), axis=1),
    case("DFT", 17, rand(2, 7, 5, 2), np.array(8), axis=2, inverse=1),
    case("DFT", 17, rand(2, 6, 1), onesided=1),
    case("DFT", 20, rand(2, 7, 3, 1), np.array(4), np.array(1), onesided=1),
    case("DFT", 20, rand(2, 7, 3, 2), None, np.array(-3)),
    case("STFT", 17, rand(2, 20, 1), _STEP, rand(6, low=0.1), None),
    case("STFT", 17, rand(1, 20, 1), _STEP, None, _LENGTH, onesided=1),
    case("STFT", 17, rand(1, 14, 2), _STEP, rand(6), _LENGTH, onesided=0),
    case("MelWeightMatrix", 17, *_MEL, gradient=False),
    case("MelWeightMatrix", 17, np.array(9), *_MEL[1:], gradient=False),  # neighbouring edges in one bin
    # defined by ONNX's own function bodies
    case("HannWindow", 17, np.array(7), gradient=False),
    case("HammingWindow", 17, np.array(7), periodic=0, gradient=False),
    case("BlackmanWindow", 17, np.array(8), output_datatype=11, gradient=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
