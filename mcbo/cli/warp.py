"""The command ``warp``: images, labels and landmarks from one image to the other."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import torch
import typer
from torch import Tensor

from mcbo.api.result import moving_grids, uncertainty_beside
from mcbo.cli import options as cli
from mcbo.cli.outputs import check_outputs
from mcbo.cli.program import say
from mcbo.cli.transforms import Field, budget, check_name, grid_of, report_inverse
from mcbo.core.errors import InputError, naming
from mcbo.core.field import format_shape, sample_at
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, apply_affine
from mcbo.geometry.inverse import MappedPoints, fixed_to_moving, moving_to_fixed
from mcbo.geometry.inverse import invert as inverted
from mcbo.geometry.resample import Mode, resample
from mcbo.geometry.units import MM, symbol_of
from mcbo.io.images import looks_like_intensities, read_any, read_field, read_intensities, read_labels, write_any
from mcbo.io.itk_files import SUFFIXES_WRITTEN
from mcbo.io.landmarks import SUFFIXES, Landmarks, read_landmarks, write_landmarks
from mcbo.io.microscopy.bigwarp import Pairs, Side, read_pairs
from mcbo.io.microscopy.images import finest_that_fits, selections
from mcbo.io.microscopy.physical import to_physical, to_voxels

Direction: TypeAlias = Literal["fixed-to-moving", "moving-to-fixed"]
PointUnit: TypeAlias = Literal["voxel", "nm", "um", "mm"]


def warp(
    field: Field,
    output: cli.OutputFile,
    image: Annotated[Path | None, typer.Option(metavar="IMAGE", help="Image to warp, interpolated trilinearly.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="IMAGE", help="Label map to warp; labels stay whole numbers.")] = None,
    points: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Landmarks to map: .csv (also BigWarp's), .fcsv, .mrk.json.")
    ] = None,
    direction: Annotated[
        Direction | None,
        typer.Option(
            metavar="DIRECTION",
            help="moving-to-fixed: what is given in the moving image is mapped into the fixed image (default for images and "
            "labels). fixed-to-moving: the other way (default for points).",
        ),
    ] = None,
    unit: Annotated[
        PointUnit | None,
        typer.Option(
            metavar="voxel|mm",
            help="Unit of a .csv: voxels of the image that the points lie in, counted from 0 (default), or world mm, RAS. Of "
            "BigWarp's: nm, um or mm, if it is not that of the images.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="The moving image, for its grid. Required to warp images fixed-to-moving, and for points in its voxels if "
            "its grid is not the fixed one.",
        ),
    ] = None,
    interpolation: Annotated[
        Literal["label", "nearest"],
        typer.Option(
            metavar="label|nearest",
            help="Interpolation of labels: by the largest trilinear weight, for smooth borders, or by the nearest neighbor.",
        ),
    ] = "label",
    outside: Annotated[float, typer.Option(metavar="X", help="Value outside the image.")] = 0.0,
    spacing: cli.Spacing = None,
    channel: cli.Channel = None,
    time: cli.TimePoint = None,
    series: cli.Series = None,
    geometry: cli.Geometry = "sform",
) -> None:
    """Warp an image or labels, or map landmarks, from one image to the other.

    FIELD maps positions of the fixed image to the moving image. So it warps
    images from moving to fixed, and maps points from fixed to moving.
    The opposite direction uses its inverse.
    """
    given = [path for path in (image, labels, points) if path is not None]
    if len(given) != 1:
        raise InputError("warp: expected exactly one of --image, --labels and --points")
    path = given[0]
    check_name(output, SUFFIXES if points else SUFFIXES_WRITTEN)
    check_outputs({"--output": output}, [field, path, reference])
    if points and (channel or time):
        raise InputError("--channel, --time: expected with --image or --labels only, got them with points")
    images = [finest_that_fits(path, budget()) for path in (image or labels, reference) if path is not None]
    told = selections(images, spacing=spacing, series=series)
    displacement, fixed = read_field(field)
    moving = None if reference is None else grid_of(images[-1], told[-1], geometry)
    if points and (pairs := read_pairs(points)):
        _warp_pairs(pairs, points, output, displacement, fixed, moving, direction or "fixed-to-moving", unit)
        return
    if points:
        found = _warp_points(path, output, displacement, fixed, moving, direction or "fixed-to-moving", unit)
        _report_bounds(field, found, fixed)
        return
    if unit is not None:
        raise InputError("--unit: expected with --points only, got it with an image")
    (part,) = selections(images[:1], channel=channel, time=time)
    selection = replace(told[0], channel=part.channel, time=part.time, form=geometry)
    volume, grid = (read_labels if labels else read_intensities)(images[0], selection)
    if labels and looks_like_intensities(volume):
        _warn(f"{path}: its values change from voxel to voxel, as those of labels do not: for intensities, use --image")
    mode: Mode = interpolation if labels else "linear"
    onto = fixed
    if direction == "fixed-to-moving":
        _check_grid(path, grid, [fixed], "the fixed image (of FIELD)")
        if moving is None:
            raise InputError("--reference: expected the moving image, onto whose grid the fixed image is to be warped")
        inverse = inverted(displacement, fixed, moving)
        report_inverse(inverse)
        displacement, onto = inverse.displacement, moving
    else:
        due = moving_grids(field, fixed) if moving is None else [moving]
        if not due and grid.shape == fixed.shape:  # as in Learn2Reg, where voxels correspond by index
            due = [fixed]
        _check_grid(path, grid, due, "the moving image")
    warped = resample(volume, grid, onto, displacement=displacement, mode=mode, outside=outside)
    if bool((warped == outside).all()):
        _warn(f"{output}: nothing of {path.name} lies in it; all voxels have the value outside, {outside:g}")
    write_any(output, warped, onto)
    say(f"{output}: {path.name}, {direction or 'moving-to-fixed'}")


def _warn(text: str) -> None:
    say(f"WARNING: {text}", err=True)


def _check_grid(path: Path, grid: Grid, due: list[Grid], whose: str) -> None:
    """Warns if an image is on none of the grids on which it should be, if they are known."""
    if due and not any(grid.matches(other) for other in due):
        found, expected = (
            f"{format_shape(g.shape)} voxels of {'×'.join(f'{size:.3g}' for size in g.spacing_mm)} mm, {g.orientation}, "
            f"the first at {', '.join(f'{x:.6g}' for x in g.affine[:3, 3])}"
            for g in (grid, due[0])
        )
        _warn(
            f"{path}: expected the grid of {whose} ({expected}), found another ({found}): the image is taken to lie where its "
            "affine says"
        )


def _warp_points(
    path: Path,
    output: Path,
    displacement: Displacement,
    fixed: Grid,
    moving: Grid | None,
    direction: Direction,
    unit: PointUnit | None,
) -> Tensor:
    """Maps landmarks; returns where they lie in the fixed image, ``(N, 3)`` world mm."""
    landmarks = read_landmarks(path)
    if unit in ("nm", "um"):
        raise InputError(f"--unit: expected voxel or mm but for landmarks of BigWarp, got {unit}")
    if landmarks.space != "table" and unit == "voxel":
        raise InputError(f"{path}: its points are in mm: expected --unit mm or none, got --unit voxel")
    in_voxels = landmarks.space == "table" and unit != "mm"
    start, end = (fixed, moving or fixed) if direction == "fixed-to-moving" else (moving or fixed, fixed)
    world = landmarks.to_world(start, in_voxels=in_voxels)
    found = (fixed_to_moving if direction == "fixed-to-moving" else moving_to_fixed)(world, displacement, fixed)
    ends = found.world if landmarks.space == "table" else apply_affine(end.to_itk(), found.world)
    text = landmarks.format_with(end.to_voxels(found.world)) if in_voxels else landmarks.format_ras(ends)
    write_landmarks(output, text, like=path)
    say(f"{output}: {len(world)} points, {direction}, in {_space(landmarks, in_voxels, moving is not None, direction)}")
    _report_points(found)
    return world if direction == "fixed-to-moving" else found.world


def _space(landmarks: Landmarks, in_voxels: bool, has_reference: bool, direction: Direction) -> str:
    """Where points that are written lie; where it had to be assumed, also how to say it."""
    if not in_voxels:
        return f"mm ({'RAS' if landmarks.space == 'table' else landmarks.space})"
    if has_reference:
        return f"voxels of the {direction.rpartition('-')[2]} image"
    assumed = "; those read, too" if direction == "moving-to-fixed" else ""
    return f"voxels of the fixed image{assumed} (for voxels of the moving image: --reference MOVING)"


def _warp_pairs(
    pairs: Pairs,
    path: Path,
    output: Path,
    displacement: Displacement,
    fixed: Grid,
    moving: Grid | None,
    direction: Direction,
    unit: PointUnit | None,
) -> None:
    """Landmarks of BigWarp: the points of one image take the place of those of the other, from which their distance is told."""
    if unit == "voxel":
        raise InputError(f"{path}: BigWarp has physical coordinates: expected --unit nm, um, mm or none, got --unit voxel")
    grids: dict[Side, Grid] = {
        "fixed": fixed if unit is None else replace(fixed, unit=unit),
        "moving": (moving or fixed) if unit is None else replace(moving or fixed, unit=unit),
    }
    start: Side = "fixed" if direction == "fixed-to-moving" else "moving"
    end: Side = "moving" if start == "fixed" else "fixed"
    with naming(path):
        world, other = (grids[side].to_world(to_voxels(pairs.points(side), grids[side])) for side in (start, end))
    found = (fixed_to_moving if start == "fixed" else moving_to_fixed)(world, displacement, fixed)
    write_landmarks(output, pairs.format_with(end, to_physical(grids[end].to_voxels(found.world), grids[end])), like=path)
    told = grids[end].unit
    before, after = (float((points - other).norm(dim=1).mean()) / MM[told] for points in (world, found.world))
    say(f"{output}: {len(world)} pairs of BigWarp, {direction}, in {symbol_of(told)}")
    say(f"mean distance from the {end} points of the file: {before:.4g} {symbol_of(told)} before, {after:.4g} after")
    _report_points(found)


def _report_points(found: MappedPoints) -> None:
    for finding, which in (
        ("lie outside the fixed grid", found.outside),
        ("lie in folds of FIELD; their inverse is not unique", found.folded),
    ):
        numbers = ", ".join(str(n + 1) for n in which.nonzero()[:, 0].tolist()[:20])
        if numbers:
            say(f"WARNING: {int(which.sum())} point(s) {finding}: {numbers}", err=True)
    if found.residual_mm.any():
        say(f"largest residual: {float(found.residual_mm.max()):.2g} mm")


def _report_bounds(field: Path, world: Tensor, fixed: Grid) -> None:
    """Says how far each landmark can be trusted, if the result has an uncertainty; ``world`` are those in the fixed image."""
    path = uncertainty_beside(field)
    if path is None or not path.is_file():
        return
    volume, grid = read_any(path)
    if not grid.matches(fixed):
        return
    if not bool(volume.float().isfinite().any()):
        _warn("the confidence of this result is low, so that nothing is known of how close the points are")
        return
    voxels = fixed.to_voxels(world)
    bounds = torch.where(fixed.inside(voxels), sample_at(volume.float(), voxels)[0, 0], math.nan)
    for number, bound in enumerate(bounds.tolist(), start=1):
        known = f"within {bound:.2g} {symbol_of(fixed.unit)}"
        say(f"point {number}: {known if math.isfinite(bound) else 'unknown, outside of what both images show'}")
    if bool(bounds.isfinite().any()):
        say("four of five points are expected to be that close to where they belong")
