"""The tables of the speed benchmark."""

import re

from benchmarks.speed import Row, describe


def row(model, after, speed, **more):
    given = {"max_drop": 0.01, "minutes": 2.0, "before": 0.98, "bytes": 0.5, "took": 3.0}
    return Row(model=model, after=after, speed=(speed, speed, speed), **(given | more))


def test_the_mean_is_geometric_and_drops_are_counted():
    text = describe([row("mnist_fc_256x2", 0.975, 4.0), row("mnist_fc_256x4", 0.96, 1.0)])
    assert "Geometric mean of the speed: 2.00; 1 of 2 lose one point at most." in text
    assert "| mnist_fc_256x2 | 98.0 | 97.5 | 4.00 [4.00, 4.00] | 2.00 | 2 | 3.0 |" in text


def test_a_refusal_is_a_row_and_no_speed():
    text = describe([row("mnist_fc_256x2", 0.0, 1.0, refused="no unit"), row("mnist_fc_256x4", 0.98, 1.5)])
    assert "no unit" in text and "Geometric mean of the speed: 1.50" in text


def test_what_was_asked_for_has_a_table_of_its_own():
    asked = [row("mnist_fc_256x2", 0.972, 3.0, max_drop=None, asked=3.0)]
    text = describe([row("mnist_fc_256x2", 0.975, 2.0), *asked])
    assert [float(mean) for mean in re.findall(r"Geometric mean of the speed: ([\d.]+)", text)] == [2.0, 3.0]
    assert asked[0].key != row("mnist_fc_256x2", 0.972, 3.0).key and "speedup-3" in asked[0].name
