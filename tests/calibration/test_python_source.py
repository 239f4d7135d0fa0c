from __future__ import annotations

import sys
import textwrap

import numpy as np
import pytest

from onnx_obd.calibration.folder import load_samples
from onnx_obd.errors import DataError, UsageError
from tests.calibration.models import FLOAT, INT64, check_accepted, make_model

MODEL = make_model(("x", FLOAT, ["batch", 3]), classes=7)
PAIR = make_model(("ids", INT64, ["batch", "seq"]), ("rate", FLOAT, []))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load samples from a function ``samples`` with the given body, in a module in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(body: str, model=MODEL, **options):
        source = "import numpy as np\ndef samples(inputs):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / "calibration_source.py").write_text(source)
        monkeypatch.delitem(sys.modules, "calibration_source", raising=False)
        return load_samples("calibration_source:samples", model, **options)

    yield run
    sys.modules.pop("calibration_source", None)


@pytest.mark.parametrize(
    "body, labels",
    [
        ("return np.arange(12.0).reshape(4, 3)", None),
        ("return {'x': np.arange(12.0).reshape(4, 3)}", None),
        ("return {'x': np.arange(12.0).reshape(4, 3)}, [3, 0, 1, 6]", [3, 0, 1, 6]),
        ("return np.arange(12.0).reshape(4, 3), np.array([3, 0, 1, 6])", [3, 0, 1, 6]),
        ("return [np.arange(3.0) + 3 * i for i in range(4)]", None),
        ("return [{'x': np.arange(3.0)[None] + 3 * i} for i in range(4)]", None),
        ("for i in range(4): yield np.arange(3.0) + 3 * i", None),
        ("for i in range(4): yield {'x': [[3 * i, 3 * i + 1, 3 * i + 2]]}, i", [0, 1, 2, 3]),
        ("for i in range(4): yield np.arange(3.0) + 3 * i, np.float32(i) / 2", [0, 0.5, 1, 1.5]),
        ("for i in range(4): yield np.arange(3.0) + 3 * i, [i, i + 0.5]", [[0, 0.5], [1, 1.5], [2, 2.5], [3, 3.5]]),
        ("for i in (0, 2): yield np.arange(6.0).reshape(2, 3) + 3 * i, [i, 5]", [0, 5, 2, 5]),
        ("import torch; return torch.arange(12.0).reshape(4, 3)", None),
        # One buffer filled again and again, as data loaders do.
        ("b = np.zeros((1, 3))\nfor i in range(4):\n    b[:] = np.arange(3) + 3 * i\n    yield b", None),
    ],
)
def test_what_a_function_may_give(load, body, labels):
    samples = load(body)
    assert [feed["x"].tolist() for feed in samples.feeds] == [[[i, i + 1, i + 2]] for i in (0, 3, 6, 9)]
    assert (None if samples.labels is None else samples.labels.tolist()) == labels
    check_accepted(MODEL, samples.feeds)


def test_the_function_is_given_the_model_s_inputs(load):
    samples = load(
        """
        assert [value.name for value in inputs] == ["ids", "rate"]
        length = inputs[0].type.tensor_type.shape.dim[1].dim_param
        assert length == "seq"
        for n in (4, 4, 7):
            yield {"ids": np.arange(n), "rate": 0.5}
        """,
        PAIR,
    )
    assert [feed["ids"].shape for feed in samples.feeds] == [(1, 4), (1, 4), (1, 7)]
    assert samples.feeds[0]["ids"].dtype == np.int64 and samples.feeds[0]["rate"].shape == ()
    check_accepted(PAIR, samples.feeds)


def test_limit_takes_the_first_of_a_generator_and_an_even_spread_of_a_list(load):
    samples = load("i = 0\nwhile True:\n    yield np.full(3, i)\n    i += 1", limit=3)
    assert [feed["x"][0, 0] for feed in samples.feeds] == [0, 1, 2]
    samples = load("return [np.full(3, i) for i in range(9)]", limit=3)
    assert [feed["x"][0, 0] for feed in samples.feeds] == [1, 4, 7]
    samples = load("return np.repeat(np.arange(9.0), 3).reshape(9, 3)", limit=3)
    assert [feed["x"][0, 0] for feed in samples.feeds] == [1, 4, 7]


def test_labels_may_come_from_a_file(load, tmp_path):
    np.save(tmp_path / "labels.npy", np.array([3, 1]))
    assert load("return np.ones((2, 3))", labels=tmp_path / "labels.npy").labels.tolist() == [3, 1]
    (tmp_path / "labels.csv").write_text("file,label\na.npy,1\n")
    with pytest.raises(DataError, match="names files, but calibration_source:samples does not come from files"):
        load("return np.ones((2, 3))", labels=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "body, message",
    [
        ("raise KeyError('corpus')", "failed with KeyError: 'corpus'"),
        ("yield np.ones(3)\nraise ValueError('first\\nsecond')", "failed with ValueError: first$"),
        ("return None", "gives NoneType; return or yield"),
        ("return 'text'", "gives str"),
        ("return []", "gives no samples"),
        ("return [None]", "item 0: NoneType"),
        ("return {'z': np.ones((2, 3))}", "'z' is not an input of the model"),
        ("return np.ones((2, 4))", r"shape \(2, 4\), but the model takes"),
        ("return [np.ones(3), np.ones(4)]", r"item 1: .*shape \(4,\)"),
        ("return [[1, 2], [3]]", "failed with ValueError|shape"),
        ("return np.array([[{}, 1, 2]], dtype=object)", "Python objects"),
        ("return np.ones((2, 3)), [1, 2, 3]", "3 labels for 2 samples"),
        ("return np.ones((2, 3)), [1, 7]", "label 7 of sample 1"),
        ("return [(np.ones(3), 1), np.ones(3)]", "item 1: no labels"),
        ("return [np.ones(3) * np.nan]", "item 0: .*holds nan"),
    ],
)
def test_what_a_function_may_not_give(load, body, message):
    with pytest.raises(DataError, match=f"calibration_source:samples.*({message})") as error:
        load(body)
    assert "\n" not in str(error.value)


def test_errors_of_ours_pass_through(load):
    with pytest.raises(UsageError, match="mine"):
        load("from onnx_obd.errors import UsageError\nraise UsageError('mine')")


def test_functions_that_are_not_there(load, tmp_path):
    path = list(sys.path)
    with pytest.raises(DataError, match="cannot import 'no_such_module_here': ModuleNotFoundError"):
        load_samples("no_such_module_here:samples", MODEL)
    (tmp_path / "broken_source.py").write_text("1 / 0")
    with pytest.raises(DataError, match="cannot import 'broken_source': ZeroDivisionError"):
        load_samples("broken_source:samples", MODEL)
    load("return np.ones((2, 3))")
    with pytest.raises(DataError, match="'calibration_source' has no function 'other'"):
        load_samples("calibration_source:other", MODEL)
    assert sys.path == path
