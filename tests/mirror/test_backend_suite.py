"""ONNX's own backend suite, from the installed onnx package, through the mirror: as it is, and with weights.

With weights every tensor input but the first float one is an initializer, and every float initializer has to be a
parameter. What is left out stands in a table with its reason; a case there that passes fails the test.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_numpy, to_torch

_RANDOM = "a random draw: no implementation has to make the same one"
_TRAINING = "an operator of training (ai.onnx.preview.training): it is not run in a network"
_WIDE_UNSIGNED = "arithmetic of 16, 32 or 64 bit unsigned integers, in which no value of a network is held"
_NAN_TO_FLOAT4 = "what NaN becomes in float4, which has none, is left to the implementation"
_PICTURES = "decodes a file of an image format; a sample is an array"
_LOCALE = "normalises strings by a locale that the machine may not have"

_OVER_INTEGERS = ("add", "bitshift_left", "bitshift_right", "div", "max", "min", "mod", "sub")
_COMPARISONS = ("greater", "greater_equal", "less", "less_equal")

_EXCLUDED = {
    _RANDOM: """bernoulli bernoulli_expanded bernoulli_double bernoulli_double_expanded bernoulli_seed
        bernoulli_seed_expanded training_dropout training_dropout_default training_dropout_mask
        training_dropout_default_mask""",
    _TRAINING: """adagrad adagrad_multiple adam adam_multiple momentum momentum_multiple nesterov_momentum
        gradient_of_add gradient_of_add_and_mul""",
    _WIDE_UNSIGNED: " ".join(
        [f"{name}_uint{bits}" for name in (*_OVER_INTEGERS, *_COMPARISONS) for bits in (16, 32, 64)]
        + [f"{name}_equal_uint{bits}_expanded" for name in ("greater", "less") for bits in (16, 32, 64)]
        + ["bitwise_not_3d"]
    ),
    _NAN_TO_FLOAT4: """cast_FLOAT_to_FLOAT4E2M1 cast_FLOAT16_to_FLOAT4E2M1 castlike_FLOAT_to_FLOAT4E2M1
        castlike_FLOAT_to_FLOAT4E2M1_expanded castlike_FLOAT16_to_FLOAT4E2M1
        castlike_FLOAT16_to_FLOAT4E2M1_expanded""",
    _PICTURES: """image_decoder_decode_jpeg_rgb image_decoder_decode_jpeg_grayscale image_decoder_decode_jpeg_bgr
        image_decoder_decode_jpeg2k_rgb image_decoder_decode_bmp_rgb image_decoder_decode_png_rgb
        image_decoder_decode_tiff_rgb image_decoder_decode_webp_rgb image_decoder_decode_pnm_rgb""",
    _LOCALE: """strnormalizer_export_monday_casesensintive_lower strnormalizer_export_monday_casesensintive_upper
        strnormalizer_export_monday_empty_output strnormalizer_export_monday_insensintive_upper_twodim
        strnorm_model_monday_casesensintive_lower strnorm_model_monday_casesensintive_upper
        strnorm_model_monday_empty_output strnorm_model_monday_insensintive_upper_twodim""",
}
EXCLUDED = {f"test_{name}": reason for reason, names in _EXCLUDED.items() for name in names.split()}
"""Case -> why it is left out. All others of the suite have to pass."""

CARRIED = {"int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8"} | {
    "float4_e2m1fn": "float32", "float8_e8m0fnu": "float32"
}  # fmt: skip
"""Element types that torch lacks, and what carries them."""

FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass
class Case:
    name: str
    model: onnx.ModelProto
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float


def _node_cases() -> Iterator[Case]:
    for case in collect_testcases(None):
        for inputs, outputs in case.data_sets:
            yield Case(case.name, case.model, [*map(_array, inputs)], [*map(_array, outputs)], case.rtol, case.atol)


def _array(value: Any) -> Any:
    """Tensors of types that numpy lacks come as they would stand in a file."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _stored_cases() -> Iterator[Case]:
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for case in load_model_tests(kind=kind):
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            for data in sorted(folder.glob("test_data_set_*")):
                inputs = _read(data, "input", model.graph.input)
                outputs = _read(data, "output", model.graph.output)
                yield Case(case.name, model, inputs, outputs, case.rtol, case.atol)


