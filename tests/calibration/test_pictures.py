"""Pictures: where they are in the inputs, what a warp does to them, and when it may."""

import math

import numpy as np
import pytest
import torch
from onnx import helper
from torch.testing import assert_close

from onnx_obd.calibration import pictures
from onnx_obd.calibration.pictures import Warp, find_layout, roughness, turned, warped, with_warps
from tests.curvature.networks import calibration, model, pictures_of


def blobs(count=6, channels=1, height=12, width=12, seed=0):
    """Smooth planes [N, C, H, W], each a blob somewhere near the middle, each channel of another height."""
    rng = np.random.default_rng(seed)
    down, across = torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")
    planes = torch.zeros(count, channels, height, width)
    for i in range(count):
        y, x = height / 2 + rng.uniform(-1, 1), width / 2 + rng.uniform(-1, 1)
        blob = (-((down - y) ** 2 + (across - x) ** 2) / (2 * (width / 8) ** 2)).exp()
        planes[i] = torch.stack([(c + 1) * blob for c in range(channels)])
    return planes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "laid_out",
    [
        lambda p: p,
        lambda p: p.permute(0, 2, 3, 1).contiguous(),
        lambda p: p.flatten(1),
        lambda p: p.flatten(1)[..., None],
        lambda p: p.permute(0, 2, 3, 1).flatten(1),
    ],
)
def test_planes_are_found_and_put_back(channels, laid_out):
    planes = blobs(channels=channels)
    x = laid_out(planes)
    layout = find_layout(x)
    assert_close(layout.planes(x), planes)
    assert_close(layout.back(planes, x), x)


def test_what_is_no_picture_is_not_found():
    rng = torch.Generator().manual_seed(0)
    assert find_layout(torch.randn(20, 5, 6, 4, generator=rng)) is None  # five channels
    assert find_layout(torch.randn(20, 144, generator=rng)) is None  # features
    assert find_layout(blobs(height=12, width=13).flatten(1)) is None  # not square
    assert find_layout(torch.randn(20, 12, 12, generator=rng)) is None
    assert find_layout(torch.randn(20, generator=rng)) is None
    waves = torch.sin(torch.arange(144) / 9.0 + 6 * torch.rand(20, 1, generator=rng))  # smooth along one axis only
    assert find_layout(waves) is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_what_cannot_be_warped_is_no_picture(dtype):
    planes = (255 * blobs()).to(dtype)
    assert find_layout(planes) is None and find_layout(planes.flatten(1)) is None


def test_roughness_is_one_of_unrelated_neighbours():
    noise = torch.randn(50, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    assert roughness(noise) == pytest.approx(1.0, abs=0.03)
    # Neighbours with correlation r have E[(a - b)²] = 2 Var (1 - r): here r = 1/2 along the rows.
    assert roughness((noise[..., 1:] + noise[..., :-1])[..., 1:, :]) == pytest.approx(1.0, abs=0.05)
    assert roughness(noise[:, :, 1:] + noise[:, :, :-1]) == pytest.approx(1.0, abs=0.05)
    both = noise[:, :, 1:] + noise[:, :, :-1]
    assert roughness(both[..., 1:] + both[..., :-1]) == pytest.approx(0.5, abs=0.03)


def still(count):
    return torch.eye(2, 3).expand(count, 2, 3).clone(), torch.zeros(count, 2, pictures.BENDS, pictures.BENDS)


def test_a_warp_of_nothing_changes_nothing():
    planes = blobs(channels=3)
    assert_close(Warp(*still(len(planes))).of(planes), planes)
    assert Warp(*still(len(planes))).of(planes.half()).dtype == torch.float16


@pytest.mark.parametrize("what", ["matrix", "bends"])
def test_a_shift_by_one_pixel(what):
    planes = blobs(height=10, width=12)
    matrices, bends = still(len(planes))
    if what == "matrix":
        matrices[:, 0, 2] = 2 / 12  # x is read one pixel further right
    else:
        bends[:, 0] = 2 / 12
    found = Warp(matrices, bends).of(planes)
    assert_close(found[..., :-1], planes[..., 1:])
    assert_close(found[..., -1], planes[..., -1])  # the edge stands for what is beyond it


def test_warps_stay_small_and_differ():
    warp = Warp.drawn(4000, torch.Generator().manual_seed(0))
    turn = torch.atan2(warp.matrices[:, 1, 0], torch.ones(4000))
    assert float(turn.abs().max()) <= pictures.ANGLE and float(turn.std()) > 0.9 * pictures.ANGLE / math.sqrt(3)
    for values, limit in [(warp.matrices[..., 2], 2 * pictures.SHIFT), (warp.bends, 2 * pictures.BEND)]:
        assert float(values.abs().max()) <= limit
        assert float(values.std()) == pytest.approx(limit / math.sqrt(3), rel=0.05)


def test_inputs_of_a_sample_are_warped_alike():
    planes = blobs(height=12, width=12)
    flat = planes.flatten(1)
    layouts = [find_layout(planes), find_layout(flat)]
    one, other = warped([planes, flat], layouts, torch.Generator().manual_seed(3))
    assert_close(one.flatten(1), other)
    assert (one != planes).any() and one.shape == planes.shape


def test_some_are_turned():
    planes = blobs(channels=3)
    x = planes.permute(0, 2, 3, 1)
    which = torch.arange(len(x)) % 2 == 0
    (found,) = turned([x], [find_layout(x)], which)
    assert_close(found[::2], x[::2].flip(2))
    assert_close(found[1::2], x[1::2])


def seen(weight):
    """The pictures of a linear network on [N, 1, 12, 12], and its calibration."""
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
    proto = model(nodes, {"x": ["N", 1, 12, 12]}, {"y": ["N", 5]}, {"w": weight.reshape(-1, 5)})
    found = calibration(proto, count=40, batch_size=8)[0]
    return pictures_of(found), found


def test_only_what_the_network_sees_the_same_in_is_warped():
    rough = np.random.default_rng(0).normal(size=(12, 12, 5))
    assert not seen(rough)[0].warp
    smooth = blobs(5, 1, 12, 12, 1)[:, 0].permute(1, 2, 0).numpy() + 3 * np.random.default_rng(1).normal(size=5)
    assert seen(smooth)[0].warp  # sums over the picture with smooth weights


def test_warped_samples_are_added():
    given, found = seen(np.ones((12, 12, 5)))
    more = with_warps(found, given.layouts, 2, 0)
    assert len(more.samples) == 3 * len(found.samples) and more.num_samples == 3 * found.num_samples
    own = [feed["x"] for feed in found.samples.feeds]
    for k, feed in enumerate(more.samples.feeds):
        assert feed["x"].shape == own[0].shape and feed["x"].dtype == own[0].dtype
        assert (feed["x"] == own[k % len(own)]).all() == (k < len(own))
