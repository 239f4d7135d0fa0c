import numpy as np

from onnx_obd.calibration import memory
from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from tests.curvature.networks import mlp


def setting():
    samples = Samples.from_feeds([{"x": np.zeros((1, 4), np.float32)}], source="test", batchable=True)
    return Mirror(mlp(sizes=(4, 5, 3))), samples


def test_the_bytes_of_a_sample_are_those_of_its_values():
    assert memory.sample_bytes(*setting()) == 4 * (5 + 5 + 3)


def test_the_batch_shrinks_to_the_memory_there_is(monkeypatch):
    mirror, samples = setting()
    for free, expected in ((10**9, 32), (8 * 52 * 5, 5), (1, 1), (None, 32)):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        assert memory.fitting_batch_size(mirror, samples, 32) == expected


def test_this_machine_says_how_much_there_is():
    assert memory.free_memory() is None or memory.free_memory() > 0
