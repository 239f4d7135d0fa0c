"""A run's records for people and programs: terminal table, JSON, HTML with plots. Nothing is computed here."""

from __future__ import annotations

from onnx_obd.report.cells import render_cells
from onnx_obd.report.html import to_html, write_html
from onnx_obd.report.inspection import render_inspection
from onnx_obd.report.json import to_json, write_json
from onnx_obd.report.latency import render_latency
from onnx_obd.report.table import render_table
from onnx_obd.report.units import render_units

__all__ = [
    "render_cells",
    "render_inspection",
    "render_latency",
    "render_table",
    "render_units",
    "to_html",
    "to_json",
    "write_html",
    "write_json",
]
