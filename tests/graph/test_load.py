from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_obd.errors import ModelError
from onnx_obd.graph.load import Model, graph_inputs, load_model
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import find_weights
from tests.export.models import dense_net, every_place, model, normal, save_external, value


def refused(path: Path, *parts: str) -> str:
    """Loads ``path``, which must fail with one line that holds the path and every one of ``parts``."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message
    return message


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_model_records_where_it_came_from(tmp_path):
    path = write(tmp_path / "m.onnx", every_place())
    loaded = load_model(str(path))
    assert loaded.proto == every_place()
    assert loaded.path == path
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.size == path.stat().st_size
    assert loaded.external == {}


def test_missing_folder_and_empty(tmp_path):
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "folder")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a regular file")


def test_truncation_anywhere_is_refused(tmp_path):
    whole = dense_net().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(path)


def not_onnx() -> dict[str, bytes]:
    random_bytes = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes()
    return {
        "text": b"hello, world\n",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "zip": b"PK\x03\x04" + bytes(200),
        "pickle": b"\x80\x04\x95" + bytes(50),
        "zeros": bytes(1000),
        "random": random_bytes,
        "field_only": b"\x08\x07",  # parses: an ir_version and nothing else
        "other_message": numpy_helper.from_array(normal(3, 5), "W").SerializeToString(),
    }


@pytest.mark.parametrize("kind", not_onnx())
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / f"{kind}.onnx"
    path.write_bytes(not_onnx()[kind])
    refused(path, "not an ONNX model")


def test_random_damage_never_raises_anything_else(tmp_path):
    rng = random.Random(0)
    whole = every_place().SerializeToString()
    path = tmp_path / "damaged.onnx"
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            find_weights(load_model(path).proto)
            outcomes.add("accepted")
        except ModelError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"accepted", "refused"}  # damage inside weights cannot be seen


def test_names_that_are_not_text(tmp_path):
    damaged = dense_net().SerializeToString().replace(b"first", b"f\xff\xfest")
    (tmp_path / "m.onnx").write_bytes(damaged)
    refused(tmp_path / "m.onnx", "not UTF-8")


# --- declared sizes


@pytest.mark.parametrize("dims", [(37, 24), (2**40, 2**40), (37, -23), (2**63 - 1, 2**63 - 1, 4), (0, 23)])
def test_declared_shape_must_fit_the_data(tmp_path, dims):
    proto = dense_net()
    proto.graph.initializer[0].ClearField("dims")
    proto.graph.initializer[0].dims.extend(dims)
    refused(write(tmp_path / "m.onnx", proto), "'W1'")


def test_declared_shape_of_typed_fields_constants_and_bodies(tmp_path):
    proto = every_place()
    proto.graph.initializer[2].dims[0] = 32
    refused(write(tmp_path / "v.onnx", proto), "'V'", "elements")
    proto = every_place()
    proto.graph.node[2].attribute[0].t.dims[0] = 30
    refused(write(tmp_path / "k.onnx", proto), "'K.value'", "bytes")
    proto = every_place()
    attribute = next(a for a in proto.graph.node[4].attribute if a.name == "then_branch")
    attribute.g.initializer[0].dims[0] = 18
    refused(write(tmp_path / "t.onnx", proto), "'i.then_branch/T'")
    proto = every_place()
    proto.functions[0].node[0].attribute[0].t.raw_data = b"abc"
    refused(write(tmp_path / "f.onnx", proto), "'local::Project/F.value'")


def sparse_net(dims: tuple[int, ...]) -> onnx.ModelProto:
    proto = model([helper.make_node("Identity", ["x"], ["y"])], [value("x", 3)], [value("y", 3)])
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1.0]), "S"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([0])))
    return proto


def test_sparse_tensors_cannot_expand_without_bound(tmp_path):
    assert load_model(write(tmp_path / "small.onnx", sparse_net((10, 7))))
    refused(write(tmp_path / "large.onnx", sparse_net((2**30, 7))), "'S'", "too large to expand")
    many = sparse_net((2**29, 3))
    many.graph.sparse_initializer.extend([many.graph.sparse_initializer[0]] * 3)
    refused(write(tmp_path / "many.onnx", many), "too large to expand")


# --- external data


@pytest.fixture
def external(tmp_path) -> Path:
    save_external(every_place(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def edit(path: Path, key: str, new: str | None) -> None:
    """Sets (or, for None, removes) an entry of the external data of W."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | ({key: new} if new is not None else {})
    tensor.ClearField("external_data")
    for name, text in kept.items():
        if name != key or new is not None:
            tensor.external_data.add(key=name, value=text)
    write(path, proto)


def test_external_data_come_into_memory(external):
    loaded = load_model(external)
    assert {"W", "shape"} <= set(loaded.external)
    assert "V" not in loaded.external  # in float_data, which cannot be external
    assert set(loaded.external.values()) == {"weights.bin"}
    data = (external.read_bytes(), (external.parent / "weights.bin").read_bytes())
    assert loaded.sha256 == hashlib.sha256(b"".join(data)).hexdigest()
    assert loaded.size == sum(map(len, data))
    assert loaded.proto == every_place()


