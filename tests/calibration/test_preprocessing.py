from __future__ import annotations

import numpy as np
import pytest
import torch

from onnx_obd.calibration.image_options import INTERPOLATIONS, ImageOptions
from onnx_obd.calibration.inputs import read_inputs
from onnx_obd.calibration.preprocessing import resolve
from onnx_obd.errors import DataError, UsageError
from tests.calibration.models import FLOAT, INT32, UINT8, make_model

Image = pytest.importorskip("PIL.Image")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(height: int, width: int) -> np.ndarray:
    """RGB noise: any displacement of rows, columns or channels shows."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """RGB waves that survive resizing, different in every channel and direction."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + 2 * columns) / 11)]
    return np.round(np.stack(waves, axis=2) * 100 + 128).astype(np.uint8)


def apply(image: np.ndarray, shape, elem_type=FLOAT, **options) -> np.ndarray:
    model_input = read_inputs(make_model(("x", elem_type, shape)))[0]
    return resolve(ImageOptions(**options), model_input).apply(Image.fromarray(image), "here")


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, by torch: [height, width, 3] of floats."""
    tensor = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    result = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
    return result[0].permute(1, 2, 0).numpy()


def test_an_image_of_the_right_size_is_scaled_and_laid_out():
    image = pixels(5, 7)
    chw = image.transpose(2, 0, 1)[np.newaxis]
    result = apply(image, ["batch", 3, 5, 7])
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, chw / 255, rtol=1e-6)
    np.testing.assert_allclose(apply(image, [1, 5, 7, 3]), image[np.newaxis] / 255, rtol=1e-6)
    np.testing.assert_allclose(apply(image, [3, 5, 7], scale=1.0), chw[0])
    np.testing.assert_array_equal(apply(image, ["batch", 3, 5, 7], UINT8), chw)
    np.testing.assert_array_equal(apply(image, [1, 3, 5, 7], INT32), chw)


def test_normalisation_is_per_channel_in_the_order_of_channels():
    image = pixels(5, 7)
    expected = (image / 255 - np.array(MEAN)) / np.array(STD)
    result = apply(image, [1, 3, 5, 7], mean=MEAN, std=STD)
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    expected = (image[:, :, ::-1] * 2.0 - np.array([1.0, 2.0, 3.0])) / 4
    result = apply(image, [1, 5, 7, 3], mean=(1.0, 2.0, 3.0), std=(4.0,), scale=2.0, channels="bgr")
    np.testing.assert_allclose(result[0], expected, rtol=1e-6)


def test_gray_is_the_weighted_sum_of_the_colours():
    image = pixels(5, 7)
    expected = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(apply(image, [1, 1, 5, 7], scale=1.0)[0, 0], expected, atol=0.51)
    np.testing.assert_allclose(apply(image, ["batch", 5, 7], scale=1.0)[0], expected, atol=0.51)
    np.testing.assert_allclose(apply(image, [1, 5, 7, 1], scale=1.0)[0, :, :, 0], expected, atol=0.51)
    np.testing.assert_allclose(apply(image, [5, 7], scale=1.0), expected, atol=0.51)


def test_a_gray_image_fills_three_channels():
    image = pixels(5, 7)[:, :, 0]
    np.testing.assert_array_equal(apply(image, [1, 3, 5, 7], scale=1.0), np.broadcast_to(image, (1, 3, 5, 7)))


@pytest.mark.parametrize(
    "height, width, rows, columns", [(9, 7, np.s_[2:7], np.s_[:]), (6, 11, np.s_[0:5], np.s_[2:9])]
)
def test_crop_is_cut_from_the_centre(height, width, rows, columns):
    image = pixels(height, width)
    result = apply(image, [1, None, None, 3], crop=(5, 7), scale=1.0)
    np.testing.assert_array_equal(result[0], image[rows, columns])


def test_resize_of_the_shorter_side_then_crop_to_the_model():
    image = smooth(60, 45)
    expected = resized(image, 40, 30)[4:36, 3:27]
    result = apply(image, [1, 3, 32, 24], resize=30, scale=1.0)
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), expected, atol=1)


def test_resize_to_an_exact_size_bends_the_ratio():
    image = smooth(60, 45)
    result = apply(image, [1, 3, 24, 32], resize=(24, 32), scale=1.0)
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), resized(image, 24, 32), atol=1)


@pytest.mark.parametrize("height, width, fitted, rows, columns", [
    (60, 45, (32, 24), np.s_[0:32], np.s_[0:24]),
    (64, 80, (32, 40), np.s_[:], np.s_[8:32]),
    (80, 40, (48, 24), np.s_[8:40], np.s_[:]),
])  # fmt: skip
def test_by_default_an_image_is_resized_to_cover_the_model_size(height, width, fitted, rows, columns):
    image = smooth(height, width)
    result = apply(image, [1, 3, 32, 24], scale=1.0)
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), resized(image, *fitted)[rows, columns], atol=1)


def test_interpolation_is_chosen():
    image = smooth(60, 45)
    nearest = apply(image, [1, 3, 20, 15], resize=15, scale=1.0, interpolation="nearest")
    np.testing.assert_array_equal(nearest[0].transpose(1, 2, 0), image[1::3, 1::3])
    results = [apply(image, [1, 3, 32, 24], interpolation=name) for name in INTERPOLATIONS]
    assert len({result.tobytes() for result in results}) == 4


def test_open_sizes_take_every_image_as_it_is():
    assert apply(pixels(5, 7), ["batch", 3, "h", "w"]).shape == (1, 3, 5, 7)
    assert apply(pixels(9, 4), [None, None, None, 3]).shape == (1, 9, 4, 3)
    assert apply(pixels(9, 4), None, layout="nhwc").shape == (1, 9, 4, 3)
    assert apply(pixels(9, 4), [None, None, None, None], layout="nchw").shape == (1, 3, 9, 4)


def test_flattened_images():
    image = pixels(5, 7)
    gray = image[:, :, 1]
    np.testing.assert_array_equal(apply(gray, ["batch", 35], scale=1.0), gray.reshape(1, 35))
    np.testing.assert_array_equal(apply(gray, [1, 35, 1], scale=1.0), gray.reshape(1, 35, 1))
    np.testing.assert_array_equal(apply(image, [1, 105], scale=1.0)[0], image.transpose(2, 0, 1).ravel())
    np.testing.assert_array_equal(apply(image, [1, 105], scale=1.0, layout="nhwc")[0], image.ravel())
    assert apply(smooth(50, 70), [1, 35], resize=5).shape == (1, 35)
    with pytest.raises(DataError, match="here: 3x5x7 values, but the model takes 36; set resize, crop or channels"):
        apply(image, [1, 36])


@pytest.mark.parametrize(
    "shape, options, error, message",
    [
        ([1, 3, 32, 24], {"crop": 30}, DataError, "here: 30x30, but the model takes 32x24"),
        ([1, 3, 32, 24], {"crop": 99}, DataError, "here: 50x40 is smaller than the crop 99x99; set resize"),
        ([1, 3, 32, 24], {"resize": 20}, DataError, "here: 25x20 is smaller than the crop 32x24"),
        ([1, 3, "h", "w"], {"resize": 16384}, DataError, "too large"),
        ([8, 3, 32, 24], {}, DataError, "one image does not make a sample"),
        (["batch", 3, 4, 32, 24], {}, DataError, "one image does not make a sample"),
        (["batch", "features"], {}, DataError, "does not tell the size of an image"),
        ([1, 4, 32, 24], {"layout": "nchw"}, UsageError, r"rgb images have 3 channels, but .* has 4"),
        ([1, 3, 32, 24], {"channels": "gray"}, UsageError, r"gray images have 1 channel, but .* has 3"),
        ([1, 3, 32, 24], {"layout": "nhwc"}, UsageError, "has 24; set channels or layout"),
        ([None, None, None, None], {}, UsageError, "does not tell the layout"),
        ([1, 3, 9, 3], {}, UsageError, "does not tell the layout"),
        (None, {}, UsageError, "does not tell the layout"),
        ([1, 1, 32, 24], {"mean": MEAN}, UsageError, "three values, but gray images have one"),
        ([1, 3, 32, 24], {"mean": (123.7, 116.3, 103.5)}, UsageError, "set scale to 1"),
    ],
)
def test_options_and_images_that_do_not_suit_the_model(shape, options, error, message):
    with pytest.raises(error, match=message):
        apply(pixels(50, 40), shape, **options)


def test_integer_inputs_take_no_normalisation():
    with pytest.raises(UsageError, match=r"scale is set, but .* takes pixels as they are"):
        apply(pixels(5, 7), [1, 3, 5, 7], UINT8, scale=1.0)
    with pytest.raises(DataError, match=r"pixel values 0 \.\. 255 do not fit"):
        apply(pixels(5, 7), [1, 3, 5, 7], 3)  # int8


def test_the_choices_are_told():
    model_input = read_inputs(make_model(("x", FLOAT, [1, 3, 32, 24])))[0]
    assert resolve(ImageOptions(mean=MEAN), model_input).describe() == (
        "resize to cover 32x24, crop 32x24, rgb, scale 0.00392157, mean 0.485/0.456/0.406, std 1, nchw"
    )
