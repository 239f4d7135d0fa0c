"""The comparison with onnxsim at equal width, as far as it goes without onnxsim."""

import re
import sys

import pytest
from click.testing import CliRunner

from benchmarks.rows import write_rows
from benchmarks.width import Result, Row, _read, describe, main, shapes, sizes_left, with_sizes
from onnx_obd.mirror.mirror import Mirror
from onnx_obd.mirror.values import to_torch
from onnx_obd.removal import share
from onnx_obd.removal.thinning import Thinning
from onnx_obd.surgery.shrink import shrink
from onnx_obd.units.find import find_units
from tests.removal.networks import prepared
from tests.surgery import networks_of_sequences  # noqa: F401  (registers its networks)
from tests.surgery.graphs import feeds_of
from tests.surgery.networks import NETWORKS
from tests.surgery.oracle import some_of_each


def found(name):
    proto = NETWORKS[name][0]()
    mirror, feeds = Mirror(proto), feeds_of(proto)
    return proto, find_units(mirror, [to_torch(feeds[name]) for name in mirror.input_names])


@pytest.mark.parametrize("name", ["conv_batchnorm_pool", "residual", "flattened", "squeeze_and_excite", "mlp", "lstm"])
def test_what_is_gone_is_read_off_the_shapes(name):
    proto, units = found(name)
    going = some_of_each(units.units, 0.4)
    families, gone = units.families(), {unit.id for unit in going}
    left = sizes_left(families, shapes(proto), shapes(shrink(proto, units, going)))
    assert left == {family: sum(unit.id not in gone for unit in members) for family, members in families.items()}
    assert sum(left.values()) == len(units.units) - len(going) < len(units.units)


def test_a_head_or_its_dimensions_the_shapes_do_not_say():
    proto, units = found("attention")
    whole = sizes_left(units.families(), shapes(proto), shapes(proto))
    assert whole == {family: len(members) for family, members in units.families().items()}
    head = next(unit for unit in units.units if unit.kind == "head")
    with pytest.raises(ValueError, match="cannot be told"):
        sizes_left(units.families(), shapes(proto), shapes(shrink(proto, units, [head])))


def test_axes_that_contradict_each_other():
    proto, units = found("mlp")
    after = dict(shapes(proto))
    bias = next(piece for piece in units.units[0].slices if len(after[piece.tensor]) == 1)
    after[bias.tensor] = (after[bias.tensor][0] - 1,)
    with pytest.raises(ValueError, match="cannot be told"):
        sizes_left(units.families(), shapes(proto), after)


def test_ours_has_the_sizes_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(share, "ROUNDS", 2)
    thinning = Thinning(prepared(tmp_path, heard=1e-3))
    first, second = thinning.families
    state = with_sizes(thinning, {first: 37, second: 48})
    assert {family: len(units) for family, units in thinning.left(state.gone).items()} == {first: 37, second: 48}
    model = thinning.model(state.gone, state.weights)
    assert sizes_left(thinning.families, shapes(thinning.run.model.proto), shapes(model)) == {first: 37, second: 48}
    hardly_heard = {unit.id for unit in thinning.families[first][32:]}
    assert state.gone < hardly_heard


def test_the_table():
    beside = {"ours": Result(30, 0.9872, 1.24), "free": Result(28, 0.9858, 1.11)}
    row = Row("mnist_cnn_pytorch_ortjava", 0.5, "L2", 80, 0.9904, Result(30, 0.7808, 1.25), beside)
    (line,) = re.findall(r"\| mnist_cnn.*", describe([row]))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells == ["50%", "L2", "30 of 80", "78.08", "1.25", "98.72", "1.24", "98.58", "28", "1.11"]
    head, *_ = describe([row]).splitlines()
    assert "not refitted" not in head and head.count("|") == len(cells) + 2


def test_rows_are_read_as_they_were_written(tmp_path):
    row = Row("mnist_fc_256x4", 0.25, "Wanda", 1024, 0.98, Result(256, 0.97, 1.4), {"choice": Result(256, 0.96, 1.3)})
    write_rows(tmp_path / "rows.json", [row])
    assert _read(tmp_path / "rows.json") == [row]


def test_without_onnxsim_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "benchmarks.onnxsim_pruning", raising=False)
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1 and "pip install onnxsim" in result.output
    assert len(result.output.splitlines()) == 1
