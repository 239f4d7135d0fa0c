from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnx_obd.export.write as write_module
from onnx_obd.errors import ModelError, UsageError
from onnx_obd.export import densify_model, export_model
from onnx_obd.graph.load import Model, load_model
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import find_weights
from tests.export.models import (
    dense_net,
    every_place,
    names_in,
    normal,
    thin_weights,
    thinned,
)

FORMATS = ("auto", "dense", "sparse")


# --- what changes and what does not


@pytest.mark.parametrize("format", FORMATS)
def test_no_change_gives_the_same_bytes(source, tmp_path, format):
    report = export_model(source, {}, tmp_path / "out.onnx", format=format)
    assert report.path.read_bytes() == source.path.read_bytes()
    assert report.bytes_after == report.bytes_before == source.size
    assert report.sparse_tensors == ()
    same = {name: weight.read(source.proto) for name, weight in find_weights(source.proto).items()}
    export_model(source, same, tmp_path / "out.onnx", format=format)
    assert report.path.read_bytes() == source.path.read_bytes()


def assert_fields_equal(ours, theirs, ignored: tuple[str, ...], where: str = "model") -> None:
    """Compares two messages field by field, leaving out what lies under a path in ``ignored``."""
    assert type(ours) is type(theirs)
    fields = [{field.name: value for field, value in message.ListFields()} for message in (ours, theirs)]
    for name in fields[0].keys() | fields[1].keys():
        path = f"{where}.{name}"
        if path in ignored:
            continue
        assert all(name in f for f in fields), path
        a, b = fields[0][name], fields[1][name]
        if hasattr(a, "ListFields"):
            assert_fields_equal(a, b, ignored, path)
        elif hasattr(a, "add"):  # repeated messages
            assert len(a) == len(b), path
            for index, pair in enumerate(zip(a, b, strict=True)):
                assert_fields_equal(*pair, ignored, f"{path}[{index}]")
        else:
            assert a == b, path


def test_only_the_weight_and_the_provenance_change(source, tmp_path):
    new = thinned(normal(31, 29))
    export_model(source, {"V": new}, tmp_path / "out.onnx", format="dense", provenance={"version": "9"})
    written = onnx.load(tmp_path / "out.onnx")
    ignored = ("model.metadata_props", "model.graph.initializer[2].float_data")
    assert_fields_equal(written, source.proto, ignored)
    assert not written.graph.initializer[2].HasField("raw_data")
    np.testing.assert_array_equal(numpy_helper.to_array(written.graph.initializer[2]), new)
    assert list(written.metadata_props[:2]) == list(source.proto.metadata_props)
    assert [(p.key, p.value) for p in written.metadata_props[2:]] == [("onnx_obd.version", "9")]


def test_every_weight_reaches_onnxruntime(source, tmp_path):
    weights = {name: weight.read(source.proto) for name, weight in find_weights(source.proto).items()}
    expected = {}
    for flag in (True, False):
        x = normal(3, 19).astype(np.float64)
        k = x @ thinned(weights["W"]) @ thinned(weights["V"]) @ thinned(weights["K"])
        branch = thinned(weights["T"]) if flag else thinned(weights["E"]) @ thinned(weights["B"])
        expected[flag] = k @ branch @ thinned(weights["F"])
        assert np.abs(expected[flag]).max() > 0
    for format in FORMATS:
        export_model(source, thin_weights(source.proto), tmp_path / f"{format}.onnx", format=format)
        session = open_session(tmp_path / f"{format}.onnx")
        for flag in (True, False):
            y = session.run(None, {"x": normal(3, 19), "flag": np.array(flag)})[0]
            np.testing.assert_allclose(y, expected[flag], rtol=1e-4, atol=1e-4)


def test_the_original_is_not_changed(source, tmp_path):
    export_model(source, thin_weights(source.proto), tmp_path / "out.onnx", format="sparse", provenance={"a": "b"})
    assert source.proto == every_place()


def test_unknown_fields_survive(tmp_path):
    data = dense_net().SerializeToString() + b"\xfa\x7f\x03abc"  # field 2047, bytes: of a later ONNX
    (tmp_path / "m.onnx").write_bytes(data)
    export_model(load_model(tmp_path / "m.onnx"), {}, tmp_path / "out.onnx")
    assert b"\xfa\x7f\x03abc" in (tmp_path / "out.onnx").read_bytes()


