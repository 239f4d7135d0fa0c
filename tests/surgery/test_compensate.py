import numpy as np
import pytest
import torch
from onnx import helper

from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.samples import Samples
from onnx_obd.surgery.compensate import accept, compensate
from onnx_obd.surgery.gram import collect_grams, column_blocks, normal_equations
from onnx_obd.surgery.mask import apply_masks, restore, snapshot
from onnx_obd.surgery.operands import find_operands
from onnx_obd.surgery.walk import Walk
from tests.curvature.networks import calibration, linear, mlp, model
from tests.surgery.graphs import Graph


def generator():
    return torch.Generator().manual_seed(0)


def pruned(proto, names, sparsity=0.5, count=40, **kwargs):
    """A calibration whose mirror lost a random part of the named weights; the original weights; the masks."""
    found, _ = calibration(proto, count=count, batch_size=8, **kwargs)
    original = snapshot(found.mirror)
    keep = {name: torch.rand(original[name].shape, generator=generator()) >= sparsity for name in names}
    apply_masks(found.mirror, keep)
    return found, original, keep


def test_a_refit_of_one_node_is_the_least_squares_solution():
    """Against numpy's lstsq on the augmented system, row by row."""
    found, original, keep = pruned(linear(), ["w0"])
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w0"])
    x = torch.cat([b.inputs[0] for b in found.batches]).double()
    target = x @ original["w0"] + original["b0"]
    compensate(found, found, [operand], original, keep)
    w, b = (found.mirror.weights[n].detach() for n in ("w0", "b0"))
    ones = torch.cat((x, torch.ones(len(x), 1, dtype=torch.float64)), 1)
    for column in range(w.shape[1]):
        s = torch.cat((keep["w0"][:, column], torch.tensor([True])))
        a = ones[:, s].numpy()
        start = torch.cat((original["w0"][:, column], original["b0"][column : column + 1]))[s].numpy()
        damping = 0.01 * float(ones.square().sum(0).mean())
        rows = np.vstack((a, np.sqrt(damping) * np.eye(a.shape[1])))
        values = np.concatenate((target[:, column].numpy(), np.sqrt(damping) * start))
        expected = np.linalg.lstsq(rows, values, rcond=None)[0]
        got = torch.cat((w[:, column], b[column : column + 1]))[s].numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    assert (w[~keep["w0"]] == 0).all()


def test_the_acceptance_loss_never_rises_and_falls_where_it_can():
    found, original, keep = pruned(mlp(sizes=(6, 8, 7, 3)), ["w0", "w1", "w2"])
    (operands, skipped), before = find_operands(found.mirror, found.batches[0], keep), found.loss()
    assert not skipped
    assert [operand.name for operand in operands] == ["w0", "w1", "w2"]
    refits = compensate(found, found, operands, original, keep)
    losses = [before, *(refit.loss_after for refit in refits)]
    assert losses == sorted(losses, reverse=True)
    assert found.loss() == pytest.approx(losses[-1])
    assert losses[-1] < 0.7 * before
    assert all((found.mirror.weights[name][~mask] == 0).all() for name, mask in keep.items())


def test_of_several_ridges_the_best_is_taken():
    losses = {}
    for ridges in ((1e-6,), (0.1,), (100.0,), (100.0, 0.1, 1e-6)):
        found, original, keep = pruned(mlp(sizes=(3, 12, 2)), ["w1"], count=60)
        restore(found.mirror, original)
        parts = (found.samples.subset(part) for part in (range(14), range(14, 60)))
        fitting, acceptance = (Calibration(found.mirror, found.objective, part, 8) for part in parts)
        apply_masks(found.mirror, keep)
        (operand,), _ = find_operands(found.mirror, found.batches[0], ["w1"])
        (refit,) = compensate(fitting, acceptance, [operand], original, keep, ridges=ridges)
        losses[ridges] = refit.loss_after
    *alone, of_all = losses.values()
    assert of_all == pytest.approx(min(alone)) and of_all < refit.loss_before
    assert len(set(alone)) == 3


def test_a_change_that_harms_is_undone():
    found, _, _ = pruned(linear(), ["w0"])
    before, loss = snapshot(found.mirror), found.loss()
    assert accept(found.mirror, {"w0": 100 * torch.ones(4, 3)}, found.loss, loss) == (0.0, loss)
    assert all(torch.equal(found.mirror.weights[name], value) for name, value in before.items())


def test_too_few_positions_are_said():
    found, original, keep = pruned(mlp(sizes=(9, 4, 2)), ["w0"], sparsity=0.1, count=3)
    before = snapshot(found.mirror)
    operands, _ = find_operands(found.mirror, found.batches[0], ["w0"])
    (refit,) = compensate(found, found, operands, original, keep)
    assert refit.reason == "3 positions for 8 weights per output"
    assert all(torch.equal(found.mirror.weights[name], value) for name, value in before.items())


