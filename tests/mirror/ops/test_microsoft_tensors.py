from functools import partial

import numpy as np
import pytest

from tests.mirror.harness import case, check, rand

microsoft = partial(case, domain="com.microsoft")

CASES = [
    microsoft("ExpandDims", 1, rand(2, 3), np.array(-1, np.int32)),
    microsoft("GatherND", 1, rand(2, 3, 4), np.array([[0, 2], [1, 1], [1, 0]], np.int64)),
    microsoft("Pad", 1, rand(2, 3), np.array([0, 2, 1, 0]), rand(1)),
    microsoft("Pad", 1, rand(2, 3), np.array([0, 2, 1, 0]), mode="reflect"),
    microsoft("Range", 1, *np.array([2.0, 9.0, 2.5], np.float32)[:, None], gradient=False),
    microsoft("Range", 1, np.array([2], np.int64), np.array([6], np.int64), gradient=False),
    microsoft("Trilu", 1, rand(2, 3, 4), np.array(1)),
    microsoft("Trilu", 1, rand(3, 4), upper=0),
    microsoft("Unique", 1, np.array([2, 1, 1, 3, 4, 3], np.float32), outputs=3, gradient=False),
    microsoft("UnfoldTensor", 1, rand(2, 7), dim=1, size=3, step=2),
    microsoft("GridSample", 1, rand(1, 2, 4, 5), rand(1, 3, 2, 2, low=-0.9, high=0.9)),
    microsoft("Inverse", 1, rand(2, 3, 3) + 2 * np.eye(3, dtype=np.float32)),
    microsoft("CDist", 1, rand(3, 4), rand(2, 4)),
    microsoft("CDist", 1, rand(3, 4), rand(2, 4), metric="euclidean"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
