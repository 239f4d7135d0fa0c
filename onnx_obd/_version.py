"""The version of the installed package; pyproject.toml holds it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("onnx-obd")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
