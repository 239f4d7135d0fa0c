"""What a data source holds, before any of it is decoded: so that a limit picks samples without reading the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_obd.calibration.inputs import ModelInput, Stacking, count_samples, stack_arrays, take_feeds
from onnx_obd.calibration.samples import Feed
from onnx_obd.errors import DataError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Listing:
    """The samples of a source, numbered from 0.

    Attributes:
        count: how many there are.
        labels: those that come with the source itself (not from a separate file), as ``labels.as_labels`` gives them.
        files: the file each sample lies in, for labels given per file; None if they come from no file.
        read: decodes the feeds at ascending indices, reporting (done, total) to the callback if one is given.
        note: how the source was understood, for the report.
    """

    count: int
    labels: np.ndarray | None
    files: Sequence[Path] | None
    read: Callable[[np.ndarray, Progress | None], list[Feed]]
    note: str


@dataclass(frozen=True)
class ArrayGroup:
    """Arrays that belong together, one per model input: one sample or a stack of them.

    Attributes:
        where: the file, for messages.
        path: the file, or None for arrays that come from no file.
        stackings: how each array holds its samples.
        load: reads the arrays.
        labels: of the samples in this group, or None.
    """

    where: str
    path: Path | None
    stackings: dict[str, Stacking]
    load: Callable[[], Mapping[str, np.ndarray]]
    labels: np.ndarray | None = None

    @property
    def count(self) -> int:
        return count_samples(self.stackings, self.where)


def group_of(
    arrays: dict[str, np.ndarray],
    inputs: Sequence[ModelInput],
    where: str,
    labels: np.ndarray | None = None,
    path: Path | None = None,
) -> ArrayGroup:
    """A group of arrays that are in memory already."""
    stackings = stack_arrays({name: array.shape for name, array in arrays.items()}, inputs, where)
    return ArrayGroup(where, path, stackings, lambda: arrays, labels)


def list_groups(groups: Sequence[ArrayGroup], inputs: Sequence[ModelInput], note: str) -> Listing:
    """The samples of all groups, in order.

    Raises:
        DataError: a group's labels do not match its samples in number, or only some groups have labels.
    """
    for group in groups:
        if group.labels is not None and len(group.labels) != group.count:
            raise DataError(f"{group.where}: {len(group.labels)} labels for {group.count} samples")
    starts = np.cumsum([0] + [group.count for group in groups])

    def read(indices: np.ndarray, progress: Progress | None) -> list[Feed]:
        feeds: list[Feed] = []
        for start, stop, group in zip(starts[:-1], starts[1:], groups, strict=True):
            local = indices[(indices >= start) & (indices < stop)] - start
            if len(local):
                feeds += take_feeds(group.load(), group.stackings, inputs, local, group.where)
                if progress:
                    progress(len(feeds), len(indices))
        return feeds

    files = None
    if all(group.path is not None for group in groups):
        files = [group.path for group in groups for _ in range(group.count)]
    return Listing(int(starts[-1]), _join_labels(groups), files, read, note)


def _join_labels(groups: Sequence[ArrayGroup]) -> np.ndarray | None:
    labelled = [group for group in groups if group.labels is not None]
    if not labelled:
        return None
    if len(labelled) != len(groups):
        bare = next(group for group in groups if group.labels is None)
        raise DataError(f"{bare.where}: no labels, while {labelled[0].where} has some; give labels for all or none")
    first = labelled[0]
    for group in labelled:
        if (group.labels.dtype.kind, group.labels.shape[1:]) != (first.labels.dtype.kind, first.labels.shape[1:]):
            raise DataError(
                f"{group.where}: labels are {group.labels.dtype} {group.labels.shape}, "
                f"while {first.where} has {first.labels.dtype} {first.labels.shape}"
            )
    return np.concatenate([group.labels for group in groups])
