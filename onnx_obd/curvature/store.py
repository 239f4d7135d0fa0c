"""Curvature on disk: a second target needs no second pass over the samples.

A file is in safetensors format: the diagonals under the names of the weights, and in its header one JSON object that
says of which model, which samples and which options they are. Nothing is executed on reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from onnx_obd.atomic import write_atomically
from onnx_obd.errors import DataError
from onnx_obd.records import Curvature

HEADER = "onnx_obd_curvature"
FORMAT = 1


@dataclass(frozen=True)
class CurvatureKey:
    """What a curvature belongs to.

    ``model_sha256`` is of the file, ``calibration_sha256`` of the scoring samples and their labels in order;
    ``options`` are those that change the result: the estimator, its probes and seed, the objective.
    """

    model_sha256: str
    calibration_sha256: str
    options: Mapping[str, Any]


def save_curvature(curvature: Curvature, path: str | Path, key: CurvatureKey) -> None:
    """Write a curvature with what it belongs to; the file appears whole or not at all."""
    about = {
        "format": FORMAT,
        **asdict(key),
        "estimator": curvature.estimator,
        "num_samples": curvature.num_samples,
        "estimated_nodes": list(curvature.estimated_nodes),
        "scale": dict(curvature.scale),
    }
    tensors = {name: diag.detach().cpu().contiguous() for name, diag in curvature.diag.items()}
    write_atomically(path, safetensors.torch.save(tensors, {HEADER: json.dumps(about, sort_keys=True)}))


def load_curvature(path: str | Path, key: CurvatureKey, weights: Mapping[str, Tensor]) -> Curvature:
    """Read a curvature back, if it belongs to ``key`` and covers ``weights`` in their shapes.

    Raises:
        DataError: the file is not such a file, or is of another model, other samples or other options; the message
            says which.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(HEADER, "null"))
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise DataError(f"{path}: not a curvature saved by this version of onnx-obd")
            _check(path, about, key)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for name, weight in weights.items():
                if shapes.get(name) != tuple(weight.shape):
                    raise DataError(f"{path}: no curvature of weight '{name}' in its shape {tuple(weight.shape)}")
            diag = {name: file.get_tensor(name).to(weight) for name, weight in weights.items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a saved curvature ({str(error).splitlines()[0]})") from error
    return Curvature(
        diag,
        str(about["estimator"]),
        int(about["num_samples"]),
        tuple(map(str, about["estimated_nodes"])),
        {str(name): float(value) for name, value in about["scale"].items()},
    )


def _check(path: str | Path, about: Mapping[str, Any], key: CurvatureKey) -> None:
    if about.get("model_sha256") != key.model_sha256:
        raise DataError(f"{path}: the curvature of another model; compute it anew for this one")
    if about.get("calibration_sha256") != key.calibration_sha256:
        raise DataError(f"{path}: computed on other samples, labels or another split; compute it anew")
    saved, wanted = about.get("options") or {}, json.loads(json.dumps(dict(key.options)))
    for name in sorted({*saved, *wanted}):
        if saved.get(name) != wanted.get(name):
            raise DataError(f"{path}: computed with {name} = {saved.get(name)}, not {wanted.get(name)}")
