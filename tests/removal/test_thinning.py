"""One network with units removed: what is said of it is what onnxruntime computes without them."""

import numpy as np
import onnx
import pytest
import torch

from onnx_obd.calibration.pictures import Pictures
from onnx_obd.calibration.quality import assess, head_values
from onnx_obd.calibration.samples import Samples
from onnx_obd.errors import ModelError
from onnx_obd.graph.load import load_model
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import write_weights
from onnx_obd.options import Options
from onnx_obd.recovery import LEARNING_RATES, Recipe
from onnx_obd.removal import thinning as module
from onnx_obd.removal.thinning import WARPS, Thinning
from onnx_obd.run import prepare
from onnx_obd.surgery.mask import restore
from tests.curvature.networks import mlp
from tests.removal.networks import inputs, prepared, wide
from tests.surgery.networks import one_shape_for_all_layers


def outputs(proto):
    return open_session(proto).run(None, {"x": inputs()})[0]


def test_layers_of_one_computed_shape_that_become_different(tmp_path):
    """The smaller model has a node more than the original, by whose slots its outputs are looked at and trained."""
    proto = one_shape_for_all_layers()
    onnx.save(proto, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(40, 1, 6, 12)).astype(np.float32)
    samples = Samples.from_feeds([{proto.graph.input[0].name: row} for row in x], source="made", batchable=True)
    run = prepare(load_model(tmp_path / "m.onnx"), samples, Options(speedup=2.0))
    thinning = Thinning(run)
    families = [members for members in thinning.units.families().values() if members[0].kind == "head"]
    assert [len(members) for members in families] == [3, 3]
    state = thinning.without(thinning.whole, [families[0][0].id, *(unit.id for unit in families[1][:2])])
    smaller = thinning.run_of(state)
    assert len(smaller.model.proto.graph.node) > len(proto.graph.node)
    quality = assess(smaller.held_back, head_values(smaller.held_back), run.original_values, method="", sparsity=0.0)
    assert quality.loss == pytest.approx(state.quality.loss, rel=1e-3)
    (batch,) = smaller.held_back.batches
    theirs = open_session(smaller.model.proto).run(None, {proto.graph.input[0].name: batch.inputs[0].numpy()})[0]
    np.testing.assert_allclose(head_values(smaller.held_back)[0][0].numpy(), theirs, rtol=1e-4, atol=1e-5)


def full_size(run, state):
    """The mirror of the whole network in that state, on all samples."""
    for name, value in state.weights.items():
        run.mirror.weights[name].data.copy_(value)
    with torch.no_grad():
        return run.mirror(torch.from_numpy(inputs())).numpy()


def test_at_full_size_and_smaller_it_is_the_same_network(tmp_path):
    run = prepared(tmp_path)
    thinning = Thinning(run)
    some = [unit.id for unit in thinning.units.units][::3]
    state = thinning.without(thinning.whole, some)
    state = thinning.without(state, [unit.id for unit in thinning.units.units][1::9])
    assert state.gone == set(some) | {unit.id for unit in thinning.units.units[1::9]}
    expected = outputs(thinning.model(state.gone, state.weights))
    np.testing.assert_allclose(full_size(run, state), expected, rtol=1e-4, atol=1e-5)
    smaller = thinning.run_of(state)
    quality = assess(smaller.held_back, head_values(smaller.held_back), run.original_values, method="", sparsity=0.0)
    assert quality.loss == pytest.approx(state.quality.loss)
    np.testing.assert_allclose(full_size(run, thinning.whole), outputs(run.model.proto), rtol=1e-4, atol=1e-5)


def test_what_reads_the_removed_takes_over(tmp_path):
    """Half of the first layer are twins: without them nothing need be lost."""
    losses = {}
    for repair in (True, False):
        thinning = Thinning(prepared(tmp_path, repair=repair))
        first = next(units for units in thinning.families.values() if len(units) == 64)
        losses[repair] = thinning.without(thinning.whole, [unit.id for unit in first[32:]]).quality.loss
    assert losses[True] < 0.05 * losses[False]


