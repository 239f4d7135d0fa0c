"""Ours beside onnxsim's structured pruning, at the width that onnxsim really leaves.

    python -m benchmarks.width CORPUS [--models A,B] [--sparsities 0.25,0.5] [--columns ours,free] [--results FILE]

onnxsim is given a sparsity and removes the units that its patterns reach, which may be far fewer. How many are gone of
which family is read off the shapes of the tensors. Beside it stand, without labels and without training:

    ours     as many of the same families, so every tensor has the shape it has there; chosen and refitted by us
    choice   the same without the refit
    free     the same number of units from any family, up to sizes that kernels like, refitted

The same 256 samples for onnxsim's Wanda and for ours; its L2 needs none. Accuracy is that of the labelled test samples,
which nobody sees. Speed: batch 1, one thread, interleaved with the original; the median of the ratio.

With --results a run adds to the rows in that JSON file, does not repeat what is there, and prints them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import click
import onnx

from benchmarks.corpus import LOADERS, Task, accuracy, load_task
from benchmarks.rows import check_known, read_rows, split_at_commas, write_rows
from onnx_obd.calibration.samples import Feed
from onnx_obd.graph.load import load_model
from onnx_obd.graph.session import open_session
from onnx_obd.graph.weights import find_stored, find_weights
from onnx_obd.options import Options
from onnx_obd.removal.share import Ascending, in_rounds, without_share
from onnx_obd.removal.thinning import Thinned, Thinning
from onnx_obd.run import prepare
from onnx_obd.runtime.latency import measure_latency
from onnx_obd.units.find import Unit

MODELS = (
    "mnist_fc_256x4,mnist_cnn_pytorch_ortjava,cifar10_sri_resnet_3b2,cifar10_biasfield_base,cifar10_vit_pgd_2_3_16,"
    "mobilenetv2_fp32_derived@imagenette"
)

COLUMNS = ("ours", "choice", "free")

Shapes = Mapping[str, tuple[int, ...]]
"""Stored tensor -> its shape."""

Variants = Mapping[str, Callable[[onnx.ModelProto, Sequence[Feed], float], onnx.ModelProto]]
"""Name -> what prunes a model on samples to a sparsity."""


@dataclass(frozen=True)
class Result:
    """A smaller model: units gone, accuracy as a fraction, how many times as fast as the original."""

    gone: int
    accuracy: float
    speed: float


@dataclass(frozen=True)
class Row:
    """What onnxsim leaves of a model of so many ``units`` (``theirs``), and what stands beside it by column."""

    model: str
    sparsity: float
    variant: str
    units: int
    dense: float
    theirs: Result
    beside: Mapping[str, Result]

    @property
    def key(self) -> tuple[str, float, str]:
        return self.model, self.sparsity, self.variant


def shapes(model: onnx.ModelProto, floats_only: bool = False) -> Shapes:
    found = find_weights(model) if floats_only else find_stored(model)
    return {name: tensor.shape for name, tensor in found.items()}


def sizes_left(families: Mapping[int, Sequence[Unit]], before: Shapes, after: Shapes) -> dict[int, int]:
    """How many units of each family are left, by how much shorter the axes are that no other family shares.

    Raises:
        ValueError: the axes of a family tell different numbers, or it shares all of them and one is shorter.
    """
    axes = ({(s.tensor, s.axis) for s in members[0].slices} for members in families.values())
    sharing = Counter(axis for each in axes for axis in each)
    left = {}
    for family, members in families.items():
        own = [s for s in members[0].slices if sharing[s.tensor, s.axis] == 1]
        pieces = own or members[0].slices
        told = {(before[s.tensor][s.axis] - after[s.tensor][s.axis]) / len(s.indices) for s in pieces}
        gone = max(told)
        if len(told) > 1 or not gone.is_integer() or (gone and not own):
            raise ValueError(f"how many units of family {family} ({members[0].kind}) are gone cannot be told")
        left[family] = len(members) - int(gone)
    return left


def with_sizes(thinning: Thinning, sizes: Mapping[int, int]) -> Thinned:
    """So many units left of each family, the cheapest gone: in rounds, as a share of the units goes."""
    whole = {family: len(members) for family, members in thinning.families.items()}

    def step(ascending: Ascending, losses: Mapping[int, float], part: float) -> Mapping[int, int]:
        return {family: count - round((count - sizes[family]) * part) for family, count in whole.items()}

    return in_rounds(thinning, step)


class Ours:
    """One network of the corpus, and what we make of it."""

    def __init__(self, task: Task):
        self.task = task
        self.original = load_model(task.model).proto
        self._known: dict[tuple, Result] = {}

    @cached_property
    def thinning(self) -> Thinning:
        return self._thinning(Options())

    @cached_property
    def without_refit(self) -> Thinning:
        return self._thinning(Options(repair=False))

    def _thinning(self, options: Options) -> Thinning:
        return Thinning(prepare(load_model(self.task.model), self.task.calibration, options))

    def measured(self, model: onnx.ModelProto, gone: int) -> Result:
        speed = measure_latency(self.original, model, self.task.calibration).speedup.median
        return Result(gone, accuracy(self.task, open_session(model)), speed)

    def beside(self, column: str, theirs: onnx.ModelProto, sizes: Mapping[int, int], gone: int) -> Result:
        """Known already if onnxsim's other variant left the same sizes."""
        key = (column, gone) if column == "free" else (column, *sorted(sizes.items()))
        if key not in self._known:
            thinning = self.without_refit if column == "choice" else self.thinning
            if column == "free":
                state = without_share(thinning, gone / len(thinning.units.units))
            else:
                state = with_sizes(thinning, sizes)
            model = thinning.model(state.gone, state.weights)
            if column != "free" and shapes(model, floats_only=True) != shapes(theirs, floats_only=True):
                raise ValueError(f"{self.task.name}: not the shapes that onnxsim leaves")
            self._known[key] = self.measured(model, len(state.gone))
        return self._known[key]


