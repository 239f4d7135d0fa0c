import numpy as np
import pytest

from tests.mirror.harness import across, case, check, rand

_BOXES = rand(2, 12, 4, low=0, high=1)
_BOXES[..., 2:] += 0.3
_SCORES = rand(2, 3, 12, low=0, high=1)
_MOST, _IOU, _SCORE = np.array([4]), np.array([0.4], np.float32), np.array([0.2], np.float32)

_ROIS = np.array([[0, 1.2, 2, 9.3, 7], [1, 3, 0.1, 5.2, 6], [0, -2, 4, 14, 6]], np.float32)
_CORNERS = np.array([[1.1, 2.3, 9.7, 7.2], [3.4, 0.2, 5.1, 13.9], [-3.2, 4.4, 6.3, 9.1]], np.float32)
_IMAGES, _BATCH = rand(2, 3, 6, 8), np.array([0, 1, 0])

CASES = [
    case("GridSample", 16, rand(2, 3, 4, 5), rand(2, 3, 2, 2, high=1.3)),
    case("GridSample", 16, rand(1, 2, 4, 5), rand(1, 3, 2, 2), mode="bicubic", align_corners=1),
    case(
        "GridSample",
        16,
        rand(1, 2, 4, 5),
        rand(1, 3, 2, 2, high=1.5),
        mode="nearest",
        padding_mode="reflection",
        gradient=False,
    ),
    case("GridSample", 20, rand(1, 2, 4, 5), rand(1, 3, 2, 2), mode="cubic", padding_mode="border"),
    case("GridSample", 20, rand(1, 2, 3, 4, 5), rand(1, 2, 3, 2, 3)),
    case("GridSample", 22, rand(1, 2, 4, 5), rand(1, 3, 2, 2), align_corners=1, padding_mode="reflection"),
    case("AffineGrid", 20, rand(2, 2, 3), np.array([2, 3, 4, 5])),
    case("AffineGrid", 20, rand(2, 3, 4), np.array([2, 1, 3, 4, 5]), align_corners=1, weights=(1,)),
    case("NonMaxSuppression", 10, _BOXES, _SCORES, _MOST, _IOU, _SCORE, gradient=False),
    case("NonMaxSuppression", 11, _BOXES, _SCORES, _MOST, _IOU, center_point_box=1, gradient=False),
    case("NonMaxSuppression", 11, _BOXES, _SCORES, np.array([20]), gradient=False),
    case("NonMaxSuppression", 11, _BOXES, _SCORES, gradient=False),
    case("MaxRoiPool", 1, rand(2, 3, 8, 10), _ROIS, pooled_shape=[2, 3], weights=(1,)),
    *across(
        [1, 22], case("MaxRoiPool", 1, rand(2, 3, 8, 10), _ROIS, pooled_shape=[3, 2], spatial_scale=0.7, weights=(1,))
    ),
    case("RoiAlign", 10, _IMAGES, _CORNERS, _BATCH, output_height=2, output_width=3, spatial_scale=0.6),
    case("RoiAlign", 16, _IMAGES, _CORNERS, _BATCH, output_height=3, output_width=2, sampling_ratio=2),
    case("RoiAlign", 16, _IMAGES, _CORNERS, _BATCH, output_height=2, mode="max", spatial_scale=0.6),
    *across(
        [16, 22],
        case(
            "RoiAlign",
            16,
            _IMAGES,
            _CORNERS,
            _BATCH,
            output_height=2,
            coordinate_transformation_mode="output_half_pixel",
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case):
    check(case)
