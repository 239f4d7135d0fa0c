"""What a run may be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnx_obd.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Options of one pruning run; the command line has one for each.

    Attributes:
        sparsity: fraction of the prunable weights to delete, in [0, 1).
        method: criterion to rank by; the magnitude control is always measured beside it.
        curvature: estimator of the second derivatives.
        rounds: deletions in steps, the curvature re-estimated before each.
        num_probes: random output vectors per sample for the estimated scale.
        probe_samples: samples that get them.
        objective: "auto", "kl", "squared", "labels", "divergence", or "module:function".
        temperature: of the softened divergence; None for the spread of the logits, or 1 with labels.
        held_back: fraction of the samples that every printed number is measured on, in (0, 1).
        samples: use at most this many, evenly spread.
        batch_size: samples per mirror run, where the model can take several.
        seed: of the split, the probes and the fine-tuning order.
        include, exclude: name patterns of weights.
        prune_biases: rank biases and normalisation parameters too.
        finetune_epochs: masked training after the last round; 0 for none.
        retrain_epochs: masked training after each round but the last (the paper's iteration); 0 for none.
        learning_rate: of the training, relative to the typical weight of each tensor.
        format: "auto", "dense" or "sparse" storage of the result.
        benchmark: time the result against the original.
        threads: of onnxruntime in the timing.
    """

    sparsity: float = 0.5
    method: str = "obd"
    curvature: str = "lecun_scaled"
    rounds: int = 12
    num_probes: int = 1
    probe_samples: int = 16
    objective: str = "auto"
    temperature: float | None = None
    held_back: float = 0.25
    samples: int | None = None
    batch_size: int = 32
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prune_biases: bool = False
    finetune_epochs: int = 0
    retrain_epochs: int = 0
    learning_rate: float = 2e-2
    format: str = "auto"
    benchmark: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        rules = (
            (0 <= self.sparsity < 1, f"sparsity must be in [0, 1), not {self.sparsity:g}"),
            (0 < self.held_back < 1, f"held-back fraction must be in (0, 1), not {self.held_back:g}"),
            (self.rounds >= 1, f"rounds must be at least 1, not {self.rounds}"),
            (self.num_probes >= 1, f"probes must be at least 1, not {self.num_probes}"),
            (self.probe_samples >= 1, f"probe samples must be at least 1, not {self.probe_samples}"),
            (self.batch_size >= 1, f"batch size must be at least 1, not {self.batch_size}"),
            (self.threads >= 1, f"threads must be at least 1, not {self.threads}"),
            (self.finetune_epochs >= 0 and self.retrain_epochs >= 0, "epochs must not be negative"),
            (self.learning_rate > 0, f"learning rate must be positive, not {self.learning_rate:g}"),
            (self.temperature is None or self.temperature > 0, f"temperature must be positive, not {self.temperature}"),
            (self.seed >= 0, f"seed must not be negative, not {self.seed}"),
            (self.format in ("auto", "dense", "sparse"), f"format is auto, dense or sparse, not {self.format}"),
        )
        for holds, message in rules:
            if not holds:
                raise UsageError(message)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
