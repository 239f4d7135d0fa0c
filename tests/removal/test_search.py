"""The search: it reaches what was asked for or says why not; what comes out is the same model with smaller tensors."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_obd import prune
from onnx_obd.errors import UsageError
from onnx_obd.graph.session import open_session
from onnx_obd.options import Options
from onnx_obd.plan.widths import Offer
from onnx_obd.records import Interval, Latency
from onnx_obd.removal import frontier, remove_units, search, time_of_sizes
from onnx_obd.removal.search import Search
from onnx_obd.removal.share import Offers
from onnx_obd.removal.thinning import Thinning
from tests.removal.clock import microseconds, run_by_weights
from tests.removal.networks import inputs, prepared, wide


def weights_left(run):
    return microseconds(run.model.proto)


def shipped(run):
    (found,) = (point for point in run.frontier if point.shipped)
    return found


def test_faster_and_still_the_same_model(tmp_path, monkeypatch):
    """By the real clock, from end to end."""
    monkeypatch.setattr(frontier, "CLOCK_SECONDS", 0.1)
    monkeypatch.setattr(frontier, "SURE_SECONDS", 0.1)
    monkeypatch.setattr(time_of_sizes, "SECONDS_EACH", 0.02)
    wide(tmp_path, sizes=(16, 512, 256, 3))
    options = {"speedup": 1.2, "benchmark": False}
    result = prune(tmp_path / "wide.onnx", tmp_path / "x.npy", tmp_path / "fast.onnx", **options)
    before, after = onnx.load(tmp_path / "wide.onnx"), onnx.load(tmp_path / "fast.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    assert [t.name for t in before.graph.initializer] == [t.name for t in after.graph.initializer]
    assert before.graph.input == after.graph.input and before.graph.output == after.graph.output
    assert after.ByteSize() < before.ByteSize()
    report = result.report
    assert report.parameters_after < report.parameters
    assert any("units removed" in note for note in report.notes)
    x = np.load(tmp_path / "x.npy")
    (y0,), (y,) = (open_session(tmp_path / name).run(None, {"x": x}) for name in ("wide.onnx", "fast.onnx"))
    assert np.square(y - y0).mean() < 0.5 * y0.var()


def test_it_ends_at_the_speed_asked_for(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    before = prepared(tmp_path, speedup=1.6)
    run = remove_units(before)
    assert 1.6 <= weights_left(before) / weights_left(run) < 1.9
    assert run.before is before and not any("not reached" in note for note in run.notes)
    speeds = [point.speedup.median for point in run.frontier]
    assert speeds[0] == 1 and len(speeds) > 3
    enough = [point for point in run.frontier if point.speedup.median >= 1.6]
    assert min(enough, key=lambda point: point.loss) == shipped(run)
    assert shipped(run).units == sum(len(units) for units in Search(before).thinning.families.values()) - sum(
        len(units) for units in Search(run).thinning.families.values()
    )


def test_what_is_hardly_heard_goes_first(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    before = prepared(tmp_path, heard=0.001, speedup=1.4)
    run = remove_units(before)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in run.model.proto.graph.initializer}
    assert arrays["w1"].shape == (32, 48)
    np.testing.assert_allclose(arrays["w0"], before.original["w0"][:, :32].numpy())
    assert shipped(run).loss < 1e-4


def test_a_latency_is_a_speed(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    before = prepared(tmp_path, speedup=None, target_latency="4ms")
    assert weights_left(remove_units(before)) <= 4000 < weights_left(before)


def test_what_is_fast_enough_keeps_all(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    run = remove_units(prepared(tmp_path, speedup=None, target_latency="1s", recover_minutes=0.01))
    assert [point.units for point in run.frontier] == [0] and not any("not reached" in note for note in run.notes)


def test_the_drop_ends_it(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    run = remove_units(prepared(tmp_path, speedup=4.0, max_drop=0.1))
    shipped = next(point for point in run.frontier if point.shipped)
    assert shipped.drop <= 0.1 and shipped.speedup.median > 1.1
    beyond = [point for point in run.frontier if point.drop > 0.1]
    assert beyond and min(point.speedup.median for point in beyond) < 1.2 * shipped.speedup.median
    assert any("4.00x was not reached: more would exceed the drop allowed" in note for note in run.notes)


def test_within_a_loss_budget(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    run = remove_units(prepared(tmp_path, speedup=4.0, loss_budget=0.02))
    shipped = next(point for point in run.frontier if point.shipped)
    assert 1.1 < shipped.speedup.median and shipped.loss <= 0.02


def test_time_that_no_unit_saves(tmp_path, monkeypatch):
    run_by_weights(monkeypatch, time=lambda proto: 5000.0)
    run = remove_units(prepared(tmp_path))
    assert [point.units for point in run.frontier] == [0]
    assert any("2.00x was not reached: nothing that could still go saves time" in note for note in run.notes)


def test_time_that_is_only_promised(tmp_path, monkeypatch):
    """Where single families seem to save time and the model does not, what was removed for nothing comes back."""
    run_by_weights(monkeypatch)
    monkeypatch.setattr("onnx_obd.removal.frontier.measure_latency", _same)
    run = remove_units(prepared(tmp_path))
    assert run.frontier[0].shipped and len(run.frontier) == 4
    assert any("the last steps made it no faster" in note for note in run.notes)


def test_a_second_that_lied_does_not_end_it(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    honest = frontier.measure_latency

    def latency(*models, seconds, **options):
        found = honest(*models, seconds=seconds, **options)
        lie = Interval(9.0, 9.0, 9.0)
        return found if seconds == frontier.SURE_SECONDS else replace(found, speedup=lie)

    monkeypatch.setattr(frontier, "measure_latency", latency)
    before = prepared(tmp_path, speedup=1.3)
    run = remove_units(before)
    assert 1.3 <= weights_left(before) / weights_left(run) < 1.6
    assert shipped(run).speedup.median == pytest.approx(weights_left(before) / weights_left(run))


def _same(original, pruned, samples, **options):
    return Latency(Interval(5, 5, 5), Interval(5, 5, 5), Interval(1, 1, 1), 1, 1, 1)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_the_units(tmp_path, monkeypatch, share):
    run_by_weights(monkeypatch)
    run = remove_units(prepared(tmp_path, speedup=None, remove_units=share))
    left = [run.mirror.weights[name].shape[1] for name in ("w0", "w1")]
    assert run.frontier[-1].units == 64 + 48 - sum(left) and run.frontier[-1].shipped
    assert [size % multiple for size, multiple in zip(left, (16, 8), strict=True)] == [0, 0]
    assert abs(sum(left) - (1 - share) * (64 + 48)) <= (16 + 8) / 2


def test_training_uses_the_minutes_and_leaves_some(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    run = remove_units(prepared(tmp_path, speedup=1.3, recover_minutes=0.05))
    assert [point.trained for point in run.frontier] == [False] * (len(run.frontier) - 1) + [True]
    assert shipped(run).trained and shipped(run).loss < min(
        point.loss for point in run.frontier if point.units == shipped(run).units and not point.trained
    )
    assert run.minutes_left < 0.05
    run = remove_units(prepared(tmp_path, speedup=1.3, recover_minutes=0.02, sparsity=0.5))
    assert 0.19 * 0.02 < run.minutes_left < 0.02  # for what is left when single weights have gone too


def test_under_a_goal_training_waits_until_it_is_needed(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    options = {"speedup": 3.0, "max_drop": 0.02}
    plain = remove_units(prepared(tmp_path, **options))
    trained = remove_units(prepared(tmp_path, recover_minutes=0.15, **options))
    after = [point for point in trained.frontier if point.trained]
    assert after and all(point.units in {p.units for p in trained.frontier if not p.trained} for point in after)
    assert all(
        point.drop > 0.02 for p in after for point in trained.frontier if point.units == p.units and not point.trained
    )
    shipped = [next(p for p in run.frontier if p.shipped) for run in (plain, trained)]
    assert shipped[1].speedup.median >= shipped[0].speedup.median


@pytest.mark.parametrize("gained", [0.5, 1.0])
def test_what_was_refused_by_little_gets_all_that_is_left(tmp_path, monkeypatch, gained):
    """Without any other training, and with one that leaves that part of the drop."""
    run_by_weights(monkeypatch)
    monkeypatch.setattr(Search, "_trained", lambda self, point, share: point)
    asked = []

    def trained(self, state, minutes, epochs=None, trials=False):
        asked.append((state.drop, minutes, trials))
        return replace(state, drop=gained * state.drop, trained=True)

    monkeypatch.setattr(Thinning, "trained", trained)
    run = remove_units(prepared(tmp_path, speedup=4.0, max_drop=0.1, recover_minutes=10.0))
    ((drop, minutes, trials),) = asked
    within = [point for point in run.frontier if point.drop <= 0.1 and not point.trained]
    fastest = max(point.speedup.median for point in within)
    refused = [
        point for point in run.frontier if point.drop > 0.1 and point.speedup.median > search.LEAST_GAIN * fastest
    ]
    shipped = next(point for point in run.frontier if point.shipped)
    assert trials and 0.1 < drop <= search.NEAR * 0.1 and 8 < minutes < 10
    assert drop == min(point.drop for point in refused)
    assert shipped.trained == (gained == 0.5)
    assert shipped.speedup.median > fastest if shipped.trained else shipped.speedup.median == fastest


def test_the_frontier_is_kept(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    run = remove_units(prepared(tmp_path, speedup=1.4, keep_frontier=str(tmp_path / "front")))
    assert [point.path == "" for point in run.frontier] == [True] + [False] * (len(run.frontier) - 1)
    for point in run.frontier[1:]:
        proto = onnx.load(point.path)
        onnx.checker.check_model(proto)
        assert microseconds(proto) == pytest.approx(1e3 * point.milliseconds)
    (y,) = open_session(shipped(run).path).run(None, {"x": inputs()})
    np.testing.assert_allclose(y, open_session(run.model.proto).run(None, {"x": inputs()})[0], rtol=1e-5)
    assert len(list((tmp_path / "front").iterdir())) == len(run.frontier) - 1


def test_units_first_then_elements(tmp_path, monkeypatch):
    run_by_weights(monkeypatch)
    wide(tmp_path)
    options = {"speedup": 1.3, "sparsity": 0.5, "rounds": 2, "benchmark": False}
    report = prune(tmp_path / "wide.onnx", tmp_path / "x.npy", tmp_path / "both.onnx", **options).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert report.parameters_after < report.parameters


@pytest.mark.parametrize(
    "bad",
    [
        {"speedup": 1.0},
        {"speedup": 2.0, "target_latency": "1ms"},
        {"speedup": 2.0, "remove_units": 0.5},
        {"remove_units": 1.0},
        {"target_latency": "soon"},
        {"keep_frontier": "there"},
        {"speedup": 2.0, "batch": 0},
        {"speedup": 2.0, "recover_minutes": 1.0, "checkpoint": "c", "resume": True},
    ],
)
def test_targets_that_cannot_be_meant(bad):
    with pytest.raises(UsageError):
        Options(**bad)


def test_a_provider_that_is_not_there_is_refused_before_the_work(tmp_path):
    wide(tmp_path)
    with pytest.raises(UsageError, match=r"has no 'TpuExecutionProvider'; it has .*CPUExecutionProvider"):
        prune(tmp_path / "wide.onnx", tmp_path / "x.npy", speedup=1.2, provider="TpuExecutionProvider")


def test_latencies_are_read_in_their_units():
    assert Options(target_latency="250us").target_milliseconds == pytest.approx(0.25)
    assert Options(target_latency="1.5 ms").target_milliseconds == pytest.approx(1.5)


def test_what_oversteps_is_taken_in_smaller_parts(tmp_path, monkeypatch):
    """The largest part of a family is the best bargain, and too much: a smaller one passes."""
    run_by_weights(monkeypatch)
    search = Search(prepared(tmp_path, speedup=4.0, max_drop=0.1))
    here = search.frontier.timed(search.thinning.whole, search.target)
    bargain = {48: 4.0, 32: 9.0, 16: 30.0}
    families = {f: Offer([1.0] * len(u), bargain if len(u) == 64 else {}) for f, u in search.thinning.families.items()}
    ascending = {f: [unit.id for unit in units] for f, units in search.thinning.families.items()}
    search._known[here.state.gone] = Offers(100.0, ascending, families)
    taken = []
    step = 1.12
    while True:
        going, step = search._going(here, step)
        if not going:
            break
        taken.append(len(going))
        step = step**0.5
    assert taken == [48, 32, 16]
