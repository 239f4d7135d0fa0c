"""How many samples are run at once: what memory holds, and no more than is fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.slices import SLICE
from onnx_obd.mirror.values import to_torch

COPIES = 4
"""A pass back through a node holds its values, what autograd keeps of them, and their derivatives: about so many."""

SHARE = 0.5
"""Of the memory that is free now."""


def fitting_batch_size(sizes: Sequence[int], wanted: int) -> int:
    """``wanted`` or fewer, at least one: as many samples as a pass back through the graph has memory for.

    Nor so many that a value has more than ``SLICE`` bytes: its memory would come from the system anew each time, which
    can take longer than the arithmetic. Shapes that grow faster than the samples are not foreseen.

    Args:
        sizes: of the values of one sample (``value_bytes``).
    """
    if wanted <= 1:
        return wanted
    free, fast = free_memory(), SLICE // max([1, *sizes])
    held = wanted if free is None else int(SHARE * free) // max(1, COPIES * sum(sizes))
    return max(1, min(wanted, fast, held))


def value_bytes(mirror: Mirror, samples: Samples) -> list[int]:
    """Bytes of each of the values that the nodes make of the first sample, views not counted."""
    inputs = [to_torch(samples.feeds[0].get(name)) for name in mirror.input_names]
    with torch.no_grad():
        env = mirror.program.record(mirror.start(inputs))
    made = {slot for step in mirror.program.steps for slot in step.outputs}
    values = [env[slot] for slot in made if isinstance(env[slot], torch.Tensor)]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    return list(storages.values())


def free_memory() -> int | None:
    """Bytes that this process may still take: free in the machine, in its control groups and under its own limit.

    None where the system does not say.
    """
    known = [free for free in (_in_machine(), _in_control_groups(), _under_own_limit()) if free is not None]
    return max(0, min(known)) if known else None


def _in_machine() -> int | None:
    """What the kernel could hand out, the page cache included."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


CONTROL_GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LIMITS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of control groups of version 2 and 1: the files of a limit and of what is used, and what of that is mere cache."""


def _in_control_groups() -> int | None:
    """The least that a group of this process, or one around it, leaves of its limit: what containers are held to."""
    found = []
    for version, (limit, used, cache) in LIMITS.items():
        for folder in _own_folders(version):
            try:
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                found.append(left + int(stat.get(cache, 0)))
            except (OSError, ValueError):  # no such group here, or its limit is "max"
                continue
    return min(found, default=None)


def _own_folders(version: str) -> Iterator[Path]:
    root = CONTROL_GROUPS / version
    try:
        lines = [line.split(":", 2) for line in MEMBERSHIP.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if version in controllers.split(","):
            own = root / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _under_own_limit() -> int | None:
    """What ``ulimit -v`` leaves of the address space."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        return limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return None
