from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_obd.calibration.inputs import find_stacking, is_batchable, read_inputs, stack_arrays, take_feeds
from onnx_obd.errors import DataError
from tests.calibration.models import FLOAT, INT64, make_model, values


def only_input(shape, elem_type=FLOAT):
    return read_inputs(make_model(("x", elem_type, shape)))[0]


@pytest.mark.parametrize(
    "shape, axis",
    [
        (["batch", 3, 5], 0),
        ([None, 3], 0),
        (["unk__22", 3], 0),
        (["N", "C"], 0),
        ([1, 3, 5], 0),
        ([2, "batch_size", 5], 1),
        ([1, "batch", 5], 1),
        (["seq", "batch", 5], 1),
        (["rows", "max_seq_in_batch"], 0),
        (["Sequence", 1, 3], None),
        (["time_steps", 3], None),
        ([2, 3], None),
        ([], None),
    ],
)
def test_batch_axis(shape, axis):
    assert only_input(shape).batch_axis == axis


def test_batch_axis_follows_the_declared_denotation():
    model = make_model(("x", FLOAT, ["a", "b", 3]))
    model.graph.input[0].type.tensor_type.shape.dim[1].denotation = "DATA_BATCH"
    assert read_inputs(model)[0].batch_axis == 1


def test_minus_one_is_any_length():
    model = make_model(("x", FLOAT, ["batch", 3]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert read_inputs(model)[0].shape == (None, 3)


def test_weights_listed_as_inputs_are_not_fed():
    model = make_model(("x", FLOAT, [1, 3]), ("w", FLOAT, [3]))
    model.graph.initializer.append(helper.make_tensor("w", FLOAT, [3], [1.0, 2.0, 3.0]))
    assert [model_input.name for model_input in read_inputs(model)] == ["x"]


def test_a_model_without_inputs_is_refused():
    with pytest.raises(DataError, match="no inputs"):
        read_inputs(make_model(classes=3))


def test_inputs_that_are_not_tensors_of_numbers_or_strings_are_refused():
    model = make_model(("x", FLOAT, [1]))
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", FLOAT, None))
    with pytest.raises(DataError, match=r"'x' is not a tensor \(its type is sequence\)"):
        read_inputs(model)
    for name in ("BFLOAT16", "FLOAT8E5M2", "INT4"):
        with pytest.raises(DataError, match=f"'x' is of type {name}"):
            only_input([1], TensorProto.DataType.Value(name))


@pytest.mark.parametrize(
    "shapes, expected",
    [
        ([["batch", 3], ["batch", 5]], True),
        ([[None, 3]], True),
        ([None], True),
        ([[1, 3]], False),
        ([["batch", 3], [1, 5]], False),
        ([["batch", 3], [2, "batch", 128]], False),
        ([["batch", 3], []], False),
        ([["n", "s"], ["s"]], False),
        ([["n", "s"], ["n", "s"]], True),
    ],
)
def test_batchable_only_if_axis_0_is_the_open_batch_of_every_input(shapes, expected):
    inputs = read_inputs(make_model(*[(f"x{index}", FLOAT, shape) for index, shape in enumerate(shapes)]))
    assert is_batchable(inputs) is expected


# (shape of the model's input, shape of an array) -> how each sample is cut out of the array.
STACKINGS = [
    (["batch", 3, 5], (4, 3, 5), [np.s_[i : i + 1] for i in range(4)]),
    ([1, 3, 5], (4, 3, 5), [np.s_[i : i + 1] for i in range(4)]),
    ([1, 3, 5], (1, 3, 5), [np.s_[:]]),
    ([1, 3, 5], (3, 5), [np.s_[None]]),
    (["batch", 3, 5], (4, 1, 3, 5), [np.s_[i] for i in range(4)]),
    ([2, 3, 5], (2, 3, 5), [np.s_[:]]),
    ([2, 3, 5], (4, 2, 3, 5), [np.s_[i] for i in range(4)]),
    ([2, "batch", 5], (2, 4, 5), [np.s_[:, i : i + 1] for i in range(4)]),
    ([2, "batch", 5], (4, 2, 1, 5), [np.s_[i] for i in range(4)]),
    ([2, "batch", 5], (2, 5), [np.s_[:, None]]),
    (["seq", 1, 3], (7, 1, 3), [np.s_[:]]),
    (["seq", 1, 3], (4, 7, 1, 3), [np.s_[i] for i in range(4)]),
    ([None, "any"], (4, 9), [np.s_[i : i + 1] for i in range(4)]),
    ([None, "any"], (9,), [np.s_[None]]),
    ([], (), [np.s_[...]]),
    ([], (4,), [np.s_[i, ...] for i in range(4)]),
    (["batch"], (4,), [np.s_[i : i + 1] for i in range(4)]),
    (None, (4, 3), [np.s_[i : i + 1] for i in range(4)]),
    (None, (), [np.s_[...]]),
]


@pytest.mark.parametrize("shape, array_shape, cuts", STACKINGS)
def test_an_array_is_cut_into_samples(shape, array_shape, cuts):
    model_input, array = only_input(shape), values(*array_shape)
    stackings = stack_arrays({"x": array.shape}, [model_input], "here")
    count = stackings["x"].count
    feeds = take_feeds({"x": array}, stackings, [model_input], np.arange(count), "here")
    assert len(feeds) == len(cuts)
    for feed, cut in zip(feeds, cuts, strict=True):
        assert isinstance(feed["x"], np.ndarray)
        np.testing.assert_array_equal(feed["x"], array[cut])
        assert feed["x"].shape == array[cut].shape


@pytest.mark.parametrize(
    "shape, array_shape",
    [([1, 3, 5], (4, 5, 3)), ([1, 3, 5], (3, 4)), ([2, 3], (4, 3)), (["b", 3, 5], (4, 15)), ([1, 1, 4, 6], (9, 4, 6))],
)
def test_an_array_that_does_not_fit_is_refused_with_both_shapes(shape, array_shape):
    model_input = only_input(shape)
    with pytest.raises(DataError) as error:
        find_stacking(array_shape, model_input, "file.npz")
    message = str(error.value)
    assert "file.npz" in message and "'x'" in message and str(array_shape) in message and "N" in message
    assert "\n" not in message


def test_only_the_asked_samples_are_taken():
    model_input, array = only_input(["batch", 3]), values(6, 3)
    stackings = stack_arrays({"x": array.shape}, [model_input], "here")
    feeds = take_feeds({"x": array}, stackings, [model_input], np.array([1, 4]), "here")
    assert [feed["x"].tolist() for feed in feeds] == [array[1:2].tolist(), array[4:5].tolist()]


def test_an_array_of_one_sample_is_shared():
    inputs = read_inputs(make_model(("x", FLOAT, ["batch", 3]), ("state", FLOAT, [2, "batch", 5]), ("rate", INT64, [])))
    arrays = {"x": values(4, 3), "state": values(2, 1, 5), "rate": np.array(16000)}
    stackings = stack_arrays({name: array.shape for name, array in arrays.items()}, inputs, "here")
    feeds = take_feeds(arrays, stackings, inputs, np.arange(4), "here")
    assert len(feeds) == 4
    for index, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], arrays["x"][index : index + 1])
        np.testing.assert_array_equal(feed["state"], arrays["state"])
        assert feed["rate"].shape == () and feed["rate"] == 16000


