"""Every registered operator against the schema that onnx publishes, and against the list of test cases."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import defaultdict

import numpy as np
import onnx
import pytest
import torch
from onnx.defs import OpSchema

from onnx_obd.mirror import ops  # noqa: F401  (importing registers the operators)
from onnx_obd.mirror.compile import MEMORY_HINTS
from onnx_obd.mirror.registry import Operator, lookup, op, registered
from onnx_obd.mirror.values import TORCH_DTYPE
from tests.mirror import ops as cases_of_families

SCHEMAS: dict[str, dict[int, OpSchema]] = defaultdict(dict)
for _schema in onnx.defs.get_all_schemas_with_history():
    if _schema.domain == "":
        SCHEMAS[_schema.name][_schema.since_version] = _schema

NOT_OF_NETWORKS = {
    "ImageDecoder",
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
}
"""Operators on strings and files: onnxruntime runs them as a boundary."""

UNPUBLISHED = {
    "ATen", "Affine", "ConstantFill", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler",
    "MeanVarianceNormalization", "ParametricSoftplus", "Scale", "ScaledTanh", "SimplifiedLayerNormalization",
    "ThresholdedRelu",
}  # fmt: skip
"""First versions that files hold and onnx does not describe: withdrawn experiments, and one of onnxruntime's own."""

ONLY_IN_WORDS = {
    ("Concat", 1, "axis"): 1,
    ("GRU", 1, "direction"): "forward",  # the schema misspells it
    ("Reshape", 1, "shape"): (),
    ("SequenceEmpty", 11, "dtype"): onnx.TensorProto.FLOAT,
    ("Split", 1, "axis"): 0,
}
"""Defaults that the schema gives in its description alone."""

FILLED_IN = {"output_count", "elem_types", "rounded", "like", "seed"}
"""Kinds of keywords that are not attributes of the node."""

STANDARD = [
    pytest.param(operator, [SCHEMAS[operator.name][v] for v in operator.since if v in SCHEMAS[operator.name]],
                 id=f"{operator.name}-{'-'.join(map(str, operator.since))}")
    for operator in registered()
    if operator.domain == "" and any(v in SCHEMAS[operator.name] for v in operator.since)
]  # fmt: skip


def attributes_of(schema: OpSchema) -> dict[str, OpSchema.Attribute]:
    return {name: a for name, a in schema.attributes.items() if name not in MEMORY_HINTS}


def positional_of(operator: Operator) -> list[inspect.Parameter]:
    return [p for p in operator.parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize(("operator", "schemas"), STANDARD)
def test_keywords_are_the_attributes(operator, schemas):
    published = {name for schema in schemas for name in attributes_of(schema)}
    ours = {name for name in operator.keywords if operator.kinds.get(name) not in FILLED_IN or name in published}
    assert ours == published


@pytest.mark.parametrize(("operator", "schemas"), STANDARD)
def test_defaults_are_those_of_the_schema(operator, schemas):
    ours = {p.name: p.default for p in operator.parameters}
    for schema in schemas:
        for name, attribute in attributes_of(schema).items():
            found = ours[name]
            if attribute.required or found is inspect.Parameter.empty:
                assert found in (None, inspect.Parameter.empty)
                assert any(s.attributes[name].required for s in schemas if name in s.attributes)
                continue
            expected = ONLY_IN_WORDS.get((schema.name, schema.since_version, name), default_of(attribute))
            if operator.kinds.get(name) == "dtype" and expected in TORCH_DTYPE:
                expected = TORCH_DTYPE[expected]
            if isinstance(expected, float):  # the schema has float32
                found = float(np.float32(found))
            assert found == expected, f"{name} of {schema.name}-{schema.since_version}"


def is_function(schema: OpSchema) -> bool:
    return schema.has_function or schema.has_context_dependent_function


def default_of(attribute: OpSchema.Attribute):
    if not attribute.default_value.type:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    if isinstance(value, list):
        return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize(("operator", "schemas"), STANDARD)
def test_parameters_are_the_inputs(operator, schemas):
    positional = positional_of(operator)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in operator.parameters)
    for schema in schemas:
        inputs = list(schema.inputs)
        if inputs and inputs[-1].option == OpSchema.FormalParameterOption.Variadic:
            assert variadic
            inputs.pop()
        assert len(positional) >= len(inputs)
        required = sum(i.option == OpSchema.FormalParameterOption.Single for i in inputs)
        without_default = sum(p.default is p.empty for p in positional)
        assert without_default <= len(inputs), "an input of a newer version must be optional"
        assert (
            variadic
            or without_default <= required
            or any(i.option == OpSchema.FormalParameterOption.Optional for i in inputs[:without_default])
        ), "an optional input must have a default"
    if not variadic:
        assert len(positional) == max(len(schema.inputs) for schema in schemas)


@pytest.mark.parametrize("name", sorted({o.name for o in registered() if o.domain == ""}))
def test_all_versions_are_registered_and_only_those(name):
    ours = {v for o in registered() if (o.domain, o.name) == ("", name) for v in o.since}
    published = SCHEMAS[name]
    dispensable = {v for v, s in published.items() if s.deprecated or is_function(s)}
    assert set(published) - dispensable <= ours, "a version is missing"
    assert ours <= set(published) | ({1} if name in UNPUBLISHED else set()), "no such version"


def test_every_operator_of_networks_is_registered_or_a_function():
    newest = {name: versions[max(versions)] for name, versions in SCHEMAS.items() if versions}
    dispensable = {name for name, schema in newest.items() if schema.deprecated or is_function(schema)}
    assert set(newest) - dispensable - NOT_OF_NETWORKS <= {o.name for o in registered() if o.domain == ""}


@pytest.mark.parametrize("domain", sorted({o.domain for o in registered()}))
def test_every_registered_version_has_a_case(domain):
    cased = set()
    for module in pkgutil.iter_modules(cases_of_families.__path__):
        for case in getattr(importlib.import_module(f"{cases_of_families.__name__}.{module.name}"), "CASES", ()):
            if case.domain == domain:
                cased.add((case.op_type, since_version(domain, case.op_type, case.opset)))
    missing = {(o.name, v) for o in registered() if o.domain == domain for v in o.since} - cased
    assert not missing, " ".join(f"{name}-{version}" for name, version in sorted(missing))


def since_version(domain: str, name: str, opset: int) -> int | None:
    found = lookup(domain, name, opset)
    if found is None:
        return None
    if domain == "" and SCHEMAS[name]:
        return max((v for v in SCHEMAS[name] if v <= opset), default=1)
    return max((v for v in found.since if v <= opset), default=min(found.since))


def test_lookup_takes_the_version_in_force():
    assert lookup("", "Clip", 5) is not lookup("", "Clip", 6)
    assert lookup("", "Clip", 10).since == (6,)
    assert 13 in lookup("", "Clip", 28).since
    assert lookup("ai.onnx", "Clip", 13) is lookup("", "Clip", 13)
    assert lookup("", "NoSuchOperator", 13) is None
    assert lookup("elsewhere", "Clip", 13) is None


def test_a_withdrawn_version_holds_until_the_next():
    assert lookup("", "ThresholdedRelu", 9).since[0] == 1
    assert lookup("", "Scale", 9).since == (1,)


def test_a_version_is_registered_once():
    with pytest.raises(ValueError, match=":Relu-6 is registered twice"):
        op("Relu", 6)(torch.relu)
