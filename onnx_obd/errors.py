"""Every error onnx-obd raises on purpose.

A message is one line that says what is wrong, where (node, tensor, file) and what to do. The command line
prints it and exits with ``exit_code``; the Python API raises it.

    OnnxObdError
    ├── UsageError               an option or argument that cannot be meant (exit code 2)
    ├── ModelError               the .onnx file: missing, truncated, invalid, refused by onnxruntime
    │   └── UnsupportedNodeError a node that neither the mirror nor onnxruntime can run
    ├── DataError                the calibration data: missing, wrong name, shape, dtype, NaN, label
    ├── MirrorMismatchError      the mirror and onnxruntime disagree
    ├── NumericalError           NaN or infinity where a finite number is needed
    └── ExportError              the result cannot be written, or is not valid once written
"""


class OnnxObdError(Exception):
    """Base of every deliberate error."""

    exit_code = 1


class UsageError(OnnxObdError):
    """An option or argument that cannot be meant."""

    exit_code = 2


class ModelError(OnnxObdError):
    """The model cannot be read, is invalid, or onnxruntime refuses it."""


class UnsupportedNodeError(ModelError):
    """A node that neither the mirror nor onnxruntime can run."""


class DataError(OnnxObdError):
    """The calibration data cannot be used with this model."""


class MirrorMismatchError(OnnxObdError):
    """The mirror and onnxruntime disagree by more than rounding explains."""


class NumericalError(OnnxObdError):
    """NaN or infinity where a finite number is needed."""


class ExportError(OnnxObdError):
    """The result cannot be written, or is not valid once written."""
