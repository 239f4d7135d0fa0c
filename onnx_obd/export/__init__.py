"""Writing the result: the original graph with new weight values, dense or sparse, and its provenance."""

from onnx_obd.export.export import ExportReport, check_destination, densify_model, export_model, exported_size
from onnx_obd.export.sparse import SparseTensor

__all__ = ["ExportReport", "SparseTensor", "check_destination", "densify_model", "export_model", "exported_size"]
