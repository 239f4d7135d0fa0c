"""One test case of an operator, checked three ways against references we did not write.

A case is a node with its inputs. ``check`` compares its outputs with onnxruntime's, its gradient with finite
differences in float64, and its second-derivative rule with the squared Jacobian in float64. Each file of
``tests/mirror/ops`` lists the cases of the family file of the same name::

    CASES = [case("Gemm", 13, rand(3, 4), rand(4, 5), rand(5), alpha=0.5)]

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_operator(case):
        check(case)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.propagate import propagate
from onnx_obd.mirror.registry import lookup
from onnx_obd.mirror.values import is_float, to_numpy, to_torch

_RNG = np.random.default_rng(0)


def rand(*shape: int, low: float = -1.0, high: float = 1.0, dtype: Any = np.float32) -> np.ndarray:
    """Uniform values; the sequence is the same in every run."""
    return _RNG.uniform(low, high, shape).astype(dtype)


@dataclass(frozen=True)
class Case:
    """``inputs``: None where an optional input is absent, a list for a sequence. ``weights``: positions given as
    initializers.

    ``expected``: the outputs where onnxruntime has no kernel for this version (then say in a comment where they
    come from). ``gradient``: check derivatives; off for outputs that are not differentiable or for values at a kink.
    ``exact_second``: off where the rule goes by the parts of the node (``composite``) and so is not exact for it.
    ``outputs``: how many.
    """

    op_type: str
    opset: int
    inputs: tuple
    attributes: dict
    domain: str = ""
    outputs: int = 1
    weights: tuple[int, ...] = ()
    expected: tuple | None = None
    gradient: bool = True
    exact_second: bool = True
    tolerance: float = 1e-5

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, np.shape(v))) if isinstance(v, np.ndarray) else "-" for v in self.inputs)
        return f"{self.op_type}-{self.opset}({shapes})"

    def model(self) -> onnx.ModelProto:
        names = ["" if v is None else f"in{i}" for i, v in enumerate(self.inputs)]
        node = onnx.helper.make_node(
            self.op_type,
            names,
            [f"out{i}" for i in range(self.outputs)],
            domain=self.domain,
            name=f"the_{self.op_type}",
            **self.attributes,
        )
        inputs, initializers = [], []
        for i, (name, value) in enumerate(zip(names, self.inputs, strict=True)):
            if value is None:
                continue
            if isinstance(value, list):
                elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(value[0]).dtype)
                inputs.append(onnx.helper.make_tensor_sequence_value_info(name, elem_type, None))
                continue
            tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
            if i in self.weights:
                initializers.append(tensor)
            else:
                inputs.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(np.shape(value))))
        outputs = [onnx.ValueInfoProto(name=f"out{i}") for i in range(self.outputs)]
        graph = onnx.helper.make_graph([node], "case", inputs, outputs, initializers)
        opsets = [onnx.helper.make_opsetid("", self.opset)]
        if self.domain:
            opsets = [onnx.helper.make_opsetid(self.domain, self.opset), onnx.helper.make_opsetid("", 17)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def feeds(self) -> dict[str, np.ndarray]:
        given = {f"in{i}": v for i, v in enumerate(self.inputs) if v is not None and i not in self.weights}
        return {name: np.asarray(v) if np.isscalar(v) else v for name, v in given.items()}


def case(op_type: str, opset: int, *inputs: np.ndarray | None, **attributes: Any) -> Case:
    """A case; ``domain``, ``outputs``, ``weights``, ``expected``, ``gradient``, ``tolerance`` are the harness's own."""
    own = {k: attributes.pop(k) for k in tuple(Case.__dataclass_fields__) if k in attributes}
    return Case(op_type, opset, inputs, attributes, **own)


def same_as(opset: int, newer: Case) -> Case:
    """A case of a version that onnxruntime lacks, whose outputs are those of the version of another opset."""
    return replace(newer, expected=tuple(run_onnxruntime(replace(newer, opset=opset))))


def across(opsets: Sequence[int], known: Case) -> list[Case]:
    """The case at each opset, with the outputs that onnxruntime computes for the case as it is given."""
    expected = known.expected or tuple(run_onnxruntime(known))
    return [replace(known, opset=opset, expected=expected) for opset in opsets]


def check(case: Case) -> None:
    check_forward(case)
    if case.gradient:
        check_gradient(case)
        if case.exact_second:
            check_second(case)


def run_onnxruntime(case: Case) -> list:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, case.feeds())


def check_forward(case: Case) -> None:
    expected = case.expected if case.expected is not None else run_onnxruntime(case)
    mirror = Mirror(case.model())
    assert not mirror.boundaries, "the operator is not registered for this version"
    with torch.no_grad():
        for run in range(4):  # specialising, watching, tracing, and by the calls that were traced
            inputs = [to_torch(v) for v in case.feeds().values()]
            if run == 2:  # the trace must hold for any values
                mirror.evaluate([v.flip(tuple(range(v.dim()))) if is_float(v) else v for v in inputs])
                continue
            found = mirror.evaluate(inputs)
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                _compare(to_numpy(ours), theirs, case.tolerance)