def test_a_refit_of_a_large_network_uses_fewer_samples(tmp_path):
    run = prepared(tmp_path)
    assert [part.num_samples for part in Thinning(run)._refit_samples] == [45, 15]
    thinning = Thinning(run, refit_seconds=0.0)
    run.mirror.weights["w1"].data.mul_(2.0)
    parts = thinning._refit_samples
    assert [part.num_samples for part in parts] == [module.FEWEST] * 2
    assert all(part.loss() > 1e-3 for part in parts)  # the targets are those of the original


@pytest.mark.parametrize("mean_the_same", [True, False])
def test_a_refit_of_pictures_uses_warped_ones_too(tmp_path, monkeypatch, mean_the_same):
    monkeypatch.setattr(Pictures, "warp", property(lambda self: mean_the_same))
    onnx.save(mlp(sizes=(144, 16, 5)), tmp_path / "flat.onnx")
    places = np.random.default_rng(0).uniform(3, 9, (20, 2))
    down, across = np.mgrid[:12, :12]
    feeds = [{"x": np.exp(-((down - y) ** 2 + (across - x) ** 2) / 8).reshape(1, 144)} for y, x in places]
    feeds = [{"x": feed["x"].astype(np.float32)} for feed in feeds]
    samples = Samples.from_feeds(feeds, source="made", batchable=True)
    run = prepare(load_model(tmp_path / "flat.onnx"), samples, Options(speedup=2.0))
    thinning = Thinning(run)
    restore(run.mirror, {name: 0 * weight for name, weight in run.original.items()})  # whose outputs do not count
    for part, plain in zip(thinning._refit_samples, (run.fitting, run.acceptance), strict=True):
        assert part.num_samples == (1 + WARPS if mean_the_same else 1) * plain.num_samples
        restore(run.mirror, run.original)
        assert part.loss() == pytest.approx(0, abs=1e-6)
        restore(run.mirror, {name: 0 * weight for name, weight in run.original.items()})


def test_training_lowers_the_loss_and_stays_in_place(tmp_path):
    run = prepared(tmp_path, repair=False)
    thinning = Thinning(run)
    state = thinning.without(thinning.whole, [unit.id for unit in thinning.units.units][::4])
    trained = thinning.trained(state, None, 12)
    assert trained.gone == state.gone and trained.trained and not state.trained
    assert trained.quality.loss < state.quality.loss
    np.testing.assert_allclose(
        full_size(run, trained), outputs(thinning.model(trained.gone, trained.weights)), rtol=1e-4, atol=1e-5
    )


def test_a_rate_that_does_not_help_is_lowered(tmp_path):
    run = prepared(tmp_path, repair=False, learning_rate=30.0)
    thinning = Thinning(run)
    state = thinning.without(thinning.whole, [unit.id for unit in thinning.units.units][::4])
    rates = [thinning.learning_rate]
    for _ in range(9):
        trained = thinning.trained(state, None, 2)
        assert trained.quality.loss <= 1.2 * state.quality.loss  # never left with what such a rate does
        rates.append(thinning.learning_rate)
    assert rates[0] == 30 and rates[1] == 30 / module.SLOWER
    assert min(module.LEARNING_RATES) <= rates[-1] == rates[-2] < 1  # where it helps it stays


@pytest.mark.parametrize("seconds_of_a_sample, tried", [(1e-6, False), (1.0, True)])
def test_where_a_training_has_few_steps_the_rate_is_tried_out(tmp_path, monkeypatch, seconds_of_a_sample, tried):
    thinning, rates = Thinning(prepared(tmp_path, repair=False)), []
    thinning.__dict__["_seconds_of_a_sample"] = seconds_of_a_sample
    state = thinning.without(thinning.whole, [unit.id for unit in thinning.units.units][::4])

    def recipe(epochs, minutes, learning_rate, seed):
        rates.append(learning_rate)
        return Recipe(epochs, minutes, learning_rate, seed)

    monkeypatch.setattr(module, "Recipe", recipe)
    for _ in range(2):
        thinning.trained(state, 0.01)
    assert rates[0] == (None if tried else module.LEARNING_RATE) and rates[1] is not None
    assert min(LEARNING_RATES) <= rates[1] <= max(LEARNING_RATES)


