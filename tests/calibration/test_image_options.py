from __future__ import annotations

import json

import pytest

from onnx_obd.calibration.image_options import ImageOptions, find_image_options, load_image_options
from onnx_obd.errors import DataError, UsageError

TOML = """
resize = 256
crop = [224, 192]
scale = "1/255"
mean = [0.485, 0.456, 0.406]
std = [0.25, 0.5, 1]
channels = "bgr"
layout = "nhwc"
interpolation = "bicubic"
"""
EXPECTED = ImageOptions(
    resize=256,
    crop=(224, 192),
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.25, 0.5, 1.0),
    channels="bgr",
    layout="nhwc",
    interpolation="bicubic",
)


def test_toml_and_json_files(tmp_path):
    (tmp_path / "preprocess.toml").write_text(TOML)
    assert load_image_options(tmp_path / "preprocess.toml") == EXPECTED
    mapping = {"resize": 256, "crop": "224x192", "scale": 1 / 255, "mean": "0.485,0.456,0.406", "std": [0.25, 0.5, 1]}
    mapping |= {"channels": "BGR", "layout": "nhwc", "interpolation": "bicubic"}
    (tmp_path / "preprocess.json").write_text(json.dumps(mapping))
    assert load_image_options(tmp_path / "preprocess.json") == EXPECTED


def test_the_file_of_the_model_goes_before_that_of_the_folder(tmp_path):
    data, model = tmp_path / "data", tmp_path / "net.onnx"
    data.mkdir()
    assert find_image_options(data, model) == ImageOptions()
    (data / "preprocess.toml").write_text("crop = 5")
    assert find_image_options(data, model) == ImageOptions(crop=5)
    (tmp_path / "net.preprocess.json").write_text('{"crop": 7}')
    assert find_image_options(data, model) == ImageOptions(crop=7)
    assert find_image_options(data) == ImageOptions(crop=5)


def test_options_over_others():
    assert ImageOptions(crop=3).over(ImageOptions(crop=5, scale=2.0)) == ImageOptions(crop=3, scale=2.0)


@pytest.mark.parametrize(
    "mapping, expected",
    [
        ({"resize": "256", "mean": "0.5", "scale": None}, ImageOptions(resize=256, mean=(0.5,))),
        ({"resize": "224x320"}, ImageOptions(resize=(224, 320))),
        ({"resize": [224]}, ImageOptions(resize=224)),
        ({"scale": 1, "std": 2}, ImageOptions(scale=1.0, std=(2.0,))),
        ({"scale": " 1 / 255 "}, ImageOptions(scale=1 / 255)),
        ({"scale": "1/127.5"}, ImageOptions(scale=1 / 127.5)),
        ({}, ImageOptions()),
    ],
)
def test_the_forms_values_are_written_in(mapping, expected):
    assert ImageOptions.from_mapping(mapping) == expected


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({"size": 3}, "unknown image option 'size'; there are resize, crop, channels"),
        ({"resize": "wide"}, "image option resize cannot be 'wide'"),
        ({"resize": 0}, "resize must be one or two sizes from 1 to 16384 pixels, not 0"),
        ({"crop": [1, 2, 3]}, "image option crop cannot be"),
        ({"crop": 1000000}, "crop must be"),
        ({"crop": True}, "crop must be"),
        ({"scale": "1/0"}, "image option scale cannot be '1/0'"),
        ({"scale": 0}, "scale must be a positive number"),
        ({"scale": float("nan")}, "scale must be"),
        ({"scale": True}, "image option scale cannot be True"),
        ({"mean": [1, 2]}, "mean must be one number or three"),
        ({"mean": "a,b,c"}, "image option mean cannot be"),
        ({"mean": []}, "mean must be"),
        ({"std": 0}, "std must be positive"),
        ({"std": [1, float("inf"), 1]}, "std must be"),
        ({"channels": "rgba"}, "channels must be one of rgb, bgr, gray, not 'rgba'"),
        ({"channels": 3}, "image option channels cannot be 3"),
        ({"layout": "hw"}, "layout must be one of nchw, nhwc"),
        ({"interpolation": "area"}, "interpolation must be one of"),
    ],
)
def test_options_that_cannot_be_meant(mapping, message):
    with pytest.raises(UsageError, match=message):
        ImageOptions.from_mapping(mapping)


@pytest.mark.parametrize(
    "name, text, error, message",
    [
        ("p.toml", "crop = = 3", DataError, "cannot be read"),
        ("p.json", "{", DataError, "cannot be read"),
        ("p.json", "[1]", DataError, "no table of options"),
        ("p.json", "[" * 100000, DataError, "cannot be read"),
        ("p.toml", "crop = -3", UsageError, "crop must be"),
        ("p.toml", "[resize]\nside = 3", UsageError, "image option resize cannot be"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path, name, text, error, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message) as caught:
        load_image_options(tmp_path / name)
    assert name in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "p.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"p\.toml: cannot be read"):
        load_image_options(tmp_path / "p.toml")
