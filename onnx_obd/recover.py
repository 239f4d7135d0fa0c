"""The last stage before the proof: the chosen variant is trained, and shipped trained if that is better."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_obd.candidates import Candidate, candidate
from onnx_obd.choice import best_of
from onnx_obd.records import Plan, Quality, Round
from onnx_obd.recovery import Recipe, State, Training, load_checkpoint, save_checkpoint
from onnx_obd.run import Run
from onnx_obd.surgery.mask import restore

RECOVERED = " + recovery"
"""What the trained variant of a method is called."""

SAVE_SECONDS = 10.0
"""A checkpoint is written no more often than this."""

_NOT_THE_SUBJECT = ("recover_epochs", "recover_minutes", "checkpoint", "resume", "benchmark", "threads", "format")
"""Options that may differ between a run and the one that goes on with it."""


def recover(run: Run, best: Candidate, candidates: list[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Train the best candidate's survivors; the result joins the candidates, and the best of all is returned.

    Never worse than before, on the held-back samples. The mirror is left with the best.
    """
    restore(run.mirror, best.weights)
    if run.minutes_left == 0 and not run.options.recover_epochs:  # the search for units has spent them
        return best, candidates
    return _train(run, best, candidates, _training(run, best))


def resume(run: Run) -> tuple[Candidate, list[Candidate]]:
    """The same for a recovery that was interrupted, from its checkpoint.

    Raises:
        DataError: no checkpoint, a damaged one, or one of another model, other samples or options.
    """
    saved = load_checkpoint(Path(run.options.checkpoint), _subject(run))
    record = saved.record
    rounds = tuple(Round(**each) for each in record["rounds"])
    plan = Plan(saved.keep, None)
    restore(run.mirror, saved.before)
    candidates = [Candidate(Quality(**each), plan, saved.before, rounds) for each in record["candidates"]]
    best = candidates[record["best"]]
    training = _training(run, best)
    training.resume(saved.state, saved.present)
    return _train(run, best, candidates, training)


def _training(run: Run, best: Candidate) -> Training:
    options = run.options
    minutes = options.recover_minutes if run.minutes_left is None else run.minutes_left
    recipe = Recipe(options.recover_epochs or None, minutes or None, options.learning_rate, options.seed)
    return Training(
        run.fitting,
        run.origin.original,
        best.plan.keep,
        recipe,
        teacher=run.origin.mirror,
        validation=run.acceptance,
    )


def _train(
    run: Run, best: Candidate, candidates: list[Candidate], training: Training
) -> tuple[Candidate, list[Candidate]]:
    saved, path = 0.0, run.options.checkpoint
    record = {
        "candidates": [asdict(each.quality) for each in candidates],
        "best": candidates.index(best),
        "rounds": [asdict(each) for each in candidates[0].rounds],
    }

    def save(_: State | None = None, least: float = SAVE_SECONDS) -> None:
        nonlocal saved
        if path is not None and time.perf_counter() - saved >= least:
            save_checkpoint(Path(path), training, best.weights, _subject(run), record)
            saved = time.perf_counter()

    with run.progress.stage(f"{best.quality.method}: recovery") as report, run.timed("recovery"):
        try:
            state = training.run(report, save)
        finally:  # an interruption too is something to go on from
            save(least=0.0)
    began = time.perf_counter() - best.quality.seconds - state.seconds
    trained = candidate(run, f"{best.quality.method}{RECOVERED}", best.plan, list(best.rounds), began)
    candidates = [*candidates, trained]
    return best_of(run, [best, trained]), candidates


def _subject(run: Run) -> dict[str, Any]:
    """What a checkpoint belongs to, as JSON gives it back."""
    options = {name: value for name, value in run.options.to_dict().items() if name not in _NOT_THE_SUBJECT}
    return {
        "model": run.model.sha256,
        "samples": run.scoring.samples.sha256,
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
    }
