"""How images become model inputs: the options, and the per-model file they may stand in."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnx_obd.errors import DataError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
LAYOUTS = ("nchw", "nhwc")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
FILE_NAMES = ("preprocess.toml", "preprocess.json")

_MAX_SIDE = 1 << 14


@dataclass(frozen=True)
class ImageOptions:
    """What to do with an image, in this order; None leaves a choice to the model's input (see ``images.resolve``).

    Attributes:
        resize: length of the shorter side in pixels, the ratio kept; or exactly (height, width).
        crop: (height, width) cut from the centre; one number for a square.
        channels: ``rgb``, ``bgr`` or ``gray``.
        scale: factor on the pixel values 0 .. 255.
        mean, std: one number, or one per channel in the order of ``channels``: x = (scale · pixel - mean) / std.
        layout: ``nchw`` or ``nhwc``.
        interpolation: of the resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.

    Raises:
        UsageError: a value that cannot be meant.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    channels: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            sides = () if size is None else size if isinstance(size, tuple) else (size,)
            if size == () or len(sides) > 2 or not all(_is_side(side) for side in sides):
                raise UsageError(f"{name} must be one or two sizes from 1 to {_MAX_SIDE} pixels, not {size}")
        for name, allowed in (("channels", CHANNELS), ("layout", LAYOUTS), ("interpolation", INTERPOLATIONS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, not '{value}'")
        if self.scale is not None and not (_is_number(self.scale) and self.scale > 0):
            raise UsageError(f"scale must be a positive number, not {self.scale}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) not in (1, 3) or not all(_is_number(value) for value in values)):
                raise UsageError(f"{name} must be one number or three, not {values}")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"std must be positive, not {self.std}")

    def over(self, other: ImageOptions) -> ImageOptions:
        """These options, and those of ``other`` where these say nothing."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(other, **{name: value for name, value in said.items() if value is not None})

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ImageOptions:
        """Options from names and values as a file or a command line gives them.

        Sizes may be written 224, [224, 320] or "224x320" (height first), numbers 0.0039 or "1/255", lists [1, 2, 3]
        or "1,2,3".

        Raises:
            UsageError: an unknown name, or a value that cannot be meant.
        """
        known = [field.name for field in fields(cls)]
        for name in mapping:
            if name not in known:
                raise UsageError(f"unknown image option '{name}'; there are {', '.join(known)}")
        parse = {"resize": _parse_size, "crop": _parse_size, "mean": _parse_list, "std": _parse_list}
        parse["scale"] = _parse_number
        values = {}
        for name, value in mapping.items():
            if value is not None:
                try:
                    values[name] = parse.get(name, _parse_word)(value)
                except (TypeError, ValueError, ArithmeticError):
                    raise UsageError(f"image option {name} cannot be {value!r}") from None
        return cls(**values)


def load_image_options(path: Path) -> ImageOptions:
    """Read options from a .toml or .json file with one key per option.

    Raises:
        DataError: the file cannot be read.
        UsageError: it says something that cannot be meant.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mapping = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(mapping, dict):
        raise DataError(f"{path}: holds no table of options")
    try:
        return ImageOptions.from_mapping(mapping)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def find_image_options(folder: Path, model: Path | None = None) -> ImageOptions:
    """The options in ``<model>.preprocess.toml`` beside the model, else in ``preprocess.toml`` in the data folder.

    Either may be .json instead. Without a file, options that say nothing.
    """
    candidates = [folder / name for name in FILE_NAMES]
    if model is not None:
        candidates = [model.with_name(f"{model.stem}.{name}") for name in FILE_NAMES] + candidates
    found = next((path for path in candidates if path.is_file()), None)
    return ImageOptions() if found is None else load_image_options(found)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _parse_word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.strip().lower()


def _parse_number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        numerator, _, denominator = value.partition("/")
        return float(numerator) / float(denominator or 1)
    return float(value)


def _parse_list(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.strip("[] ").split(",")
    return tuple(_parse_number(item) for item in (value if isinstance(value, (list, tuple)) else [value]))


def _parse_size(value: Any) -> int | tuple[int, int]:
    if isinstance(value, str):
        value = [int(side) for side in value.lower().replace(",", "x").split("x")]
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if not 1 <= len(sides) <= 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
