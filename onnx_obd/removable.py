"""What could be removed whole from a model, what not and why; on data also what does nothing there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnx_obd.calibration.folder import NO_LABELS, load_samples
from onnx_obd.calibration.made_up import made_up_samples
from onnx_obd.calibration.measure import feeds
from onnx_obd.graph.load import load_model
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.records import FrozenUnits, UnitFamily, Units, UnusedFeatures
from onnx_obd.surgery.shrink_confirm import confirmed_units
from onnx_obd.units.find import UnitMap
from onnx_obd.units.idle import idle_units, unused_inputs

SAMPLES = 64
"""At most so many are looked at for what does nothing."""

BATCH = 16


def inspect_units(model: str | Path, data: str | Path | None = None) -> Units:
    """What could be removed whole from a model: channels, neurons, heads; and why the rest cannot.

    Every family was tried on one sample: some of it removed from the mirror gives what leaving it out of every sum
    gives.

    Args:
        data: samples, of which the first 64 also tell which units and input features do nothing; without, the sample
            is made up.

    Raises:
        DataError: no made-up sample fits the model, or the data do not.
        ModelError: the model cannot be read or run.
    """
    source = load_model(model)
    mirror = Mirror(source.proto)
    if data is None:
        samples = made_up_samples(source.proto, 1)
    else:
        samples = load_samples(data, source.proto, labels=NO_LABELS, limit=SAMPLES, model_path=source.path)
    found = confirmed_units(mirror, feeds(mirror, samples, 1)[0][0])
    idle, unused = None, {}
    if data is not None:
        batches = [inputs for inputs, _, _ in feeds(mirror, samples, BATCH)]
        idle, unused = idle_units(mirror, found, batches), unused_inputs(mirror, batches)
    return Units(
        model=str(model),
        families=_families(found, idle),
        frozen=tuple(FrozenUnits(each.kind, each.nodes, each.count, each.reason) for each in found.frozen),
        elements=found.elements,
        elements_share=found.elements_of(found.units) / max(1, found.elements),
        macs=found.macs,
        macs_share=found.macs_of(found.units) / max(1, found.macs),
        boundaries=mirror.boundaries,
        samples=None if data is None else len(samples),
        unused=tuple(_features(name, mask) for name, mask in unused.items()),
    )


def _families(found: UnitMap, idle: set[int] | None) -> tuple[UnitFamily, ...]:
    return tuple(
        UnitFamily(
            kind=members[0].kind,
            nodes=members[0].nodes,
            count=len(members),
            elements_each=members[0].elements,
            macs_share_each=members[0].macs / found.macs if found.macs else 0.0,
            idle=None if idle is None else sum(unit.id in idle for unit in members),
        )
        for members in found.families().values()
    )


def _features(name: str, mask: np.ndarray) -> UnusedFeatures:
    first = tuple(tuple(map(int, index)) for index in np.argwhere(mask)[:3])
    return UnusedFeatures(name, int(mask.sum()), int(mask.size), first)
