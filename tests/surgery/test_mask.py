import torch

from onnx_obd.mirror.mirror import Mirror
from onnx_obd.surgery.mask import apply_masks, restore, snapshot
from tests.curvature.networks import mlp


def test_masked_weights_are_plus_zero_and_the_others_keep_their_bits():
    mirror = Mirror(mlp())
    before = snapshot(mirror)
    keep = {"w0": torch.arange(20).reshape(4, 5) % 3 != 0}
    apply_masks(mirror, keep)
    w = mirror.weights["w0"].detach()
    assert torch.equal(w[keep["w0"]], before["w0"][keep["w0"]])
    assert (w[~keep["w0"]].view(torch.int32) == 0).all()
    assert torch.equal(mirror.weights["w1"], before["w1"])
    restore(mirror, before)
    assert all(torch.equal(mirror.weights[name], value) for name, value in before.items())
