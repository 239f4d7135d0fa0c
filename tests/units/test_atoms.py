"""Union-find over labels, and labels that are divided."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_obd.units.atoms import Atoms, Axis, bare, concatenation, product


def groups(atoms: Atoms, axis: Axis) -> list[set[tuple[int, ...]]]:
    """For each layer, which indices go together."""
    found = []
    for layer in atoms.resolve(axis).labels:
        found.append({tuple(np.flatnonzero(layer == label).tolist()) for label in np.unique(layer) if label})
    return found


def frozen(atoms: Atoms, axis: Axis) -> list[int]:
    """The indices with a frozen label."""
    labels = atoms.resolve(axis).labels
    return [i for i in range(axis.length) if any(int(label) in atoms.reasons for label in labels[:, i] if label)]


def test_indices_are_born_apart() -> None:
    atoms = Atoms()
    a, b = atoms.born(3), atoms.born(2)
    assert groups(atoms, a) == [{(0,), (1,), (2,)}]
    assert not set(a.labels.flat) & set(b.labels.flat)
    assert not atoms.born(1).labelled, "one index alone cannot go"


def test_united_indices_go_together() -> None:
    atoms = Atoms()
    a, b, c = atoms.born(3), atoms.born(3), atoms.born(3)
    atoms.unite(a, b, "here")
    shifted = Axis(np.roll(c.labels, 1))
    atoms.unite(b, shifted, "there")
    np.testing.assert_array_equal(atoms.resolve(a).labels, atoms.resolve(shifted).labels)
    assert groups(atoms, concatenation([a, c])) == [{(0, 5), (1, 3), (2, 4)}]


def test_a_bare_axis_freezes_what_it_meets() -> None:
    atoms = Atoms()
    a = atoms.born(3)
    atoms.unite(a, bare(3, "graph input 'x'"), "node Add")
    assert frozen(atoms, a) == [0, 1, 2]
    assert set(atoms.reasons.values()) == {"node Add ties it to what cannot go (graph input 'x')"}


def test_indices_without_label_freeze_those_they_meet() -> None:
    atoms = Atoms()
    a, b = atoms.born(5), atoms.born(3)
    atoms.unite(a, concatenation([b, bare(2, "")]), "node Concat")
    assert frozen(atoms, a) == [3, 4] and frozen(atoms, b) == []


def test_the_first_reason_stays_through_unions() -> None:
    atoms = Atoms()
    a, b, c = atoms.born(2), atoms.born(2), atoms.born(2)
    atoms.freeze(b, "first")
    atoms.unite(a, b, "")
    atoms.freeze(a, "second")
    atoms.unite(c, a, "")
    assert set(atoms.reasons.values()) == {"first"} and frozen(atoms, c) == [0, 1]


def test_factors_of_a_fine_axis() -> None:
    """Six labels in two rows of three: an index goes with its row or with its column."""
    atoms = Atoms()
    axis, elsewhere = atoms.born(6), atoms.born(6)
    atoms.unite(axis, elsewhere, "")
    rows, columns = atoms.factors(axis, (2, 3), "")
    for whole in (axis, elsewhere, product([rows, columns])):
        assert groups(atoms, whole) == [{(0, 1, 2), (3, 4, 5)}, {(0, 3), (1, 4), (2, 5)}]


def test_factors_of_a_product_are_its_factors() -> None:
    atoms = Atoms()
    heads, size = atoms.born(2), atoms.born(3)
    merged = product([heads, size])
    split = atoms.factors(merged, (2, 3), "")
    np.testing.assert_array_equal(atoms.resolve(split[0]).labels, heads.labels)
    np.testing.assert_array_equal(atoms.resolve(split[1]).labels, size.labels)


def test_factors_three_deep() -> None:
    """[3, heads, size] in one axis, the first factor cut off later."""
    atoms = Atoms()
    packed, heads, size = atoms.factors(atoms.born(24), (3, 2, 4), "")
    again = atoms.factors(product([heads, size]), (2, 4), "")
    assert [groups(atoms, axis) for axis in again] == [groups(atoms, heads), groups(atoms, size)]
    assert packed.length == 3


def test_a_fine_axis_that_meets_a_product_is_divided() -> None:
    atoms = Atoms()
    heads, size, fine = atoms.born(2), atoms.born(3), atoms.born(6)
    atoms.unite(product([heads, size]), fine, "")
    assert groups(atoms, fine) == [{(0, 1, 2), (3, 4, 5)}, {(0, 3), (1, 4), (2, 5)}]
    assert set(atoms.resolve(fine).labels.flat) == set(heads.labels.flat) | set(size.labels.flat)


def test_two_products_meet_factor_by_factor() -> None:
    """Whatever the order of their layers."""
    atoms = Atoms()
    a, b = [(atoms.born(2), atoms.born(3)) for _ in range(2)]
    second = product(b)
    atoms.unite(product(a), Axis(second.labels[::-1]), "")
    for mine, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(atoms.resolve(mine).labels, atoms.resolve(theirs).labels)


def test_products_of_other_factors_freeze() -> None:
    atoms = Atoms()
    a, b = product([atoms.born(2), atoms.born(6)]), product([atoms.born(3), atoms.born(4)])
    atoms.unite(a, b, "node Add")
    assert frozen(atoms, a) == frozen(atoms, b) == list(range(12))


def test_a_coarse_axis_that_meets_a_product() -> None:
    """Whole heads meet heads and positions: a position would go from every head, that is everything."""
    atoms = Atoms()
    heads, size, coarse = atoms.born(2), atoms.born(3), atoms.born(2)
    atoms.unite(product([coarse, bare(3, "")]), product([heads, size]), "")
    np.testing.assert_array_equal(atoms.resolve(coarse).labels[0], atoms.resolve(heads).labels[0])
    (position,) = groups(atoms, size)
    assert position == {(0, 1, 2)}


def test_holes_freeze_the_rows_and_columns_they_are_in() -> None:
    """A grid of two rows of which the second cannot go: no column can."""
    atoms = Atoms()
    axis = concatenation([atoms.born(3), bare(3, "")])
    rows, columns = atoms.factors(axis, (2, 3), "node Reshape")
    assert frozen(atoms, columns) == [0, 1, 2]
    assert frozen(atoms, rows) == [1]


def test_frozen_labels_are_divided_into_frozen_labels() -> None:
    atoms = Atoms()
    axis = atoms.born(4)
    atoms.freeze(axis.labels[:, :1], "why")
    rows, columns = atoms.factors(axis, (2, 2), "")
    assert frozen(atoms, rows) == [0] and frozen(atoms, columns) == [0]


def test_one_index_picked_out_freezes() -> None:
    atoms = Atoms()
    axis = atoms.born(3)
    assert atoms.spread(np.full((4, 2), axis.labels[0, 1]), "node Gather") == {}
    assert frozen(atoms, axis) == [1]


@pytest.mark.parametrize("seed", range(5))
def test_random_unions_agree_with_a_plain_union_find(seed: int) -> None:
    generator, atoms = np.random.default_rng(seed), Atoms()
    axes = [atoms.born(7) for _ in range(6)]
    plain = {int(label): {int(label)} for axis in axes for label in axis.labels[0]}
    for _ in range(5):
        a, b = generator.choice(6, 2, replace=False)
        order = generator.permutation(7)
        atoms.unite(axes[a], Axis(axes[b].labels[:, order]), "")
        for x, y in zip(axes[a].labels[0], axes[b].labels[0, order], strict=True):
            union = plain[int(x)] | plain[int(y)]
            for label in union:
                plain[label] = union
    labels = np.concatenate([axis.labels[0] for axis in axes])
    roots = np.concatenate([atoms.resolve(axis).labels[0] for axis in axes])
    for x, root in zip(labels, roots, strict=True):
        assert set(labels[roots == root].tolist()) == plain[int(x)]
