"""Sequences, which are lists, and optionals, which are values or None."""

from __future__ import annotations

import torch

from onnx_obd.mirror.composite import through_bodies
from onnx_obd.mirror.registry import Body, Ints, Like, OutputCount, family, op
from onnx_obd.mirror.second import movement

movement_op = family(second=movement)
shape_op = family(shape_only=True, differentiable=False)


@movement_op("SequenceConstruct", 11)
def sequence_construct(*inputs):
    return list(inputs)


@shape_op("SequenceEmpty", 11)
def sequence_empty(*, dtype=1):
    return []


@movement_op("SequenceAt", 11)
def sequence_at(sequence, position: Ints):
    return sequence[position[0]]


@movement_op("SequenceInsert", 11)
def sequence_insert(sequence, tensor, position: Ints | None = None):
    place = len(sequence) if position is None else position[0]
    return [*sequence[:place], tensor, *sequence[place:]]


@movement_op("SequenceErase", 11)
def sequence_erase(sequence, position: Ints | None = None):
    place = (-1 if position is None else position[0]) % len(sequence)
    return [*sequence[:place], *sequence[place + 1 :]]


@shape_op("SequenceLength", 11)
def sequence_length(sequence, *, like: Like):
    return like.new_tensor(len(sequence), dtype=torch.int64)


@movement_op("SplitToSequence", 11, 24)
def split_to_sequence(x, split: Ints | None = None, *, axis=0, keepdims=1):
    """Parts of the sizes ``split``, of one size if that is a single number, of size one where it is absent."""
    if split is None and not keepdims:
        return list(x.unbind(axis))
    sizes = split or (1,)
    return list(x.split(sizes if len(sizes) > 1 else sizes[0], axis))


@movement_op("ConcatFromSequence", 11)
def concat_from_sequence(sequence, *, axis, new_axis=0):
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@op("SequenceMap", 17, second=through_bodies)
def sequence_map(sequence, *additional_inputs, body: Body, outputs: OutputCount):
    rows = [
        body(item, *(other[i] if isinstance(other, list) else other for other in additional_inputs))
        for i, item in enumerate(sequence)
    ]
    return tuple([row[output] for row in rows] for output in range(outputs))


@movement_op("Optional", 15, 28)
def optional(x=None, *, type=None):
    return x


@movement_op("OptionalGetElement", 15, 18, 28)
def optional_get_element(x):
    if x is None:
        raise ValueError("the optional is empty")
    return x


@shape_op("OptionalHasElement", 15, 18, 28)
def optional_has_element(x=None, *, like: Like):
    return like.new_tensor(x is not None, dtype=torch.bool)
