"""The labelled data that go with the models of a corpus folder: how to feed them, what to calibrate and test on.

The folder holds ``models/NAME.onnx`` and ``data/``; see ``docs/benchmarks.md`` for what is expected where.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from onnx_obd.calibration.inputs import is_batchable, read_inputs
from onnx_obd.calibration.samples import Samples

CALIBRATION = 256
TEST = 2000


@dataclass(frozen=True)
class Task:
    """Unlabelled samples to calibrate on; inputs and labels to test on; how to read a class off the outputs."""

    name: str
    model: Path
    calibration: Samples
    inputs: np.ndarray
    labels: np.ndarray
    to_class: Callable[[np.ndarray], np.ndarray]


Loader = Callable[[Path], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Data folder -> calibration inputs, test inputs, test labels."""


def _mnist(scale: float, shape: tuple[int, ...]) -> Loader:
    def load(data: Path):
        with np.load(data / "mnist" / "mnist.npz") as z:
            train, test, labels = z["train_x"], z["test_x"], z["test_y"]
        step = len(train) // CALIBRATION

        def prepare(x):
            return (x.astype(np.float32) * np.float32(scale)).reshape(-1, *shape)

        return prepare(train[::step][:CALIBRATION]), prepare(test), labels

    return load


def _cifar(prepare: Callable[[np.ndarray], np.ndarray]) -> Loader:
    def load(data: Path):
        spec = importlib.util.spec_from_file_location("cifar_load", data / "cifar10" / "load.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        train, _ = module.load("train", CALIBRATION)
        test, labels = module.load("test", TEST)
        return prepare(train), prepare(test), np.asarray(labels)

    return load


def _chw(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[np.ndarray], np.ndarray]:
    def prepare(images):
        x = (images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    return prepare


def _hwc(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


def _keypoints(data: Path):
    rows = np.loadtxt(data / "hand_gesture" / "keypoint_classifier" / "keypoint.csv", delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    rows = rows[order]
    return rows[:CALIBRATION, 1:], rows[CALIBRATION:, 1:], rows[CALIBRATION:, 0].astype(int)


def _iris(data: Path):
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = x[order].astype(np.float32)
    return x[:75], x[75:], y[order][75:]


def _intents(data: Path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.model_selection import train_test_split

    with open(data / "intent_aria" / "data" / "intents.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    x = TfidfVectorizer().fit_transform([row["text"] for row in rows]).toarray().astype(np.float32)
    _, y = np.unique([row["label"] for row in rows], return_inverse=True)
    train, test, _, labels = train_test_split(x, y, test_size=0.2, random_state=42, stratify=y)
    return train[:CALIBRATION], test, labels


def _imagenet(data: Path, own_classes: bool = False):
    """Tests on the ten classes of imagenette; calibrates on photos of 256 classes, one of each.

    With ``own_classes`` calibrates on imagenette's own calibration part: what a network of a thousand classes is worth
    to who needs these ten.
    """
    from PIL import Image

    with open(data / "imagenette" / "labels.csv", newline="") as file:
        rows = [(row["file"], int(row["class_index"])) for row in csv.DictReader(file)]

    def read(path: Path) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - 244) // 2, (image.height - 244) // 2
        return np.asarray(image.crop((left, top, left + 244, top + 244)))

    photos = sorted((data / "imagenet_calib").glob("*.JPEG"))
    if own_classes:
        photos = [data / "imagenette" / name for name, _ in rows if name.startswith("calib")]
        photos = [photos[index] for index in np.random.default_rng(0).permutation(len(photos))]
    tested = [(data / "imagenette" / name, label) for name, label in rows if name.startswith("test")]
    prepare = _chw((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    parts = photos[:CALIBRATION], [path for path, _ in tested]
    calibration, test = (np.concatenate([prepare(read(path)[None]) for path in paths]) for paths in parts)
    return calibration, test, np.array([label for _, label in tested])


def _magika(data: Path):
    """Files by content type: calibrated on every other file and on windows cut from those, tested on the rest.

    As magika reads them: the first and the last 512 bytes without the white space around them, 256 where there are
    fewer.
    """
    folder = data / "magika"
    config = json.loads((folder / "assets" / "models" / "fast_v2_1" / "config.min.json").read_text("utf-8"))
    classes = config["target_labels_space"]
    files = [path for part in ("basic", "mitra") for path in sorted((folder / part).glob("*/*"))]
    files = [path for path in files if path.parent.name in classes]

    def features(content: bytes) -> np.ndarray:
        half, block = config["beg_size"], config["block_size"]
        row = np.full(2 * half, config["padding_token"], np.int32)
        first, last = content[:block].lstrip()[:half], content[-block:].rstrip()[-half:]
        row[: len(first)] = np.frombuffer(first, np.uint8)
        row[2 * half - len(last) :] = np.frombuffer(last, np.uint8)
        return row

    rng = np.random.default_rng(0)
    whole = [path.read_bytes() for path in files[::2]]
    windows = list(whole)
    while len(windows) < CALIBRATION:
        content = whole[int(rng.integers(len(whole)))]
        start = int(rng.integers(len(content) + 1))
        windows.append(content[start:] or content)
    test = np.stack([features(path.read_bytes()) for path in files[1::2]])
    labels = np.array([classes.index(path.parent.name) for path in files[1::2]])
    return np.stack([features(content) for content in windows]), test, labels


_CIFAR_STD = _chw((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

LOADERS: dict[str, Loader] = {
    "mnist_fc_256x2": _mnist(1 / 255, (784, 1)),
    "mnist_fc_256x4": _mnist(1 / 255, (784, 1)),
    "mnist_fc_256x6": _mnist(1 / 255, (784, 1)),
    "mnist_cntk_8": _mnist(1, (1, 28, 28)),
    "mnist_cnn_pytorch_ortjava": _mnist(1, (1, 28, 28)),
    "cifar10_sri_resnet_3b2": _cifar(_CIFAR_STD),
    "cifar10_biasfield_base": _cifar(_chw((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))),
    "cifar10_marabou_small": _cifar(_hwc),
    "cifar10_marabou_medium": _cifar(_hwc),
    "cifar10_marabou_large": _cifar(_hwc),
    "cifar10_vit_pgd_2_3_16": _cifar(_CIFAR_STD),
    "hand_keypoint_classifier": _keypoints,
    "iris_mstutorial_mlp": _iris,
    "intent_mlp_aria": _intents,
    "mobilenetv2_fp32_derived": _imagenet,
    "mobilenetv2_fp32_derived@imagenette": partial(_imagenet, own_classes=True),
    "magika_fast_v2_1": _magika,
}


def model_path(corpus: Path, name: str) -> Path:
    """The model's file; what stands behind an @ in its name says which data it is calibrated on."""
    return corpus / "models" / f"{name.partition('@')[0]}.onnx"


def load_task(corpus: Path, name: str) -> Task:
    """The model of that name with its data."""
    model = model_path(corpus, name)
    inputs = read_inputs(onnx.load(model))
    calibration, test, labels = LOADERS[name](corpus / "data")
    feeds = [{inputs[0].name: row[None]} for row in calibration]
    samples = Samples.from_feeds(feeds, source=f"{name} calibration", batchable=is_batchable(inputs))
    return Task(name, model, samples, test, labels, _to_class)


def _to_class(output: np.ndarray) -> np.ndarray:
    return output if output.ndim == 1 else output.reshape(len(output), -1).argmax(-1)


def accuracy(task: Task, session) -> float:
    """Fraction of the test samples whose class onnxruntime gets right."""
    value = session.get_inputs()[0]
    step = 1 if isinstance(value.shape[0], int) else 50
    found = [
        task.to_class(session.run(None, {value.name: task.inputs[i : i + step]})[0])
        for i in range(0, len(task.inputs), step)
    ]
    return float((np.concatenate(found) == task.labels).mean())
