"""The graph as a torch module: same inputs, same outputs, and every float weight a parameter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from onnx_obd.errors import DataError, ModelError
from onnx_obd.graph.load import load_model
from onnx_obd.graph.weights import Path as StoredPath
from onnx_obd.mirror import ops  # noqa: F401  (importing registers the operators)
from onnx_obd.mirror.compile import compile_model
from onnx_obd.mirror.program import MAX_PLANS, Env, Program, signature
from onnx_obd.mirror.reuse import keep_freed_memory
from onnx_obd.mirror.values import FLOAT_DTYPES, Precision, materialise, to_numpy, to_torch


class Mirror(nn.Module):
    """A differentiable copy of an ONNX model.

    It is called with the graph inputs that are not initializers, in graph order, as torch tensors, and returns the
    outputs in graph order (a single output bare, several as a tuple). ``parameters()`` are the float weights under
    their ONNX names and in their ONNX layouts; nothing is transposed, folded or copied, so writing them back is
    ``graph.weights.write_weights(proto, mirror.state())``.

    Args:
        model: a ModelProto (with its external data loaded) or the path of a file.
        beside: the mirror of a model that this one was made from: values of the main graph that it has too get the same
            slots here, whatever nodes came to them.

    Raises:
        ModelError: the model cannot be read or is not in order.
        UnsupportedNodeError: neither the mirror nor onnxruntime can run a node.
    """

    def __init__(self, model: onnx.ModelProto | str | Path, *, beside: Mirror | None = None):
        super().__init__()
        keep_freed_memory()
        self._first = None if beside is None else frozenset(beside.value_names)
        self.proto = model if isinstance(model, onnx.ModelProto) else load_model(model).proto
        self._precision = Precision()
        self._compile()
        # ONNX names may hold dots, which register_parameter refuses for the sake of attribute access alone.
        for name in self._compiled.parameters:
            self._parameters[name] = nn.Parameter(self._read(name))
        self._bind()
        self.eval()

    # ---- what it is made of

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """The parameters by ONNX name."""
        return self._parameters

    @property
    def input_names(self) -> tuple[str, ...]:
        return self._compiled.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.proto.graph.output)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The nodes that onnxruntime runs because the registry lacks them; no gradient passes through them."""
        return tuple(self._compiled.boundaries)

    def state(self) -> dict[str, Any]:
        """The weights as numpy arrays as the file stores them; those stored as integers as integers."""
        return {name: self._stored_form(name, parameter) for name, parameter in self._parameters.items()}

    def _read(self, name: str) -> torch.Tensor:
        stored = self._compiled.weights[name].read(self.proto)
        integers = self._compiled.integers.get(name)
        return to_torch(stored) if integers is None else integers.decode(stored)

    def _stored_form(self, name: str, parameter: torch.Tensor) -> Any:
        weight, integers = self._compiled.weights[name], self._compiled.integers.get(name)
        if integers is not None:
            return integers.encode(parameter, weight.read(self.proto))
        return to_numpy(parameter).astype(onnx.helper.tensor_dtype_to_np_dtype(weight.elem_type), copy=False)

    # ---- running

    def forward(self, *inputs: Any) -> Any:
        outputs = self.evaluate(inputs)
        return materialise(outputs[0]) if len(outputs) == 1 else tuple(map(materialise, outputs))

    def evaluate(
        self,
        inputs: Sequence[Any],
        *,
        outputs: Sequence[str | int] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple:
        """The values ``outputs``, by name or slot (the graph outputs by default), with some weights replaced.

        Only the nodes that these outputs need are run. Replaced weights need not be parameters, so this is the
        function of the weights that ``torch.func`` differentiates.
        """
        values = self._prepare(inputs)
        key = (outputs and tuple(outputs), *map(signature, values))
        plan = self._plans.get(key)
        program = plan or self._restricted(outputs)
        env = program.start(values)
        for name, value in (weights or {}).items():
            env[self._compiled.parameters[name]] = value
        if plan is not None:
            self._plans.move_to_end(key)
            return plan.finish(env, reuse=not weights)
        self._plans[key], results = program.specialise(env, frozenset(self._compiled.parameters.values()))
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return results

    def plan(self, inputs: Sequence[Any], outputs: Sequence[str | int] | None = None) -> Program:
        """The program specialised for inputs of these shapes (running it once if need be)."""
        key = (outputs and tuple(outputs), *map(signature, self._prepare(inputs)))
        if key not in self._plans:
            with torch.no_grad():
                self.evaluate(inputs, outputs=outputs)
        return self._plans[key]

    @property
    def program(self) -> Program:
        """The whole graph, for inputs of any shape."""
        return self._compiled.program

    def start(self, inputs: Sequence[Any], program: Program | None = None) -> Env:
        """An environment of a plan, by default the whole program, holding the inputs in the mirror's precision."""
        return (program or self.program).start(self._prepare(inputs))

    def name_of(self, slot: int) -> str:
        """A name of the value in a slot; values inside function bodies have none of their own in the graph."""
        names = {slot: name for name, slot in reversed(self._compiled.names.items())}
        return names.get(slot, f"value {slot}")

    @property
    def value_names(self) -> Mapping[str, int]:
        """Values of the main graph by name, and their slots."""
        return self._compiled.names

    def slot(self, value: str) -> int:
        """The slot of a value of the main graph, in every plan."""
        if value not in self._compiled.names:
            raise ModelError(f"the graph has no value '{value}'")
        return self._compiled.names[value]

    def weight_slots(self) -> Mapping[str, int]:
        """Weight name to slot, in every plan."""
        return self._compiled.parameters

    def stored_slots(self) -> Mapping[int, StoredPath]:
        """Slot of a parameter or constant to where its tensor stands in the ModelProto."""
        return self._compiled.stored

    # ---- the machinery

    def _compile(self) -> None:
        self._compiled = compile_model(self.proto, self._precision, self._first)
        self._plans: OrderedDict[tuple, Program] = OrderedDict()

    def _bind(self) -> None:
        """Put parameters and constants into the root program's template."""
        template = self._compiled.program.template
        for name, slot in self._compiled.parameters.items():
            template[slot] = self._parameters[name]
        for slot, value in self._compiled.constants.items():
            template[slot] = self._precision.value(value)

    def _restricted(self, outputs: Sequence[str | int] | None) -> Program:
        if outputs is None:
            slots = self._compiled.program.outputs
        else:
            slots = tuple(value if isinstance(value, int) else self.slot(value) for value in outputs)
        return self._compiled.program.restricted(slots)

    def _prepare(self, inputs: Sequence[Any]) -> list[Any]:
        if len(inputs) != len(self._compiled.program.inputs):
            names = list(self.input_names)
            raise DataError(f"the model takes {len(names)} inputs {names}, not {len(inputs)}")
        return list(inputs) if self._precision.is_own else [*map(self._precision.value, inputs)]

    def _apply(self, fn: Callable, recurse: bool = True) -> Mirror:
        super()._apply(fn, recurse)
        probes = {dtype: fn(torch.empty(0, dtype=dtype)) for dtype in map(self._precision.dtype, FLOAT_DTYPES)}
        dtypes = {dtype: probes[self._precision.dtype(dtype)].dtype for dtype in FLOAT_DTYPES}
        device = fn(torch.empty(0, device=self._precision.device)).device
        self._precision = Precision({a: b for a, b in dtypes.items() if a != b}, device)
        self._compile()
        self._bind()
        return self