def test_a_rate_that_only_helps_is_raised(tmp_path):
    run = prepared(tmp_path, repair=False)
    thinning = Thinning(run)
    thinning.learning_rate = 2.5e-3
    state = thinning.without(thinning.whole, [unit.id for unit in thinning.units.units][::4])
    rates = [thinning.learning_rate]
    for _ in range(4):
        thinning.trained(state, None, 12)
        rates.append(thinning.learning_rate)
    assert module.FASTER == 2 and rates == [2.5e-3, 5e-3, 1e-2, 2e-2, 2e-2]


def test_losses_are_of_the_units_that_are_left(tmp_path):
    thinning = Thinning(prepared(tmp_path))
    state = thinning.without(thinning.whole, [thinning.units.units[0].id])
    losses = thinning.losses(state)
    assert losses.keys() == {unit.id for unit in thinning.units.units[1:]}
    assert all(loss >= 0 for loss in losses.values())


def test_a_model_without_units_says_so(tmp_path, monkeypatch):
    run = prepared(tmp_path)
    empty = Thinning(run).units
    object.__setattr__(empty, "units", ())
    monkeypatch.setattr(module, "confirmed_units", lambda *_: empty)
    with pytest.raises(ModelError, match="no unit of this model"):
        Thinning(run)


def test_subnormal_weights_become_zero(tmp_path):
    run = prepared(tmp_path)
    with torch.no_grad():
        run.mirror.weights["w1"][0, :3] = 1e-40
    run.model.proto.CopyFrom(with_weights(run))
    run.original["w1"] = run.mirror.weights["w1"].detach().clone()
    thinning = Thinning(run)
    assert thinning.subnormal == 3
    some = [unit.id for unit in thinning.units.units][-4:]
    state = thinning.without(thinning.whole, some)
    for proto in (thinning.model(state.gone, state.weights), thinning.model(frozenset(), run.original)):
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        assert (np.abs(arrays["w1"][arrays["w1"] != 0]) > 1e-30).all()


def with_weights(run):
    proto = onnx.ModelProto()
    proto.CopyFrom(run.model.proto)
    write_weights(proto, run.mirror.state())
    return proto


def test_a_graph_fixed_to_a_batch_of_one_stays_so(tmp_path):
    """Samples run together all the same; of the file only the sizes change."""
    proto = wide(tmp_path)
    second = next(node for node in proto.graph.node if "w1" in node.input)
    (hidden,) = (name for name in second.input if name not in ("w1", "b1"))
    shape = onnx.numpy_helper.from_array(np.array([1, 64]), "shape")
    proto.graph.initializer.append(shape)
    reshape = onnx.helper.make_node("Reshape", [hidden, "shape"], ["fixed"])
    proto.graph.node.insert(list(proto.graph.node).index(second), reshape)
    second.input[list(second.input).index(hidden)] = "fixed"
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, tmp_path / "fixed.onnx")
    samples = Samples.from_feeds([{"x": row[None]} for row in inputs()], source="made", batchable=False)
    run = prepare(load_model(tmp_path / "fixed.onnx"), samples, Options(speedup=2.0))
    assert run.fitting.batch_size > 1
    thinning = Thinning(run)
    first = next(units for units in thinning.families.values() if len(units) == 64)
    state = thinning.without(thinning.whole, [unit.id for unit in first[40:]])
    smaller = thinning.run_of(state)
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in smaller.model.proto.graph.initializer}
    assert numbers["shape"].tolist() == [1, 40] and numbers["w1"].shape == (40, 48)
    session = open_session(smaller.model.proto)
    apart = np.concatenate([session.run(None, {"x": row[None]})[0] for row in inputs()])
    with torch.no_grad():
        together = smaller.mirror(torch.from_numpy(inputs())).numpy()
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)
