from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from onnx_obd.calibration.samples import Samples, content_digest, spread_indices
from onnx_obd.errors import DataError, UsageError


def make_samples(count: int, labels: np.ndarray | None = None, *, batchable: bool = True, width: int = 3) -> Samples:
    feeds = [{"x": np.full((1, width), index, dtype=np.float32)} for index in range(count)]
    return Samples.from_feeds(feeds, labels, source="here", batchable=batchable)


def numbers(samples: Samples) -> list[int]:
    return [int(feed["x"][0, 0]) for feed in samples.feeds]


def test_labels_must_match_the_samples():
    with pytest.raises(DataError, match="2 labels for 3 samples"):
        make_samples(3, np.array([0, 1]))


def test_subset_takes_feeds_and_labels_in_the_order_asked():
    part = make_samples(5, np.arange(5) * 10).subset([3, 1])
    assert numbers(part) == [3, 1]
    assert part.labels.tolist() == [30, 10]
    assert part.sha256 != make_samples(5).sha256


@pytest.mark.parametrize("held_back, size", [(0.25, 5), (0.01, 1), (0.99, 19), (0.5, 10)])
def test_split_parts_every_sample_once(held_back, size):
    scoring, held = make_samples(20).split(held_back, seed=3)
    assert len(held) == size
    assert sorted(numbers(scoring) + numbers(held)) == list(range(20))
    assert numbers(held) == sorted(numbers(held))


def test_split_is_fixed_by_the_seed():
    samples = make_samples(40)
    assert numbers(samples.split(0.25, 7)[1]) == numbers(samples.split(0.25, 7)[1])
    assert numbers(samples.split(0.25, 7)[1]) != numbers(samples.split(0.25, 8)[1])


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_the_proportion_of_every_class(seed):
    labels = np.repeat([0, 1, 2], [40, 12, 8])[np.random.default_rng(0).permutation(60)]
    scoring, held = make_samples(60, labels).split(0.25, seed)
    assert np.bincount(held.labels).tolist() == [10, 3, 2]
    assert np.bincount(scoring.labels).tolist() == [30, 9, 6]


def test_split_of_singleton_classes_still_has_the_right_size():
    _, held = make_samples(10, np.arange(10)).split(0.3, 0)
    assert len(held) == 3


def test_split_ignores_float_targets():
    samples = make_samples(9, np.linspace(0, 1, 9))
    scoring, held = samples.split(1 / 3, 0)
    assert (len(scoring), len(held)) == (6, 3)
    assert held.labels.tolist() == [samples.labels[i] for i in numbers(held)]


@pytest.mark.parametrize("held_back", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_leaves_a_part_empty(held_back):
    with pytest.raises(UsageError, match="held-back fraction"):
        make_samples(4).split(held_back, 0)


def test_split_needs_two_samples():
    with pytest.raises(DataError, match="1 sample cannot be split"):
        make_samples(1).split(0.5, 0)


def test_batches_concatenate_on_axis_0_with_their_labels():
    batches = list(make_samples(5, np.arange(5) * 10).batches(2))
    assert [feed["x"].shape for feed, _ in batches] == [(2, 3), (2, 3), (1, 3)]
    assert [feed["x"][:, 0].tolist() for feed, _ in batches] == [[0, 1], [2, 3], [4]]
    assert [labels.tolist() for _, labels in batches] == [[0, 10], [20, 30], [40]]


def test_batches_end_where_a_shape_changes_and_keep_the_order():
    feeds = [{"x": np.full((1, width), index)} for index, width in enumerate([4, 4, 6, 6, 6, 4])]
    samples = Samples.from_feeds(feeds, source="here", batchable=True)
    assert [feed["x"].shape for feed, _ in samples.batches(2)] == [(2, 4), (2, 6), (1, 6), (1, 4)]
    assert [label for _, label in samples.batches(2)] == [None] * 4


def test_samples_that_are_not_batchable_come_alone():
    assert [feed["x"].shape for feed, _ in make_samples(3, batchable=False).batches(8)] == [(1, 3)] * 3


def test_batch_size_must_be_positive():
    with pytest.raises(UsageError, match="batch size"):
        next(make_samples(3).batches(0))


def test_digest_depends_on_values_order_dtype_shape_name_and_labels():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    feeds = [{"x": array}, {"x": array + 1}]
    variants = [
        (feeds, None),
        (feeds[::-1], None),
        ([{"x": array}, {"x": array + 2}], None),
        ([{"x": array.astype(np.float64)}, feeds[1]], None),
        ([{"x": array.reshape(3, 2)}, feeds[1]], None),
        ([{"z": array}, feeds[1]], None),
        (feeds, np.array([0, 1])),
        (feeds, np.array([1, 0])),
        ([{"x": array[:0]}, feeds[1]], None),
        ([{"x": np.array(1.0)}, feeds[1]], None),
        ([{"x": np.array(["a", "bc"], dtype=object)}], None),
        ([{"x": np.array(["ab", "c"], dtype=object)}], None),
    ]
    assert len({content_digest(*variant) for variant in variants}) == len(variants)


def test_digest_does_not_depend_on_memory_layout_or_byte_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = content_digest([{"x": array, "a": array}], None)
    assert content_digest([{"a": np.asfortranarray(array), "x": array.astype(">f4")}], None) == expected


def test_digest_is_sha256_over_described_little_endian_bytes():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = struct.pack("<6f", *range(6))
    labels = struct.pack("<q", 5)
    expected = hashlib.sha256(b"'x' float32 (2, 3) 24\n" + data + b"'' int64 (1,) 8\n" + labels).hexdigest()
    assert content_digest([{"x": array}], np.array([5])) == expected


def test_spread_takes_evenly():
    assert spread_indices(10, 2, None).tolist() == [2, 7]
    assert spread_indices(7, 7, None).tolist() == list(range(7))
    assert spread_indices(3, None, None).tolist() == [0, 1, 2]
    assert spread_indices(3, 9, None).tolist() == [0, 1, 2]
    assert len(set(spread_indices(1000, 333, None).tolist())) == 333


def test_spread_takes_from_every_class_in_proportion():
    labels = np.tile([0, 1, 2, 1], 25)
    chosen = spread_indices(100, 12, labels)
    assert np.bincount(labels[chosen]).tolist() == [3, 6, 3]
    assert chosen.tolist() == sorted(chosen)


def test_spread_refuses_a_limit_below_one():
    with pytest.raises(UsageError, match="limit"):
        spread_indices(3, 0, None)