def _large_cases() -> Iterator[Case]:
    """The published networks, whose files come without weights: nearly all are the same number."""
    root = Path(onnx.__file__).parents[1]
    for case in load_model_tests(kind="real"):
        path = root / case.url
        model = onnx.load(path)
        stored = {tensor.name for tensor in model.graph.initializer}
        free = [value for value in model.graph.input if value.name not in stored]
        inputs = [Runner.generate_dummy_data(value, seed=0, name=case.name, random=False) for value in free]
        outputs = [onnx.load_tensor(path.with_name(f"{path.stem}_output_0.pb"))]
        yield Case(case.name, model, inputs, [*map(_array, outputs)], case.rtol, case.atol)


def _read(folder: Path, kind: str, declared: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    found = []
    for index, value in enumerate(declared[: len(list(folder.glob(f"{kind}_*.pb")))]):
        data = (folder / f"{kind}_{index}.pb").read_bytes()
        if value.type.HasField("sequence_type"):
            found.append(onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        else:
            found.append(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data)))
    return found


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [*_node_cases(), *_stored_cases()]


def _with_weights(case: Case) -> Case:
    """The same case with every tensor input but the first float one, or the first, as an initializer."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    floats = [index for index, value in enumerate(case.inputs) if _dtype(value) in FLOATS]
    kept, inputs = (floats or [0])[0], []
    declared = list(model.graph.input)
    del model.graph.input[:]
    for index, value in enumerate(case.inputs):
        if index == kept or _dtype(value) in ("", "object") or declared[index].type.HasField("optional_type"):
            model.graph.input.append(declared[index])
            inputs.append(value)
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), declared[index].name))
    model.graph.input.extend(declared[len(case.inputs) :])
    return Case(case.name, model, inputs, case.outputs, case.rtol, case.atol)


def _dtype(value: Any) -> str:
    """The element type of a tensor; "object" of strings; "" of anything that is not a tensor."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return ""
    return "object" if value.dtype.kind in "OUS" else value.dtype.name


def _run(case: Case) -> Mirror:
    mirror = Mirror(case.model)
    with torch.no_grad():
        found = mirror(*map(to_torch, case.inputs))
    found = found if len(mirror.output_names) > 1 else (found,)
    assert len(found) == len(case.outputs)
    for value, expected in zip(found, case.outputs, strict=True):
        _compare(to_numpy(value), expected, case)
    return mirror


def _compare(found: Any, expected: Any, case: Case) -> None:
    if isinstance(expected, (list, tuple)):
        assert isinstance(found, list) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _compare(one, other, case)
        return
    if expected is None:
        assert found is None
        return
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    if expected.dtype.kind in "OUS":
        assert [_text(a) for a in found.ravel()] == [_text(b) for b in expected.ravel()]
        return
    name = expected.dtype.name
    assert found.dtype.name in (name, CARRIED.get(name, name))
    if name == "bool":
        assert np.array_equal(found, expected)
        return
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    found, expected = found.astype(wide), expected.astype(wide)
    rtol = 2**-6 if name == "bfloat16" else case.rtol
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=case.atol)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _failures(cases: Sequence[Case], check: Callable[[Case], None]) -> dict[str, str]:
    found = {}
    for case in cases:
        try:
            check(case)
        except Exception as error:  # whatever it is, the case is not passed
            found[case.name] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return found


def _expect_exclusions_alone(failures: dict[str, str]) -> None:
    wrong = [f"{name}: {reason}" for name, reason in failures.items() if name not in EXCLUDED]
    needless = [f"{name} passes: take it off the table" for name in EXCLUDED if name not in failures]
    assert not (wrong or needless), "\n".join([f"{len(wrong)} cases fail", *wrong, *needless])


def test_forward(cases):
    _expect_exclusions_alone(_failures(cases, _run))


def test_published_networks():
    failures = _failures([*_large_cases()], _run)
    assert not failures


def test_with_weights(cases):
    def check(case: Case) -> None:
        promoted = _with_weights(case)
        mirror = _run(promoted)
        tensors = promoted.model.graph.initializer
        floats = {t.name for t in tensors if _dtype(onnx.numpy_helper.to_array(t)) in FLOATS}
        assert floats <= set(mirror.weights), f"no parameters: {floats - set(mirror.weights)}"

    _expect_exclusions_alone(_failures(cases, check))
