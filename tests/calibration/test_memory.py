import subprocess
import sys

import numpy as np
import pytest

from onnx_obd.calibration import memory
from onnx_obd.calibration.samples import Samples
from onnx_obd.mirror.mirror import Mirror
from tests.curvature.networks import mlp


def setting():
    samples = Samples.from_feeds([{"x": np.zeros((1, 4), np.float32)}], source="test", batchable=True)
    return Mirror(mlp(sizes=(4, 5, 3))), samples


def test_the_bytes_of_a_sample_are_those_of_its_values():
    assert sum(memory.value_bytes(*setting())) == 4 * (5 + 5 + 3)


def test_the_batch_shrinks_to_the_memory_there_is(monkeypatch):
    sizes = memory.value_bytes(*setting())
    for free, expected in ((10**9, 32), (8 * 52 * 5, 5), (1, 1), (None, 32)):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        assert memory.fitting_batch_size(sizes, 32) == expected


def test_a_batch_has_no_value_that_the_c_library_does_not_keep(monkeypatch):
    sizes = memory.value_bytes(*setting())
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    monkeypatch.setattr(memory, "SLICE", 4 * 5 * 7)  # seven samples of the largest value
    assert memory.fitting_batch_size(sizes, 32) == 7


def test_this_machine_says_how_much_there_is():
    assert memory.free_memory() is None or memory.free_memory() > 0


@pytest.mark.parametrize("version", memory.LIMITS)
def test_a_container_is_held_to_its_limit(monkeypatch, tmp_path, version):
    """Limits of control groups, the tightest on the way up; what is used as cache can be given back."""
    own, root, membership = tmp_path / version / "a" / "b", tmp_path / version, tmp_path / "membership"
    own.mkdir(parents=True)
    limit, used, cache = memory.LIMITS[version]
    for folder, value in ((own, "max"), (own.parent, "5000"), (root, "90000")):
        (folder / limit).write_text(value + "\n")
        (folder / used).write_text("3000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cache} 700\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", membership)
    membership.write_text(f"8:pids:/a\n7:{version}:/a/b\n")
    assert memory.free_memory() == 5000 - 3000 + 700


def test_a_limit_of_the_address_space_is_respected():
    script = (
        "import resource, onnx_obd.calibration.memory as memory\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 26), -1))\n"
        "print(memory.free_memory())"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (1 << 25) < int(found.stdout) <= 1 << 26
