from __future__ import annotations

from onnx_obd.records import WeightSummary
from onnx_obd.report import render_inspection
from onnx_obd.report.layout import display_width
from tests.report.example import HOSTILE, WEIGHTS


def render(*arguments, width=90) -> str:
    return render_inspection(*arguments, width=width, color=False, encoding="utf-8")


def test_what_can_be_pruned_what_not_and_why():
    text = render("models/lenet.onnx", WEIGHTS, ["node '/nms' (NonMaxSuppression)"], {"nodes": 12345, "file": "245 kB"})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "lenet.onnx",
        "parameters 61,514",
        "nodes 12,345",
        "file 245 kB",
        "prunable 61,470 parameters in 5 tensors, 99.9 % of all",
        "classifier.2.weight 84×120 10,080 2.1 % /classifier/2/Gemm",
        "a bias (--prune-biases): 3 tensors, 32 parameters",
        "features.0.bias, features.3.bias, classifier.4.bias",
        "no gradient passes node '/nms': 1 tensor, 12 parameters",
        "node '/nms' (NonMaxSuppression)",
    ):
        assert line in lines


def test_nothing_to_prune():
    text = render("a.onnx", [])
    assert "nothing: no weight of this model can be scored" in text and "Not prunable" not in text
    assert "prunable       0 parameters in 0 tensors" in text


def test_many_names_are_summed_up():
    biases = [WeightSummary(f"b{n}", (3,), "", "Add", False, "a bias") for n in range(30)]
    assert "b0, b1, b2, b3 and 26 more" in render("a.onnx", biases)


def test_narrow_and_untrusted():
    weights = [WeightSummary(HOSTILE * 3, (1, 2, 3, 4, 5, 6, 7), HOSTILE, HOSTILE, n == 0, HOSTILE) for n in range(2)]
    text = render(HOSTILE, weights, [HOSTILE], {"made by": HOSTILE}, width=40)
    assert "\x1b" not in text and "\u202e" not in text
    body = text.splitlines()[1:]  # the first line is the file's name, whole
    assert max(map(display_width, body)) <= 40
