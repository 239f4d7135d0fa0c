"""Units removed in place, at full size: what stands behind them is zero, and the survivors are refitted or trained.

The same network as the smaller model, node by node of the original's shapes, so what the original computed there can be
the target of a refit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.units.behind import slices_behind
from onnx_obd.units.find import Unit, UnitMap, stored_names


def unit_masks(mirror: Mirror, removed: Iterable[Unit], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``keep`` with False for the weights behind the removed units; whole masks for tensors that have none in it."""
    masks = {name: mask.clone() for name, mask in keep.items()}
    for unit in removed:
        for piece in slices_behind(mirror, unit):
            if piece.tensor not in masks:
                masks[piece.tensor] = torch.ones(mirror.weights[piece.tensor].shape, dtype=torch.bool)
            masks[piece.tensor].index_fill_(piece.axis, torch.tensor(piece.indices), False)
    return masks


def restore_survivors(mirror: Mirror, units: UnitMap, removed: Collection[Unit], weights: Mapping[str, Tensor]) -> None:
    """Put the weights of the model without ``removed`` where they stand in the mirror of the whole; the rest stays."""
    kept, names = units.kept(removed), stored_names(mirror, units.trace)
    with torch.no_grad():
        for value in units.trace.stored:
            if (weight := mirror.weights.get(names[value])) is not None:
                indices = np.ix_(*(np.flatnonzero(mask) for mask in kept.value(value)))
                weight[tuple(map(torch.from_numpy, indices))] = weights[names[value]].to(weight)
