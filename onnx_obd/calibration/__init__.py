"""What the model is judged on: samples read from data of any common form, and the loss they are scored by."""

from onnx_obd.calibration.folder import NO_LABELS, load_samples
from onnx_obd.calibration.image_options import ImageOptions, find_image_options, load_image_options
from onnx_obd.calibration.samples import Feed, Samples

__all__ = ["NO_LABELS", "Feed", "ImageOptions", "Samples", "find_image_options", "load_image_options", "load_samples"]
