"""The command line as a user meets it: what it prints, what it leaves behind, how it fails."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_obd import cli
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import find_weights

SAMPLES = Path(__file__).parent.parent / "sample_models"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["onnx-obd", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def model(tmp_path):
    """A copy of a small sample network with 40 samples, in a folder of their own."""
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.copy(SAMPLES / "mlp_diabetes.onnx", folder / "model.onnx")
    x = np.load(next((SAMPLES / "mlp_diabetes_calib").glob("*.npy")))[:40]
    np.save(folder / "x.npy", x)
    return folder / "model.onnx"


QUICK = ("--rounds", "2", "--no-benchmark", "-q")


def fails(result: tuple[int, str, str], code: int, *words: str) -> None:
    """One line on standard error that holds the words, and no traceback."""
    found, out, err = result
    assert found == code, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("onnx-obd:")]
    assert len(lines) == 1 and "Traceback" not in err, err
    for word in words:
        assert word in lines[0]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_main_form(run, model, tmp_path):
    code, out, err = run(model, "--data", model.parent / "x.npy", "-s", "0.7", "-o", "small.onnx", *QUICK)
    assert code == 0, err
    assert err == ""
    assert "70.0 %" in out and "magnitude" in out
    pruned = onnx.load("small.onnx")
    onnx.checker.check_model(pruned)
    weights = {n: w.read(pruned) for n, w in find_weights(pruned).items()}
    matrices = [w for w in weights.values() if w.ndim == 2]
    zeros = sum((w == 0).sum() for w in matrices)
    assert zeros == round(0.7 * sum(w.size for w in matrices))
    open_session(tmp_path / "small.onnx")


def test_options_may_come_first_and_the_output_has_a_default_name(run, model):
    code, _, err = run("-s", "0.5", "--data", model.parent / "x.npy", *QUICK, model)
    assert code == 0, err
    assert (model.parent / "model.obd.onnx").exists()


def test_json_on_standard_output(run, model):
    code, out, _ = run(model, "--data", model.parent / "x.npy", "--json", "-", *QUICK)
    assert code == 0
    report = json.loads(out)
    assert report["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert [c["method"] for c in report["candidates"]] == [
        "auto + repair",
        "obs + repair",
        "magnitude",
        "magnitude + repair",
    ]


def test_the_same_seed_gives_the_same_file(run, model):
    for name in ("a.onnx", "b.onnx"):
        run(model, "--data", model.parent / "x.npy", "-o", name, *QUICK)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_finetuning_with_labels_keeps_zeros_and_does_not_hurt(run, model):
    common = (model, "--data", model.parent / "x.npy", "-s", "0.8", "--json", "-", *QUICK)
    _, plain, _ = run(*common, "-o", "plain.onnx")
    _, tuned, _ = run(*common, "-o", "tuned.onnx", "--recover-epochs", "5")
    plain, tuned = json.loads(plain), json.loads(tuned)
    assert tuned["exported"]["loss"] <= plain["exported"]["loss"]
    assert tuned["sparsity"] == plain["sparsity"]
    weights = find_weights(onnx.load("tuned.onnx"))
    zeros = sum((w.read(onnx.load("tuned.onnx")) == 0).sum() for w in weights.values() if len(w.shape) == 2)
    total = sum(w.size for w in weights.values() if len(w.shape) == 2)
    assert zeros >= round(0.8 * total)


def test_exclude(run, model):
    name = next(n for n, w in find_weights(onnx.load(model)).items() if len(w.shape) == 2)
    code, _, _ = run(model, "--data", model.parent / "x.npy", "--exclude", name, "-o", "out.onnx", *QUICK)
    assert code == 0
    before, after = (find_weights(onnx.load(p))[name].read(onnx.load(p)) for p in (model, "out.onnx"))
    assert np.array_equal(before, after)


def test_inspect(run, model):
    code, out, _ = run("inspect", model)
    assert code == 0 and "prunable" in out
    code, out, _ = run("inspect", model, "--json")
    assert any(weight["prunable"] for weight in json.loads(out)["weights"])


def test_bench(run, model):
    code, out, _ = run("bench", model, model, "--seconds", "0.2", "-q")
    assert code == 0 and "ms" in out


def test_densify_undoes_the_sparse_storage(run, model):
    data = ("--data", model.parent / "x.npy")
    run(model, *data, "-s", "0.9", "--format", "sparse", "-o", "sparse.onnx", *QUICK)
    assert onnx.load("sparse.onnx").graph.sparse_initializer
    code, _, err = run("densify", "sparse.onnx", "dense.onnx")
    assert code == 0, err
    sparse, dense = (onnx.load(name) for name in ("sparse.onnx", "dense.onnx"))
    assert not dense.graph.sparse_initializer
    for name, weight in find_weights(dense).items():
        assert np.array_equal(weight.read(dense), find_weights(sparse)[name].read(sparse))


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0 and "--data" in out and "inspect" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-s", "1"), ["sparsity", "[0, 1)"]),
        (("-s", "-0.1"), ["sparsity"]),
        (("-s", "much"), ["much"]),
        (("--rounds", "0"), ["rounds"]),
        (("--held-back", "1"), ["held-back"]),
        (("--method", "luck"), ["luck", "magnitude"]),
        (("--curvature", "flat"), ["flat", "lecun"]),
        (("--objective", "fame"), ["fame", "squared"]),
        (("--include", "nothing*"), ["nothing*"]),
        (("--unknown",), ["--unknown"]),
    ],
)
def test_options_that_cannot_be_meant(run, model, options, words):
    before = files(model.parent)
    fails(run(model, "--data", model.parent / "x.npy", *options, "-o", model.parent / "out.onnx", "-q"), 2, *words)
    assert files(model.parent) == before


def test_the_output_is_the_input(run, model):
    content = model.read_bytes()
    os.symlink(model, model.parent / "link.onnx")
    for name in ("model.onnx", "link.onnx"):
        fails(run(model, "--data", model.parent / "x.npy", "-o", model.parent / name, *QUICK), 2, "is the input")
    assert model.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "rubbish", "truncated"])
def test_a_broken_model(run, model, content):
    data = model.parent / "x.npy"
    model.write_bytes(model.read_bytes()[:1000] if content is None else content)
    before = files(model.parent)
    fails(run(model, "--data", data, *QUICK), 1, "model.onnx")
    assert files(model.parent) == before


def test_a_missing_model_and_missing_data(run, model):
    fails(run("none.onnx", "--data", model.parent / "x.npy", *QUICK), 1, "none.onnx")
    fails(run(model, "--data", "nowhere", *QUICK), 1, "nowhere")
    assert "--data" in run(model, *QUICK)[2]


def test_samples_that_are_not_finite(run, model):
    x = np.load(model.parent / "x.npy")
    x[3, 2] = np.nan
    np.save(model.parent / "x.npy", x)
    fails(run(model, "--data", model.parent / "x.npy", *QUICK), 1, "x.npy")


def test_weights_that_are_not_finite(run, model):
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if len(t.dims) == 2)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, model)
    fails(run(model, "--data", model.parent / "x.npy", *QUICK), 1, tensor.name)


def test_nothing_to_prune(run, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3])],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "relu.onnx")
    np.save("x.npy", np.ones((4, 3), np.float32))
    fails(run("relu.onnx", "--data", "x.npy", *QUICK), 1, "inspect")


def test_an_output_that_cannot_be_written(run, model):
    fails(run(model, "--data", model.parent / "x.npy", "-o", "no/such/folder/out.onnx", *QUICK), 1, "no/such/folder")


def test_ctrl_c_leaves_nothing(run, model, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_obd.candidates.apply_masks", interrupt)
    before = files(model.parent)
    code, out, err = run(model, "--data", model.parent / "x.npy", "-o", model.parent / "out.onnx", *QUICK)
    assert code == 130 and out == "" and "interrupted" in err
    assert files(model.parent) == before


def test_samples_too_short_for_a_node_are_one_line(run, tmp_path):
    """Reflection needs two numbers to mirror: nothing declares that, only onnxruntime knows."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], mode="reflect"),
        helper.make_node("Conv", ["padded", "w"], ["y"]),
    ]
    stored = {"pads": np.array([0, 0, 1, 0, 0, 0], np.int64), "w": np.ones((3, 1, 2), np.float32)}
    graph = helper.make_graph(
        nodes,
        "short",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, "length"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, "length"])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "short.onnx")
    (tmp_path / "data").mkdir()
    for number in range(8):
        np.savez(tmp_path / "data" / f"{number}.npz", x=np.ones((1, 1, 1), np.float32))
    fails(run("short.onnx", "--data", "data", *QUICK), 1, "data", "onnxruntime refuses the samples")
    assert not (tmp_path / "short.obd.onnx").exists()


def test_what_deleting_weights_does_not_buy_is_said_where_it_is_asked_for(run, model):
    for units in ((), ("--remove-units", 0.2)):
        code, _, err = run(model, "--data", model.parent / "x.npy", "--rounds", 2, "--no-benchmark", *units)
        assert code == 0
        assert ("not onnxruntime faster" in err) == (not units)
