"""What can be removed whole from each model of a folder, and proof that it can.

    python -m benchmarks.units MODELS [--data FOLDER] [--share 0.25] [--only NAMES]

For every model: the units found, how many of its weights and multiplications are in one, what is frozen and why. Then a
share of every family is removed at random, and onnxruntime runs two models on the same input: the smaller one, and the
original with zeros where its weights read what went. "off" is the largest difference of an output, over that output's
largest element; "changed" the same between that and the untouched original, without which the first proves nothing.

Inputs are made up unless DATA/NAME (a folder or file as for ``--data``) is there.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx

from benchmarks.rows import split_at_commas
from onnx_obd.calibration.folder import NO_LABELS, load_samples
from onnx_obd.calibration.made_up import made_up_samples
from onnx_obd.calibration.measure import feeds
from onnx_obd.calibration.samples import Samples
from onnx_obd.errors import OnnxObdError
from onnx_obd.graph.load import load_model
from onnx_obd.graph.session import open_session
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.surgery.shrink import shrink
from onnx_obd.surgery.shrink_confirm import confirmed_units
from onnx_obd.units.find import UnitMap
from tests.surgery.oracle import some_of_each, zero_consumers

HEAD = (
    "| model | units | in units, % of weights | of multiplications | frozen | seconds | removed, % of weights | off | "
    "changed | checker |\n|---|---|---|---|---|---|---|---|---|---|"
)
AS_BEFORE = "as before"


@dataclass(frozen=True)
class Proof:
    """After a share of every family went: weights gone, the two differences, and what the checker says now."""

    weights: float
    off: float
    changed: float
    checker: str


@click.command()
@click.argument("models", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Folder with samples by model name.")
@click.option("--share", default=0.25, show_default=True, help="Of every family.")
@click.option("--only", callback=split_at_commas, default="", help="Names, separated by commas.")
@click.option("--seed", default=0, show_default=True)
def main(models: Path, data: Path | None, share: float, only: list[str], seed: int) -> None:
    click.echo(HEAD)
    worst: list[Proof] = []
    for path in sorted(models.rglob("*.onnx")):
        if only and path.stem not in only:
            continue
        try:
            source = load_model(path)
            samples = samples_of(source.proto, path, data, 1) or made_up_samples(source.proto, 1)
            start = time.perf_counter()
            mirror = Mirror(source.proto)
            units = confirmed_units(mirror, feeds(mirror, samples, 1)[0][0])
            seconds = time.perf_counter() - start
            proof = _proof(source.proto, units, samples, share, seed) if units.units else None
        except OnnxObdError as error:
            click.echo(f"| {path.stem} | {' '.join(str(error).split())[:160]} | | | | | | | | |")
            continue
        worst += [proof] if proof else []
        click.echo(_row(path.stem, units, seconds, proof))
    if worst:
        click.echo(f"\n{len(worst)} models shrunk; off by {max(proof.off for proof in worst):.1g} at most.")


def samples_of(proto: onnx.ModelProto, model: Path, data: Path | None, count: int) -> Samples | None:
    """Those in the file or folder with the model's name, if there is one."""
    found = [] if data is None else sorted(data.glob(f"{model.stem}*"))
    own = next((each for each in found if model.stem in (each.name, each.stem)), None)
    return own and load_samples(own, proto, labels=NO_LABELS, limit=count, model_path=model)


def _proof(proto: onnx.ModelProto, units: UnitMap, samples: Samples, share: float, seed: int) -> Proof:
    going = some_of_each(units.units, share, seed)
    smaller, feed = shrink(proto, units, going), samples.feeds[0]
    zeroed, ours, full = (_run(each, feed) for each in (zero_consumers(proto, going), smaller, proto))
    return Proof(
        weights=units.elements_of(going) / max(1, units.elements),
        off=difference(ours, zeroed),
        changed=difference(full, zeroed),
        checker=checked(proto, smaller),
    )


def _run(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list:
    return open_session(proto, optimize=False).run(None, feed)


def difference(some: Sequence, others: Sequence) -> float:
    """The largest, relative to the largest element of the output; infinite where shapes, integers or texts differ."""
    found = [0.0]
    for a, b in zip(some, others, strict=True):
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
            continue
        if a.shape != b.shape:
            return float("inf")
        largest = np.nanmax(np.abs(b.astype(float)), initial=0)
        found.append(float(np.nanmax(np.abs(a.astype(float) - b), initial=0)) / max(float(largest), 1e-30))
    return max(found)


def checked(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """What the checker, with shape inference, objects to in the second; "as before" if in the first too."""
    objection = _objection(after)
    return AS_BEFORE if objection and objection == _objection(before) else objection


def _objection(proto: onnx.ModelProto) -> str:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        return " ".join(str(error).split())[:80]
    return ""


def _row(name: str, units: UnitMap, seconds: float, proof: Proof | None) -> str:
    kinds = Counter(unit.kind for unit in units.units)
    frozen = Counter()
    for group in units.frozen:
        frozen[_short(group.reason)] += group.count
    cells = [
        name,
        ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()) or "none",
        f"{100 * units.elements_of(units.units) / max(1, units.elements):.0f}" if kinds else "",
        f"{100 * units.macs_of(units.units) / max(1, units.macs):.0f}" if kinds else "",
        ", ".join(f"{number} {reason}" for reason, number in frozen.most_common()),
        f"{seconds:.1f}",
    ]
    if proof is None:
        return f"| {' | '.join(cells)} | | | | |"
    cells += [f"{100 * proof.weights:.0f}", small(proof.off), small(proof.changed), proof.checker]
    return f"| {' | '.join(cells)} |"


def small(number: float) -> str:
    return f"{number:.0e}" if number else "0"


def _short(reason: str) -> str:
    """A reason without the names of nodes and values."""
    if "graph input" in reason:
        return "tied to a graph input"
    if "does not run on the sample" in reason:
        return "read by a branch that did not run"
    if reason.startswith(("output of", "input of")) or "(input of" in reason:
        return "passes into or out of a body"
    reason = re.sub(r" keeps its shape$", "", reason)
    reason = re.sub(r"'[^']*'/?|#\d+/?", "", reason)
    return " ".join(re.sub(r"\bnode (\w+ (then_branch|else_branch|body)/)*", "", reason).split())


if __name__ == "__main__":
    main()