def test_inputs_must_agree_on_the_number_of_samples():
    inputs = read_inputs(make_model(("ids", INT64, ["batch", 3]), ("mask", INT64, ["batch", 3])))
    with pytest.raises(DataError, match="disagree on the number of samples: 'ids' 4, 'mask' 5"):
        stack_arrays({"ids": (4, 3), "mask": (5, 3)}, inputs, "here")


def test_unknown_and_missing_names_tell_what_the_model_takes():
    inputs = read_inputs(make_model(("ids", INT64, ["batch", 3]), ("mask", FLOAT, [1, 3])))
    with pytest.raises(DataError, match=r"'idx' is not .* 'ids': int64 \(batch, 3\); 'mask': float32 \(1, 3\)"):
        stack_arrays({"idx": (4, 3), "mask": (4, 3)}, inputs, "here")
    with pytest.raises(DataError, match=r"no array for input 'mask': float32"):
        stack_arrays({"ids": (4, 3)}, inputs, "here")


def convert(array: np.ndarray, elem_type: int) -> np.ndarray:
    model_input = only_input(["batch", 2], elem_type)
    stackings = stack_arrays({"x": array.shape}, [model_input], "here")
    feeds = take_feeds({"x": array}, stackings, [model_input], np.arange(len(array)), "here")
    return np.concatenate([feed["x"] for feed in feeds])


