"""Units of length. Inside, every length is in mm; a file's own unit is kept for what people read and for what is written."""

from typing import Literal, TypeAlias, get_args

Unit: TypeAlias = Literal["nm", "um", "mm", "cm", "m"]

UNITS: tuple[Unit, ...] = get_args(Unit)

MM: dict[Unit, float] = {"nm": 1e-6, "um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Millimeters in one unit."""

_SYMBOLS: dict[Unit, str] = {"um": "µm"}

_NAMES: dict[str, Unit] = {
    "nm": "nm",
    "nanometer": "nm",
    "nanometre": "nm",
    "um": "um",
    "µm": "um",  # the micro sign
    "μm": "um",  # the Greek letter
    "\\u00b5m": "um",  # ImageJ
    "micron": "um",
    "micrometer": "um",
    "micrometre": "um",
    "mm": "mm",
    "millimeter": "mm",
    "millimetre": "mm",
    "cm": "cm",
    "centimeter": "cm",
    "centimetre": "cm",
    "m": "m",
    "meter": "m",
    "metre": "m",
}


def unit_of(name: str) -> Unit | None:
    """The unit of a name such as ``µm``, ``micron`` or ``micrometers``, in any case; None if it is not one of length."""
    key = name.strip().lower()
    return _NAMES.get(key) or _NAMES.get(key.removesuffix("s"))


def symbol_of(unit: Unit) -> str:
    """How a unit is printed."""
    return _SYMBOLS.get(unit, unit)
