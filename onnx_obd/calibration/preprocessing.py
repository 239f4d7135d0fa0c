"""Image options with every choice made for one model input, and what they do to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_obd.calibration.image_options import CHANNELS, ImageOptions
from onnx_obd.calibration.inputs import ModelInput
from onnx_obd.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

_DEFAULT_SCALE = 1 / 255

# Pillow's numbers for its resampling filters (PIL.Image.Resampling), which it keeps since its first versions.
_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}

# A resized image may not be larger than this: a strip of 1x10000 pixels resized to a short side of 1000 would be.
_MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes one sample of ``model_input``; fields as in ``ImageOptions`` where they share a name.

    Attributes:
        axes: (height, width), with the axis of channels first or last, as the model declares them without its batch
            axis, None where any length will do. Of a flattened image: whatever axes the model has.
        flat: the model takes flattened images.
        fit: resize so that the image just covers ``crop``: the default where nothing is said about sizes.
        channels: None for a flattened image, where the number of pixels tells gray from rgb.
    """

    model_input: ModelInput
    axes: tuple[int | None, ...]
    flat: bool
    fit: bool
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    channels: str | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str
    interpolation: str

    @property
    def size(self) -> tuple[int | None, int | None]:
        """(height, width) that the model declares."""
        if self.flat:
            return None, None
        if len(self.axes) == 2:
            return self.axes[0], self.axes[1]
        return self.axes[1:] if self.layout == "nchw" else self.axes[:2]

    def describe(self) -> str:
        """The choices in words, for the report: what the model was fed must be open to checking."""
        steps = []
        if self.resize is not None:
            steps.append(f"resize {_size_text(self.resize)}")
        elif self.fit:
            steps.append(f"resize to cover {_size_text(self.crop)}")
        if self.crop is not None:
            steps.append(f"crop {_size_text(self.crop)}")
        steps.append(self.channels or "gray or rgb")
        if self.model_input.dtype.kind == "f":
            steps.append(f"scale {self.scale:.6g}, mean {_numbers(self.mean)}, std {_numbers(self.std)}")
        return ", ".join([*steps, self.layout])

    def apply(self, image: Image, where: str) -> np.ndarray:
        """``image`` as the array of one sample.

        Raises:
            DataError: the image does not have, and is not brought to, the size that the model takes.
        """
        image = self._crop(self._resize(image, where), where)
        height, width = image.height, image.width
        if any(want not in (None, have) for want, have in zip(self.size, (height, width), strict=True)):
            wanted = _size_text(self.size)
            raise DataError(f"{where}: {height}x{width}, but the model takes {wanted}; set resize or crop")
        pixels = self._pixels(image)
        if self.model_input.dtype.kind == "f":
            pixels = (pixels * self.scale - np.array(self.mean)) / np.array(self.std)
        if self.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        return self._to_sample(pixels, where).astype(self.model_input.dtype, order="C")

    def _resize(self, image: Image, where: str) -> Image:
        width, height = image.size
        if isinstance(self.resize, tuple):
            target = self.resize
        elif self.resize is not None:
            # Rounded as torchvision does: the longer side down to whole pixels.
            short = min(height, width)
            target = (self.resize * height // short, self.resize * width // short)
        elif self.fit:
            ratio = max(self.crop[0] / height, self.crop[1] / width)
            target = (max(round(height * ratio), self.crop[0]), max(round(width * ratio), self.crop[1]))
        else:
            return image
        if target == (height, width):
            return image
        if math.prod(target) > _MAX_PIXELS:
            raise DataError(f"{where}: resizing {height}x{width} gives {_size_text(target)}, which is too large")
        image = image.convert("L" if self._is_gray(target) else "RGB")
        return image.resize((target[1], target[0]), _RESAMPLING[self.interpolation])

    def _crop(self, image: Image, where: str) -> Image:
        if self.crop is None:
            return image
        height, width = self.crop
        if image.height < height or image.width < width:
            size = f"{image.height}x{image.width}"
            raise DataError(f"{where}: {size} is smaller than the crop {height}x{width}; set resize")
        # Rounded as torchvision does.
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _is_gray(self, size: tuple[int, int]) -> bool:
        if self.channels is None:
            return math.prod(size) == math.prod(self.axes)
        return self.channels == "gray"

    def _pixels(self, image: Image) -> np.ndarray:
        """[height, width, channels], 0 .. 255."""
        if self._is_gray((image.height, image.width)):
            return np.asarray(image.convert("L"))[:, :, np.newaxis]
        pixels = np.asarray(image.convert("RGB"))
        return pixels[:, :, ::-1] if self.channels == "bgr" else pixels

    def _to_sample(self, pixels: np.ndarray, where: str) -> np.ndarray:
        if self.flat:
            if pixels.size != math.prod(self.axes):
                raise DataError(
                    f"{where}: {'x'.join(map(str, pixels.shape))} values, but the model takes "
                    f"{math.prod(self.axes)}; set resize, crop or channels"
                )
            return pixels.reshape(self.model_input.sample_shape)
        if len(self.axes) == 2:
            pixels = pixels.squeeze(axis=0 if self.layout == "nchw" else 2)
        return pixels if self.model_input.batch_axis is None else np.expand_dims(pixels, self.model_input.batch_axis)


def resolve(options: ImageOptions, model_input: ModelInput) -> Preprocessing:
    """Make every choice that ``options`` leave to the model's input.

    Size: the model's; without ``resize`` and ``crop`` an image is resized to cover it and cut in the centre. Layout
    and channels: from the axis of length 1 or 3. Scale: 1/255 for float inputs; integer inputs take pixels as they are.

    Raises:
        UsageError: the options contradict the model's input, or a choice that only they can make is open.
        DataError: the input cannot hold an image.
    """
    axes, flat = _image_axes(model_input)
    has_channel_axis = not flat and len(axes) == 3
    layout = options.layout or (_guess_layout(axes, model_input) if has_channel_axis else "nchw")
    count = (axes[0] if layout == "nchw" else axes[2]) if has_channel_axis else None if flat else 1
    channels = _choose_channels(options, count, flat, model_input)
    scale, mean, std = _choose_normalisation(options, channels, model_input)
    crop = (options.crop, options.crop) if isinstance(options.crop, int) else options.crop
    chosen = Preprocessing(
        model_input=model_input,
        axes=axes,
        flat=flat,
        fit=False,
        resize=options.resize,
        crop=crop,
        channels=channels,
        scale=scale,
        mean=mean,
        std=std,
        layout=layout,
        interpolation=options.interpolation or "bilinear",
    )
    if crop is not None or None in chosen.size:
        return chosen
    return replace(chosen, crop=chosen.size, fit=options.resize is None)


def _image_axes(model_input: ModelInput) -> tuple[tuple[int | None, ...], bool]:
    """The axes of one image without the batch axis, and whether they are those of a flattened image."""
    dtype, shape = model_input.dtype, model_input.sample_shape
    if dtype.kind not in "fiu" or (dtype.kind in "iu" and np.iinfo(dtype).max < 255):
        raise DataError(f"pixel values 0 .. 255 do not fit the input {model_input.describe()}")
    if shape is None:
        return (None, None, None), False
    axes = tuple(dim for axis, dim in enumerate(shape) if axis != model_input.batch_axis)
    if len(axes) == 3 or (len(axes) == 2 and 1 not in axes):
        return axes, False
    if len(axes) > 3:
        raise DataError(f"one image does not make a sample of the input {model_input.describe()}; give .npz files")
    if None in axes:
        raise DataError(f"the input {model_input.describe()} does not tell the size of an image; give .npz files")
    return axes, True


def _guess_layout(axes: tuple[int | None, ...], model_input: ModelInput) -> str:
    # An axis that declares 1 or 3 is that of channels; failing that, the one that declares no length while the other
    # end declares a size.
    for wanted in ((1, 3), (None,)):
        first, last = axes[0] in wanted, axes[2] in wanted
        if first != last:
            return "nchw" if first else "nhwc"
    raise UsageError(f"the input {model_input.describe()} does not tell the layout of images; set layout")


def _choose_channels(options: ImageOptions, count: int | None, flat: bool, model_input: ModelInput) -> str | None:
    channels = options.channels
    if channels is None:
        if flat:
            return None
        channels = "gray" if count == 1 else "rgb"
    if count is not None and CHANNELS[channels] != count:
        has = f"{channels} images have {CHANNELS[channels]} channel{'s' * (channels != 'gray')}"
        raise UsageError(f"{has}, but the input {model_input.describe()} has {count}; set channels or layout")
    return channels


def _choose_normalisation(
    options: ImageOptions, channels: str | None, model_input: ModelInput
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    given = [name for name in ("scale", "mean", "std") if getattr(options, name) is not None]
    if model_input.dtype.kind != "f" and given:
        raise UsageError(f"{given[0]} is set, but the input {model_input.describe()} takes pixels as they are")
    mean, std = options.mean or (0.0,), options.std or (1.0,)
    if channels == "gray" and max(len(mean), len(std)) > 1:
        raise UsageError("mean and std have three values, but gray images have one channel")
    if options.scale is None and max(mean) > 1:
        raise UsageError(f"mean {_numbers(mean)} is for pixels 0 .. 255; set scale to 1 (without it, it is 1/255)")
    return _DEFAULT_SCALE if options.scale is None else options.scale, mean, std


def _size_text(size: int | Sequence[int | None] | None) -> str:
    sides = size if isinstance(size, Sequence) else (size,)
    return "x".join("?" if side is None else str(side) for side in sides)


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
