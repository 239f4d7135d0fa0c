"""The language of axis rules, and the rules of the operators in it."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_obd.mirror import mirror  # noqa: F401  (registers the operators)
from onnx_obd.mirror.axes import (
    MOVED,
    Along,
    Fixed,
    Name,
    Product,
    Sum,
    Unreadable,
    expand,
    names_of,
    parse,
    position_kept,
    renumbered,
)
from onnx_obd.mirror.registry import Operator, registered


def test_terms() -> None:
    rule = parse("n (group c) _*, (group m) c _*, (3 m) -> n (group m) _*")
    assert rule.inputs[1] == (Product((Name("group"), Name("m"))), Name("c"), "_*")
    assert rule.inputs[2] == (Product((Fixed(3), Name("m"))),)
    assert rule.outputs == ((Name("n"), Product((Name("group"), Name("m"))), "_*"),)


def test_sums_recurrences_and_lengths() -> None:
    rule = parse("[a + (b 2)] h', c=4 _ -> c")
    assert rule.inputs[0] == (Sum((Name("a"), Product((Name("b"), Fixed(2))))), Name("h", summed=True))
    assert rule.inputs[1] == (Name("c"), Along())
    assert rule.lengths == {"c": 4}


def test_one_term_for_all() -> None:
    rule = parse("n c _*")
    assert rule.term(rule.inputs, 5) == rule.term(rule.outputs, 1) == (Name("n"), Name("c"), "_*")


def test_absent_inputs_have_empty_terms() -> None:
    assert parse("a, , b -> a").inputs == ((Name("a"),), (), (Name("b"),))


@pytest.mark.parametrize("text", ["a + b", "(a", "a; b", "a)"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="axes"):
        parse(text)


def test_expanding_to_a_rank() -> None:
    (term,) = parse("... i k").inputs
    assert expand(term, 4) == [Name("...2"), Name("...1"), Name("i"), Name("k")]
    assert expand(term, 2) == [Name("i"), Name("k")]
    assert expand(parse("n c _*").inputs[0], 4) == [Name("n"), Name("c"), Along(), Along()]
    assert expand(parse("i j").inputs[0], 1) == [Name("j")], "the last axes"
    with pytest.raises(Unreadable):
        expand(parse("c").inputs[0], 2)


def test_names() -> None:
    (expression,) = parse("[(a 3) + b]").inputs[0]
    assert [name.name for name in names_of(expression)] == ["a", "b"]


@pytest.mark.parametrize("operator", registered(), ids=lambda o: f"{o.domain}:{o.name}-{o.since[0]}")
def test_rules_of_operators_can_be_read(operator: Operator) -> None:
    """What they mean is checked in tests/units/test_rules.py."""
    if isinstance(operator.axes, str) and operator.axes != MOVED:
        parse(operator.axes)


def test_cuts_among_what_is_left() -> None:
    kept = np.array([True, False, True, True, False])
    assert [position_kept(kept, p) for p in (0, 1, 2, 4, 5, 2**62)] == [0, 1, 1, 3, 5, 2**62]
    assert [position_kept(kept, p) for p in (-5, -3, -6)] == [-3, -2, -6]
    assert position_kept(kept, -1) == 3, "nothing is left behind it: the end, not the beginning"


def test_indices_among_what_is_left() -> None:
    kept = np.array([True, False, True, True])
    assert renumbered(kept, [3, 0, -2, -4]) == [2, 0, -2, -3]
