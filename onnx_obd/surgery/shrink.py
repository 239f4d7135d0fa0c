"""Removing units: every tensor loses the slices, and what spells a size follows. The graph stays what it was.

But for copies of nodes that compute shapes, where layers that had one shape get different ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from onnx_obd.errors import ModelError, UsageError
from onnx_obd.graph.weights import Path, holder, read_tensor, scopes
from onnx_obd.surgery.shrink_arithmetic import Edits
from onnx_obd.surgery.shrink_parameters import CannotShrink, size_edits
from onnx_obd.units.find import Unit, UnitMap
from onnx_obd.units.kept import Kept, broken
from onnx_obd.units.trace import Trace, Value

Tensor = TensorProto | onnx.SparseTensorProto | AttributeProto


def shrink(proto: onnx.ModelProto, units: UnitMap, removed: Collection[Unit]) -> onnx.ModelProto:
    """The model without these units: a copy whose tensors are smaller, with the same nodes, names, inputs and outputs.

    Nodes that compute shapes may be there several times (``Edits.copies``).

    If the weights of ``TensorSlice.summed`` slices of the removed units are zero in ``proto``, the result computes
    what ``proto`` does; otherwise what the units contributed is missing.

    Args:
        proto: the model that ``units`` were found in; its weights may have changed since, its shapes not.
        removed: units of ``units``; of every family one at least must stay.

    Raises:
        UsageError: an axis would be left without indices, or a unit is not one of ``units``.
        CannotShrink: a size is spelled where it cannot be changed.
    """
    _check(units, removed)
    kept = units.kept(removed)
    _check_what_is_left(units.trace, kept)
    if (step := broken((each for each in units.trace.steps if each.moves), kept)) is not None:
        raise CannotShrink(f"node {step.step.node} cannot do without all of this at once")
    edits = size_edits(units.trace, kept)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    _cut_tensors(result, units, kept, edits)
    for (path, name), (old, new) in edits.attributes.items():
        if new != old:
            _set_attribute(_node(result, path), name, new)
    names = _Names(result)
    for (path, position), numbers in edits.own.items():
        _read_own(result, names, _node(result, path), path, position, numbers)
    _mend_shapes(result, units, kept)
    _give_copies(result, names, edits)
    return result


def _check(units: UnitMap, removed: Collection[Unit]) -> None:
    known = {unit.id: unit for unit in units.units}
    if unknown := [unit for unit in removed if known.get(unit.id) != unit]:
        raise UsageError(f"unit {unknown[0].id} is not one of this model's")
    going = {unit.id for unit in removed}
    for members in units.families().values():
        if all(unit.id in going for unit in members):
            tensor = members[0].slices[0].tensor
            raise UsageError(f"all {len(members)} units of '{tensor}' would go; one at least must stay")


def _check_what_is_left(trace: Trace, kept: Kept) -> None:
    """Families that cross one another (groups and what is in them) may each keep a member, but no index of an axis."""
    names = {number: name for name, number in trace.names.items()}
    for value, axes in trace.axes.items():
        for axis, mask in zip(axes, kept.value(value), strict=True):
            if axis.length and not mask.any():
                where = f"'{names[value]}'" if value in names else "a value inside a body or function"
                raise UsageError(f"nothing would be left of an axis of {where}: too many units would go at once")


# ---- stored tensors


def _cut_tensors(proto: onnx.ModelProto, units: UnitMap, kept: Kept, edits: Edits) -> None:
    for value, path in units.trace.stored.items():
        masks = kept.value(value)
        if all(mask.all() for mask in masks) and value not in edits.stored:
            continue
        target = holder(proto, path)
        array = read_stored(target)
        for axis, mask in enumerate(masks):
            array = array.compress(mask, axis)
        numbers = edits.stored.get(value)
        replace_tensor(target, array if numbers is None else numbers.astype(array.dtype))


def read_stored(target: Tensor) -> np.ndarray:
    """The values of a stored tensor or of a Constant's attribute of any kind."""
    if isinstance(target, AttributeProto) and target.type != AttributeProto.FLOATS:
        return np.array(onnx.helper.get_attribute_value(target))
    return read_tensor(target)


def replace_tensor(target: Tensor, array: np.ndarray) -> None:
    """Another value, of another shape, in the fields and index form that hold the present one."""
    if isinstance(target, AttributeProto):
        _replace_attribute(target, array)
    elif isinstance(target, onnx.SparseTensorProto):
        flat = np.flatnonzero(array.reshape(-1).view(f"u{array.itemsize}"))
        indices = flat if len(target.indices.dims) == 1 else np.stack(np.unravel_index(flat, array.shape), 1)
        name = target.values.name
        target.values.CopyFrom(numpy_helper.from_array(array.reshape(-1)[flat], name))
        target.indices.CopyFrom(numpy_helper.from_array(indices.astype(np.int64)))
        target.dims[:] = array.shape
    else:
        new = numpy_helper.from_array(np.array(array, order="C"), target.name)
        if not target.HasField("raw_data") and target.data_type != TensorProto.STRING:
            new = onnx.helper.make_tensor(target.name, target.data_type, array.shape, array.reshape(-1))
        new.doc_string = target.doc_string
        new.metadata_props.extend(target.metadata_props)
        target.CopyFrom(new)


