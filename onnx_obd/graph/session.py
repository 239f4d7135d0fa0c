"""Opening a model in onnxruntime, quietly, with its refusal as one line."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError

from onnx_obd.errors import DataError, ModelError, UsageError
from onnx_obd.graph.external_data import move_to_external_data
from onnx_obd.graph.tensors import stored_tensors

_FATAL = 4  # onnxruntime's log severity: errors reach us as exceptions, so nothing less need be printed


CPU = "CPUExecutionProvider"


def check_provider(name: str) -> None:
    """Raises UsageError if this onnxruntime has no such execution provider."""
    if name not in (there := ort.get_available_providers()):
        raise UsageError(f"this onnxruntime has no '{name}'; it has {', '.join(there)}")


def open_session(
    model: bytes | str | Path | onnx.ModelProto, *, threads: int = 1, optimize: bool = True, provider: str = CPU
) -> ort.InferenceSession:
    """An onnxruntime session for ``model``.

    Args:
        model: a file (external data beside it is found), its bytes, or a ModelProto that holds all its data.
        threads: threads within an operator; operators run one after another.
        optimize: apply onnxruntime's graph optimisations, as deployments do by default.
        provider: the execution provider; nodes that it does not take run on the CPU.

    Raises:
        ModelError: onnxruntime refuses the model; the message is its own reason.
    """
    check_provider(provider)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Idle threads stop spinning when a run ends: they would take the cores from the session timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, onnx.ModelProto):
        try:
            model = model.SerializeToString()
        except EncodeError:  # more than 2 GiB
            return _open_large(model, options, provider)
    return _open(str(model) if isinstance(model, Path) else model, options, provider)


def _open(model: bytes | str, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    try:
        # Its Python layer would answer a refusal by printing to standard output and trying once more.
        return ort.InferenceSession(model, options, providers=list(dict.fromkeys((provider, CPU))), enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class
        where = f"{model}: " if isinstance(model, str) else ""
        raise ModelError(f"{where}onnxruntime refuses the model: {refusal(error)}") from error


def _open_large(proto: onnx.ModelProto, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    """Opens a model too large for one protobuf message by way of a temporary file with external data."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        keys = {key for key, tensor in stored_tensors(copy) if len(tensor.raw_data) >= 1024}
        with (Path(folder) / "weights").open("wb") as file:
            move_to_external_data(copy, keys, file, "weights")
        path = Path(folder) / "model.onnx"
        path.write_bytes(copy.SerializeToString())
        return _open(str(path), options, provider)


def outputs_of(
    session: ort.InferenceSession, names: Sequence[str] | None, feed: Mapping[str, Any], source: str
) -> list:
    """The named outputs (all if None) for one feed of the user's.

    Args:
        source: where the feed came from, for the message.

    Raises:
        DataError: onnxruntime refuses it, say because an axis is too short for a node.
    """
    try:
        return session.run(names, dict(feed))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise DataError(f"{source}: onnxruntime refuses the samples: {refusal(error)}") from error


def refusal(error: Exception) -> str:
    """The reason in an onnxruntime exception, on one line, without its code and source location."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed: ?", "", text)
    text = re.sub(r"/\S+/onnxruntime/(core|contrib_ops)/\S+:\d+ .*?\)( const)? ", "", text)
    return text[:400] or type(error).__name__
