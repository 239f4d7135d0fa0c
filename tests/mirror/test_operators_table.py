from __future__ import annotations

from pathlib import Path

from onnx_obd.mirror.operators_table import operators_page
from onnx_obd.mirror.registry import registered

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def test_the_page_in_docs_is_what_the_registry_says():
    stale = "docs/operators.md is stale: python -m onnx_obd.mirror.operators_table > docs/operators.md"
    assert PAGE.read_text(encoding="utf-8") == operators_page(), stale


def test_every_registered_operator_has_a_row():
    rows = [line for line in operators_page().splitlines() if line.startswith("| ") and "versions" not in line]
    assert len(rows) == len(registered())


def test_rows_say_what_the_operator_is():
    page = operators_page()
    assert "| Relu | 1, 6, 13, 14 | yes | exact |" in page
    assert "| ArgMax | 1, 11, 12, 13 | no | none |" in page
    assert "| LSTM | 1, 7, 14, 22 | yes | composite |" in page
