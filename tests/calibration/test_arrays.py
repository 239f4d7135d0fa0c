from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnx_obd.calibration import arrays
from onnx_obd.calibration.folder import load_samples
from onnx_obd.errors import DataError
from tests.calibration.models import FLOAT, INT64, check_accepted, make_model, values

FIXED = make_model(("x", FLOAT, [1, 3, 5]), classes=7)
OPEN = make_model(("x", FLOAT, ["batch", 3, 5]), classes=7)
PAIR = make_model(("ids", INT64, ["batch", "seq"]), ("mask", FLOAT, ["batch", "seq"]))


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header_only(shape: tuple[int, ...]) -> bytes:
    """A .npy file that declares float32 data of ``shape`` and has 16 bytes of it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(16)


def write_npz(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("model, batchable", [(FIXED, False), (OPEN, True)])
def test_npz_is_a_stack_also_where_the_batch_is_fixed_at_1(tmp_path, model, batchable):
    x = values(4, 3, 5)
    np.savez_compressed(tmp_path / "a.npz", x=x, labels=np.array([6, 0, 1, 2], dtype=np.uint8))
    samples = load_samples(tmp_path, model)
    assert len(samples) == 4 and samples.batchable is batchable
    for index, feed in enumerate(samples.feeds):
        np.testing.assert_array_equal(feed["x"], x[index : index + 1])
    assert samples.labels.tolist() == [6, 0, 1, 2] and samples.labels.dtype == np.int64
    check_accepted(model, samples.feeds)


def test_every_npz_may_be_one_feed_or_several(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(3, 5))
    np.savez(tmp_path / "b.npz", x=values(2, 3, 5) + 100)
    np.savez(tmp_path / "c.npz", x=values(1, 3, 5) + 200)
    samples = load_samples(tmp_path, OPEN)
    assert [float(feed["x"][0, 0, 0]) for feed in samples.feeds] == pytest.approx([0, 100, 100 + 15 / 7, 200])
    check_accepted(OPEN, samples.feeds)


def test_ragged_samples_stay_separate_feeds(tmp_path):
    for index, length in enumerate([4, 4, 9]):
        np.savez(tmp_path / f"{index}.npz", ids=np.arange(length), mask=np.ones((1, length)))
    samples = load_samples(tmp_path, PAIR)
    assert [feed["ids"].shape for feed in samples.feeds] == [(1, 4), (1, 4), (1, 9)]
    assert [feed["mask"].shape for feed, _ in samples.batches(8)] == [(2, 4), (1, 9)]
    check_accepted(PAIR, samples.feeds)


def test_single_npy_file_and_labels_beside_it(tmp_path):
    np.save(tmp_path / "train.npy", values(4, 3, 5).astype(np.float64))
    np.save(tmp_path / "labels.npy", np.array([0.5, 1.5, 2.5, 3.5]))
    samples = load_samples(tmp_path / "train.npy", OPEN)
    assert samples.feeds[3]["x"].dtype == np.float32
    assert samples.labels.tolist() == [0.5, 1.5, 2.5, 3.5]


def test_one_npy_per_input(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(12, dtype=np.int32).reshape(4, 3))
    np.save(tmp_path / "mask.npy", values(4, 3))
    samples = load_samples(tmp_path, PAIR)
    assert [feed["ids"].tolist() for feed in samples.feeds] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9, 10, 11]]]
    assert samples.feeds[0]["ids"].dtype == np.int64


def test_npy_needs_a_model_with_one_input(tmp_path):
    np.save(tmp_path / "a.npy", values(4, 3))
    with pytest.raises(DataError, match=r"a\.npy: .* the model takes 'ids': int64 .*'mask'"):
        load_samples(tmp_path, PAIR)


def test_fortran_order_and_an_unnamed_array(tmp_path):
    x = values(4, 3, 5)
    np.savez(tmp_path / "a.npz", np.asfortranarray(x))
    samples = load_samples(tmp_path, OPEN)
    np.testing.assert_array_equal(samples.feeds[2]["x"], x[2:3])
    assert samples.feeds[2]["x"].flags.c_contiguous


def test_an_input_may_be_called_like_labels(tmp_path):
    model = make_model(("y", FLOAT, ["batch", 3]))
    np.savez(tmp_path / "a.npz", y=values(4, 3))
    samples = load_samples(tmp_path, model)
    assert len(samples) == 4 and samples.labels is None


def test_limit_takes_evenly_over_files_and_reads_no_other(tmp_path, monkeypatch):
    for index in range(6):
        np.savez(tmp_path / f"{index}.npz", x=np.full((2, 3, 5), index, dtype=np.float32))
    read = []
    original = arrays.StoredArray.read
    monkeypatch.setattr(arrays.StoredArray, "read", lambda self: read.append(self.path.stem) or original(self))
    seen = []
    samples = load_samples(tmp_path, OPEN, limit=3, progress=lambda done, total: seen.append((done, total)))
    assert [feed["x"][0, 0, 0] for feed in samples.feeds] == [1, 3, 5]
    assert read == ["1", "3", "5"]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_wrong_name_lists_the_inputs(tmp_path):
    np.savez(tmp_path / "a.npz", z=values(4, 3, 5))
    with pytest.raises(DataError, match=r"a\.npz: 'z' is not an input of the model, which takes 'x': float32"):
        load_samples(tmp_path, OPEN)


def test_labels_of_another_number_than_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(4, 3, 5), labels=np.arange(3))
    with pytest.raises(DataError, match="3 labels for 4 samples"):
        load_samples(tmp_path, OPEN)


def test_labels_in_some_files_only(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(4, 3, 5), labels=np.arange(4))
    np.savez(tmp_path / "b.npz", x=values(4, 3, 5))
    with pytest.raises(DataError, match=r"b\.npz: no labels, while .*a\.npz has some"):
        load_samples(tmp_path, OPEN)


def test_labels_of_different_kinds(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(2, 3, 5), labels=np.arange(2))
    np.savez(tmp_path / "b.npz", x=values(2, 3, 5), labels=np.ones(2))
    with pytest.raises(DataError, match=r"b\.npz: labels are float64"):
        load_samples(tmp_path, OPEN)


def test_no_samples_in_an_array(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(0, 3, 5))
    with pytest.raises(DataError, match="holds no samples"):
        load_samples(tmp_path, OPEN)


def test_pickled_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    pickled = np.array([Bomb()] * 3, dtype=object)
    np.save(tmp_path / "a.npy", pickled, allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy: .*pickled Python objects"):
        load_samples(tmp_path, OPEN)
    np.savez(tmp_path / "b.npz", x=pickled, allow_pickle=True)
    with pytest.raises(DataError, match=r"b\.npz: .*pickled Python objects"):
        load_samples(tmp_path / "b.npz", OPEN)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_damaged_npz(tmp_path, damage):
    np.savez(tmp_path / "a.npz", x=values(40, 3, 5))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 2] ^= 255
    else:
        data = b"not a zip file" if damage == "text" else b""
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz") as error:
        load_samples(tmp_path, OPEN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data, message",
    [
        (npy_bytes(values(4, 3, 5))[:-8], r"declares float32 \(4, 3, 5\), 240 bytes, but 232 are there"),
        (npy_bytes(values(4, 3, 5)) + bytes(4), "but 244 are there"),
        (header_only((10**9, 3, 5)), "60000000000 bytes, but 16 are there"),
        (b"", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"\x93NUMPY\x03\x00", "format version 3"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "cannot be read"),
        (b"plain text", "cannot be read"),
    ],
)
def test_damaged_npy(tmp_path, data, message):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.npy: .*{message}") as error:
        load_samples(tmp_path, OPEN)
    assert "\n" not in str(error.value)


def test_an_entry_that_declares_more_than_it_holds(tmp_path):
    write_npz(tmp_path / "a.npz", {"x.npy": header_only((10**9, 3, 5))})
    with pytest.raises(DataError, match=r"a\.npz: .*'x' declares float32 .* 60000000000 bytes, but 16 are there"):
        load_samples(tmp_path, OPEN)


def test_an_entry_that_expands_beyond_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_FREELY_EXPANDED_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((9000, 3, 5), dtype=np.float32))
    with pytest.raises(DataError, match=r"a\.npz: .*'x' expands from \d+ to 540128 bytes"):
        load_samples(tmp_path, OPEN)


def test_an_entry_that_is_no_array(tmp_path):
    write_npz(tmp_path / "a.npz", {"x.npy": npy_bytes(values(4, 3, 5)), "readme.txt": b"hello, this is text"})
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        load_samples(tmp_path, OPEN)


def test_nan_in_one_of_several_files(tmp_path):
    x = values(4, 3, 5)
    np.savez(tmp_path / "a.npz", x=x)
    x[2, 1, 1] = np.inf
    np.savez(tmp_path / "b.npz", x=x)
    with pytest.raises(DataError, match=r"b\.npz: the array for input 'x' holds inf in sample 2"):
        load_samples(tmp_path, OPEN)
