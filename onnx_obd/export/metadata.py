"""What this program notes in a model's ``metadata_props``: its own keys begin with ``onnx_obd.``."""

from __future__ import annotations

import onnx

PREFIX = "onnx_obd."


def get_metadata(proto: onnx.ModelProto, key: str) -> str | None:
    """The value of ``onnx_obd.<key>``, or None."""
    return next((entry.value for entry in proto.metadata_props if entry.key == PREFIX + key), None)


def set_metadata(proto: onnx.ModelProto, key: str, value: str) -> None:
    """Sets ``onnx_obd.<key>``, in place: an entry of that key keeps its position, a new one is appended."""
    for entry in proto.metadata_props:
        if entry.key == PREFIX + key:
            entry.value = value
            return
    proto.metadata_props.add(key=PREFIX + key, value=value)


def remove_metadata(proto: onnx.ModelProto, key: str) -> None:
    """Removes ``onnx_obd.<key>`` if it is there, in place."""
    for index in reversed(range(len(proto.metadata_props))):
        if proto.metadata_props[index].key == PREFIX + key:
            del proto.metadata_props[index]