def test_blocks_of_columns_lower_the_error_too(monkeypatch):
    assert [(b.start, b.stop) for b in column_blocks(10, 4)] == [(0, 3), (3, 7), (7, 10)]
    found, original, keep = pruned(mlp(sizes=(10, 3)), ["w0"])
    before = found.loss()
    monkeypatch.setattr("onnx_obd.surgery.compensate.column_blocks", lambda columns: column_blocks(columns, 4))
    operands, _ = find_operands(found.mirror, found.batches[0], ["w0"])
    refits = compensate(found, found, operands, original, keep)
    assert len(refits) == 3
    assert found.loss() < before


def conv_net(bias_of="none"):
    """Conv (grouped) -> BatchNormalization, Add or nothing -> Relu."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(6, 2, 3, 3))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", group=2, pads=[1, 1, 1, 1])]
    if bias_of == "norm":
        weights |= {"s": rng.uniform(1, 2, 6), "b": rng.normal(size=6)}
        weights |= {"m": rng.normal(size=6), "v": rng.uniform(1, 2, 6)}
        nodes.append(helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], name="norm"))
    elif bias_of == "add":
        weights |= {"b": rng.normal(size=(6, 1, 1))}
        nodes.append(helper.make_node("Add", ["c", "b"], ["y"], name="add"))
    else:
        nodes.append(helper.make_node("Relu", ["c"], ["y"], name="relu"))
    return model(nodes, {"x": ["N", 4, 6, 6]}, {"y": ["N", 6, 6, 6]}, weights)


@pytest.mark.parametrize(("bias_of", "shifted"), [("norm", "m"), ("add", "b"), ("none", None)])
def test_the_bias_stands_where_the_graph_has_it(bias_of, shifted):
    found, original, keep = pruned(conv_net(bias_of), ["w"])
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w"])
    assert (operand.shift.name if operand.shift else None) == shifted
    before = found.loss()
    compensate(found, found, [operand], original, keep)
    assert found.loss() < before
    changed = {n for n, v in original.items() if not torch.equal(found.mirror.weights[n].detach(), v)}
    assert changed == {"w", shifted} - {None}


def test_shifting_the_statistic_shifts_the_output():
    """d added to the output of Conv is the same as the shift the operand names."""
    found, _, _ = pruned(conv_net("norm"), ["w"], sparsity=0.0)
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w"])
    x = found.batches[0].inputs
    convolved, y = found.mirror.evaluate(x, outputs=("c", "y"))
    d = torch.arange(6.0, dtype=torch.float64)
    normalised = torch.batch_norm(
        convolved + d.view(-1, 1, 1), *(found.mirror.weights[n].detach() for n in "sbmv"), False, 0.0, 1e-5, False
    )
    mean = found.mirror.weights["m"].detach().clone()
    mean[operand.shift.elements.reshape(-1)] += operand.shift.factor * d
    torch.testing.assert_close(found.mirror.evaluate(x, outputs=("y",), weights={"m": mean})[0], normalised)
    assert not torch.allclose(y, normalised)


@pytest.mark.parametrize("bias_of", ["norm", "add", "none"])
def test_a_second_refit_finds_nothing_left_to_do(bias_of):
    """What the first one has put into the bias counts: of a single node the refit is the solution."""
    found, original, keep = pruned(conv_net(bias_of), ["w"])
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w"])
    compensate(found, found, [operand], original, keep)
    first = snapshot(found.mirror)
    walks = Walk(found), Walk(found, original)
    equations = normal_equations(*walks, operand, slice(0, 18), generator())
    moments = equations.moments[..., -1, :] if operand.shift else equations.moments.mT[operand.matrix(keep["w"])]
    masked = Walk(found, {name: weight * keep.get(name, 1) for name, weight in original.items()})
    before = normal_equations(masked, walks[1], operand, slice(0, 18), generator())
    assert moments.abs().max() < 0.1 * before.moments.abs().max()
    assert all(torch.equal(found.mirror.weights[name], value) for name, value in first.items())


def recurrent_net(op_type, gates):
    """A recurrent node and a matrix behind it."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(1, gates * 4, 3)), "r": rng.normal(size=(1, gates * 4, 4))}
    weights |= {"b": rng.normal(size=(1, 2 * gates * 4)), "v": rng.normal(size=(4, 2))}
    nodes = [
        helper.make_node(op_type, ["x", "w", "r", "b"], ["", "h"], name="layer", hidden_size=4),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="head"),
    ]
    return model(nodes, {"x": [5, "N", 3]}, {"y": [1, "N", 2]}, weights)


