"""Units of length in headers that ITK reads and ignores: it takes all lengths for millimeters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import symbol_of
from mcbo.io.files import shown
from mcbo.io.microscopy.selection import length_of

_UNSAID = ("", "?", "???", "none", "unknown")


def one_unit(names: Sequence[str]) -> str:
    """The unit that a header names for all axes, empty if it names none; raises ``InputError`` if they differ."""
    said = ["" if name.strip().lower() in _UNSAID else name.strip() for name in names]
    meanings = {(unit, mm if mm else name) for name, (unit, mm) in zip(said, map(length_of, said), strict=True)}
    if len(meanings) > 1:
        listed = ", ".join(shown(name) if name else "none" for name in said)
        raise InputError(f"expected one unit of length for all axes, found {listed}: save the image with lengths in one unit")
    return said[0] if said else ""


def in_unit(path: Path, grid: Grid, name: str) -> Grid:
    """A grid as ITK reads a file whose header names that unit: in millimeters, with the unit, and with ITK's reading.

    Warns where ITK has the image elsewhere, and of a unit that is not known, whose lengths are taken for millimeters.
    """
    unit, mm = length_of(name)
    if not name or mm == 1:
        return grid
    if mm is None:
        log.warning("%s: expected a unit of length, such as um, found %s; lengths are taken for mm", path, shown(name))
        return grid
    affine = grid.affine.copy()
    affine[:3] *= mm
    called = symbol_of(unit) if unit != "mm" else shown(name)
    log.warning(
        "%s: its lengths are in %s; ITK, 3D Slicer and ANTs take them for mm, and transforms for these programs fit that",
        path,
        called,
    )
    return replace(grid, affine=affine, unit=unit, in_itk=grid.affine)