def _compare(ours: Any, theirs: Any, tolerance: float) -> None:
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            _compare(a, b, tolerance)
        return
    if theirs is None:
        assert ours is None
        return
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = (np.array([value[key] for key in theirs]) for value in (ours, theirs))
    assert ours.shape == np.shape(theirs)
    assert ours.dtype == np.asarray(theirs).dtype
    if ours.dtype.kind in "OSU":
        assert ours.tolist() == np.asarray(theirs).tolist()
        return
    np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance)


Key = int | str
"""What derivatives are taken of: a graph input by position, or a weight by name."""


def _float64(case: Case) -> tuple[Mirror, list, list[Key], list[torch.Tensor]]:
    """The mirror in float64 as a function of all its float inputs and weights, but those read on the host."""
    mirror = Mirror(case.model()).double()
    inputs = [to_torch(v) for v in case.feeds().values()]
    inputs = [v.double() if is_float(v) else v for v in inputs]
    settings = {f"in{i}" for i in lookup(case.domain, case.op_type, case.opset).host}
    free = [i for i, name in enumerate(case.feeds()) if is_float(inputs[i]) and name not in settings]
    weights = {name: weight.detach().clone() for name, weight in mirror.weights.items() if name not in settings}
    return mirror, inputs, [*free, *weights], [inputs[i] for i in free] + list(weights.values())


def _outputs(mirror: Mirror, inputs: list, free: Sequence[Key], values: Sequence[torch.Tensor]) -> tuple:
    inputs, weights = list(inputs), {}
    for key, value in zip(free, values, strict=True):
        (inputs if isinstance(key, int) else weights)[key] = value
    found = mirror.evaluate(inputs, weights=weights)
    return tuple(v for v in found if is_float(v) and v.numel())


def check_gradient(case: Case) -> None:
    mirror, inputs, free, values = _float64(case)
    values = [v.detach().clone().requires_grad_() for v in values]
    found = _outputs(mirror, inputs, free, values)
    if not any(v.requires_grad for v in found):
        raise AssertionError("no output depends on a float input: say gradient=False")
    assert torch.autograd.gradcheck(
        lambda *v: tuple(o for o in _outputs(mirror, inputs, free, v) if o.requires_grad), values, atol=1e-5, rtol=1e-3
    )


def check_second(case: Case) -> None:
    """h_in = sum_j (dy_j/dx_i)^2 h_out[j], element for element, for random positive h_out."""
    mirror, inputs, free, values = _float64(case)
    plan = mirror.plan(inputs)
    with torch.no_grad():
        env = plan.record(plan.start(inputs))
    generator = torch.Generator().manual_seed(0)
    seeds = {
        slot: torch.rand(env[slot].shape, generator=generator, dtype=torch.float64)
        for slot in plan.outputs
        if is_float(env[slot])
    }
    slots = [plan.inputs[key] if isinstance(key, int) else mirror.weight_slots()[key] for key in free]
    estimated: set[str] = set()
    h = propagate(plan, env, seeds, slots, generator=generator, estimated=estimated)
    if estimated:
        return  # no rule of its own: tests/mirror/test_second.py checks the estimate in expectation
    weights = torch.cat([seed.reshape(-1) for seed in seeds.values()])
    for position, slot in enumerate(slots):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, position=position: torch.cat(
                [o.reshape(-1) for o in _outputs(mirror, inputs, free, _put(values, position, v))]
            ),
            values[position],
        )
        expected = (jacobian.reshape(len(weights), -1).square() * weights[:, None]).sum(0)
        expected = expected.reshape(values[position].shape)
        found = h.get(slot, torch.zeros_like(expected))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def _put(values: Sequence[torch.Tensor], position: int, value: torch.Tensor) -> list[torch.Tensor]:
    values = list(values)
    values[position] = value
    return values


def second_of_weights(model: onnx.ModelProto, feeds: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """h of every weight in float64, for h_out from 1 to 2 over the elements of each output, by rules alone."""
    mirror = Mirror(model).double()
    inputs = [to_torch(value) for value in feeds]
    inputs = [value.double() if is_float(value) else value for value in inputs]
    plan = mirror.plan(inputs)
    with torch.no_grad():
        env = plan.record(plan.start(inputs))
    seeds = {
        slot: torch.linspace(1, 2, env[slot].numel(), dtype=torch.float64).view(env[slot].shape)
        for slot in plan.outputs
        if is_float(env[slot])
    }
    estimated: set[str] = set()
    h = propagate(plan, env, seeds, mirror.weight_slots().values(), estimated=estimated)
    assert not estimated
    return {name: h[slot] for name, slot in mirror.weight_slots().items() if slot in h}
