"""Layers of napari as images in the world, and displacements as layers of vectors.

The world of napari has one axis for each axis of the arrays, in the unit of the layers. It takes the place of the scanner's
world: a registration depends on where two images lie to each other, and on lengths, but not on what the axes are called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.quasirandom import SobolEngine

from mcbo.core.errors import InputError
from mcbo.core.types import Shape
from mcbo.geometry.units import MM, Unit, symbol_of, unit_of

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]
"""Data, settings and type of a layer, as napari takes it."""

MAX_VECTORS = 2**13
"""In a layer; a power of two, as its places need it. More than some 10,000 are slow to draw and hide each other."""


@dataclass(frozen=True)
class Place:
    """Where a layer lies.

    Attributes:
        name: of the layer.
        matrix: ``(4, 4)``, from voxels to napari's world.
        scales_mm: millimeters in one unit of each axis of that world; None if the layer states no unit of length.
        unit: for people.
        settings: that put another layer of vectors or voxels onto the same grid.
    """

    name: str
    matrix: NDArray[np.float64]
    scales_mm: tuple[float, ...] | None
    unit: Unit
    settings: Mapping[str, Any]

    def affine(self, scales_mm: Sequence[float]) -> NDArray[np.float64]:
        """``(4, 4)`` from voxels to the world in mm."""
        return np.asarray(np.diag([*scales_mm, 1.0]) @ self.matrix)


def place_of(layer: Any) -> Place:
    """Where a layer with a 3D image lies.

    Raises:
        InputError: if it is none, or states lengths along some of its axes only.
    """
    if layer.rgb:
        raise InputError(f"layer '{layer.name}': expected one number per voxel, found colors: split it into its channels first")
    if layer.ndim != 3:
        raise InputError(f"layer '{layer.name}': expected a 3D image, found {layer.ndim} dimensions: split the stack first")
    origin = np.array(layer.data_to_world((0, 0, 0)), dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        matrix[:3, axis] = np.array(layer.data_to_world(tuple(np.eye(3)[axis]))) - origin
    settings = {name: getattr(layer, name) for name in ("scale", "translate", "rotate", "shear", "units", "axis_labels")}
    settings["affine"] = layer.affine.affine_matrix
    return Place(layer.name, matrix, _scales_mm(layer), unit_of(str(layer.units[0])) or "mm", settings)


def _scales_mm(layer: Any) -> tuple[float, ...] | None:
    are_lengths = [unit.is_compatible_with("millimeter") for unit in layer.units]
    if any(are_lengths) and not all(are_lengths):
        found = ", ".join(map(str, layer.units))
        raise InputError(f"layer '{layer.name}': expected a unit of length for all axes, or for none, found {found}")
    return tuple(float((1 * unit).to("millimeter").magnitude) for unit in layer.units) if all(are_lengths) else None


def common_world(fixed: Place, moving: Place) -> tuple[NDArray[np.float64], NDArray[np.float64], Unit, str]:
    """The affines, mm, of two layers, their unit for people, and what was assumed about it, as a sentence or nothing.

    A layer without a unit has that of the other one, since napari shows them so; mm, if neither has one.
    """
    known = next((place for place in (fixed, moving) if place.scales_mm is not None), None)
    shared = known.scales_mm if known is not None and known.scales_mm is not None else (1.0, 1.0, 1.0)
    unit: Unit = known.unit if known is not None else "mm"
    nameless = [place for place in (fixed, moving) if place.scales_mm is None]
    names = " and ".join(f"'{place.name}'" for place in nameless)
    states = "states" if len(nameless) == 1 else "state"
    note = f"{names} {states} no unit of length; {symbol_of(unit)} is assumed." if nameless else ""
    affines = (place.affine(place.scales_mm or shared) for place in (fixed, moving))
    return next(affines), next(affines), unit, note


def voxels_of(layer: Any) -> NDArray[np.float32]:
    """The voxels of a layer, at the finest level of a pyramid; raises ``InputError`` if they are no real numbers."""
    array = np.asarray(layer.data[0] if layer.multiscale else layer.data)
    if array.dtype.kind not in "biuf":
        raise InputError(f"layer '{layer.name}': expected one number per voxel, found data of type {array.dtype}")
    with np.errstate(over="ignore"):  # registration refuses what is not finite
        return array.astype(np.float32)


def spread(shape: Shape) -> NDArray[np.int64]:
    """Voxels of a grid, ``(n, 3)``: all of them, or up to ``MAX_VECTORS`` that are even in the volume and in every slice."""
    if np.prod(shape, dtype=np.int64) <= MAX_VECTORS:
        return np.argwhere(np.ones(shape, dtype=bool))
    engine = SobolEngine(3)  # type: ignore[no-untyped-call]
    shares = engine.draw(MAX_VECTORS).double().numpy()
    return np.unique((shares * shape).astype(np.int64), axis=0)


def vectors_layer(
    displacement: NDArray[np.float32],
    affine: NDArray[np.float64],
    settings: Mapping[str, Any],
    *,
    name: str,
    unit: Unit = "mm",
    known: NDArray[np.bool_] | None = None,
) -> LayerData:
    """A displacement as a layer of vectors, colored by length.

    Args:
        displacement: ``(H, W, D, 3)`` voxels.
        affine: voxel to world, mm, ``(4, 4)``, for lengths.
        settings: that put the layer onto its grid.
        name: of the layer.
        unit: of the lengths.
        known: ``(H, W, D)``; elsewhere there are no vectors.
    """
    height, width, depth = displacement.shape[:3]
    starts = spread((height, width, depth))
    if known is not None:
        starts = starts[known[tuple(starts.T)]]
    steps = displacement[tuple(starts.T)].astype(np.float64)
    starts, steps = starts[np.isfinite(steps).all(axis=1)], steps[np.isfinite(steps).all(axis=1)]
    lengths = np.linalg.norm(steps @ affine[:3, :3].T, axis=1) / MM[unit]
    look = {
        "features": {"length": lengths},
        "edge_color": "length" if len(lengths) else "yellow",
        "edge_colormap": "turbo",
        "edge_contrast_limits": (0.0, float(lengths.max(initial=0)) or 1.0),
        "edge_width": 0.5,
        "opacity": 1.0,
        "vector_style": "arrow",
    }
    return np.stack([starts, steps], axis=1), {**settings, **look, "name": f"{name} ({symbol_of(unit)})"}, "vectors"
