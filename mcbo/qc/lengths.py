"""The unit of lengths on the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from mcbo.geometry.units import MM, Unit, symbol_of

MICROSCOPY: tuple[Unit, ...] = ("nm", "um")
"""Units of images without a patient, whose axes are X, Y and Z."""

_SMALL_MM = 0.01
"""Voxels of microscopes are smaller. Where those of a microscopy task seem larger, a header with mm or no unit means µm."""


@dataclass(frozen=True)
class Lengths:
    """A unit of length: how it is printed, and how many make a millimeter."""

    symbol: str = "mm"
    per_mm: float = 1.0

    @property
    def is_microscopy(self) -> bool:
        """Whether it is one of microscopes, so that planes are those of X, Y and Z, not of a patient."""
        return self.symbol != "mm"


MILLIMETERS = Lengths()


def lengths_of(stated: Unit, task: Unit, spacing_mm: Sequence[float]) -> Lengths:
    """The unit to show: that of the image's file if it is one of microscopy, else that of the task, else what fits the voxels.

    Args:
        stated: by the file; mm if it states none.
        task: of the task.
        spacing_mm: voxel size.
    """
    if stated in MICROSCOPY:
        return Lengths(symbol_of(stated), 1 / MM[stated])
    if task in MICROSCOPY:
        return Lengths(symbol_of(task), 1 / MM[task] if min(spacing_mm) < _SMALL_MM else 1.0)
    return MILLIMETERS if max(spacing_mm) >= _SMALL_MM else Lengths(symbol_of("um"), 1 / MM["um"])