def test_provenance_replaces_that_of_an_earlier_export(source, tmp_path):
    export_model(source, {}, tmp_path / "one.onnx", provenance={"version": "1", "options": "{}"})
    export_model(load_model(tmp_path / "one.onnx"), {}, tmp_path / "two.onnx", provenance={"version": "2"})
    entries = [(p.key, p.value) for p in onnx.load(tmp_path / "two.onnx").metadata_props]
    assert entries[2:] == [("onnx_obd.version", "2"), ("onnx_obd.options", "{}")]


def test_wrong_weights(source, tmp_path):
    with pytest.raises(ModelError, match="Nothing"):
        export_model(source, {"Nothing": normal(3)}, tmp_path / "out.onnx")
    with pytest.raises(ModelError, match="W"):
        export_model(source, {"W": normal(31, 19)}, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="format"):
        export_model(source, {}, tmp_path / "out.onnx", format="other")
    assert names_in(tmp_path) == {"source"}


# --- dense, sparse and back


def test_sizes_and_report(source, tmp_path):
    weights = thin_weights(source.proto)
    dense = export_model(source, weights, tmp_path / "dense.onnx", format="dense")
    sparse = export_model(source, weights, tmp_path / "sparse.onnx", format="sparse")
    assert dense.sparse_tensors == ()
    assert dense.bytes_after == source.size
    assert sparse.bytes_after == (tmp_path / "sparse.onnx").stat().st_size < 0.5 * dense.bytes_after
    assert {tensor.name for tensor in sparse.sparse_tensors} == set(weights) - {"F"}
    assert all(tensor.sparse_bytes < tensor.dense_bytes for tensor in sparse.sparse_tensors)
    for tensor in sparse.sparse_tensors:
        assert tensor.density == np.count_nonzero(weights[tensor.name]) / weights[tensor.name].size


def test_auto_needs_a_saving_worth_having(source, tmp_path):
    few = {"B": thinned(normal(13, 13, seed=5))}  # saves something, but little of the whole
    assert export_model(source, few, tmp_path / "out.onnx", format="sparse").sparse_tensors
    assert not export_model(source, few, tmp_path / "out.onnx").sparse_tensors
    assert export_model(source, thin_weights(source.proto), tmp_path / "out.onnx").sparse_tensors


@pytest.mark.parametrize("make", ["source", "external_source"])
def test_densify_gives_the_dense_export_byte_for_byte(request, tmp_path, make):
    original = request.getfixturevalue(make)
    weights = {name: array * np.float32(1) for name, array in thin_weights(original.proto).items()}
    for array in weights.values():
        array.reshape(-1)[::7] *= np.float32(-0.0)  # zeros of both signs
    for folder in ("dense", "sparse", "back"):
        (tmp_path / folder).mkdir()
    provenance = {"version": "1", "options": json.dumps({"sparsity": 0.9})}
    export_model(original, weights, tmp_path / "dense/m.onnx", format="dense", provenance=provenance)
    sparse = export_model(original, weights, tmp_path / "sparse/m.onnx", format="sparse", provenance=provenance)
    densify_model(tmp_path / "sparse/m.onnx", tmp_path / "back/m.onnx")
    assert len(sparse.sparse_tensors) >= 2
    assert names_in(tmp_path / "back") == names_in(tmp_path / "dense")
    for name in names_in(tmp_path / "dense"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "dense" / name).read_bytes()


