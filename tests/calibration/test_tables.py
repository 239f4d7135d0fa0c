from __future__ import annotations

import numpy as np
import pytest

from onnx_obd.calibration.folder import load_samples
from onnx_obd.errors import DataError
from tests.calibration.models import FLOAT, INT64, check_accepted, make_model

CLASSIFIER = make_model(("x", FLOAT, ["batch", 3]), classes=7)
REGRESSION = make_model(("x", FLOAT, ["batch", 3]), classes=1)


def load(tmp_path, text: str, model=CLASSIFIER, **options):
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    return load_samples(tmp_path / "data.csv", model, **options)


@pytest.mark.parametrize(
    "text, labels",
    [
        ("0.5,2,3\n4,5,6.5\n", None),
        ("a,b,c\n0.5,2,3\n\n4,5,6.5\n", None),
        ("\ufeffa,b,c\r\n0.5,2,3\r\n4,5,6.5\r\n", None),
        ("a,b,c,label\n0.5,2,3,6\n4,5,6.5,0\n", [6, 0]),
        ("a,Target,b,c\n0.5,0.25,2,3\n4,0.5,5,6.5\n", [0.25, 0.5]),
        ("0,1,2,y\n0.5,2,3,6\n4,5,6.5,0\n", [6, 0]),
        ('"a","b","c","class"\n0.5,2,3,6\n4,5,6.5,0\n', [6, 0]),
        ("0.5,2,3,6\n4,5,6.5,0\n", [6, 0]),
        ("6,0.5,2,3\n0,4,5,6.5\n", [6, 0]),
    ],
)
def test_rows_are_samples(tmp_path, text, labels):
    samples = load(tmp_path, text)
    assert [feed["x"].tolist() for feed in samples.feeds] == [[[0.5, 2, 3]], [[4, 5, 6.5]]]
    assert (None if samples.labels is None else samples.labels.tolist()) == labels
    check_accepted(CLASSIFIER, samples.feeds)


def test_a_float_target_without_header_stands_last(tmp_path):
    samples = load(tmp_path, "0.5,2,3,9\n4,5,6.5,0.75\n", REGRESSION)
    assert samples.labels.tolist() == [9, 0.75]
    assert samples.feeds[1]["x"].tolist() == [[4, 5, 6.5]]


@pytest.mark.parametrize(
    "text, model",
    [
        ("1,2,3,6\n4,5,6.5,0\n", CLASSIFIER),
        ("0.5,2,3,0.5\n4,5,6.5,0\n", CLASSIFIER),
        ("0.5,2,3,7\n4,5,6.5,0\n", CLASSIFIER),
        ("1,2,3,0.25\n4,5,6.5,0.75\n", REGRESSION),
    ],
)
def test_an_unnamed_label_column_is_not_guessed(tmp_path, text, model):
    with pytest.raises(DataError, match="not clear whether the first or the last holds the labels; add a header"):
        load(tmp_path, text, model)


def test_labels_in_the_table_may_be_set_aside(tmp_path):
    samples = load(tmp_path, "a,b,c,label\n0.5,2,3,99\n", labels="none")
    assert samples.labels is None and samples.feeds[0]["x"].shape == (1, 3)


@pytest.mark.parametrize(
    "shape, expected",
    [([1, 2, 3], (1, 2, 3)), (["batch", 3, 2], (1, 3, 2)), ([2, 3], (2, 3)), (["batch", "any", 2], (1, 3, 2)),
     ([2, "batch", 3], (2, 1, 3)), (["batch", "any"], (1, 6)), (None, (1, 6))],
)  # fmt: skip
def test_rows_take_the_shape_of_the_input(tmp_path, shape, expected):
    model = make_model(("x", FLOAT, shape))
    samples = load(tmp_path, "0,1,2,3,4,5\n6,7,8,9,10,11\n", model)
    for index, feed in enumerate(samples.feeds):
        np.testing.assert_array_equal(feed["x"], (np.arange(6.0) + 6 * index).reshape(expected))
    assert len(samples) == 2
    check_accepted(model, samples.feeds)


def test_integer_inputs_take_whole_numbers(tmp_path):
    model = make_model(("x", INT64, ["batch", 3]))
    assert load(tmp_path, "1,2,3.0\n4,5,6e1\n", model).feeds[1]["x"].tolist() == [[4, 5, 60]]
    with pytest.raises(DataError, match=r"'x': int64 \(batch, 3\) takes integers"):
        load(tmp_path, "1,2,3.5\n", model)


def test_one_column_per_input(tmp_path):
    model = make_model(("age", FLOAT, [1, 1]), ("zone", INT64, ["batch", 1]), ("limit", FLOAT, []))
    samples = load(tmp_path, "zone,label,limit,age\n3,1,0.5,40.5\n4,0,0.25,41\n", model)
    assert [{name: array.tolist() for name, array in feed.items()} for feed in samples.feeds] == [
        {"age": [[40.5]], "zone": [[3]], "limit": 0.5},
        {"age": [[41.0]], "zone": [[4]], "limit": 0.25},
    ]
    assert samples.labels.tolist() == [1, 0]
    check_accepted(model, samples.feeds)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no rows of numbers"),
        ("a,b,c\n\n", "no rows of numbers"),
        ("1,2,3\n4,five,6\n", "line 2, column 2: 'five' is not a number"),
        ("1,x,3\n4,5,6\n", "line 1, column 2: 'x' is not a number"),
        ("a,b,c\n1,,3\n", "line 2, column 2: '' is not a number"),
        ("1,2,3\n4,5\n", "line 2 has 2 columns, the lines before have 3"),
        ("a,b\n1,2,3\n", "the header names 2 columns, the rows have 3"),
        ("a,a,c\n1,2,3\n", "two columns of the header have the same name"),
        ("1,2,3,4,5\n", r"5 columns of data, but input 'x': float32 \(batch, 3\) needs 3 columns"),
        ("a,b\n1,2\n", "2 columns of data"),
        ("1,2,nan\n", "holds nan in sample 0"),
        ("a,b,c,label\n1,2,3,7\n", "label 7 of sample 0, counted from 0, is outside the model's 7 classes"),
        ("a,b,c,label\n1,2,3,nan\n", "NaN"),
        ("1;2;3\n4;5;6\n", "not a number"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, text)
    assert "data.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "data.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"data\.csv: cannot be read as comma-separated text"):
        load_samples(tmp_path, CLASSIFIER)


def test_several_inputs_need_a_header(tmp_path):
    model = make_model(("a", FLOAT, [1, 1]), ("b", FLOAT, [1, 1]))
    with pytest.raises(DataError, match="header row names them"):
        load(tmp_path, "1,2\n", model)
    with pytest.raises(DataError, match="'c' is not an input"):
        load(tmp_path, "a,c\n1,2\n", model)
    with pytest.raises(DataError, match="no array for input 'b'"):
        load(tmp_path, "a\n1\n", model)
