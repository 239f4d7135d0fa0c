"""A result appears whole or not at all, and nothing that stood there is lost."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from onnx import helper, numpy_helper

import onnx_obd.export.write as write_module
from onnx_obd.errors import ExportError, UsageError
from onnx_obd.export import check_destination, export_model
from onnx_obd.graph.load import Model, load_model
from tests.export.models import (
    dense_net,
    every_place,
    model,
    names_in,
    normal,
    thin_weights,
    value,
)


def test_the_input_is_never_overwritten_unasked(source, external_source, tmp_path):
    original = source.path.read_bytes()
    (tmp_path / "soft.onnx").symlink_to(source.path)
    os.link(source.path, tmp_path / "hard.onnx")
    for destination in (
        source.path,
        tmp_path / "soft.onnx",
        tmp_path / "hard.onnx",
        tmp_path / "source/../source/m.onnx",
    ):
        with pytest.raises(UsageError, match="is the input"):
            export_model(source, thin_weights(source.proto), destination)
        with pytest.raises(UsageError, match="is the input"):
            check_destination(source.path, destination)
    assert source.path.read_bytes() == original
    data = external_source.path.parent / "weights.bin"
    with pytest.raises(UsageError, match="external data"):
        export_model(external_source, {}, data, overwrite_input=True)
    assert load_model(external_source.path).sha256 == external_source.sha256


def test_overwriting_the_input_on_request(source, external_source):
    export_model(source, thin_weights(source.proto), source.path, format="dense", overwrite_input=True)
    assert source.path.read_bytes() != every_place().SerializeToString()
    assert names_in(source.path.parent) == {"m.onnx"}
    export_model(external_source, {}, external_source.path, overwrite_input=True)
    assert names_in(external_source.path.parent) == {"m.onnx", "weights.bin", "m.onnx.data"}
    assert load_model(external_source.path).proto == dense_net()


def test_impossible_destinations(source, tmp_path):
    with pytest.raises(UsageError, match="folder"):
        export_model(source, {}, tmp_path)
    with pytest.raises(ExportError, match="does not exist"):
        export_model(source, {}, tmp_path / "none/out.onnx")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match="not a regular file"):
            export_model(source, {}, tmp_path / "pipe")


def test_a_link_is_replaced_not_followed(source, tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"precious")
    (tmp_path / "out.onnx").symlink_to(tmp_path / "other.onnx")
    export_model(source, {}, tmp_path / "out.onnx")
    assert (tmp_path / "other.onnx").read_bytes() == b"precious"
    assert not (tmp_path / "out.onnx").is_symlink()


class Failing:
    """Stands for a function of ``os`` and raises in its place."""

    def __init__(self, error: BaseException):
        self.error = error

    def __call__(self, *args, **kwargs):
        raise self.error


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("make", ["source", "external_source"])
def test_nothing_is_left_when_writing_fails(request, tmp_path, monkeypatch, function, error, make):
    original = request.getfixturevalue(make)
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"an older result")
    monkeypatch.setattr(write_module.os, function, Failing(error))
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        export_model(original, thin_weights(original.proto), out / "m.onnx")
    if expected is ExportError:
        assert str(caught.value) == f"{out / 'm.onnx'}: cannot be written: No space left on device"
    assert names_in(out) == {"m.onnx"}
    assert (out / "m.onnx").read_bytes() == b"an older result"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs file size limits")
@pytest.mark.parametrize("make", ["source", "external_source"])
def test_a_real_refusal_by_the_system(request, tmp_path, make):
    import resource

    original = request.getfixturevalue(make)
    out = tmp_path / "out"
    out.mkdir()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        with pytest.raises(ExportError, match="cannot be written"):
            export_model(original, {}, out / "m.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert names_in(out) == set()


def test_a_result_that_onnxruntime_refuses_is_not_left(tmp_path):
    """The checker accepts an unknown domain, onnxruntime does not."""
    proto = model(
        [helper.make_node("Mystery", ["x", "W"], ["y"], domain="org.custom")],
        [value("x", 3)],
        [value("y", 3)],
        [numpy_helper.from_array(normal(7, 5), "W")],
        domains=("org.custom",),
    )
    with pytest.raises(ExportError, match="Mystery") as caught:
        export_model(Model.from_proto(proto), {}, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert names_in(tmp_path) == set()


def test_the_files_of_a_result_have_ordinary_permissions(source, tmp_path):
    previous = os.umask(0o027)
    try:
        report = export_model(source, {}, tmp_path / "out.onnx")
    finally:
        os.umask(previous)
    assert report.path.stat().st_mode & 0o777 == 0o640
