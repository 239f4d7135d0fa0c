"""Where the time goes: onnxruntime's own profile of a model, node by node."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections import defaultdict

import onnx
import onnxruntime as ort

from onnx_obd.calibration.samples import Feed
from onnx_obd.errors import ModelError

RUNS = 30
"""Runs over which the median time of a node is taken."""


def node_times(proto: onnx.ModelProto, feed: Feed, *, threads: int = 1, runs: int = RUNS) -> dict[int, float]:
    """Microseconds per run of each node of the main graph, by its position; medians.

    Nodes are timed one by one, so without the fusions that onnxruntime would apply: the times say which nodes are
    dear, not how long the model takes.

    Raises:
        ModelError: onnxruntime refuses the model.
    """
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    for index, node in enumerate(named.graph.node):
        node.name = f"node{index}"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        try:
            session = ort.InferenceSession(named.SerializeToString(), options, providers=["CPUExecutionProvider"])
            for _ in range(runs):
                session.run(None, feed)
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"onnxruntime cannot profile the model: {str(error).splitlines()[0]}") from error
    durations: dict[int, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.startswith("node") and name.endswith("_kernel_time"):
            index = name.removeprefix("node").removesuffix("_kernel_time")
            if index.isdigit():
                durations[int(index)].append(float(event["dur"]))
    return {index: statistics.median(values) for index, values in durations.items()}