@pytest.mark.parametrize(
    "source, elem_type, target",
    [
        (np.float64, TensorProto.FLOAT, np.float32),
        (np.float32, TensorProto.DOUBLE, np.float64),
        (np.float32, TensorProto.FLOAT16, np.float16),
        (np.uint8, TensorProto.FLOAT, np.float32),
        (np.int32, TensorProto.INT64, np.int64),
        (np.int64, TensorProto.INT32, np.int32),
        (np.int64, TensorProto.UINT8, np.uint8),
        (np.bool_, TensorProto.FLOAT, np.float32),
        (np.dtype(">f8"), TensorProto.FLOAT, np.float32),
    ],
)
def test_safe_conversions_are_done(source, elem_type, target):
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(source)
    converted = convert(array, elem_type)
    assert converted.dtype == target
    np.testing.assert_array_equal(converted, array.astype(target))


@pytest.mark.parametrize(
    "array, elem_type, message",
    [
        (np.array([[0.5, 1.0]]), TensorProto.INT64, "float64, which is not safely converted to the model's int64"),
        (np.zeros((1, 2)), TensorProto.UINT8, "not safely converted"),
        (np.array([[0, 1]]), TensorProto.BOOL, "int64, which is not safely"),
        (np.array([[1 + 2j, 0]]), TensorProto.FLOAT, "complex128"),
        (np.array([["a", "b"]]), TensorProto.FLOAT, "string"),
        (np.array([[0, 1]]), TensorProto.STRING, "the model takes strings"),
        (np.array([[0, 256]]), TensorProto.UINT8, "values 0 to 256, which do not fit the model's uint8"),
        (np.array([[-1, 5]]), TensorProto.UINT64, "values -1 to 5"),
        (np.array([[0, 2**40]]), TensorProto.INT32, "do not fit"),
        (np.array([[0.0, 1e300]]), TensorProto.FLOAT, "too large for the model's float32"),
        (np.array([[0, 70000]]), TensorProto.FLOAT16, "too large for the model's float16"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), TensorProto.FLOAT, "holds nan in sample 1"),
        (np.array([[0.0, -np.inf]]), TensorProto.DOUBLE, "holds -inf in sample 0"),
    ],
)
def test_lossy_conversions_and_bad_values_are_refused(array, elem_type, message):
    with pytest.raises(DataError, match=message) as error:
        convert(array, elem_type)
    assert "here: the array for input 'x'" in str(error.value)


def test_a_bad_value_is_reported_by_its_place_in_the_file():
    model_input, array = only_input(["batch", 2]), np.zeros((9, 2))
    array[6, 1] = np.nan
    stackings = stack_arrays({"x": array.shape}, [model_input], "here")
    with pytest.raises(DataError, match="sample 6"):
        take_feeds({"x": array}, stackings, [model_input], np.array([2, 6]), "here")


def test_strings():
    converted = convert(np.array([["ab", "c"], ["", "d"]]), TensorProto.STRING)
    assert converted.dtype == object and converted.tolist() == [["ab", "c"], ["", "d"]]


def test_feeds_do_not_share_memory_with_the_source():
    model_input, array = only_input(["batch", 2]), values(3, 2)
    stackings = stack_arrays({"x": array.shape}, [model_input], "here")
    feeds = take_feeds({"x": array}, stackings, [model_input], np.arange(3), "here")
    array[:] = -1
    assert [feed["x"].tolist() for feed in feeds] == values(3, 2)[:, None].tolist()


def test_an_element_type_that_onnx_does_not_have():
    model = make_model(("x", FLOAT, [1]))
    model.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(DataError, match="unknown element type 99"):
        read_inputs(model)
