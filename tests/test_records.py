import pytest

from onnx_obd.records import Round


@pytest.mark.parametrize(
    ("predicted", "measured", "left"),
    [
        (0.02, 0.03, False),
        (0.02, 0.041, True),
        (0.02, 0.009, True),
        (-0.02, -0.03, False),
        (-0.02, 0.03, True),
        (0.0, 5e-6, False),  # nobody would notice
        (0.0, 5e-3, True),
        (None, None, False),
    ],
)
def test_the_band_is_a_factor_of_two(predicted, measured, left):
    record = Round(0.1, None, 0.0, 0.0, 0.0, 0.0, predicted, measured)
    assert record.left_band is left