def compared(
    task: Task, variants: Variants, sparsities: Sequence[float], columns: Sequence[str], known: Mapping[tuple, Row]
) -> Iterator[Row]:
    """A row for every sparsity and variant; again each time a column has been added to it."""
    ours = Ours(task)
    for sparsity, (variant, pruned) in product(sparsities, variants.items()):
        row = known.get((task.name, sparsity, variant))
        missing = [column for column in columns if row is None or column not in row.beside]
        if not missing:
            continue
        theirs = pruned(load_model(task.model).proto, task.calibration.feeds, sparsity)
        families, units = ours.thinning.families, len(ours.thinning.units.units)
        sizes = sizes_left(families, shapes(ours.original), shapes(theirs))
        gone = units - sum(sizes.values())
        if row is None:
            dense = accuracy(task, open_session(ours.original))
            row = Row(task.name, sparsity, variant, units, dense, ours.measured(theirs, gone), {})
            yield row
        for column in missing if gone else ():
            row = replace(row, beside={**row.beside, column: ours.beside(column, theirs, sizes, gone)})
            yield row


def describe(rows: Sequence[Row]) -> str:
    """The table: percent right and times faster, without columns that no row has."""
    there = {column for row in rows for column in row.beside}
    titles = {"ours": ["ours, same shapes", "times faster"], "choice": ["not refitted"]}
    titles["free"] = ["ours, free", "units gone", "times faster"]
    head = ["model (dense)", "asked for", "by", "units gone", "onnxsim", "times faster"]
    head += [title for column in COLUMNS if column in there for title in titles[column]]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sorted(rows, key=lambda row: (list(LOADERS).index(row.model), row.sparsity, row.variant)):
        cells = [f"{row.model} ({100 * row.dense:.2f})", f"{row.sparsity:.0%}", row.variant]
        cells += [f"{row.theirs.gone} of {row.units}", *_told(row.theirs)]
        for column in COLUMNS:
            result = row.beside.get(column)
            right, faster = _told(result)
            gone = str(result.gone) if result else ""
            own = {"ours": [right, faster], "choice": [right], "free": [right, gone, faster]}
            cells += own[column] if column in there else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(result: Result | None) -> tuple[str, str]:
    return (f"{100 * result.accuracy:.2f}", f"{result.speed:.2f}") if result else ("", "")


def _variants() -> Variants:
    try:
        from benchmarks.onnxsim_pruning import VARIANTS
    except ImportError as error:
        raise click.ClickException("onnxsim is not there to compare with: pip install onnxsim==0.8.1") from error
    return VARIANTS


def _read(path: Path | None) -> list[Row]:
    results = [({name: Result(**each) for name, each in row["beside"].items()}, row) for row in read_rows(path)]
    return [Row(**{**row, "theirs": Result(**row["theirs"]), "beside": beside}) for beside, row in results]


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--models", callback=split_at_commas, default=MODELS, show_default=True)
@click.option(
    "--sparsities", callback=split_at_commas, default="0.25,0.5", show_default=True, help="That onnxsim is asked for."
)
@click.option("--columns", callback=split_at_commas, default=",".join(COLUMNS), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="JSON file of rows to add to.")
def main(corpus: Path, models: list[str], sparsities: list[str], columns: list[str], results: Path | None) -> None:
    check_known(models)
    check_known(columns, COLUMNS, "column")
    variants, asked = _variants(), [*map(float, sparsities)]
    rows = {row.key: row for row in _read(results)}
    for name in models:
        for row in compared(load_task(corpus, name), variants, asked, columns, rows):
            rows[row.key] = row
            write_rows(results, rows.values())
    click.echo(describe(list(rows.values())))


if __name__ == "__main__":
    main()
