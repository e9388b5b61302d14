"""What a TIFF says of its voxel size: in OME-XML, in ImageJ's description, or in that of Zeiss' LSM; its tags alone do not.

Sources: the OME model, "Pixels" (PhysicalSizeX, whose default unit is µm); ImageJ's ``ij.io.TiffDecoder`` and ``FileOpener``.
"""

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Triple
from mcbo.geometry.units import MM
from mcbo.io.microscopy.selection import Stated, length_of, mm_of

_INCH, _CENTIMETER = 2, 3
"""Values of the tag ResolutionUnit."""

_SCREEN_DPI = 72
"""A resolution that ImageJ does not take for one either."""


def stated_size(tif: tifffile.TiffFile, ome: str | None, *, image: int, slices: int) -> Stated:
    """What a file, or its OME-XML, says of the voxel size of its image number ``image``, which has so many slices."""
    if ome is not None:
        found = _of_ome(ome, image)
        if any(found.mm) or not tif.is_imagej:
            return found
    if tif.is_imagej and tif.imagej_metadata:
        return _of_imagej(tif.imagej_metadata, tif.pages.first.tags, slices, tif.filename)
    if tif.is_lsm and tif.lsm_metadata:
        sizes = [mm_of(float(tif.lsm_metadata.get(f"VoxelSize{axis}", 0)), MM["m"]) for axis in "XYZ"]
        return Stated((sizes[0], sizes[1], sizes[2]), "um")
    return Stated()


def parse_ome(text: str) -> ElementTree.Element:
    """OME-XML; raises ``InputError`` for anything else, and for entities, which can expand without end."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError("expected OME-XML without a document type, found one")
    try:
        return ElementTree.fromstring(text)  # noqa: S314 (it has no entities)
    except ElementTree.ParseError as error:
        raise InputError(f"expected OME-XML, but it cannot be read: {error}") from error


def _of_ome(text: str, image: int) -> Stated:
    pixels = parse_ome(text).findall("{*}Image/{*}Pixels")
    if image >= len(pixels):
        return Stated()
    attributes = pixels[image].attrib
    sizes, units, hints = [], [], []
    for axis in "XYZ":
        size, name = attributes.get(f"PhysicalSize{axis}"), attributes.get(f"PhysicalSize{axis}Unit", "µm")
        unit, mm = length_of(name)
        sizes.append(mm_of(size, mm))
        units.append(unit)
        if size is not None and sizes[-1] is None:
            hints.append(f"its PhysicalSize{axis} is {size} {name}")
    return Stated((sizes[0], sizes[1], sizes[2]), units[0], hint=", ".join(hints))


def _of_imagej(about: Mapping[str, Any], tags: Any, slices: int, name: str) -> Stated:
    resolution_unit = int(tags.valueof(296, default=0) or 0)
    across, down = (_perlength_of(tags.valueof(tag)) for tag in (282, 283))
    units = [str(about.get(key, about.get("unit", ""))).strip('"') for key in ("unit", "yunit", "zunit")]
    if not units[0] and resolution_unit in (_INCH, _CENTIMETER) and across != 1 / _SCREEN_DPI:
        units = ["inch" if resolution_unit == _INCH else "cm"] * 3
    known = [length_of(unit) for unit in units]
    depth = about.get("spacing")
    numbers = [across, down, depth]
    if None in (mm for _, mm in known):
        plain = all(number in (None, 1, 1.0) for number in numbers)
        text = "" if plain else f"ImageJ's calibration is {across:g}×{down:g}×{depth if depth else 1} without a unit of length"
        return Stated(hint=text, origin=_origin(about))
    if slices > 1 and depth is None:
        log.warning("%s: it states no distance of slices, which for ImageJ is 1 %s", name, units[2])
        numbers[2] = 1.0
    sizes = [
        mm_of(abs(number) if isinstance(number, int | float) else number, mm)
        for number, (_, mm) in zip(numbers, known, strict=True)
    ]
    return Stated((sizes[0], sizes[1], sizes[2]), known[0][0], _origin(about))


def _origin(about: Mapping[str, Any]) -> Triple:
    """Where the first voxel lies, in voxels: ImageJ states which voxel is at 0."""
    numbers = [about.get(f"{axis}origin", 0) for axis in "xyz"]
    finite = [float(n) if isinstance(n, int | float) and np.isfinite(n) else 0.0 for n in numbers]
    return 0.0 - finite[0], 0.0 - finite[1], 0.0 - finite[2]


def _perlength_of(resolution: Any) -> float:
    """The length of a pixel from a resolution (pixels per unit, as a fraction); 1 if there is none."""
    try:
        pixels, units = (int(part) for part in resolution)
    except (TypeError, ValueError):
        return 1.0
    return units / pixels if pixels > 0 and units > 0 else 1.0
