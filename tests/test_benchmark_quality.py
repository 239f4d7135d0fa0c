"""What the quality benchmark computes and writes, by hand-worked figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.quality import ORIGINAL, Row, details, divergence, log_probabilities, overview, replace_section


def test_the_divergence_of_two_coins():
    fair, loaded = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(fair, loaded) == pytest.approx(expected)
    assert divergence(np.exp(fair), np.exp(loaded)) == pytest.approx(expected)  # probabilities are known as such
    assert divergence(fair + 7, loaded - 3) == pytest.approx(expected)  # logits have no origin
    assert divergence(fair, fair) == pytest.approx(0, abs=1e-12)


def test_classes_have_no_divergence():
    assert log_probabilities(np.array([1, 2])) is None
    assert divergence(np.array([1, 2]), np.array([1, 2])) is None


def row(method, sparsity, accuracy, minutes=0.0):
    return Row("net", method, minutes, sparsity, accuracy, None, 0.5, 2.0, 0.25, "obd")


def test_the_tables():
    rows = [row(ORIGINAL, 0.0, 0.9), row("obd", 0.5, 0.85), row("obd", 0.9, 0.7), row("obd", 0.9, 0.8, minutes=2.0)]
    assert overview(rows, [0.5, 0.9])[2:] == [
        "| net (90.0) | obd | 85.0 | 70.0 | 2.0 |",
        "| net (90.0) | obd + 2 min recovery |  | 80.0 | 2.0 |",
    ]
    assert details(rows)[-1] == "| net | obd + 2 min recovery | 0.9 | 80.0 |  | 50.0 | 0.25 | 2.0 | obd |"
    assert len(details(rows)) == 2 + 3


def test_a_section_is_replaced_and_the_others_stay():
    text = "# Benchmarks\n\n## Quality\n\nold\n\n### part\n\n## Speed\n\nkept\n"
    assert replace_section(text, "Quality", "new") == "# Benchmarks\n\n## Quality\n\nnew\n\n## Speed\n\nkept\n"
    assert replace_section(text, "Size", "new").endswith("kept\n\n## Size\n\nnew\n")
    assert replace_section("", "Quality", "new") == "# Benchmarks\n\n## Quality\n\nnew\n"
