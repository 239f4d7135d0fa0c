from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from onnx_obd.calibration.folder import load_samples
from onnx_obd.errors import DataError
from tests.calibration.models import FLOAT, INT64, check_accepted, make_model, values

OPEN = make_model(("x", FLOAT, ["batch", 3, 5]))
PAIR = make_model(("ids", INT64, ["batch", 4]), ("state", FLOAT, [2, "batch", 5]))


def write_set(folder: Path, *arrays: np.ndarray, names: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    for index, array in enumerate(arrays):
        name = names[index] if names else ""
        (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    (folder / "output_0.pb").write_bytes(b"never read")
    return folder


def test_sets_come_by_number(tmp_path):
    for index in (10, 2, 0):
        write_set(tmp_path / f"test_data_set_{index}", np.full((1, 3, 5), index, dtype=np.float32))
    samples = load_samples(tmp_path, OPEN)
    assert [feed["x"][0, 0, 0] for feed in samples.feeds] == [0, 2, 10]
    assert samples.labels is None and samples.batchable
    assert len(load_samples(tmp_path / "test_data_set_2", OPEN)) == 1
    check_accepted(OPEN, samples.feeds)


def test_rows_of_an_open_batch_are_samples(tmp_path):
    x = values(4, 3, 5)
    write_set(tmp_path / "test_data_set_0", x)
    samples = load_samples(tmp_path, OPEN)
    assert len(samples) == 4
    np.testing.assert_array_equal(samples.feeds[3]["x"], x[3:])


def test_a_set_of_several_inputs_is_one_feed(tmp_path):
    write_set(tmp_path / "test_data_set_0", np.arange(12).reshape(3, 4), values(2, 3, 5))
    samples = load_samples(tmp_path, PAIR)
    assert len(samples) == 1 and not samples.batchable
    assert {name: array.shape for name, array in samples.feeds[0].items()} == {"ids": (3, 4), "state": (2, 3, 5)}
    check_accepted(PAIR, samples.feeds)


def test_names_go_before_numbers(tmp_path):
    model = make_model(("a", FLOAT, [1, 3]), ("b", FLOAT, [1, 3]))
    a, b = values(1, 3), values(1, 3) + 10
    write_set(tmp_path / "named" / "test_data_set_0", b, a, names=("b", "a"))
    write_set(tmp_path / "unnamed" / "test_data_set_0", a, b, names=("p", "q"))
    for folder in ("named", "unnamed"):
        feed = load_samples(tmp_path / folder, model).feeds[0]
        np.testing.assert_array_equal(feed["a"], a)
        np.testing.assert_array_equal(feed["b"], b)


def test_strings(tmp_path):
    model = make_model(("words", TensorProto.STRING, ["batch", 2]))
    write_set(tmp_path / "test_data_set_0", np.array([["ab", "c"]], dtype=object))
    samples = load_samples(tmp_path, model)
    assert samples.feeds[0]["words"].tolist() == [["ab", "c"]]
    check_accepted(model, samples.feeds)


def test_another_number_of_tensors(tmp_path):
    write_set(tmp_path / "test_data_set_0", np.zeros((1, 4), dtype=np.int64))
    with pytest.raises(DataError, match=r"test_data_set_0: 1 input tensors, but the model takes 'ids'.*'state'"):
        load_samples(tmp_path, PAIR)


def external() -> TensorProto:
    tensor = TensorProto(dims=[1, 3, 5], data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\xff\xff\xff", "cannot be read as an ONNX tensor"),
        (b"", "not an ONNX tensor"),
        (TensorProto(dims=[10**9, 3, 5], data_type=FLOAT, raw_data=bytes(60)).SerializeToString(), "damaged tensor"),
        (TensorProto(dims=[-1, 3, 5], data_type=FLOAT, raw_data=bytes(60)).SerializeToString(), "not an ONNX tensor"),
        (TensorProto(dims=[1, 3, 5], data_type=99, raw_data=bytes(60)).SerializeToString(), "damaged tensor"),
        (external().SerializeToString(), "keeps its data in another file"),
        (numpy_helper.from_array(values(1, 5, 3)).SerializeToString(), r"shape \(1, 5, 3\), but the model takes"),
        (numpy_helper.from_array(values(1, 3, 5) * np.nan).SerializeToString(), "holds nan in sample 0"),
    ],
)
def test_damaged_or_unsuitable_tensors(tmp_path, data, message):
    folder = write_set(tmp_path / "test_data_set_0", values(1, 3, 5))
    (folder / "input_0.pb").write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        load_samples(tmp_path, OPEN)
    assert "test_data_set_0" in str(error.value) and "\n" not in str(error.value)
