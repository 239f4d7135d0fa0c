"""What a run may be told."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from onnx_obd.errors import UsageError
from onnx_obd.plan.nm import Pattern
from onnx_obd.plan.scope import SCOPES, parse_sparsity_of
from onnx_obd.plan.targets import Goal, parse_size

VARIANTS = ("delete", "decay", "regrow")

TRUST = ("note", "refine", "stop")

UNIT_AMOUNTS = ("speedup", "target_latency", "remove_units")
"""Options that remove whole units."""


DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True)
class Options:
    """Options of one pruning run; the command line has one for each.

    Attributes:
        sparsity: fraction of the prunable weights to delete, in [0, 1); 0.5 if nothing else says how much goes.
        method: criterion to rank by, or "auto": in every round the reading of the curvature after whose deletion the
            measured loss is lowest, and beside it ``obs``. The magnitude control is always measured too.
        curvature: estimator of the second derivatives.
        rounds: deletions in steps, the curvature re-estimated before each; if None 12, or down to 3 where a run of all
            samples takes long.
        num_probes: random output vectors per sample for the estimated scale.
        probe_samples: samples that get them.
        objective: "auto", "kl", "squared", "labels", "divergence", or "module:function".
        temperature: of the softened divergence; None for the spread of the logits, or with labels 1, and more where the
            network is surer than the samples can tell.
        held_back: fraction of the samples that every printed number is measured on, in (0, 1).
        samples: use at most this many, evenly spread.
        batch_size: samples per mirror run, where the model can take several.
        save_curvature: file for the curvature of the first round, for later runs on the same model and samples.
        curvature_from: such a file, instead of computing it.
        seed: of the split, the probes and the fine-tuning order.
        include, exclude: name patterns of weights.
        prune_biases: rank biases and normalisation parameters too.
        max_drop: instead of a sparsity: as sparse as the held-back accuracy (without labels: agreement) allows, if it
            may fall by this fraction.
        loss_budget: instead of a sparsity: as sparse as it goes while the held-back loss rises by no more.
        target_size: instead of a sparsity: the size of the file to come below, such as "5MB".
        scope: "global" ranks all weights together, "tensor" each tensor by itself.
        sparsity_of: "PATTERN=SPARSITY" for tensors that get a sparsity of their own.
        nm: a pattern such as "2:4" instead of a sparsity.
        variant: "delete" zeroes weights; "decay" lets them shrink to zero while the others are trained; "regrow" lets
            deleted weights return in a later round.
        trust: what to do if a round changes the loss by less than half or more than twice of what derivatives predict:
            "note" it, "refine" (take half the step and estimate anew), or "stop" before that round.
        repair: refit what survives to the original's outputs, node by node, as far as that lowers the loss.
        retrain_epochs: masked training after each round but the last (the paper's iteration); 0 for none.
        recover_epochs: masked training of the variant chosen in the end; 0 for none.
        recover_minutes: the same, by time; with both, whichever ends first. If a drop or a loss limits the speed, it is
            the time of that search too, refits included.
        learning_rate: of the training, relative to the typical weight of each tensor; found by trial if None.
        checkpoint: file that the final training is saved to as it goes on.
        resume: go on from that file instead of pruning anew.
        format: "auto", "dense" or "sparse" storage of the result.
        benchmark: time the result against the original.
        threads: of onnxruntime in the timing.
        batch: samples per run in the timing.
        provider: onnxruntime's execution provider in the timing.
        speedup: remove whole units until onnxruntime runs this many times as fast. With ``max_drop`` or
            ``loss_budget``: as fast as these allow, this at most; the drop is then that of the accuracy, without labels
            estimated (``calibration.expected_drop``). Single weights are deleted only if a sparsity is given too.
        target_latency: the same by the time of one run, such as "3ms" or "250us".
        remove_units: instead, remove this fraction of all units.
        keep_frontier: folder for the models on the way, one for each step.
    """

    sparsity: float | None = None
    method: str = "auto"
    curvature: str = "lecun_scaled"
    rounds: int | None = None
    num_probes: int = 1
    probe_samples: int = 16
    save_curvature: str | None = None
    curvature_from: str | None = None
    objective: str = "auto"
    temperature: float | None = None
    held_back: float = 0.25
    samples: int | None = None
    batch_size: int = 32
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prune_biases: bool = False
    max_drop: float | None = None
    loss_budget: float | None = None
    target_size: str | None = None
    scope: str = "global"
    sparsity_of: tuple[str, ...] = ()
    nm: str | None = None
    variant: str = "delete"
    trust: str = "note"
    repair: bool = True
    retrain_epochs: int = 0
    recover_epochs: int = 0
    recover_minutes: float = 0.0
    learning_rate: float | None = None
    checkpoint: str | None = None
    resume: bool = False
    format: str = "auto"
    benchmark: bool = True
    threads: int = 1
    batch: int = 1
    provider: str = "CPUExecutionProvider"
    speedup: float | None = None
    target_latency: str | None = None
    remove_units: float | None = None
    keep_frontier: str | None = None

    def __post_init__(self) -> None:
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", 0.0 if self.removes_units else DEFAULT_SPARSITY)
        rules = (
            (0 <= self.sparsity < 1, f"sparsity must be in [0, 1), not {self.sparsity:g}"),
            (0 < self.held_back < 1, f"held-back fraction must be in (0, 1), not {self.held_back:g}"),
            (self.rounds is None or self.rounds >= 1, f"rounds must be at least 1, not {self.rounds}"),
            (self.num_probes >= 1, f"probes must be at least 1, not {self.num_probes}"),
            (self.probe_samples >= 1, f"probe samples must be at least 1, not {self.probe_samples}"),
            (self.batch_size >= 1, f"batch size must be at least 1, not {self.batch_size}"),
            (self.speedup is None or 1 < self.speedup < 1e3, f"speedup must be above 1, not {self.speedup}"),
            (len(self._amounts) <= 1, f"give only one of {', '.join(self._amounts)}"),
            (self.remove_units is None or 0 < self.remove_units < 1, f"a share is in (0, 1), not {self.remove_units}"),
            (not self.keep_frontier or self.removes_units, "a frontier is of models without units: give --speedup"),
            (not (self.resume and self.removes_units), "which units went depends on the clock: they cannot be resumed"),
            (self.batch >= 1, f"the batch must be at least 1, not {self.batch}"),
            (self.threads >= 1, f"threads must be at least 1, not {self.threads}"),
            (self.recover_epochs >= 0 and self.retrain_epochs >= 0, "epochs must not be negative"),
            (0 <= self.recover_minutes < 1e6, f"minutes must not be negative, not {self.recover_minutes:g}"),
            (self.max_drop is None or 0 <= self.max_drop < 1, f"the drop must be in [0, 1), not {self.max_drop}"),
            (self.loss_budget is None or self.loss_budget >= 0, f"the budget must not be negative: {self.loss_budget}"),
            (len(self._goals) <= 1, f"give only one of {', '.join(self._goals)}"),
            (self.scope in SCOPES, f"scope is {' or '.join(SCOPES)}, not {self.scope}"),
            (self.variant in VARIANTS, f"variant is {', '.join(VARIANTS)}, not {self.variant}"),
            (self.trust in TRUST, f"trust is {', '.join(TRUST)}, not {self.trust}"),
            (self.variant != "decay" or self.retrain_epochs, "decay happens during training: give --retrain-epochs"),
            (self.variant != "regrow" or self.rounds != 1, "weights return in later rounds: give --rounds"),
            (not self.checkpoint or self.recovers, "a checkpoint is of the recovery: give --recover-minutes"),
            (not self.resume or self.checkpoint, "--resume needs the file of --checkpoint"),
            (self.learning_rate is None or self.learning_rate > 0, f"no learning rate: {self.learning_rate}"),
            (self.temperature is None or self.temperature > 0, f"temperature must be positive, not {self.temperature}"),
            (self.seed >= 0, f"seed must not be negative, not {self.seed}"),
            (self.format in ("auto", "dense", "sparse"), f"format is auto, dense or sparse, not {self.format}"),
        )
        for holds, message in rules:
            if not holds:
                raise UsageError(message)
        parse_sparsity_of(self.sparsity_of)
        _ = self.goal, self.pattern, self.target_milliseconds  # what cannot be read is told before the work

    @property
    def _goals(self) -> list[str]:
        names = ("max_drop", "loss_budget", "target_size", "nm")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]

    @property
    def goal(self) -> Goal | None:
        """What is asked for instead of a sparsity, if anything."""
        size = None if self.target_size is None else parse_size(self.target_size)
        goal = Goal(self.max_drop, self.loss_budget, size)
        return None if goal == Goal() else goal

    @property
    def pattern(self) -> Pattern | None:
        return None if self.nm is None else Pattern.parse(self.nm)

    @property
    def target_milliseconds(self) -> float | None:
        """``target_latency`` as a number."""
        if self.target_latency is None:
            return None
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|ms|us)", self.target_latency.strip())
        if match is None or float(match[1]) <= 0:
            raise UsageError(f"a latency is a number with s, ms or us, not '{self.target_latency}'")
        return float(match[1]) * {"s": 1e3, "ms": 1.0, "us": 1e-3}[match[2]]

    @property
    def states_sparsity(self) -> bool:
        """Is it ``sparsity`` that says how much goes?"""
        return not (self._goals or self.sparsity_of)

    @property
    def removes_units(self) -> bool:
        return bool(self._amounts)

    @property
    def units_alone(self) -> bool:
        """Do units go and no single weights of what remains?"""
        return self.removes_units and self.pattern is None and not self.sparsity

    @property
    def _amounts(self) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in UNIT_AMOUNTS if getattr(self, name) is not None]

    @property
    def recovers(self) -> bool:
        return bool(self.recover_epochs or self.recover_minutes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
