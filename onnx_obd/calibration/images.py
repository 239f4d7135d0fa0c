"""Samples that are images: found in a folder, labelled by their sub-folders, decoded.

Pillow is an optional dependency and imported when the first image is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_obd.calibration.image_options import ImageOptions
from onnx_obd.calibration.inputs import ModelInput, describe_inputs
from onnx_obd.calibration.listing import Listing, Progress
from onnx_obd.calibration.preprocessing import Preprocessing, resolve
from onnx_obd.calibration.samples import Feed
from onnx_obd.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

# What Pillow may take a file for; its other decoders stay shut to files of unknown origin.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


def find_images(folder: Path) -> list[Path]:
    """Every image under ``folder``, sorted by path; hidden files and folders are passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def class_labels(folder: Path, files: Sequence[Path], classes: int | None) -> np.ndarray | None:
    """Class indices from the sub-folders that the images lie in; None if there are fewer than two.

    The sub-folders in alphabetical order are the classes 0, 1, ...; sub-folders whose names are numbers are those
    classes.

    Args:
        classes: how many the model has, if it says so.

    Raises:
        DataError: images lie beside the sub-folders, or names that are not numbers are not as many as the classes.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    inside = [file.relative_to(folder).parts[0] if file.parent != folder else None for file in files]
    if len(names) < 2 or all(name is None for name in inside):
        return None
    if None in inside:
        raise DataError(
            f"{folder}: images lie both in sub-folders and beside them ('{files[inside.index(None)].name}'), so "
            "sub-folders cannot tell classes; add a labels.csv or give labels 'none'"
        )
    if all(name.isascii() and name.isdigit() for name in names):
        return np.array([int(name) for name in inside], dtype=np.int64)
    if classes is not None and len(names) != classes:
        raise DataError(
            f"{folder}: {len(names)} class sub-folders, but the model has {classes} classes, so their order does not "
            "tell the class indices; add a labels.csv (file,label) or give labels 'none'"
        )
    return np.array([names.index(name) for name in inside], dtype=np.int64)


def list_images(
    files: Sequence[Path], labels: np.ndarray | None, options: ImageOptions, inputs: Sequence[ModelInput]
) -> Listing:
    """Each image one sample of the model's input.

    Raises:
        DataError: the model has several inputs, or its input cannot hold an image.
        UsageError: ``options`` do not suit the input.
    """
    if len(inputs) != 1:
        raise DataError(
            f"images serve a model with one input, but the model takes {describe_inputs(inputs)}; "
            "give .npz files or module:function"
        )
    preprocessing = resolve(options, inputs[0])

    def read(indices: np.ndarray, progress: Progress | None) -> list[Feed]:
        feeds = []
        for done, index in enumerate(indices, start=1):
            feeds.append({inputs[0].name: decode(files[index], preprocessing)})
            if progress:
                progress(done, len(indices))
        return feeds

    return Listing(len(files), labels, files, read, f"images: {preprocessing.describe()}")


def decode(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Read one image file as the array of one sample.

    Raises:
        DataError: not an image, damaged, beyond Pillow's limit on pixels, or more than 8 bits per channel.
    """
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=_FORMATS) as image:
                image.load()
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError):
        raise DataError(f"{path}: more than {pillow.MAX_IMAGE_PIXELS} pixels; not decoded, shrink it first") from None
    except Exception as error:  # a decoder fed damaged bytes raises whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable image: {reason}") from None
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(f"{path}: more than 8 bits per channel; convert it or give .npy files")
    return preprocessing.apply(image, str(path))


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError:
        raise DataError("images need Pillow; install it with: pip install 'onnx-obd[images]'") from None
    return PIL.Image
