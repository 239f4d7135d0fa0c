"""A training that can be interrupted and gone on with: one safetensors file, its record as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from onnx_obd.atomic import write_atomically
from onnx_obd.errors import DataError
from onnx_obd.recovery.training import State, Training

FORMAT = "onnx-obd recovery 1"


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was saved.

    ``subject`` tells what was trained (hashes of model and samples, the options): it goes on only with the same.
    ``record`` is whatever else the caller wants back, as JSON; ``before`` the weights that the training started from.
    """

    state: State
    present: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    keep: Mapping[str, Tensor]
    subject: Mapping[str, Any]
    record: Mapping[str, Any]


def save_checkpoint(
    path: Path, training: Training, before: Mapping[str, Tensor], subject: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Write the training's state to ``path``, whole or not at all.

    Raises:
        ExportError: the file cannot be written.
    """
    state = training.state
    tensors = {f"best/{name}": value for name, value in state.best.items()}
    tensors |= {f"present/{name}": weight.detach() for name, weight in training.mirror.weights.items()}
    tensors |= {f"before/{name}": value for name, value in before.items()}
    tensors |= {f"keep/{name}": ~gone for name, gone in training.deleted.items()}
    tensors |= {f"{key}/{name}": value for name, kept in state.moments.items() for key, value in kept.items()}
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    header = {"format": FORMAT, "state": numbers, "subject": dict(subject), "record": dict(record)}
    apart = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    content = save(apart, {"onnx_obd": json.dumps(header)})
    write_atomically(path, content)


_NUMBERS = ("best_loss", "start_loss", "learning_rate", "layerwise", "epoch", "seconds")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def load_checkpoint(path: Path, subject: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DataError: there is none at ``path``, it is damaged, or it is of another model, other samples or options.
    """
    if not path.is_file():
        raise DataError(f"{path}: no checkpoint there; leave out --resume to start anew")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["onnx_obd"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise KeyError
        numbers = {name: header["state"][name] for name in _NUMBERS}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not a checkpoint of this program, or damaged") from None
    for what, value in subject.items():
        if header["subject"].get(what) != value:
            raise DataError(f"{path}: belongs to a run with another {what}; leave out --resume to start anew")
    part = {kind: _part(tensors, kind) for kind in ("best", "present", "before", "keep", *_MOMENTS)}
    moments = {name: {key: part[key][name] for key in _MOMENTS} for name in part["step"]}
    state = State(best=part["best"], moments=moments, **numbers)
    return Checkpoint(state, part["present"], part["before"], part["keep"], header["subject"], header["record"])


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name[len(kind) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{kind}/")}
