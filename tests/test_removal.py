"""Units removed until the clock is content; what comes out is the same model with smaller tensors."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_obd import prune
from onnx_obd.errors import UsageError
from onnx_obd.graph.session import open_session
from onnx_obd.options import Options
from onnx_obd.runtime.profile import node_times
from tests.curvature.networks import mlp

SAMPLES = Path(__file__).parent.parent / "sample_models"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A network much wider than its task, with samples."""
    folder = tmp_path_factory.mktemp("wide")
    onnx.save(mlp(sizes=(16, 512, 256, 3)), folder / "wide.onnx")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(48, 16)).astype(np.float32))
    return folder


def test_faster_and_still_the_same_task(wide):
    result = prune(wide / "wide.onnx", wide / "x.npy", wide / "fast.onnx", speedup=1.3)
    before, after = onnx.load(wide / "wide.onnx"), onnx.load(wide / "fast.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    assert [t.name for t in before.graph.initializer] == [t.name for t in after.graph.initializer]
    assert before.graph.input == after.graph.input and before.graph.output == after.graph.output
    assert after.ByteSize() < before.ByteSize()
    report = result.report
    assert report.parameters_after < report.parameters
    assert report.latency is not None
    assert any("units removed" in note for note in report.notes)
    x = np.load(wide / "x.npy")
    (y0,), (y,) = (open_session(wide / name).run(None, {"x": x}) for name in ("wide.onnx", "fast.onnx"))
    assert np.square(y - y0).mean() < 0.5 * y0.var()


def test_units_first_then_elements(wide):
    options = {"speedup": 1.2, "sparsity": 0.5, "rounds": 2, "benchmark": False}
    report = prune(wide / "wide.onnx", wide / "x.npy", wide / "both.onnx", **options).report
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert report.parameters_after < report.parameters


def test_the_profile_names_the_dear_node():
    times = node_times(mlp(sizes=(16, 900, 800, 3)), {"x": np.zeros((1, 16), np.float32)})
    assert len(times) == 5
    assert max(times, key=times.get) == 2  # the product of 900 by 800


@pytest.mark.parametrize(
    "bad", [{"speedup": 1.0}, {"speedup": 2.0, "target_latency": "1ms"}, {"target_latency": "soon"}]
)
def test_targets_that_cannot_be_meant(bad):
    with pytest.raises(UsageError):
        Options(**bad)


def test_latencies_are_read_in_their_units():
    assert Options(target_latency="250us").target_milliseconds == pytest.approx(0.25)
    assert Options(target_latency="1.5 ms").target_milliseconds == pytest.approx(1.5)
