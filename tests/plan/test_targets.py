import pytest

from onnx_obd.errors import UsageError
from onnx_obd.plan.targets import Goal, furthest, parse_size
from onnx_obd.records import Quality


def quality(loss=0.0, agreement=1.0, accuracy=None):
    return Quality("test", 0.5, loss, agreement, accuracy, 0.0)


@pytest.mark.parametrize("edge", [0.0, 0.123, 0.5, 0.9999])
def test_the_furthest_that_passes(edge):
    asked = []
    found = furthest(lambda x: asked.append(x) or x <= edge, 0.0, 1.0, 1e-3)
    assert 0 <= edge - found <= 1e-3
    assert len(asked) == 10


def test_the_drop_is_of_the_accuracy_where_there_are_labels():
    goal = Goal(max_drop=0.01)
    assert goal.allows(quality(agreement=0.5, accuracy=0.98), quality(accuracy=0.99))
    assert not goal.allows(quality(agreement=1.0, accuracy=0.97), quality(accuracy=0.99))


def test_the_drop_is_of_the_agreement_where_there_are_none():
    goal = Goal(max_drop=0.05)
    assert goal.allows(quality(agreement=0.95), quality())
    assert not goal.allows(quality(agreement=0.94), quality())
    with pytest.raises(UsageError, match="--loss-budget"):
        goal.allows(quality(agreement=None), quality(agreement=None))


def test_the_budget_is_of_the_rise_of_the_loss():
    goal = Goal(loss_budget=0.5)
    assert goal.allows(quality(loss=1.5), quality(loss=1.0))
    assert not goal.allows(quality(loss=1.51), quality(loss=1.0))
    assert goal.limits_damage and not Goal(target_size=5).limits_damage


@pytest.mark.parametrize(
    ("text", "size"), [("5MB", 5_000_000), ("1.5 kb", 1500), ("2KiB", 2048), ("700", 700), ("3 GiB", 3 * 2**30)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5 TB", "0", "1e9", "5MB5", "9" * 30])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="not a file size"):
        parse_size(text)
