from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from onnx_obd.errors import ExportError
from onnx_obd.records import Report
from onnx_obd.report import to_json, write_json
from tests.report.example import CLASSIFIER, HOSTILE, LATENCY, REGRESSION, UNTRUSTED


def strict(text: str) -> dict:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_field_and_number_comes_back():
    content = strict(to_json(CLASSIFIER))
    assert list(content) == ["schema", *(field.name for field in fields(Report))]
    assert content.pop("schema") == 1
    assert content == json.loads(json.dumps(asdict(CLASSIFIER)))  # lists for tuples, every double the same
    assert content["rounds"][3]["predicted"] == 0.000204


def test_missing_parts_are_null():
    content = strict(to_json(REGRESSION))
    assert content["latency"] is None and content["exported"]["agreement"] is None
    assert content["rounds"][0]["predicted"] is None


def test_what_is_not_finite_is_null():
    report = replace(CLASSIFIER, mirror_error=math.nan, export_error=math.inf, options={"x": np.float32("nan")})
    content = strict(to_json(report))
    assert content["mirror_error"] is None and content["export_error"] is None and content["options"]["x"] is None


def test_options_of_any_type():
    options = {
        "path": Path("a/b"),
        "set": {"b", "a"},
        "float32": np.float32(0.25),
        "int64": np.int64(7),
        "bool": np.bool_(True),
        "array": np.array([[1, 2]]),
        3: (1, None, True),
    }
    content = strict(to_json(replace(CLASSIFIER, options=options)))["options"]
    assert content == {
        "path": str(Path("a/b")),
        "set": ["a", "b"],
        "float32": 0.25,
        "int64": 7,
        "bool": True,
        "array": [[1, 2]],
        "3": [1, None, True],
    }


def test_other_records_too():
    assert strict(to_json(LATENCY))["speedup"] == {"median": 1.0021, "low": 0.9812, "high": 1.0214}


def test_text_is_unicode_whatever_the_names_are():
    content = strict(to_json(UNTRUSTED).encode("utf-8").decode("utf-8"))
    assert content["shipped"] == HOSTILE.replace("\udc80", "\\udc80")


def test_written_whole_or_not_at_all(tmp_path):
    target = write_json(CLASSIFIER, tmp_path / "new" / "report.json")
    assert strict(target.read_text("utf-8"))["shipped"] == "obd + refit"
    with pytest.raises(ExportError, match=r"cannot write '.*report\.json'"):
        write_json(CLASSIFIER, target / "below" / "report.json")
    assert [path.name for path in target.parent.iterdir()] == ["report.json"]
