from __future__ import annotations

import os
import stat

import pytest

from onnx_obd import atomic
from onnx_obd.atomic import write_atomically
from onnx_obd.errors import ExportError


def test_writes_and_replaces(tmp_path):
    target = tmp_path / "sub" / "x.json"
    assert write_atomically(target, b"one") == target
    write_atomically(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == ["x.json"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
    target = tmp_path / "x.json"
    target.write_bytes(b"old")

    def fail(descriptor):
        raise failure

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with pytest.raises(ExportError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_atomically(target, b"new")
    if isinstance(failure, OSError):
        assert str(caught.value) == f"cannot write '{target}': No space left on device"
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.json"]


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(ExportError, match="cannot write"):
        write_atomically(tmp_path, b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_a_plain_write_or_of_the_file_replaced(tmp_path):
    plain, atomically = tmp_path / "plain", tmp_path / "atomically"
    plain.write_bytes(b"")
    write_atomically(atomically, b"")
    assert stat.S_IMODE(atomically.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    atomically.chmod(0o640)
    write_atomically(atomically, b"new")
    assert stat.S_IMODE(atomically.stat().st_mode) == 0o640
