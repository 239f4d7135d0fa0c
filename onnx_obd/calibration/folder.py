"""From what the user names (a folder, a file, ``module:function``) to checked samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_obd.calibration import images
from onnx_obd.calibration.arrays import npy_group, npy_per_input_group, npz_group, stored_npy
from onnx_obd.calibration.image_options import ImageOptions, find_image_options
from onnx_obd.calibration.inputs import ModelInput, is_batchable, read_inputs
from onnx_obd.calibration.labels import as_labels, check_classes, class_count, read_label_table
from onnx_obd.calibration.listing import Listing, Progress, list_groups
from onnx_obd.calibration.onnx_testdata import find_test_data_sets, read_test_data_set
from onnx_obd.calibration.python_source import is_function_spec, list_function
from onnx_obd.calibration.samples import Samples, spread_indices
from onnx_obd.calibration.tables import csv_group
from onnx_obd.errors import DataError
from onnx_obd.graph.load import graph_inputs

NO_LABELS = "none"
"""Given as ``labels``: use none, even if the data has some."""

_LABEL_FILES = ("labels.csv", "labels.npy")
_ARRAY_SUFFIXES = (".npz", ".npy", ".csv")


def load_samples(
    spec: str | Path,
    proto: onnx.ModelProto,
    *,
    options: ImageOptions | None = None,
    labels: str | Path | None = None,
    limit: int | None = None,
    model_path: Path | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Load calibration samples for the model ``proto``.

    Args:
        spec: a folder of .npz, .npy, .csv or image files or of ONNX test_data_set_* folders; one .npz, .npy, .csv or
            image file; or ``module:function``, which is called with the model's inputs.
        options: for images; what they leave open comes from ``<model>.preprocess.toml``, else from
            ``preprocess.toml`` in the folder, else from the model's input.
        labels: a .csv or .npy file, or ``NO_LABELS``. By default a labels.csv or labels.npy beside the data, labels
            within the files, or class sub-folders of images.
        limit: the most samples to take, evenly spread; the others are not decoded.
        model_path: where the model lies, to find its preprocess file.
        progress: called with (samples decoded, samples to decode).

    Raises:
        DataError: the data is missing, damaged, or does not suit the model.
        UsageError: an option that cannot be meant.
    """
    inputs = read_inputs(proto)
    classes = class_count(proto)
    try:
        listing = _list_source(spec, proto, inputs, options or ImageOptions(), labels, limit, model_path)
        found = _find_labels(listing, spec, labels)
    except OSError as error:
        raise DataError(f"{spec}: cannot be read: {error}") from None
    if not listing.count:
        raise DataError(f"{spec}: holds no samples")
    if found is not None and classes is not None:
        check_classes(found, classes, str(spec))
    indices = spread_indices(listing.count, limit, found)
    feeds = listing.read(indices, progress)
    batchable = is_batchable(inputs) and all(array.shape[0] == 1 for feed in feeds for array in feed.values())
    return Samples.from_feeds(
        feeds,
        None if found is None else found[indices],
        source=f"{spec} ({listing.note})",
        batchable=batchable,
    )


def _list_source(
    spec: str | Path,
    proto: onnx.ModelProto,
    inputs: Sequence[ModelInput],
    options: ImageOptions,
    labels: str | Path | None,
    limit: int | None,
    model_path: Path | None,
) -> Listing:
    path = Path(spec)
    if path.is_dir():
        sets = find_test_data_sets(path)
        if sets:
            return list_groups([read_test_data_set(folder, inputs) for folder in sets], inputs, "ONNX test data")
        files, folder = _recognised_files(path), path
    elif path.is_file():
        files, folder = [path], path.parent
    elif is_function_spec(str(spec)):
        return list_function(str(spec), graph_inputs(proto), inputs, limit)
    else:
        raise DataError(f"{spec}: no such file or folder, and not of the form module:function")
    suffix = files[0].suffix.lower()
    if suffix in images.SUFFIXES:
        options = options.over(find_image_options(folder, model_path))
        by_folder = labels is None and path.is_dir() and _label_file(folder) is None
        own = images.class_labels(folder, files, class_count(proto)) if by_folder else None
        return images.list_images(files, own, options, inputs)
    return _list_arrays(files, suffix, inputs, class_count(proto), with_labels=labels is None)


def _recognised_files(folder: Path) -> list[Path]:
    """The data files of the one kind that ``folder`` holds."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    of_kind = {suffix: [entry for entry in entries if _is_data(entry, suffix)] for suffix in _ARRAY_SUFFIXES}
    of_kind["images"] = images.find_images(folder)
    found = [kind for kind, files in of_kind.items() if files]
    if len(found) > 1:
        raise DataError(f"{folder}: holds both {found[0]} and {found[1]}; keep samples of one kind in a folder")
    if not found:
        state = "nothing recognised as samples" if entries else "an empty folder"
        kinds = ", ".join(_ARRAY_SUFFIXES + images.SUFFIXES)
        raise DataError(f"{folder}: {state}; give {kinds} files or test_data_set_* folders")
    return of_kind[found[0]]


def _is_data(entry: Path, suffix: str) -> bool:
    return entry.suffix.lower() == suffix and entry.name not in _LABEL_FILES and entry.is_file()


def _list_arrays(
    files: Sequence[Path], suffix: str, inputs: Sequence[ModelInput], classes: int | None, *, with_labels: bool
) -> Listing:
    if suffix == ".npz":
        groups = [npz_group(file, inputs, with_labels=with_labels) for file in files]
    elif suffix == ".csv":
        groups = [csv_group(file, inputs, classes, with_labels=with_labels) for file in files]
    elif suffix != ".npy":
        raise DataError(f"{files[0]}: not a .npz, .npy, .csv or image file")
    elif len(inputs) > 1 and {file.stem for file in files} == {model_input.name for model_input in inputs}:
        groups = [npy_per_input_group(files[0].parent, files, inputs)]
    else:
        groups = [npy_group(file, inputs) for file in files]
    return list_groups(groups, inputs, f"{len(files)} {suffix} file{'s' * (len(files) > 1)}")


def _label_file(folder: Path) -> Path | None:
    return next((folder / name for name in _LABEL_FILES if (folder / name).is_file()), None)


def _find_labels(listing: Listing, spec: str | Path, labels: str | Path | None) -> np.ndarray | None:
    """The labels of every sample of ``listing``: of the file asked for, of one beside the data, or its own."""
    path = Path(spec)
    if labels is not None:
        if str(labels) == NO_LABELS:
            return None
        file = Path(labels)
        if not file.is_file():
            raise DataError(f"{file}: no such file of labels")
    else:
        file = _label_file(path if path.is_dir() else path.parent) if path.exists() else None
        if file is None:
            return listing.labels
        if listing.labels is not None:
            raise DataError(f"{spec}: holds labels, and {file} has some too; keep one, or name the one to use")
    return _read_labels(file, listing, path)


def _read_labels(file: Path, listing: Listing, path: Path) -> np.ndarray:
    if file.suffix.lower() == ".npy":
        found = as_labels(stored_npy(file).read(), str(file))
    elif file.suffix.lower() == ".csv":
        table = read_label_table(file)
        if table.files is not None:
            if listing.files is None:
                raise DataError(f"{file}: names files, but {path} does not come from files")
            return table.for_files(listing.files, path if path.is_dir() else path.parent)
        found = table.labels
    else:
        raise DataError(f"{file}: labels come in a .csv or .npy file")
    if len(found) != listing.count:
        raise DataError(f"{file}: {len(found)} labels for {listing.count} samples")
    return found
