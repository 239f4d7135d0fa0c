import numpy as np
import pytest

from tests.mirror.harness import Case, case, check, rand

_X = rand(1, 2, 4, 6)
_FAR = rand(1, 1, 9, 7)
_TRANSFORMATIONS = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_NO_ROI = np.zeros(0, np.float32)
_ROI = np.float32([0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2])


def smooth(*shape: int) -> np.ndarray:
    return np.sin(np.linspace(0, 3, np.prod(shape), dtype=np.float32)).reshape(shape)


def scaled(opset: int, x: np.ndarray, *scales: float, **attributes) -> Case:
    return case("Resize", opset, x, _NO_ROI if opset == 11 else None, np.float32(scales), **attributes)


def sized(opset: int, x: np.ndarray, *sizes: int, roi: np.ndarray = _NO_ROI, **attributes) -> Case:
    return case("Resize", opset, x, roi, _NO_ROI if opset == 11 else None, np.array(sizes), **attributes)


def to(name: str) -> dict[str, str]:
    return {"coordinate_transformation_mode": name}


NEAREST = [
    *(scaled(opset, _X, 1, 1, 2, 3) for opset in (11, 13, 18, 19)),
    *(scaled(19, _X, 1, 1, 0.6, 1.7, **to(how)) for how in (*_TRANSFORMATIONS, "half_pixel_symmetric")[2:]),
    *(sized(18, _X, 1, 2, 3, 8, nearest_mode=how, **to("asymmetric")) for how in _ROUNDINGS),
    scaled(11, _X, 1, 1, 0.6, 2.5, **to("tf_half_pixel_for_nn")),
    sized(13, _X, 1, 2, 3, 5, roi=_ROI, extrapolation_value=2.5, **to("tf_crop_and_resize")),
    scaled(13, np.arange(12, dtype=np.int32).reshape(3, 4), 2, 0.5, gradient=False),
    scaled(19, rand(2, 3), 2, 2, weights=(2,)),
]
LINEAR = [
    *(scaled(opset, _X, 1, 1, 2, 1.5, mode="linear") for opset in (11, 13, 18, 19)),
    *(sized(18, _X, 1, 2, 7, 3, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    *(scaled(18, _X, 1, 1, 0.6, 1.7, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    *(sized(18, rand(1, 2, 4), 1, 2, 7, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    *(sized(18, rand(1, 2, 3, 2, 4), 1, 2, 2, 4, 5, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    # long axes go through torch's kernels, which round coordinates in another way: smooth values forgive that
    *(sized(18, smooth(1, 1, 101, 2), 1, 1, 104, 3, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    *(sized(18, smooth(1, 1, 101), 1, 1, 40, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    *(sized(18, smooth(1, 1, 101, 2, 1), 1, 1, 30, 3, 2, mode="linear", **to(how)) for how in _TRANSFORMATIONS),
    sized(18, rand(3, 4), 5, 3, mode="linear"),
    sized(18, _X, 1, 2, 1, 1, mode="linear", **to("pytorch_half_pixel")),
    sized(18, _X, 1, 2, 1, 1, mode="linear", **to("align_corners")),
    sized(13, _X, 1, 2, 3, 5, roi=_ROI, mode="linear", extrapolation_value=2.5, **to("tf_crop_and_resize")),
    sized(13, _X, 1, 2, 3, 1, roi=_ROI, mode="linear", **to("tf_crop_and_resize")),
    sized(19, rand(4, 6), 6, 6, mode="linear", keep_aspect_ratio_policy="not_larger", axes=[0, 1]),
    sized(19, rand(4, 6), 7, 5, mode="linear", keep_aspect_ratio_policy="not_smaller", axes=[0, 1]),
    sized(19, _X, 3, 5, mode="linear", axes=[3, -2]),
    scaled(19, _FAR, 1, 1, 0.3, 0.6, mode="linear", antialias=1),
    scaled(19, _FAR, 1, 1, 0.3, 1.7, mode="linear", antialias=1, exclude_outside=1),
    scaled(18, rand(2, 3), 1.2, 1.3, mode="linear"),  # no length changes: onnxruntime copies
]
CUBIC = [
    *(scaled(opset, _X, 1, 1, 2, 1.5, mode="cubic") for opset in (11, 13, 18, 19)),
    *(sized(18, _X, 1, 2, 7, 3, mode="cubic", **to(how)) for how in _TRANSFORMATIONS),
    *(sized(18, smooth(1, 1, 101, 2), 1, 1, 104, 3, mode="cubic", **to(how)) for how in _TRANSFORMATIONS),
    *(sized(18, _X, 1, 2, 7, 3, mode="cubic", exclude_outside=n, cubic_coeff_a=-0.5) for n in (0, 1)),
    scaled(19, _FAR, 1, 1, 0.3, 0.6, mode="cubic", antialias=1, cubic_coeff_a=-0.5),
    scaled(19, _FAR, 1, 1, 0.3, 0.6, mode="cubic", antialias=1, exclude_outside=1),
]
OLD = [
    *(case("Resize", 10, _X, np.float32([1, 1, 0.6, 2.5]), mode=mode) for mode in ("nearest", "linear")),
    *(case("Upsample", 9, _X, np.float32([1, 1, 3, 1.7]), mode=mode, weights=(1,)) for mode in ("nearest", "linear")),
    *(case("Upsample", 7, _X, scales=[1.0, 1.0, 3.0, 1.7], mode=mode) for mode in ("nearest", "linear")),
    case("Upsample", 1, _X, height_scale=2.0, width_scale=3.0, expected=(_X.repeat(2, 2).repeat(3, 3),)),
]
CASES = NEAREST + LINEAR + CUBIC + OLD


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c}-{list(c.attributes.values())}")
def test_operator(case):
    check(case)


def test_align_corners_reaches_the_fractional_length_from_19_on():
    """Length 4 and scale 0.6 make 2.4 elements: the standard's own test of Resize-19 puts the second at 3 / 1.4."""
    x = np.float32([[1, 2, 3, 4]])
    check(scaled(19, x, 1, 0.6, mode="linear", expected=(np.float32([[1, 1 + 3 / 1.4]]),), **to("align_corners")))
    check(scaled(18, x, 1, 0.6, mode="linear", expected=(np.float32([[1, 4]]),), **to("align_corners")))
