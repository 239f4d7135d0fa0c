"""Small networks written with onnx.helper, and their dense Hessians."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.objective import choose_objective
from onnx_obd.calibration.pictures import Pictures
from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch
from onnx_obd.recovery import Composer
from onnx_obd.surgery.mask import snapshot


def model(nodes, inputs, outputs, weights, opset=17) -> onnx.ModelProto:
    """``inputs`` and ``outputs``: name -> shape; ``weights``: name -> array."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def mlp(seed=0, sizes=(4, 5, 3)) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], {}, "x"
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        weights |= {f"w{i}": rng.normal(size=(fan_in, fan_out)), f"b{i}": rng.normal(size=fan_out)}
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"y{i}"], name=f"gemm{i}"))
        value = f"y{i}"
        if i < len(sizes) - 2:
            nodes.append(helper.make_node("Tanh", [value], [f"t{i}"], name=f"tanh{i}"))
            value = f"t{i}"
    nodes[-1].output[0] = "y"
    return model(nodes, {"x": ["N", sizes[0]]}, {"y": ["N", sizes[-1]]}, weights)


def linear(seed=0) -> onnx.ModelProto:
    return mlp(seed, (4, 3))


def calibration(proto, count=6, kind="squared", batch_size=3, seed=1, labels=None, **kwargs):
    """A float64 mirror with its calibration and the same samples one by one."""
    rng = np.random.default_rng(seed)
    value = proto.graph.input[0]
    shape = [1 if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim]
    feeds = [{value.name: rng.normal(size=shape).astype(np.float32)} for _ in range(count)]
    samples = Samples.from_feeds(feeds, labels, source="test", batchable=True)
    mirror = Mirror(proto).double()
    batches = [[to_torch(f[value.name]) for f in [feed]] for feed in feeds]
    target = None if labels is None else torch.from_numpy(labels)
    objective = choose_objective(mirror, batches, target, kind=kind, **kwargs)
    found = Calibration(mirror, objective, samples, batch_size)
    return found, found.singles(count)


def dense_ggn_diag(found: Calibration, name: str) -> torch.Tensor:
    """diag(Jᵀ H J) of the mean loss by dense Jacobians and Hessians in float64."""
    mirror, objective = found.mirror, found.objective
    weight = mirror.weights[name].detach()
    total = torch.zeros_like(weight)
    for batch in found.batches:

        def values(w, batch=batch):
            return mirror.evaluate(batch.inputs, outputs=objective.slots, weights={name: w})

        outputs = values(weight)
        jacobians = torch.autograd.functional.jacobian(lambda w: values(w), weight)
        for position, (z, target, jacobian) in enumerate(zip(outputs, batch.targets, jacobians, strict=True)):
            head = objective.heads[position]
            hessian = torch.autograd.functional.hessian(lambda v, h=head, t=target, n=batch.count: h.loss(v, t, n), z)
            j = jacobian.reshape(z.numel(), -1)
            h = hessian.reshape(z.numel(), z.numel())
            total += (j * (h @ j)).sum(0).reshape(weight.shape) * (batch.count / found.num_samples)
    return total


def dense_hessian_diag(found: Calibration, name: str) -> torch.Tensor:
    """The diagonal of the Hessian of the mean loss, dense, in float64."""
    mirror, objective = found.mirror, found.objective

    def loss(w):
        total = 0.0
        for batch in found.batches:
            values = mirror.evaluate(batch.inputs, outputs=objective.slots, weights={name: w})
            total = total + objective.loss(values, batch.targets, batch.count) * batch.count
        return total / found.num_samples

    weight = mirror.weights[name].detach()
    hessian = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), weight.numel())
    return hessian.diagonal().reshape(weight.shape)


def pictures_of(found: Calibration) -> Pictures:
    """The pictures among its samples, judged by what its mirror says of them now."""
    return Composer(found.batches, found.objective, found.mirror, snapshot(found.mirror)).pictures
