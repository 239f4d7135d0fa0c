"""How many samples fit in memory at once."""

from __future__ import annotations

import os

import torch

from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch

COPIES = 4
"""A pass back through a node holds its values, what autograd keeps of them, and their derivatives: about so many."""

SHARE = 0.5
"""Of the memory that is free now."""


def fitting_batch_size(mirror: Mirror, samples: Samples, wanted: int) -> int:
    """``wanted`` or fewer: as many samples as a pass back through the graph has memory for, at least one.

    From the bytes of all values of one sample; shapes that grow faster than the samples are not foreseen.
    """
    free = free_memory()
    if wanted <= 1 or free is None:
        return wanted
    return max(1, min(wanted, int(SHARE * free) // max(1, COPIES * sample_bytes(mirror, samples))))


def sample_bytes(mirror: Mirror, samples: Samples) -> int:
    """Bytes of all values that the nodes make of the first sample."""
    inputs = [to_torch(samples.feeds[0].get(name)) for name in mirror.input_names]
    with torch.no_grad():
        env = mirror.program.record(mirror.start(inputs))
    made = {slot for step in mirror.program.steps for slot in step.outputs}
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in (env[slot] for slot in made)
        if isinstance(value, torch.Tensor)
    }
    return sum(storages.values())


def free_memory() -> int | None:
    """Bytes of main memory that are free now; None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
