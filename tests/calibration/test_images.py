from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from onnx_obd.calibration import images
from onnx_obd.calibration.folder import load_samples
from onnx_obd.calibration.image_options import ImageOptions
from onnx_obd.errors import DataError
from tests.calibration.models import FLOAT, check_accepted, make_model

Image = pytest.importorskip("PIL.Image")

MODEL = make_model(("image", FLOAT, ["batch", 3, 4, 6]), classes=3)
RAW = ImageOptions(scale=1.0)


def save(path: Path, level: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 255 - level)).save(path)


def levels(samples) -> list[int]:
    """The red level of each image, which tells the files apart."""
    return [round(float(feed["image"][0, 0].mean())) for feed in samples.feeds]


def huge_png(width: int, height: int) -> bytes:
    """The beginning of a PNG file that declares ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_images_without_sub_folders_have_no_labels(tmp_path):
    for index, name in enumerate(["b.png", "a.PNG", "c.bmp", ".hidden.png"]):
        save(tmp_path / name, index * 10)
    samples = load_samples(tmp_path, MODEL, options=RAW)
    assert levels(samples) == [10, 0, 20] and samples.labels is None and samples.batchable
    assert "rgb, scale 1" in samples.source
    check_accepted(MODEL, samples.feeds)


def test_one_image_file(tmp_path):
    save(tmp_path / "a.png", 70)
    assert levels(load_samples(tmp_path / "a.png", MODEL, options=RAW)) == [70]


def test_class_sub_folders_in_alphabetical_order(tmp_path):
    save(tmp_path / "dog" / "1.png", 10)
    save(tmp_path / "cat" / "deep" / "2.png", 20)
    save(tmp_path / "dog" / "0.jpg", 30)
    (tmp_path / "cow").mkdir()  # a class of which there is no sample counts all the same
    samples = load_samples(tmp_path, MODEL, options=RAW)
    assert samples.labels.tolist() == [0, 2, 2]
    assert levels(samples) == pytest.approx([20, 30, 10], abs=2)  # jpg is not exact


def test_sub_folders_named_by_number_are_those_classes(tmp_path):
    model = make_model(("image", FLOAT, ["batch", 3, 4, 6]), classes=12)
    for name in ("10", "2", "0"):
        save(tmp_path / name / "a.png", int(name) * 20)
    samples = load_samples(tmp_path, model, options=RAW)
    assert [(level / 20) for level in levels(samples)] == samples.labels.tolist()
    with pytest.raises(DataError, match="label 10 of sample 1, counted from 0, is outside the model's 3 classes"):
        load_samples(tmp_path, MODEL)


def test_sub_folders_that_are_not_the_model_s_classes(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / name / "a.png", 0)
    with pytest.raises(DataError, match=r"2 class sub-folders, but the model has 3 classes.*labels\.csv"):
        load_samples(tmp_path, MODEL)
    assert load_samples(tmp_path, MODEL, labels="none").labels is None
    (tmp_path / "labels.csv").write_text("file,label\ncat/a.png,2\ndog/a.png,1\n")
    assert load_samples(tmp_path, MODEL).labels.tolist() == [2, 1]


def test_images_beside_class_sub_folders(tmp_path):
    for name in ("cat/a.png", "dog/a.png", "stray.png"):
        save(tmp_path / name, 0)
    with pytest.raises(DataError, match=r"both in sub-folders and beside them \('stray\.png'\)"):
        load_samples(tmp_path, MODEL)


def test_a_single_sub_folder_is_no_class(tmp_path):
    save(tmp_path / "images" / "a.png", 0)
    assert load_samples(tmp_path, MODEL).labels is None


def test_labels_csv_above_the_folder(tmp_path):
    for name in ("calib/x/a.png", "calib/y/b.png", "test/x/c.png"):
        save(tmp_path / name, 0)
    table = tmp_path / "labels.csv"
    table.write_text("file,class_index\ntest/x/c.png,0\ncalib/y/b.png,2\ncalib/x/a.png,1\n")
    assert load_samples(tmp_path / "calib", MODEL, labels=table).labels.tolist() == [1, 2]


def test_limit_spreads_over_classes_and_decodes_no_other(tmp_path, monkeypatch):
    for label, count in enumerate([8, 4, 4]):
        for index in range(count):
            save(tmp_path / str(label) / f"{index}.png", label * 100 + index)
    decoded = []
    original = images.decode
    monkeypatch.setattr(images, "decode", lambda path, how: decoded.append(path) or original(path, how))
    seen = []
    samples = load_samples(tmp_path, MODEL, options=RAW, limit=4, progress=lambda *at: seen.append(at))
    assert samples.labels.tolist() == [0, 0, 1, 2]
    assert [level // 100 for level in levels(samples)] == [0, 0, 1, 2]
    assert len(decoded) == 4 and seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_preprocess_files_and_options(tmp_path):
    save(tmp_path / "data" / "a.png", 70)
    (tmp_path / "data" / "preprocess.toml").write_text('scale = 2\nchannels = "bgr"')
    (tmp_path / "net.preprocess.json").write_text('{"scale": 3}')
    assert levels(load_samples(tmp_path / "data", MODEL)) == [(255 - 70) * 2]
    assert levels(load_samples(tmp_path / "data", MODEL, model_path=tmp_path / "net.onnx")) == [210]
    options = ImageOptions(scale=1.0)
    assert levels(load_samples(tmp_path / "data", MODEL, options=options)) == [255 - 70]


def test_images_of_different_sizes_stay_apart_where_the_model_takes_any(tmp_path):
    model = make_model(("image", FLOAT, ["batch", 3, "h", "w"]))
    save(tmp_path / "a.png", 0, (6, 4))
    save(tmp_path / "b.png", 0, (5, 9))
    samples = load_samples(tmp_path, model)
    assert [feed["image"].shape for feed in samples.feeds] == [(1, 3, 4, 6), (1, 3, 9, 5)]
    check_accepted(model, samples.feeds)


def test_images_need_a_model_with_one_input(tmp_path):
    save(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match=r"images serve a model with one input, but the model takes 'a'.*'b'"):
        load_samples(tmp_path, make_model(("a", FLOAT, [1, 3, 4, 6]), ("b", FLOAT, [1, 2])))


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other format"])
def test_damaged_images(tmp_path, damage):
    path = tmp_path / "bad.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"hello", "empty": b""}.get(damage, data))
    if damage == "other format":
        Image.new("RGB", (6, 4)).save(path, format="GIF")
    with pytest.raises(DataError, match=r"bad\.png: not a readable image") as error:
        load_samples(tmp_path, MODEL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_images_that_declare_too_many_pixels(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(huge_png(*size))
    with pytest.raises(DataError, match=r"bomb\.png: more than \d+ pixels; not decoded"):
        load_samples(tmp_path, MODEL)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    Image.fromarray(np.full((4, 6), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: more than 8 bits per channel"):
        load_samples(tmp_path, MODEL)


def test_without_pillow_the_message_says_what_to_install(tmp_path, monkeypatch):
    save(tmp_path / "a.png", 0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"images need Pillow; install it with: pip install 'onnx-obd\[images\]'"):
        load_samples(tmp_path, MODEL)
