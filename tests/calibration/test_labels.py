from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from onnx_obd.calibration.labels import as_labels, check_classes, class_count, read_label_table
from onnx_obd.errors import DataError
from tests.calibration.models import FLOAT, INT64, make_model


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.array([3, 0, 1], dtype=np.uint8), np.array([3, 0, 1], dtype=np.int64)),
        (np.array([[3], [0]], dtype=np.int32), np.array([3, 0], dtype=np.int64)),
        (np.array([True, False]), np.array([1, 0], dtype=np.int64)),
        (np.array([0.5, -2.0], dtype=np.float32), np.array([0.5, -2.0], dtype=np.float32)),
        (np.array([[0.5, 1.0]]), np.array([[0.5, 1.0]])),
        (np.array([[2, -1]]), np.array([[2, -1]], dtype=np.int64)),
    ],
)
def test_labels_in_normal_form(array, expected):
    labels = as_labels(array, "here")
    assert labels.dtype == expected.dtype
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array(["cat"]), "labels are <U3"),
        (np.array(3), "a single number"),
        (np.array([0, -1]), "label -1 is negative"),
        (np.array([0.5, np.nan]), "NaN or infinity"),
        (np.array([2**63], dtype=np.uint64), "does not fit int64"),
    ],
)
def test_labels_that_cannot_be_meant(array, message):
    with pytest.raises(DataError, match=f"here: .*{message}"):
        as_labels(array, "here")


def test_class_count_is_that_of_the_one_float_output():
    assert class_count(make_model(("x", FLOAT, [1, 3]), classes=7)) == 7
    assert class_count(make_model(("x", FLOAT, [1, 3]), classes=1)) is None
    assert class_count(make_model(("x", FLOAT, [1, 3]))) is None
    model = make_model(("x", FLOAT, [1, 3]), classes=7)
    model.graph.output.append(helper.make_tensor_value_info("boxes", FLOAT, ["n", 4]))
    assert class_count(model) is None


def test_labels_outside_the_classes():
    check_classes(np.array([0, 6]), 7, "here")
    check_classes(np.array([0.0, 99.0]), 7, "here")
    with pytest.raises(DataError, match=r"label 7 of sample 1, counted from 0, is outside .* 7 classes, 0 to 6"):
        check_classes(np.array([0, 7, 8]), 7, "here")


def table(tmp_path: Path, text: str):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    return read_label_table(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "text, files, labels",
    [
        ("file,label\na.png,2\nb/c.png,0\n", ("a.png", "b/c.png"), [2, 0]),
        ("a.png,2\nb.png,0\n", ("a.png", "b.png"), [2, 0]),
        ("\ufefffile,class_index\na.png,2\n\n", ("a.png",), [2]),
        ('id,Label,Image\n7,1.5,"a,b.png"\n8,2,c.png\n', ("a,b.png", "c.png"), [1.5, 2.0]),
        ("4\n0\n1\n", None, [4, 0, 1]),
        ("label\n4\n0\n", None, [4, 0]),
        ("anything,whatever\r\na.png, 3\r\n", ("a.png",), [3]),
    ],
)
def test_label_tables(tmp_path, text, files, labels):
    read = table(tmp_path, text)
    assert read.files == files
    assert read.labels.tolist() == labels
    assert read.labels.dtype == (np.float64 if 1.5 in labels else np.int64)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no rows"),
        ("file,label\na.png,cat\n", "line 2: the label 'cat' is not a number"),
        ("file,label\na.png\n", "line 2 has 1 columns, the first line has 2"),
        ("file,label\n,1\n", "line 2 names no file"),
        ("a.png,1,x\n", "3 columns; give a header row"),
        ("a.png,-1\n", "label -1 is negative"),
        ("a.png,nan\n", "NaN"),
    ],
)
def test_label_tables_that_cannot_be_meant(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        table(tmp_path, text)
    assert "labels.csv" in str(error.value)


def test_a_table_that_is_not_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read"):
        read_label_table(tmp_path / "labels.csv")


@pytest.fixture
def parts(tmp_path):
    """A data set in two parts with one table above them."""
    for name in ("calib/a.npz", "calib/b.npz", "test/c.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_table_above_the_folder_may_list_other_parts(parts):
    read = table(parts, "file,label\ncalib/b.npz,5\ntest/c.npz,6\ncalib/a.npz,4\n")
    files = [parts / "calib" / "a.npz", parts / "calib" / "b.npz"]
    assert read.for_files(files, parts / "calib").tolist() == [4, 5]


def test_a_table_elsewhere_may_name_files_relative_to_the_folder(parts):
    read = table(parts, "file,label\na.npz,4\nb.npz,5\n")
    files = [parts / "calib" / "b.npz", parts / "calib" / "b.npz", parts / "calib" / "a.npz"]
    assert read.for_files(files, parts / "calib").tolist() == [5, 5, 4]


@pytest.mark.parametrize(
    "rows, message",
    [
        ("../secret.npz,1", r"'\.\./secret\.npz' lies outside the folder"),
        ("calib/../../x.npz,1", "lies outside the folder"),
        ("/etc/passwd,1", "'/etc/passwd' lies outside the folder"),
        ("..\\secret.npz,1", "lies outside the folder"),
        ("calib/missing.npz,1", r"'calib/missing\.npz' does not exist"),
        ("calib/a.npz,1\ncalib/a.npz,2", "twice with different labels"),
        ("calib/a.npz,1", r"no label for 1 of 2 files, '.*b\.npz' the first"),
        (".,1", "does not exist"),
    ],
)
def test_a_table_that_does_not_match_the_files(parts, rows, message):
    read = table(parts, f"file,label\n{rows}\n")
    files = [parts / "calib" / "a.npz", parts / "calib" / "b.npz"]
    with pytest.raises(DataError, match=message):
        read.for_files(files, parts / "calib")


def test_integer_output_is_not_a_class_score():
    model = make_model(("x", FLOAT, [1, 3]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", INT64, [1, 5]))
    assert class_count(model) is None
