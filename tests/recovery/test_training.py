"""Training under masks: zeros stay, nothing gets worse, an interruption costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnx_obd.errors import DataError, UsageError
from onnx_obd.recovery import Recipe, Training, load_checkpoint, save_checkpoint
from onnx_obd.recovery.composed import Composer
from onnx_obd.recovery.training import FAR_WORSE, HOPELESS, LAYERWISE, LEARNING_RATES
from onnx_obd.surgery.mask import apply_masks, restore, snapshot
from tests.curvature.networks import calibration, mlp

SUBJECT = {"model": "a", "options": {"seed": 0}}


@pytest.fixture
def pruned():
    """A network with half of its weights deleted: the calibration, the original weights, the masks."""
    found = calibration(mlp(sizes=(6, 16, 5)), count=40, batch_size=8)[0]
    original = snapshot(found.mirror)
    keep = {}
    for name in ("w0", "w1"):
        size = original[name].abs()
        keep[name] = size > size.median()
    apply_masks(found.mirror, keep)
    return found, original, keep


def test_it_gets_better_and_zeros_stay_exactly_zero(pruned):
    found, original, keep = pruned
    training = Training(found, original, keep, Recipe(epochs=30))
    state = training.run()
    assert state.best_loss < 0.5 * state.start_loss
    assert training.validation.loss() == state.best_loss
    for name, mask in keep.items():
        weight = found.mirror.weights[name].detach()
        assert not weight[~mask].count_nonzero() and not weight[~mask].signbit().any()
        assert not torch.equal(weight[mask], original[name][mask])


def test_a_training_that_only_harms_changes_nothing(pruned):
    found, original, keep = pruned
    before = snapshot(found.mirror)
    state = Training(found, original, keep, Recipe(epochs=4, learning_rate=1e4)).run()
    assert state.best_loss == state.start_loss
    assert all(torch.equal(found.mirror.weights[name], value) for name, value in before.items())


@pytest.mark.parametrize("times, to_the_end", [(0.9 * FAR_WORSE, True), (1.1 * FAR_WORSE, False)])
def test_it_goes_on_while_the_rate_is_high_unless_that_is_hopeless(pruned, monkeypatch, times, to_the_end):
    training = Training(*pruned, Recipe(epochs=40, learning_rate=1e-3))
    high = times * training.state.start_loss
    monkeypatch.setattr(training.validation, "loss", lambda: high)
    state = training.run()
    assert (state.epoch == 40) == to_the_end and state.best_loss < state.highest_loss == high
    if not to_the_end:
        assert state.epoch <= 1 + 40 * (LAYERWISE + HOPELESS)


def test_the_validation_samples_are_not_trained_on(pruned):
    training = Training(*pruned, Recipe(epochs=1))
    parts = (training.train, training.validation)
    rows = [{tuple(row.tolist()) for batch in part.batches for row in batch.inputs[0]} for part in parts]
    assert len(rows[0]) == 32 and len(rows[1]) == 8 and not rows[0] & rows[1]


def test_targets_are_the_originals_although_the_mirror_is_pruned(pruned):
    found, original, keep = pruned
    training = Training(found, original, keep, Recipe(epochs=1))
    restore(found.mirror, original)
    assert training.train.loss() == pytest.approx(0, abs=1e-12)


def test_no_time_is_no_training(pruned):
    found, original, keep = pruned
    before = snapshot(found.mirror)
    state = Training(found, original, keep, Recipe(minutes=0.0)).run()
    assert state.epoch == 0 and torch.equal(found.mirror.weights["w0"], before["w0"])
    with pytest.raises(UsageError, match="epochs or of minutes"):
        Recipe()


def test_what_fades_shrinks_until_it_is_gone(pruned):
    found, original, keep = pruned
    restore(found.mirror, original)
    gone, sizes = ~keep["w0"], []

    def look(_):
        sizes.append(float((found.mirror.weights["w0"].detach()[gone] / original["w0"][gone]).mean()))

    Training(found, original, keep, Recipe(epochs=8, fade=True)).run(after_epoch=look)
    assert sizes == sorted(sizes, reverse=True)
    assert 0.5 < sizes[0] < 1 and sizes[-1] == 0
    assert not found.mirror.weights["w0"].detach()[gone].count_nonzero()


def test_the_learning_rate_is_tried_out_and_the_best_trial_is_gone_on_from(pruned):
    found, original, keep = pruned
    training, before = Training(found, original, keep, Recipe(epochs=20)), snapshot(found.mirror)
    losses, weights = {}, {}
    for rate in LEARNING_RATES:
        losses[rate] = training._trial(rate)
        weights[rate] = snapshot(found.mirror)
        restore(found.mirror, before)
    chosen = training._trials()
    assert chosen == min(losses, key=losses.get) and len(set(losses.values())) == len(LEARNING_RATES)
    assert training.state.best_loss == losses[chosen] < training.state.start_loss
    assert all(torch.equal(found.mirror.weights[name], value) for name, value in weights[chosen].items())
    assert all((found.mirror.weights[name][~mask] == 0).all() for name, mask in keep.items())


def test_a_trial_that_gains_nothing_leaves_no_trace_and_the_nodes_are_matched(pruned, monkeypatch):
    monkeypatch.setattr("onnx_obd.recovery.training.LEARNING_RATES", (1e30,))
    training, before = Training(*pruned, Recipe(epochs=1)), snapshot(pruned[0].mirror)
    training._trials()
    assert all(torch.equal(pruned[0].mirror.weights[name], value) for name, value in before.items())
    assert training.run().layerwise > 0


def test_validation_samples_may_be_given(pruned):
    found, original, keep = pruned
    training = Training(found, original, keep, Recipe(epochs=1), validation=found)
    assert training.validation is found and training.train is found


@pytest.mark.parametrize(("found", "best", "count"), [((0.2, 0.3, 0.25, 0.1), 3, 4), ((0.3, 0.2, 0.41, 0.1), 1, 3)])
def test_no_rate_is_tried_beyond_one_that_is_far_worse(pruned, monkeypatch, found, best, count):
    losses, tried = dict(zip(LEARNING_RATES, found, strict=True)), []
    monkeypatch.setattr(Training, "_trial", lambda _, rate: tried.append(rate) or losses[rate])
    assert Training(*pruned, Recipe(epochs=1))._trials() == LEARNING_RATES[best]
    assert tried == list(LEARNING_RATES[:count])


def test_a_trial_is_a_share_of_the_training(pruned, monkeypatch):
    """Of 100 epochs of two minibatches, 12 steps, whose rate falls to zero."""
    training, rates = Training(*pruned, Recipe(epochs=100)), []
    monkeypatch.setattr(training, "_step", lambda optimizer, batches, done, rate, *_: rates.append(rate))
    training._trial(1.0)
    assert rates == pytest.approx([1 - step / 12 for step in range(12)])


def test_a_rate_that_diverges_is_not_chosen(pruned, monkeypatch):
    monkeypatch.setattr("onnx_obd.recovery.training.LEARNING_RATES", (1e30, 5e-3))
    training = Training(*pruned, Recipe(epochs=1))
    assert training._trials() == 5e-3


def test_labels_take_the_teachers_place():
    labels = np.random.default_rng(0).integers(0, 3, 40)
    found = calibration(mlp(sizes=(6, 16, 3)), count=40, batch_size=8, kind="labels", labels=labels, temperature=1.0)[0]
    original = snapshot(found.mirror)
    training = Training(found, original, {}, Recipe(epochs=20))
    before = training.train.loss()
    training.run()
    assert not training.composer.possible
    assert training.train.loss() < before


def test_interrupted_and_resumed_is_as_if_never_interrupted(pruned, tmp_path):
    found, original, keep = pruned
    before = snapshot(found.mirror)
    whole = Training(found, original, keep, Recipe(epochs=6)).run()

    class Stop(Exception):
        pass

    def stop(state):
        if state.epoch == 3:
            save_checkpoint(tmp_path / "c", training, before, SUBJECT, {"rounds": [1]})
            raise Stop

    restore(found.mirror, before)
    training = Training(found, original, keep, Recipe(epochs=6))
    with pytest.raises(Stop):
        training.run(after_epoch=stop)
    saved = load_checkpoint(tmp_path / "c", SUBJECT)
    assert saved.record == {"rounds": [1]} and torch.equal(saved.keep["w0"], keep["w0"])
    restore(found.mirror, saved.before)
    training = Training(found, original, saved.keep, Recipe(epochs=6))
    training.resume(saved.state, saved.present)
    state = training.run()
    assert state.epoch == whole.epoch == 6
    assert state.best_loss == whole.best_loss
    for name, value in whole.best.items():
        torch.testing.assert_close(state.best[name], value, rtol=0, atol=0)


def test_checkpoints_that_cannot_be_used(pruned, tmp_path):
    training = Training(*pruned, Recipe(epochs=1))
    path = tmp_path / "c"
    with pytest.raises(DataError, match="no checkpoint"):
        load_checkpoint(path, SUBJECT)
    save_checkpoint(path, training, {}, SUBJECT, {})
    with pytest.raises(DataError, match="another model"):
        load_checkpoint(path, {**SUBJECT, "model": "b"})
    content = path.read_bytes()
    for broken in (b"", b"\xff" * 100, content[: len(content) // 2], content.replace(b"onnx-obd rec", b"onnx-obd REC")):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="not a checkpoint"):
            load_checkpoint(path, SUBJECT)


def test_a_hopeless_rate_ends_early(pruned):
    """Nodes are matched for 0.15 of the training; a fifth further the loss is far above the start. Or it goes on."""
    training = Training(*pruned, Recipe(epochs=50, learning_rate=1e4))
    state = training.run()
    assert state.epoch == 18 and state.highest_loss > FAR_WORSE * state.start_loss
    assert Training(*pruned, Recipe(epochs=50, learning_rate=1e-3)).run().epoch == 50


def test_validation_takes_a_tenth_of_the_time(pruned, monkeypatch):
    """Of ten seconds, by a clock that only epochs (0.05 s) and validation (0.1 s) move; each epoch where they count."""
    clock, counted = [0.0], []
    monkeypatch.setattr("onnx_obd.recovery.training.time.perf_counter", lambda: clock[0])

    def ran(seconds, method):
        def run(self, *arguments):
            clock[0] += seconds
            counted.append(method.__name__)
            return method(self, *arguments)

        return run

    monkeypatch.setattr(Training, "_epoch", ran(0.05, Training._epoch))
    monkeypatch.setattr(Training, "_validate", ran(0.1, Training._validate))
    Training(*pruned, Recipe(minutes=1 / 6, learning_rate=1e-3)).run()
    assert counted.count("_epoch") > 100 and 9 <= counted.count("_validate") <= 12
    counted.clear()
    Training(*pruned, Recipe(epochs=20, learning_rate=1e-3)).run()
    assert counted.count("_validate") == counted.count("_epoch") == 20


def test_with_few_steps_nothing_is_disputed(pruned, monkeypatch):
    """By a clock that moves by 10 s for each batch that is disputed: 2 · 200 steps of 16 samples, 8 of them in 10 s."""
    found, original, keep = pruned
    assert not found.objective.classifies
    assert not Training(found, original, keep, Recipe(minutes=1.0))._worth_disputing()
    found = calibration(mlp(sizes=(6, 16, 5)), count=40, batch_size=8, kind="kl")[0]
    clock, moved = [0.0], Composer.disputed
    monkeypatch.setattr("onnx_obd.recovery.training.time.perf_counter", lambda: clock[0])

    def disputed(self, *arguments):
        clock[0] += 10
        return moved(self, *arguments)

    monkeypatch.setattr(Composer, "disputed", disputed)
    for minutes, expected in ((2 * 200 * 20 / 60 + 0.1, 20), (2 * 200 * 20 / 60 - 0.1, 3), (None, 20)):
        training = Training(found, original, {}, Recipe(epochs=1 if minutes is None else None, minutes=minutes))
        for _ in range(20):
            training._drawn(training.train.batches[0], torch.Generator())
        assert len(training.disputes) == expected