def test_external_length_and_offset_may_be_left_out(external):
    (external.parent / "own.bin").write_bytes(normal(19, 31).tobytes() + b"more")
    for key, new in (("location", "own.bin"), ("offset", None), ("length", None)):
        edit(external, key, new)
    proto = load_model(external).proto
    np.testing.assert_array_equal(find_weights(proto)["W"].read(proto), normal(19, 31))


def test_external_file_missing_or_truncated(external):
    data = external.parent / "weights.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[:1000])
    refused(external, "'W'", "'weights.bin'", "truncated")
    data.unlink()
    refused(external, "'W'", "'weights.bin'", "missing")


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "..\\w", "", "a\0b"])
def test_external_path_stays_in_the_folder(external, location):
    (external.parent.parent / "weights.bin").write_bytes(bytes(10**5))
    edit(external, "location", location)
    refused(external, "'W'")


@pytest.mark.parametrize(
    ("key", "new"),
    [("offset", "-1"), ("offset", "x"), ("offset", "9" * 30), ("offset", "99999"), ("length", "5"), ("length", "²")],
)
def test_external_numbers(external, key, new):
    edit(external, key, new)
    refused(external, "'W'")


def test_external_declaration_is_checked_before_reading(external):
    proto = onnx.load(external, load_external_data=False)
    proto.graph.initializer[0].dims[0] = 2**50
    refused(write(external, proto), "'W'", "bytes")


def test_external_folder_or_pipe_is_refused(external):
    (external.parent / "folder").mkdir()
    edit(external, "location", "folder")
    refused(external, "'W'")


def test_external_link_out_of_the_folder_is_refused(external, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
    data = external.parent / "weights.bin"
    data.rename(elsewhere)
    data.symlink_to(elsewhere)
    refused(external, "'W'", "leads out")
    data.unlink()
    data.symlink_to(data)
    refused(external, "'W'")


def test_external_link_beside_the_linked_model_is_followed(external, tmp_path_factory):
    """Download caches keep files by content and link both the model and its data."""
    view = tmp_path_factory.mktemp("view")
    external.rename(external.parent / "blob1")
    (external.parent / "weights.bin").rename(external.parent / "blob2")
    (view / "m.onnx").symlink_to(external.parent / "blob1")
    (view / "weights.bin").symlink_to(external.parent / "blob2")
    assert load_model(view / "m.onnx").proto == every_place()


# --- validity


def test_what_onnxruntime_loads_is_accepted(tmp_path):
    proto = dense_net()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))  # the checker wants nodes sorted, onnxruntime sorts them itself
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    assert load_model(write(tmp_path / "m.onnx", proto)).proto == proto


def test_unknown_domains_are_accepted(tmp_path):
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="org.custom")]
    proto = model(nodes, [value("x", 3)], [value("y", 3)], domains=("org.custom",))
    assert load_model(write(tmp_path / "m.onnx", proto)).proto == proto


def test_invalid_models_are_refused(tmp_path):
    proto = dense_net()
    proto.graph.node[0].op_type = "NoSuchOperator"
    refused(write(tmp_path / "op.onnx", proto), "not a valid ONNX model", "NoSuchOperator")
    proto = dense_net()
    proto.graph.node[0].input[0] = "nowhere"
    refused(write(tmp_path / "input.onnx", proto), "not a valid ONNX model", "nowhere")


def test_the_checkers_warnings_stay_off_standard_output(tmp_path, capfd):
    nodes = [helper.make_node("ImageScaler", ["x"], ["y"], scale=2.0, bias=[0.0])]
    proto = model(nodes, [value("x", 1, 1, 3, 2)], [value("y", 1, 1, 3, 2)], opset=7, ir_version=3)
    load_model(write(tmp_path / "m.onnx", proto))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "experimental" in captured.err  # or the test would not test anything


def test_model_made_in_memory(tmp_path):
    made = Model.from_proto(dense_net())
    assert made.path is None
    assert made.size == len(dense_net().SerializeToString())
    broken = dense_net()
    broken.graph.initializer[0].dims[0] = 38
    with pytest.raises(ModelError, match="W1"):
        Model.from_proto(broken)
    save_external(dense_net(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="external data"):
        Model.from_proto(onnx.load(tmp_path / "m.onnx", load_external_data=False))


# --- inputs and weights


@pytest.mark.parametrize("ir_version", [3, 8])
def test_graph_inputs_leave_weights_out(ir_version):
    proto = dense_net(ir_version=ir_version, weights_as_inputs=True)
    assert [value_info.name for value_info in graph_inputs(proto)] == ["x"]
    assert graph_inputs(proto)[0].type.tensor_type.shape.dim[0].dim_param == "N"
    if ir_version == 3:
        assert [i.name for i in open_session(proto).get_inputs()] == ["x"]


def test_graph_inputs_leave_sparse_weights_out():
    proto = sparse_net((10, 7))
    proto.graph.input.append(value("S", 10, 7))
    assert [value_info.name for value_info in graph_inputs(proto)] == ["x"]
