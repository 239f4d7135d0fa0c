"""The samples every later stage reads: feeds for onnxruntime, their labels, and how they are split and batched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_obd.errors import DataError, UsageError

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Calibration samples, decoded and checked against the model's inputs.

    Attributes:
        feeds: one dict per sample, input name -> array that onnxruntime accepts as it is. Where the model has a batch
            axis its length is 1.
        labels: int64 class indices [N] (or [N, ...], one per output position), float targets [N, ...], or None.
        source: what the samples were read from, for the report.
        sha256: digest of the content of the feeds and labels in order (see ``content_digest``).
        batchable: feeds of equal shapes may be concatenated on axis 0 of every input, because that axis is the
            batch axis of every input and the model leaves its length open. A model whose batch is fixed at 1 is not
            batchable: onnxruntime takes its samples one by one.
    """

    feeds: tuple[Feed, ...]
    labels: np.ndarray | None
    source: str
    sha256: str
    batchable: bool

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.feeds):
            raise DataError(f"{self.source}: {len(self.labels)} labels for {len(self.feeds)} samples")

    @classmethod
    def from_feeds(
        cls, feeds: Sequence[Feed], labels: np.ndarray | None = None, *, source: str, batchable: bool
    ) -> Samples:
        """Samples with their digest computed from ``feeds`` and ``labels``."""
        return cls(tuple(feeds), labels, source, content_digest(feeds, labels), batchable)

    def __len__(self) -> int:
        return len(self.feeds)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Samples:
        """The samples at ``indices``, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[indices]
        return Samples.from_feeds(
            [self.feeds[i] for i in indices], labels, source=self.source, batchable=self.batchable
        )

    def changed(self, times: int, change: Callable[[int, Feed], Feed], what: str) -> Samples:
        """Every sample ``times`` changed, without labels: one round of all after the other, numbered through."""
        feeds = [change(number, feed) for number, feed in enumerate(times * self.feeds)]
        return Samples.from_feeds(feeds, source=f"{self.source}, {what}", batchable=self.batchable)

    def split(self, held_back: float, seed: int) -> tuple[Samples, Samples]:
        """Part the samples into (scoring, held back), the same way for the same seed.

        Args:
            held_back: fraction of the samples in the second part, 0 < held_back < 1; rounded to a whole number of
                samples, at least one in each part. With class indices as labels each class is parted in about this
                proportion.
            seed: of the random choice.

        Raises:
            UsageError: ``held_back`` is not strictly between 0 and 1, or ``seed`` is negative.
            DataError: there are fewer than two samples.
        """
        if not 0 < held_back < 1:
            raise UsageError(f"the held-back fraction must lie strictly between 0 and 1, not {held_back}")
        if seed < 0:
            raise UsageError(f"the seed must not be negative, not {seed}")
        count = len(self)
        if count < 2:
            raise DataError(f"{self.source}: {count} sample cannot be split into scoring and held-back parts")
        size = min(max(round(held_back * count), 1), count - 1)
        order = np.random.default_rng(seed).permutation(count)
        if _are_class_indices(self.labels):
            # The j-th of a class's n samples gets rank (j + 1/2) / n; the lowest ranks overall take from every class
            # in proportion to its size. The stable sort leaves ties between classes in random order.
            rank = np.empty(count)
            for label in np.unique(self.labels):
                members = np.flatnonzero(self.labels[order] == label)
                rank[members] = (np.arange(len(members)) + 0.5) / len(members)
            order = order[np.argsort(rank, kind="stable")]
        return self.subset(np.sort(order[size:])), self.subset(np.sort(order[:size]))

    def batches(self, batch_size: int) -> Iterator[tuple[Feed, np.ndarray | None]]:
        """Feeds of up to ``batch_size`` samples, concatenated on axis 0, each with its labels.

        The order of the samples is kept, so consecutive outputs line up with ``feeds`` and ``labels``; a batch ends
        where the shape of an input changes. Samples that are not batchable come one by one.
        """
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}")
        limit = batch_size if self.batchable else 1
        start = 0
        while start < len(self):
            stop = start + 1
            shapes = _shapes(self.feeds[start])
            while stop < min(start + limit, len(self)) and _shapes(self.feeds[stop]) == shapes:
                stop += 1
            labels = None if self.labels is None else self.labels[start:stop]
            yield _concatenate(self.feeds[start:stop]), labels
            start = stop


def spread_indices(count: int, limit: int | None, labels: np.ndarray | None) -> np.ndarray:
    """At most ``limit`` of ``count`` indices, evenly spread and ascending; over the classes too where labels name them.

    Example: ``spread_indices(10, 2, None)`` is [2, 7].
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit on samples must be at least 1, not {limit}")
    if limit is None or limit >= count:
        return np.arange(count)
    even = (2 * np.arange(limit) + 1) * count // (2 * limit)
    if _are_class_indices(labels):
        return np.sort(np.argsort(labels, kind="stable")[even])
    return even


def content_digest(feeds: Sequence[Mapping[str, np.ndarray]], labels: np.ndarray | None) -> str:
    """SHA-256 over names, dtypes, shapes and values in order; the same on every machine and for every memory layout."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            _update(digest, name, feed[name])
    if labels is not None:
        _update(digest, "", labels)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "O":
        data = repr(array.tolist()).encode()
    else:
        # Little-endian and row-major; a zero-length array has no buffer to cast, hence tobytes() there.
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        data = array.tobytes() if array.ndim == 0 or array.size == 0 else array.data.cast("B")
    digest.update(f"{name!r} {array.dtype.name} {array.shape} {len(data)}\n".encode())
    digest.update(data)


def _are_class_indices(labels: np.ndarray | None) -> bool:
    return labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"


def _shapes(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def _concatenate(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return dict(feeds[0])
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
