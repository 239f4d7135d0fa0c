from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_obd.errors import ModelError
from onnx_obd.graph.external_data import ALIGNMENT, data_path, load_external_data, move_to_external_data
from onnx_obd.graph.tensors import stored_tensors
from tests.export.models import every_place, normal


def test_onnx_reads_what_is_written(tmp_path):
    proto = every_place()
    with (tmp_path / "w.bin").open("wb") as file:
        move_to_external_data(proto, {"W", "shape", "V"}, file, "w.bin")
    onnx.save(proto, tmp_path / "m.onnx")
    read = onnx.load(tmp_path / "m.onnx").graph.initializer  # ONNX's own reader
    expected = every_place().graph.initializer
    for ours, theirs in zip(read, expected, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    locations = load_external_data(proto, tmp_path / "m.onnx")
    assert locations == {"W": "w.bin", "shape": "w.bin"}  # V has no raw_data to move
    assert proto == every_place()


def test_tensors_do_not_overlap_and_large_ones_are_aligned():
    proto = every_place()
    for index in range(3):
        proto.graph.initializer.append(numpy_helper.from_array(normal(41, 30 + index), f"large{index}"))
    file = io.BytesIO()
    move_to_external_data(proto, {key for key, _ in stored_tensors(proto)}, file, "w.bin")
    end, large = 0, 0
    for _, tensor in stored_tensors(proto):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            offset, length = int(entries["offset"]), int(entries["length"])
            assert offset >= end
            if length >= ALIGNMENT:
                assert offset % ALIGNMENT == 0
                large += 1
            end = offset + length
    assert end == len(file.getvalue())
    assert large == 3


def test_data_path(tmp_path):
    assert data_path(tmp_path / "m.onnx", "sub/w.bin") == (tmp_path / "sub/w.bin").resolve()
    for location in ("", "..", "/w.bin", "sub/../../w.bin", "sub/../w.bin"):
        with pytest.raises(ModelError):
            data_path(tmp_path / "m.onnx", location)
