"""The com.microsoft operators against the schemas that onnxruntime itself has."""

import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from onnx_obd.mirror import ops  # noqa: F401  (registers the operators)
from onnx_obd.mirror.registry import registered

DOMAIN = "com.microsoft"
SCHEMAS = {schema.name: schema for schema in get_all_operator_schema() if schema.domain == DOMAIN}
OPERATORS = {operator.name: operator for operator in registered() if operator.domain == DOMAIN}
ONNX_NAMESAKES = {"SimplifiedLayerNormalization"}  # onnxruntime has it in ai.onnx; saved models have it in both


def _default(attribute):
    proto = onnx.AttributeProto.FromString(attribute._default_value)
    value = onnx.helper.get_attribute_value(proto) if proto.type else None
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - ONNX_NAMESAKES))
def test_signature_is_the_schema(name):
    operator, schema = OPERATORS[name], SCHEMAS[name]
    positional = [p for p in operator.parameters if p.kind is not p.KEYWORD_ONLY]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in positional)
    assert len(positional) == len(schema.inputs)
    assert variadic == any("Variadic" in str(value.option) for value in schema.inputs)
    own = {operator.keyword_of(kind) for kind in ("output_count", "elem_types", "like")}
    keywords = {p.name: p for p in operator.parameters if p.name in operator.keywords - own}
    assert keywords.keys() == schema.attributes.keys()
    for key, attribute in schema.attributes.items():
        given, default = keywords[key].default, _default(attribute)
        if attribute.required:
            assert given is keywords[key].empty, key
        elif default is not None:
            assert given == pytest.approx(default), key
