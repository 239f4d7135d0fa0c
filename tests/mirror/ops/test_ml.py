from functools import partial

import numpy as np
import pytest

from tests.mirror.harness import case, check, rand

ml = partial(case, domain="ai.onnx.ml")

MISSING = np.array([[1.0, -9.0, 0.3], [-9.0, 2.0, -9.0]], np.float32)
CASES = [
    ml("ArrayFeatureExtractor", 1, rand(2, 5), np.array([[3, 1]], np.int64)),
    ml("ArrayFeatureExtractor", 1, rand(5), np.array([4, 0, 4], np.int64)),
    ml("FeatureVectorizer", 1, rand(2, 3), rand(2, 1), inputdimensions=[3, 1]),
    ml("Scaler", 1, rand(2, 3), offset=[0.5, -1.0, 2.0], scale=[2.0, 3.0, 0.1]),
    ml("Scaler", 1, rand(2, 3), offset=[0.5], scale=[3.0]),
    ml("Scaler", 1, np.array([[3, -4]], np.int64), offset=[0.5, 1.0], scale=[3.0, 2.0], gradient=False),
    ml("Imputer", 1, MISSING, imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=-9.0, gradient=False),
    ml("Imputer", 1, rand(2, 3), imputed_value_floats=[7.0], replaced_value_float=-9.0),
    ml("Imputer", 1, np.array([[np.nan, 1]], np.float32), imputed_value_floats=[7.0], replaced_value_float=float("nan"),
       gradient=False),
    ml("Imputer", 1, np.array([[3, 0]], np.int64), imputed_value_int64s=[7], gradient=False),
    ml("Normalizer", 1, rand(3, 4, low=0.1), norm="MAX"),
    ml("Normalizer", 1, rand(3, 4), norm="L1"),
    ml("Normalizer", 1, rand(3, 4), norm="L2"),
    ml("Normalizer", 1, rand(4), norm="L2"),
    ml("ZipMap", 1, rand(3, 2), classlabels_int64s=[7, -1], gradient=False),
    ml("ZipMap", 1, rand(2), classlabels_strings=["a", "b"], gradient=False),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