@pytest.mark.parametrize(("op_type", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent_weights_are_refitted(op_type, gates):
    """The node puts out its last state only; what it reads at each step is known all the same."""
    found, _ = calibration(recurrent_net(op_type, gates), count=64, batch_size=1)
    original, keep = snapshot(found.mirror), {}
    for name in ("w", "r"):
        keep[name] = torch.rand(original[name].shape, generator=generator()) >= 0.5
    apply_masks(found.mirror, keep)
    (operands, skipped), before = find_operands(found.mirror, found.batches[0], ["w", "r", "v"]), found.loss()
    assert not skipped
    assert [operand.shift.name if operand.shift else None for operand in operands] == ["b", None, None]
    refits = compensate(found, found, operands, original, keep | {"v": original["v"] != 0})
    assert "r" in {refit.name for refit in refits if refit.step}  # w can make up for little: the inputs are independent
    assert found.loss() < 0.6 * before
    assert all((found.mirror.weights[name][~mask] == 0).all() for name, mask in keep.items())


def test_weights_are_followed_through_rearranging_nodes():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], name="t"),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="m"),
    ]
    proto = model(nodes, {"x": ["N", 5]}, {"y": ["N", 3]}, {"w": rng.normal(size=(3, 5))})
    found, original, _ = pruned(proto, [])
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w"])
    assert torch.equal(operand.matrix(original["w"])[0], original["w"])
    assert torch.equal(operand.unmatrix(operand.matrix(original["w"]), original["w"]), original["w"])


def quantised():
    """int8 kernels with a scale for each output, the second transposed behind its scales, and int32 biases."""
    g, x, names = Graph(), "x", []
    g.input("x", "N", 10)
    for rows, columns, axis in ((10, 16, 1), (4, 16, 0)):
        outputs = (rows, columns)[axis]
        scales = [g.tensor((s * (1 + g.generator.random(outputs))).astype(np.float32)) for s in (0.02, 1e-4)]
        names.append(g.tensor(g.generator.integers(-90, 90, (rows, columns)).astype(np.int8)))
        kernel = g.op("DequantizeLinear", names[-1], scales[0], axis=axis)
        kernel = kernel if axis else g.op("Transpose", kernel, perm=[1, 0])
        names.append(g.tensor(g.generator.integers(-5000, 5000, outputs).astype(np.int32)))
        x = g.op("Gemm", x, kernel, g.op("DequantizeLinear", names[-1], scales[1], axis=0))
        x = g.op("Tanh", x) if axis else x
    return g.model(x), names


def test_weights_stored_as_integers_are_refitted():
    proto, (w, b, v, c) = quantised()
    found, original, keep = pruned(proto, [w, v], count=80)
    operands, skipped = find_operands(found.mirror, found.batches[0], [w, v])
    assert not skipped and [operand.shift.name for operand in operands] == [b, c]
    assert torch.equal(operands[0].matrix(original[w])[0], original[w].mT)
    assert torch.equal(operands[1].matrix(original[v])[0], original[v])
    before = found.loss()
    compensate(found, found, operands, original, keep)
    assert found.loss() < 0.6 * before
    for name in (w, v):
        assert (found.mirror.weights[name][~keep[name]] == 0).all()
        assert found.mirror.state()[name].dtype == np.int8


def test_weights_without_a_matrix_form_are_named():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m0"),
        helper.make_node("MatMul", ["h", "w"], ["g"], name="m1"),
        helper.make_node("Einsum", ["g", "v"], ["y"], name="e", equation="ni,ij->n"),
    ]
    weights = {"w": rng.normal(size=(3, 3)), "v": rng.normal(size=(3, 2))}
    found, _, _ = pruned(model(nodes, {"x": ["N", 3]}, {"y": ["N"]}, weights), [])
    operands, skipped = find_operands(found.mirror, found.batches[0], ["w", "v"])
    assert not operands
    assert skipped == {"w": "multiplies in 2 nodes", "v": "no matrix form of Einsum is known"}


def test_grams_are_means_over_positions():
    found, _, _ = pruned(mlp(sizes=(5, 4, 3)), [], count=20)
    operands, _ = find_operands(found.mirror, found.batches[0], ["w0", "w1"])
    grams = collect_grams(found, operands, generator(), block=3)
    x = torch.cat([b.inputs[0] for b in found.batches]).double()
    blocks = grams["w0"].blocks
    assert [(s.start, s.stop) for s, _ in blocks] == [(0, 2), (2, 5)]
    for columns, block in blocks:
        torch.testing.assert_close(block[0], x[:, columns].mT @ x[:, columns] / len(x))