def test_densify_leaves_a_dense_model_alone(source, tmp_path):
    densify_model(source.path, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == source.path.read_bytes()
    with pytest.raises(UsageError):
        densify_model(source.path, source.path)


@pytest.mark.parametrize("density", [0.02, 0.9])
def test_pruning_again_decides_anew(source, tmp_path, density):
    """The second round, on the sparse file of the first, ends with the same bytes as one round on the original."""
    first, second = thin_weights(source.proto, 0.1), thin_weights(source.proto, density)
    export_model(source, first, tmp_path / "one.onnx", format="sparse", provenance={"version": "1"})
    again = load_model(tmp_path / "one.onnx")
    for format in ("sparse", "dense"):
        export_model(again, second, tmp_path / "two.onnx", format=format)
        export_model(source, second, tmp_path / "direct.onnx", format=format, provenance={"version": "1"})
        assert (tmp_path / "two.onnx").read_bytes() == (tmp_path / "direct.onnx").read_bytes()


def test_an_unchanged_sparse_export_stays_sparse(source, tmp_path):
    export_model(source, thin_weights(source.proto), tmp_path / "one.onnx", format="sparse")
    export_model(load_model(tmp_path / "one.onnx"), {}, tmp_path / "two.onnx", format="auto")
    assert (tmp_path / "two.onnx").read_bytes() == (tmp_path / "one.onnx").read_bytes()


@pytest.mark.parametrize("elem_type", [TensorProto.DOUBLE, TensorProto.FLOAT16])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_other_types_and_old_models(tmp_path, elem_type, ir_version):
    opset = 7 if ir_version == 3 else 13
    proto = dense_net(ir_version=ir_version, opset=opset, weights_as_inputs=ir_version == 3, elem_type=elem_type)
    weights = thin_weights(proto)
    x = normal(3, 37).astype(weights["W1"].dtype)
    results = []
    for format in ("dense", "sparse"):
        report = export_model(Model.from_proto(proto), weights, tmp_path / f"{format}.onnx", format=format)
        session = open_session(report.path)
        assert [i.name for i in session.get_inputs()] == ["x"]
        results.append(session.run(None, {"x": x})[0])
    assert len(report.sparse_tensors) == 2
    np.testing.assert_array_equal(*results)


# --- external data


def external_names(path: Path) -> set[str]:
    proto = onnx.load(path, load_external_data=False)
    return {t.name for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL}


@pytest.mark.parametrize("same_folder", [True, False])
def test_external_data_stay_external_beside_the_model(external_source, tmp_path, same_folder):
    folder = external_source.path.parent if same_folder else tmp_path
    before = (external_source.path.parent / "weights.bin").read_bytes()
    weights = thin_weights(external_source.proto)
    report = export_model(external_source, weights, folder / "pruned.onnx", format="dense")
    assert report.files == (folder / "pruned.onnx", folder / "pruned.onnx.data")
    assert external_names(report.path) == external_names(external_source.path) == {"W1", "W2"}
    assert report.bytes_after == sum(file.stat().st_size for file in report.files)
    written = load_model(report.path)
    for name in ("W1", "W2"):
        np.testing.assert_array_equal(find_weights(written.proto)[name].read(written.proto), weights[name])
    assert (external_source.path.parent / "weights.bin").read_bytes() == before
    assert load_model(external_source.path).sha256 == external_source.sha256


def test_external_sparse_values_are_external_too(external_source, tmp_path):
    weights = thin_weights(external_source.proto)
    report = export_model(external_source, weights, tmp_path / "pruned.onnx", format="sparse")
    proto = onnx.load(report.path, load_external_data=False)
    assert [s.values.data_location for s in proto.graph.sparse_initializer] == [TensorProto.EXTERNAL] * 2
    x = normal(3, 37)
    expected = np.maximum(x @ weights["W1"] + normal(23), 0) @ weights["W2"]
    np.testing.assert_allclose(open_session(report.path).run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def test_a_data_file_that_exists_is_never_touched(external_source, tmp_path):
    weights = thin_weights(external_source.proto)
    first = export_model(external_source, {}, tmp_path / "out.onnx")
    kept = first.files[1].read_bytes()
    second = export_model(external_source, weights, tmp_path / "out.onnx", format="dense")
    assert second.files[1].name == "out.onnx.1.data"
    assert first.files[1].read_bytes() == kept
    np.testing.assert_array_equal(
        find_weights(load_model(second.path).proto)["W1"].read(load_model(second.path).proto), weights["W1"]
    )


def test_a_model_over_the_protobuf_limit_gets_external_data(source, tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "PROTOBUF_LIMIT", source.size - 1)
    report = export_model(source, thin_weights(source.proto), tmp_path / "out.onnx", format="dense")
    assert [file.name for file in report.files] == ["out.onnx", "out.onnx.data"]
    assert external_names(report.path) == {"W"}
    weights = thin_weights(source.proto)
    written = load_model(report.path).proto
    for name, weight in find_weights(written).items():
        np.testing.assert_array_equal(weight.read(written), weights[name])
