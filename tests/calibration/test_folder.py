from __future__ import annotations

import numpy as np
import pytest

from onnx_obd.calibration.folder import load_samples
from onnx_obd.errors import DataError, UsageError
from tests.calibration.models import FLOAT, make_model, values

MODEL = make_model(("x", FLOAT, ["batch", 3]), classes=7)


@pytest.mark.parametrize("spec", ["missing", "missing.npz", "a:b:c", "a b:c", ":f", "m:"])
def test_nothing_there(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"{spec}: no such file or folder, and not of the form module:function"):
        load_samples(spec, MODEL)


def test_empty_folder(tmp_path):
    (tmp_path / ".hidden").touch()
    with pytest.raises(DataError, match=r"an empty folder; give \.npz, \.npy, \.csv, \.png, .* or test_data_set_\*"):
        load_samples(tmp_path, MODEL)


def test_nothing_recognised(tmp_path):
    (tmp_path / "readme.md").touch()
    (tmp_path / "folder.npz").mkdir()
    np.save(tmp_path / "labels.npy", np.arange(3))
    with pytest.raises(DataError, match=r"nothing recognised as samples; give \.npz"):
        load_samples(tmp_path, MODEL)
    with pytest.raises(DataError, match=r"readme\.md: not a \.npz, \.npy, \.csv or image file"):
        load_samples(tmp_path / "readme.md", MODEL)


def test_two_kinds_in_a_folder(tmp_path):
    np.save(tmp_path / "a.npy", values(4, 3))
    np.savez(tmp_path / "a.npz", x=values(4, 3))
    with pytest.raises(DataError, match=r"holds both \.npz and \.npy"):
        load_samples(tmp_path, MODEL)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_must_be_positive(tmp_path, limit):
    np.save(tmp_path / "a.npy", values(4, 3))
    with pytest.raises(UsageError, match="limit"):
        load_samples(tmp_path, MODEL, limit=limit)


def test_labels_beside_the_data(tmp_path):
    np.save(tmp_path / "a.npy", values(2, 3))
    np.save(tmp_path / "b.npy", values(3, 3))
    (tmp_path / "labels.csv").write_text("4\n5\n6\n0\n1\n")
    assert load_samples(tmp_path, MODEL).labels.tolist() == [4, 5, 6, 0, 1]
    (tmp_path / "labels.csv").write_text("b.npy,2\na.npy,1\n")
    assert load_samples(tmp_path, MODEL).labels.tolist() == [1, 1, 2, 2, 2]
    assert load_samples(tmp_path, MODEL, labels="none").labels is None
    (tmp_path / "labels.csv").write_text("4\n5\n")
    with pytest.raises(DataError, match=r"labels\.csv: 2 labels for 5 samples"):
        load_samples(tmp_path, MODEL)
    (tmp_path / "labels.csv").write_text("../b.npy,2\na.npy,1\n")
    with pytest.raises(DataError, match=r"'\.\./b\.npy' lies outside the folder"):
        load_samples(tmp_path, MODEL)


def test_labels_asked_for(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "a.npz", x=values(3, 3), labels=np.array([1, 2, 3]))
    np.save(tmp_path / "targets.npy", np.array([[0.5], [1.5], [2.5]], dtype=np.float32))
    samples = load_samples(data, MODEL, labels=tmp_path / "targets.npy")
    assert samples.labels.tolist() == [0.5, 1.5, 2.5] and samples.labels.dtype == np.float32
    with pytest.raises(DataError, match=r"gone\.npy: no such file of labels"):
        load_samples(data, MODEL, labels=tmp_path / "gone.npy")
    (tmp_path / "labels.txt").touch()
    with pytest.raises(DataError, match=r"labels\.txt: labels come in a \.csv or \.npy file"):
        load_samples(data, MODEL, labels=tmp_path / "labels.txt")


def test_labels_in_two_places(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(3, 3), labels=np.array([1, 2, 3]))
    np.save(tmp_path / "labels.npy", np.array([4, 5, 6]))
    with pytest.raises(DataError, match=r"holds labels, and .*labels\.npy has some too"):
        load_samples(tmp_path, MODEL)
    assert load_samples(tmp_path, MODEL, labels=tmp_path / "labels.npy").labels.tolist() == [4, 5, 6]


def test_labels_outside_the_classes_even_if_the_limit_leaves_them_out(tmp_path):
    np.savez(tmp_path / "a.npz", x=values(9, 3), labels=[0] * 8 + [7])
    with pytest.raises(DataError, match="label 7 of sample 8, counted from 0, is outside the model's 7 classes"):
        load_samples(tmp_path, MODEL, limit=2)


def test_limit_takes_labels_along(tmp_path):
    labels = np.array([0, 1, 2] * 10)
    np.savez(tmp_path / "a.npz", x=np.repeat(np.arange(30.0), 3).reshape(30, 3), labels=labels)
    samples = load_samples(tmp_path, MODEL, limit=6)
    assert np.bincount(samples.labels).tolist() == [2, 2, 2]
    assert [labels[int(feed["x"][0, 0])] for feed in samples.feeds] == samples.labels.tolist()


def test_the_digest_is_of_the_content_alone(tmp_path):
    x = values(4, 3)
    np.save(tmp_path / "a.npy", x)
    np.savez_compressed(tmp_path / "b.npz", x=x.astype(np.float64))
    (tmp_path / "c.csv").write_text("\n".join(",".join(map(repr, map(float, row))) for row in x))
    digests = {load_samples(tmp_path / name, MODEL).sha256 for name in ("a.npy", "b.npz", "c.csv")}
    assert len(digests) == 1
    np.save(tmp_path / "a.npy", x[::-1])
    assert load_samples(tmp_path / "a.npy", MODEL).sha256 not in digests


def test_not_batchable_if_a_feed_is_longer_than_one_on_axis_0(tmp_path):
    np.save(tmp_path / "a.npy", values(4, 2, 3))  # a stack of four feeds of two rows
    samples = load_samples(tmp_path, MODEL)
    assert len(samples) == 4 and samples.feeds[0]["x"].shape == (2, 3) and not samples.batchable
