"""python -m sample_models.train [NAME ...]: train, export and write the named networks, or all of them."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
import warnings
from pathlib import Path

import onnx
import torch
from threadpoolctl import threadpool_limits

from sample_models.train.scoring import score

SAMPLE_MODELS = Path(__file__).resolve().parents[1]
NETWORKS = (
    "lenet_digits",
    "transformer_digits",
    "lstm_digits",
    "mlp_breast_cancer",
    "mlp_diabetes",
    "mlp_wine",
)


def make(name: str) -> None:
    """Write sample_models/NAME.onnx and the folders and files beside it, in place of those that were there."""
    network = importlib.import_module(f"sample_models.train.{name}")
    start = time.perf_counter()
    split = network.load()
    model = network.train(split)
    onnx.checker.check_model(model, full_check=True)

    path = SAMPLE_MODELS / f"{name}.onnx"
    for old in SAMPLE_MODELS.glob(f"{name}_*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    onnx.save(model, path)
    network.write_samples(split, path)

    measure, value = score(path, split)
    seconds = time.perf_counter() - start
    print(f"{name:20}{measure} {value:.4f} on {len(split.test_x)} test samples; made in {seconds:.0f} s", flush=True)


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        sys.exit(f"no such network: {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    # Sums in one thread always run in the same order, so that the same machine gives the same weights.
    torch.set_num_threads(1)
    # The exporters warn of their own deprecations, and that an LSTM's batch may not be open; `score` runs it open.
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", message="Exporting a model to ONNX with a batch_size other than 1")
    with threadpool_limits(1):
        for name in names or NETWORKS:
            make(name)


if __name__ == "__main__":
    main(sys.argv[1:])
