"""The paper's experiments on a mirror of the trained network: what deletion does to the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from benchmarks.paper.digits import Digits
from onnx_obd import Mirror, Samples, apply_masks, estimate_curvature, plan_elements, predict_jointly, score
from onnx_obd.calibration.measure import Calibration
from onnx_obd.calibration.objective import Objective, choose_objective
from onnx_obd.records import Saliency
from onnx_obd.surgery.mask import restore, snapshot

BATCH = 256
SCORING = 2048
"""Training images whose curvature is taken and on which predictions are checked."""


@dataclass(frozen=True)
class Point:
    """After deleting: parameters left, mean squared error on the training images and the test images, test accuracy."""

    left: int
    train: float
    test: float
    accuracy: float


@dataclass(frozen=True)
class Prediction:
    """A deletion as predicted by the sum of saliencies (per estimator), with cross terms, and as measured."""

    left: int
    summed: dict[str, float]
    jointly: float
    measured: float


class Bench:
    """The trained network on its digits; every experiment starts from its weights and leaves them restored."""

    def __init__(self, model: onnx.ModelProto, train: Digits, test: Digits):
        self.mirror = Mirror(model)
        self.original = snapshot(self.mirror)
        self.names = list(self.original)
        self.total = sum(weight.numel() for weight in self.original.values())
        self.images, self.targets = torch.from_numpy(train.images), torch.from_numpy(train.targets)
        self.objective = self._objective(train)
        self.scoring = self._calibration(train, SCORING)
        self.test, self.test_classes = self._calibration(test, len(test.images)), torch.from_numpy(test.classes)

    def _objective(self, digits: Digits) -> Objective:
        targets = torch.from_numpy(digits.targets)
        batch = [(torch.from_numpy(digits.images[:BATCH]),)]
        return choose_objective(self.mirror, batch, targets, kind="squared")

    def _calibration(self, digits: Digits, count: int) -> Calibration:
        feeds = [{"image": image[None]} for image in digits.images[:count]]
        samples = Samples.from_feeds(feeds, digits.targets[:count], source=digits.name, batchable=True)
        return Calibration(self.mirror, self.objective, samples, BATCH)

    def point(self, left: int) -> Point:
        with torch.no_grad():
            outputs = torch.cat([self.mirror(*batch.inputs) for batch in self.test.batches])
        accuracy = float((outputs.argmax(1) == self.test_classes).double().mean())
        return Point(left, self.scoring.loss(), self.test.loss(), accuracy)

    def keep_all(self) -> dict[str, Tensor]:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.original.items()}

    def saliency(self, method: str, estimator: str, seed: int) -> Saliency:
        weights = {name: self.mirror.weights[name] for name in self.names}
        if method == "random":
            generator = torch.Generator().manual_seed(seed)
            return Saliency({n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}, "random")
        if method == "magnitude":
            return score("magnitude", weights, None)
        curvature = estimate_curvature(estimator, self.scoring, self.scoring, self.names, seed=seed)
        return score("obd_undamped", weights, curvature)

    def deletion(
        self,
        method: str,
        fractions: Sequence[float],
        *,
        estimator: str = "ggn_exact",
        retrain: int = 0,
        again: bool = True,
    ) -> tuple[list[Point], list[Point]]:
        """Delete more and more: the points before and after retraining (the same without ``retrain`` epochs).

        ``again``: scores are computed anew before each deletion.
        """
        keep, before, after, saliency = self.keep_all(), [], [], None
        for step, fraction in enumerate(fractions):
            if saliency is None or again:
                saliency = self.saliency(method, estimator, seed=step if again else 0)
            plan = plan_elements(saliency, fraction, keep)
            keep = dict(plan.keep)
            apply_masks(self.mirror, keep)
            left = self.total - plan.deleted
            before.append(self.point(left))
            self.train(keep, retrain, seed=step)
            after.append(self.point(left) if retrain else before[-1])
        restore(self.mirror, self.original)
        return before, after

    def train(self, keep: dict[str, Tensor], epochs: int, seed: int) -> None:
        """Adam on all training images; what is deleted stays zero."""
        optimizer = torch.optim.Adam(self.mirror.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for index in torch.randperm(len(self.images), generator=generator).split(64):
                optimizer.zero_grad()
                (self.mirror(self.images[index]) - self.targets[index]).square().mean().backward()
                optimizer.step()
                apply_masks(self.mirror, keep)

    def predictions(self, fractions: Sequence[float], estimators: Sequence[str]) -> list[Prediction]:
        """Deletions ranked once, at the trained weights; the objective is the distance to the trained outputs.

        That is where the paper's assumption of a minimum holds exactly. The ranking is that of the last estimator.
        """
        divergence = Calibration(self.mirror, self._unlabelled(), self.scoring.samples, BATCH)
        saliencies = {}
        for name in estimators:
            curvature = estimate_curvature(name, divergence, divergence, self.names)
            saliencies[name] = score("obd_undamped", self.original, curvature)
        ranked = saliencies[estimators[-1]]
        found = []
        for fraction in fractions:
            plan = plan_elements(ranked, fraction)
            gone = {name: ~mask for name, mask in plan.keep.items()}
            summed = {
                name: sum(float(s.loss_change[n][gone[n]].sum()) for n in self.names) for name, s in saliencies.items()
            }
            apply_masks(self.mirror, plan.keep)
            measured = divergence.loss()
            deleted = snapshot(self.mirror)
            restore(self.mirror, self.original)
            jointly = predict_jointly(divergence, self.original, deleted)
            found.append(Prediction(self.total - plan.deleted, summed, jointly, measured))
        return found

    def _unlabelled(self) -> Objective:
        return choose_objective(self.mirror, [(self.images[:BATCH],)], None, kind="squared")


def fractions(steps: int, most: float) -> list[float]:
    return [float(f) for f in np.linspace(0, most, steps + 1)]
