import pytest

from mcbo.geometry.units import MM, Unit, symbol_of, unit_of


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("µm", "um"),  # the micro sign, as OME writes it
        ("μm", "um"),  # the Greek letter
        ("\\u00B5m", "um"),  # as ImageJ escapes it
        ("Microns", "um"),
        ("micrometer", "um"),
        ("millimetres", "mm"),
        ("NM", "nm"),
        (" m ", "m"),
        ("pixel", None),
        ("", None),
        ("inch", None),
    ],
)
def test_names(name: str, unit: Unit | None) -> None:
    assert unit_of(name) == unit


def test_a_length_in_millimeters() -> None:
    assert 5 * MM["um"] == pytest.approx(0.005)
    assert symbol_of("um") == "µm"
    assert symbol_of("mm") == "mm"
