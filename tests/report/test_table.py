from __future__ import annotations

from dataclasses import replace

import click
import pytest

from onnx_obd.report import render_table
from onnx_obd.report.layout import display_width
from tests.report.example import CANDIDATES, CLASSIFIER, REGRESSION, UNTRUSTED


def squeeze(text: str) -> str:
    return " ".join(text.split())


def test_the_facts_are_there():
    text = squeeze(render_table(CLASSIFIER, width=110, color=False, encoding="utf-8"))
    for fact in (
        "lenet_digits.onnx → build/demo/lenet_digits.obd.onnx",
        "sparsity 0.3 % 90.0 % target 90.0 %; 89.6 % of all 61,706 parameters",
        "file size 245 kB 48.9 kB 5.01× smaller; 3 tensors stored sparse",
        "agreement 100 % 97.3 %",
        "accuracy 97.3 % 96.4 % -0.9 points",
        "loss 0 0.0292 divergence at temperature 4",
        "latency 0.142 ms 0.141 ms no measurable difference, 1.002× [0.981, 1.021]",
        "Element sparsity does not speed up onnxruntime",
        "▸ obd + refit 90.0 % 0.0291 97.3 % 96.4 % 14.2 % 9.9 s",
        "magnitude 90.0 % 0.246 87.1 % 86.7 % 41.3 % 0.20 s",
        "Shipped: obd + refit, the lowest held-back loss of 5 candidates",
        "9 90.0 % 0.00534 0.0172 0.0181",
        "3 tensors 32 parameters a bias (--prune-biases)",
        "its top probability is above 0.5",
        "675 samples for scoring, 225 held back",
    ):
        assert fact in text


@pytest.mark.parametrize("report", [CLASSIFIER, REGRESSION, UNTRUSTED], ids=["classifier", "regression", "untrusted"])
@pytest.mark.parametrize("width", [1, 40, 57, 71, 72, 80, 100, 400])
def test_no_line_is_wider_than_the_terminal(report, width):
    text = render_table(report, width=width, color=False, encoding="utf-8")
    assert max(map(display_width, text.splitlines())) <= min(120, max(40, width))


def test_missing_parts_leave_no_trace():
    text = render_table(REGRESSION, width=100, color=False, encoding="utf-8")
    for absent in ("agreement", "accuracy", "latency", "predicted  ", "–", "None", "nan", "Notes", "Left as they are"):
        assert absent not in text
    bare = replace(REGRESSION, candidates=(), rounds=(), weights=(), seconds={})
    text = render_table(bare, width=100, color=False, encoding="utf-8")
    assert "Candidates" not in text and "round" not in text.replace("onnxruntime", "")


def test_no_number_is_a_wall_of_digits():
    odd = replace(CLASSIFIER, exported=replace(CANDIDATES[0], loss=1.2345678901e-5, relative_error=0.123456789))
    text = render_table(odd, width=100, color=False, encoding="utf-8")
    assert "1.23e-5" in text and "12.3 %" in text and "2345678" not in text


def test_styles_change_nothing_but_the_styles():
    plain = render_table(CLASSIFIER, width=90, color=False, encoding="utf-8")
    styled = render_table(CLASSIFIER, width=90, color=True, encoding="utf-8")
    assert "\x1b[" in styled and "\x1b" not in plain
    assert [line.rstrip() for line in click.unstyle(styled).splitlines()] == plain.splitlines()


def test_not_a_terminal_gets_no_styles(capsys):
    assert "\x1b" not in render_table(CLASSIFIER)


def test_encodings_that_lack_a_character_get_another():
    text = render_table(CLASSIFIER, width=90, color=False, encoding="ascii")
    assert text.isascii() and "5.01x smaller" in text and "lenet_digits.onnx -> build/" in text
    assert render_table(CLASSIFIER, width=90, color=False, encoding="no-such-encoding").isascii()


def test_names_cannot_command_the_terminal():
    text = render_table(UNTRUSTED, width=90, color=False, encoding="utf-8")
    assert not any(character in text for character in "\x1b\u202e\x00\udc80")
    assert "\\x1b[2J" in text


def test_the_control_is_shown_however_many_candidates_did_better():
    many = tuple(replace(CANDIDATES[1], method=f"obd, variant {n}", loss=0.01 + n / 1000) for n in range(14))
    report = replace(CLASSIFIER, candidates=(*many, CANDIDATES[0]), shipped="obd, variant 12")
    text = render_table(report, width=100, color=False, encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("     magnitude", "  ▸"))]
    assert len(lines) == 2 and "variant 12" in lines[0]
    assert "and 3 more of higher loss" in text


def test_five_rounds_stand_for_many():
    lines = render_table(CLASSIFIER, width=100, color=False, encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.split()[:2] == ["round", "sparsity"])
    assert [line.split()[0] for line in lines[start + 1 : start + 6]] == ["1", "3", "5", "7", "9"]


def test_wide_characters_are_counted_as_two_columns():
    report = replace(CLASSIFIER, candidates=(replace(CANDIDATES[1], method="大きさ"), CANDIDATES[0]), shipped="大きさ")
    lines = render_table(report, width=100, color=False, encoding="utf-8").splitlines()
    first, second = (
        next(line for line in lines if name in line and "90.0 %" in line) for name in ("大きさ", "magnitude ")
    )
    assert display_width(first) == display_width(second) and len(first) == len(second) - 3