def _replace_attribute(target: AttributeProto, array: np.ndarray) -> None:
    match target.type:
        case AttributeProto.INT:
            target.i = int(array)
        case AttributeProto.FLOAT:
            target.f = float(array)
        case AttributeProto.INTS:
            target.ints[:] = array.reshape(-1).tolist()
        case AttributeProto.FLOATS:
            target.floats[:] = array.reshape(-1).tolist()
        case _:
            raise ModelError(f"attribute '{target.name}' holds no numbers")


# ---- nodes


def _node(proto: onnx.ModelProto, path: Path) -> onnx.NodeProto:
    return _scope(proto, path).node[path[-1]]


def _scope(proto: onnx.ModelProto, path: Path) -> onnx.GraphProto | onnx.FunctionProto:
    """The graph or function that holds the node or tensor at ``path``."""
    prefix = path[: -(3 if isinstance(path[-1], str) else 2)]
    return next(scope for own, scope in scopes(proto) if own == prefix)


def _set_attribute(node: onnx.NodeProto, name: str, value: int | list[int] | None) -> None:
    """Set an attribute, or remove it (None)."""
    for position, attribute in enumerate(node.attribute):
        if attribute.name == name:
            if attribute.ref_attr_name:
                raise CannotShrink(f"node {node.op_type} '{node.name}': the caller of its function gives '{name}'")
            del node.attribute[position]
            break
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))


class _Names:
    """Of values and initializers, to which new ones come."""

    def __init__(self, proto: onnx.ModelProto):
        self.proto = proto

    @cached_property
    def taken(self) -> set[str]:
        return {name for _, scope in scopes(self.proto) for name in _value_names(scope)}

    def new(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted


def _read_own(
    proto: onnx.ModelProto, names: _Names, node: onnx.NodeProto, path: Path, position: int, numbers: np.ndarray
) -> None:
    """A new initializer beside the node at ``path``, read by ``node`` in the place of what it reads now."""
    name = names.new(f"{node.output[0]}_sizes")
    while len(node.input) <= position:
        node.input.append("")
    _scope(proto, path).initializer.append(numpy_helper.from_array(numbers, name))
    node.input[position] = name


def _give_copies(proto: onnx.ModelProto, names: _Names, edits: Edits) -> None:
    """Each behind its original; the paths of nodes are those of the original model until all have been made."""
    made: dict[tuple, str] = {}
    behind: list[tuple[Path, onnx.NodeProto]] = []
    for (path, position), (source, others) in edits.copies.items():
        reader, original = _node(proto, path), _node(proto, source)
        output = list(original.output).index(reader.input[position])
        key = source, output, tuple((p, tuple(numbers.reshape(-1).tolist())) for p, numbers in sorted(others.items()))
        if key not in made:
            copy = onnx.NodeProto()
            copy.CopyFrom(original)
            copy.output[:] = [names.new(f"{name}_again") if name else "" for name in original.output]
            copy.name = original.name and f"{original.name}_for_{copy.output[output]}"
            for p, numbers in others.items():
                _read_own(proto, names, copy, source, p, numbers)
            behind.append((source, copy))
            made[key] = copy.output[output]
        reader.input[position] = made[key]
    for path, copy in sorted(behind, key=lambda pair: pair[0], reverse=True):
        _scope(proto, path).node.insert(path[-1] + 1, copy)


def _value_names(scope: onnx.GraphProto | onnx.FunctionProto) -> Iterable[str]:
    if isinstance(scope, onnx.GraphProto):
        yield from (value.name for value in (*scope.input, *scope.output, *scope.value_info))
        yield from (tensor.name for tensor in scope.initializer)
        yield from (tensor.values.name for tensor in scope.sparse_initializer)
    for node in scope.node:
        yield from node.input
        yield from node.output


# ---- declared shapes


def _mend_shapes(proto: onnx.ModelProto, units: UnitMap, kept: Kept) -> None:
    """Shapes declared for values of the main graph follow; those inside bodies that changed are dropped."""
    graph, trace = proto.graph, units.trace
    stored = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    for info in (*graph.value_info, *(value for value in graph.input if value.name in stored)):
        masks = kept.value(trace.names.get(info.name, 0))
        for dimension, mask in zip(info.type.tensor_type.shape.dim, masks, strict=False):
            if not mask.all() and dimension.HasField("dim_value"):
                dimension.dim_value = int(mask.sum())
    touched = set()
    for step in trace.steps:
        path = step.step.path
        if path and len(path) > 2 and any(not mask.all() for value in step.outputs for mask in kept.value(value)):
            touched.add(path[:-2])
    for path, scope in scopes(proto):
        if path in touched:
            del scope.value_info[:]
        for info, value in zip(getattr(scope, "output", ()), _returned(trace, path), strict=False):
            if any(not mask.all() for mask in kept.value(value)):
                info.type.tensor_type.ClearField("shape")


def _returned(trace: Trace, path: Path) -> Sequence[Value]:
    """The outputs of the body at ``path``."""
    return trace.body_outputs.get((path[:-1], path[-1]), ()) if path else ()