def products_of_integers():
    """QLinearConv with biases, QLinearMatMul."""
    g, names = Graph(), []
    scale, middle = g.tensor(np.float32(0.05)), g.tensor(np.uint8(120))
    parameters = g.tensor(np.float32(0.01)), g.tensor(np.int8(0))
    x = g.op("QuantizeLinear", g.input("x", "N", 3, 6, 5), scale, middle)
    for columns, rows in ((3, 8), (8, 4)):
        names.append(g.tensor(g.generator.integers(-60, 60, (rows, columns, 3, 3)).astype(np.int8)))
        bias = g.tensor(g.generator.integers(-300, 300, rows).astype(np.int32))
        x = g.op("QLinearConv", x, scale, middle, names[-1], *parameters, scale, middle, bias)
    names.append(g.tensor(g.generator.integers(-60, 60, (8, 3)).astype(np.int8)))
    x = g.op("QLinearMatMul", g.op("Flatten", x), scale, middle, names[-1], *parameters, scale, middle)
    return g.model(g.op("DequantizeLinear", x, scale, middle)), names


def test_products_of_integers_are_refitted():
    proto, names = products_of_integers()
    found, original, keep = pruned(proto, names, count=80)
    operands, skipped = find_operands(found.mirror, found.batches[0], names)
    assert not skipped and [operand.shift is not None for operand in operands] == [True, True, False]
    before = found.loss()
    compensate(found, found, operands, original, keep)
    assert found.loss() < 0.65 * before  # what is left of it by a refit of the same network in floats
    assert all((found.mirror.weights[name][~keep[name]] == 0).all() for name in names)


def test_half_precision_is_summed_in_single():
    """The sums of squares are far beyond the largest number of half precision."""
    found, original, _ = pruned(linear(), ["w0"])
    feeds = [{name: 200 * x for name, x in feed.items()} for feed in found.samples.feeds]
    large = Samples.from_feeds(feeds, source="test", batchable=True)
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w0"])
    equations = []
    for dtype in (torch.float64, torch.float16):
        found.mirror.to(dtype)
        own = Calibration(found.mirror, found.objective, large, 8)
        walks = Walk(own), Walk(own, {name: weight.to(dtype) for name, weight in original.items()})
        equations.append(normal_equations(*walks, operand, slice(0, 4), generator()))
    exact, half = equations
    assert exact.gram.max() > 1e6
    torch.testing.assert_close(half.gram, exact.gram, rtol=0.01, atol=100)
    torch.testing.assert_close(half.moments, exact.moments, rtol=0.01, atol=1e-3 * float(exact.moments.abs().max()))


def test_a_part_of_many_positions_estimates_the_sums():
    """A convolution over more positions than are used: the sampled sums are near the sums over all."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    proto = model(nodes, {"x": ["N", 1, 24, 23]}, {"y": ["N", 2, 22, 22]}, {"w": rng.normal(size=(2, 1, 3, 2))})
    found, original, _ = pruned(proto, ["w"], count=4)
    (operand,), _ = find_operands(found.mirror, found.batches[0], ["w"])
    sampled = normal_equations(Walk(found), Walk(found, original), operand, slice(0, 6), generator())
    windows = found.batches[0].inputs[0].double().unfold(2, 3, 1).unfold(3, 2, 1).reshape(-1, 6)
    assert sampled.positions == len(windows) == 4 * 22 * 22
    exact = windows.mT @ windows
    assert not torch.allclose(sampled.gram[0], exact)
    torch.testing.assert_close(sampled.gram[0].diagonal(), exact.diagonal(), rtol=0.5, atol=0)


@pytest.mark.parametrize(
    ("loss_of", "step", "tried"),
    [
        (lambda w: 5 - w, 1.0, [1.0]),
        (lambda w: 5 - 2 * w + 3 * w**2, 0.5, [1.0, 0.5]),
        (lambda w: 5 - w + 3 * w**2, 0.25, [1.0, 0.5, 0.25]),
        (lambda w: 5 + w + w**2, 0.0, [1.0, 0.5]),
    ],
    ids=["falls", "falls to the half", "falls to the quarter", "rises from the start"],
)
def test_steps_are_shortened_as_long_as_the_loss_falls_at_the_start(loss_of, step, tried):
    found, _ = calibration(linear(), count=4, batch_size=4)
    weight, seen = found.mirror.weights["b0"].detach(), []
    restore(found.mirror, {"b0": torch.zeros_like(weight)})

    def measure():
        seen.append(float(weight[0]))
        return loss_of(seen[-1])

    assert accept(found.mirror, {"b0": torch.ones_like(weight)}, measure, 5.0) == (step, loss_of(step))
    assert seen == tried
    assert float(weight[0]) == step
