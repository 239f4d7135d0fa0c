from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_obd.calibration.samples import Samples
from onnx_obd.errors import DataError
from onnx_obd.runtime.session import open_session, run_samples
from tests.export.models import dense_net, model, normal, value


def samples_of(arrays: list[np.ndarray], batchable: bool = True) -> Samples:
    return Samples.from_feeds([{"x": array} for array in arrays], source="made", batchable=batchable)


def identity(*shape: int | str, op: str = "Identity", **attributes) -> onnx.ModelProto:
    out = value("y", *(f"o{i}" for i in range(len(shape))))
    return model([helper.make_node(op, ["x"], ["y"], **attributes)], [value("x", *shape)], [out])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batches_are_joined_in_order(batch_size):
    arrays = [normal(1, 37, seed=seed) for seed in range(10)]
    session = open_session(dense_net())
    expected = np.concatenate([session.run(None, {"x": array})[0] for array in arrays])
    (outputs,) = run_samples(session, samples_of(arrays), batch_size)
    assert outputs.shape == (10, 11)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_samples_of_different_shapes():
    arrays = [normal(1, length, seed=length) for length in (3, 3, 5, 3)]
    (outputs,) = run_samples(open_session(identity("N", "T")), samples_of(arrays), 2)
    assert outputs.dtype == object
    assert [row.shape for row in outputs] == [(3,), (3,), (5,), (3,)]
    for row, array in zip(outputs, arrays, strict=True):
        np.testing.assert_array_equal(row, array[0])


def test_a_batch_axis_that_is_not_the_first_output_axis():
    """[N, 4] -> transposed [4, N]: batched runs cannot be taken apart, so samples go one by one."""
    arrays = [normal(1, 4, seed=seed) for seed in range(5)]
    (outputs,) = run_samples(open_session(identity("N", 4, op="Transpose", perm=[1, 0])), samples_of(arrays), 3)
    np.testing.assert_array_equal(outputs, np.stack([array.T for array in arrays]))


def test_samples_that_are_not_batchable():
    arrays = [normal(6, 4, seed=seed) for seed in range(3)]
    (outputs,) = run_samples(open_session(identity(6, 4)), samples_of(arrays, batchable=False), 8)
    np.testing.assert_array_equal(outputs, np.stack(arrays))


def test_scikit_learn_dictionaries_become_columns():
    nodes = [
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog", "owl"]),
    ]
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    proto = model(nodes, [value("x", "N", 3)], [output], domains=("ai.onnx.ml",))
    arrays = [normal(1, 3, seed=seed) for seed in range(5)]
    (outputs,) = run_samples(open_session(proto), samples_of(arrays), 2)
    np.testing.assert_array_equal(outputs, np.concatenate(arrays))


def test_sequences_of_tensors_are_kept_together():
    nodes = [helper.make_node("SplitToSequence", ["x", "one"], ["y"], axis=1)]
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    proto = model(nodes, [value("x", "N", 2)], [output], [numpy_helper.from_array(np.int64(1), "one")])
    (outputs,) = run_samples(open_session(proto), samples_of([normal(1, 2), normal(1, 2, seed=1)]), 1)
    assert outputs.shape == (2,)
    np.testing.assert_array_equal(outputs[1][0], normal(1, 2, seed=1)[:, :1])


def test_refused_samples_are_one_line():
    with pytest.raises(DataError, match="made: onnxruntime refuses sample 1") as caught:
        run_samples(open_session(dense_net()), samples_of([normal(1, 37), normal(1, 36)]), 1)
    assert "\n" not in str(caught.value)
