"""Commands on displacements: ``warp``, ``export``, ``import``, ``invert``, ``compose``."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from mcbo.cli import options as cli
from mcbo.cli.program import say
from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement
from mcbo.geometry import continuation as composition
from mcbo.geometry.grid import Grid
from mcbo.geometry.inverse import Inverse, MappedPoints, fixed_to_moving, moving_to_fixed
from mcbo.geometry.inverse import invert as inverted
from mcbo.geometry.resample import Mode, resample
from mcbo.io.images import read_any, read_field, read_intensities, read_labels, write_any
from mcbo.io.itk_files import SUFFIXES_WRITTEN, read_transform, suffix_of, write_transform
from mcbo.io.landmarks import SUFFIXES, read_landmarks, write_landmarks
from mcbo.io.nifti import read_displacement, write_displacement

Direction: TypeAlias = Literal["fixed-to-moving", "moving-to-fixed"]

EXPORTS = {
    "itk": (".h5", (".h5", ".tfm")),
    "ants": (".nii.gz", (".nii.gz", ".nii")),
    "slicer": (".h5", (".h5", ".tfm", ".nrrd", ".mha", ".nii.gz", ".nii")),
    "npz": (".npz", (".npz",)),
}
"""Formats of ``export``: the default suffix, and all suffixes it can write."""

_NIFTI = (".nii.gz", ".nii")

Field: TypeAlias = Annotated[Path, typer.Argument(metavar="FIELD", help="Displacement field written by MCBO, NIfTI.")]


def warp(
    field: Field,
    output: cli.OutputFile,
    image: Annotated[Path | None, typer.Option(metavar="IMAGE", help="Image to warp, interpolated trilinearly.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="IMAGE", help="Label map to warp; labels stay whole numbers.")] = None,
    points: Annotated[Path | None, typer.Option(metavar="FILE", help="Landmarks to map: .csv, .fcsv, .mrk.json.")] = None,
    direction: Annotated[
        Direction | None,
        typer.Option(
            metavar="DIRECTION",
            help="moving-to-fixed: what is given in the moving image is mapped into the fixed image (default for images and "
            "labels). fixed-to-moving: the other way (default for points).",
        ),
    ] = None,
    unit: Annotated[
        Literal["voxel", "mm"] | None,
        typer.Option(
            metavar="voxel|mm",
            help="Unit of a .csv: voxels of the image that the points lie in, counted from 0 (default), or world mm, RAS.",
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
    _check_name(output, SUFFIXES if points else SUFFIXES_WRITTEN)
    spacing_mm = cli.parse_spacing(spacing, image, labels, reference)
    displacement, fixed = read_field(field)
    moving = None if reference is None else read_any(reference, spacing_mm=spacing_mm)[1]
    if points:
        _warp_points(path, output, displacement, fixed, moving or fixed, direction or "fixed-to-moving", unit)
        return
    if unit is not None:
        raise InputError("--unit: expected with --points only, got it with an image")
    volume, grid = (read_labels if labels else read_intensities)(path, spacing_mm=spacing_mm)
    mode: Mode = interpolation if labels else "linear"
    onto = fixed
    if direction == "fixed-to-moving":
        if moving is None:
            raise InputError("--reference: expected the moving image, onto whose grid the fixed image is to be warped")
        inverse = inverted(displacement, fixed, moving)
        _report_inverse(inverse)
        displacement, onto = inverse.displacement, moving
    write_any(output, resample(volume, grid, onto, displacement=displacement, mode=mode, outside=outside), onto)
    say(f"{output}: {path.name}, {direction or 'moving-to-fixed'}")


def _warp_points(
    path: Path,
    output: Path,
    displacement: Displacement,
    fixed: Grid,
    moving: Grid,
    direction: Direction,
    unit: Literal["voxel", "mm"] | None,
) -> None:
    landmarks = read_landmarks(path)
    if landmarks.space != "table" and unit == "voxel":
        raise InputError(f"{path}: its points are in mm: expected --unit mm or none, got --unit voxel")
    in_voxels = landmarks.space == "table" and unit != "mm"
    start, end = (fixed, moving) if direction == "fixed-to-moving" else (moving, fixed)
    world = start.to_world(landmarks.points) if in_voxels else landmarks.to_ras()
    found = (fixed_to_moving if direction == "fixed-to-moving" else moving_to_fixed)(world, displacement, fixed)
    text = landmarks.format_with(end.to_voxels(found.world)) if in_voxels else landmarks.format_ras(found.world)
    write_landmarks(output, text, like=path)
    say(f"{output}: {len(world)} points, {direction}, in {'voxels' if in_voxels else 'mm'}")
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


def _report_inverse(inverse: Inverse) -> None:
    say(
        f"inverse: residual at most {inverse.residual_voxels:.2g} voxels; {inverse.outside:.1%} of the voxels lie outside the "
        "fixed image"
    )
    if inverse.folded:
        say(
            f"WARNING: {inverse.folded:.2%} of the others lie in folds of FIELD; their inverse is not unique and not usable",
            err=True,
        )


def export(
    field: Field,
    to: Annotated[
        Literal["itk", "ants", "slicer", "npz"],
        typer.Option(
            metavar="|".join(EXPORTS),
            help="itk: transform, .h5 or .tfm. ants: vectors in LPS, .nii.gz. slicer: .h5, or vectors in LPS (.nrrd, .mha, "
            ".nii.gz). npz: the array alone, as in Learn2Reg.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: beside FIELD, with the suffix of the format.")
    ] = None,
) -> None:
    """Convert a displacement field for ITK, ANTs, 3D Slicer, or Learn2Reg.

    It still maps from fixed to moving; for the first three in millimeters, LPS.
    """
    default, suffixes = EXPORTS[to]
    output = output or _beside(field, to, default)
    _check_name(output, suffixes)
    if output.resolve() == field.resolve():
        raise OutputError(f"{output}: expected another name than that of FIELD")
    displacement, grid = read_field(field)
    if to == "npz":
        write_displacement(output, displacement, grid.affine)
    else:
        write_transform(output, displacement, grid)
    say(str(output))


def _beside(field: Path, to: str, suffix: str) -> Path:
    stem = field.name.removesuffix(suffix_of(field))
    return field.with_name(f"{stem}_{to}{suffix}" if suffix == suffix_of(field) else f"{stem}{suffix}")


def import_(
    transform: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="ITK transform (.h5, .tfm, .mat, …), vectors in LPS (.nii.gz, .nrrd, .mha), or .npz."
        ),
    ],
    output: cli.OutputFile,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FIXED",
            help="The fixed image, for its grid. Required for .npz and for transforms that are not displacement fields.",
        ),
    ] = None,
    spacing: cli.Spacing = None,
) -> None:
    """Convert a transform of ITK, ANTs, or 3D Slicer, from fixed to moving, to a displacement field."""
    _check_name(output, _NIFTI)
    spacing_mm = cli.parse_spacing(spacing, reference)
    fixed = None if reference is None else read_any(reference, spacing_mm=spacing_mm)[1]
    if transform.suffix == ".npz":
        if fixed is None:
            raise InputError(f"{transform}: expected --reference with the fixed image: an .npz has no affine")
        displacement, grid = read_displacement(transform), fixed
        if tuple(displacement.shape[2:]) != grid.shape:
            raise InputError(
                f"{transform}: expected the shape {grid.shape} of {reference}, found {tuple(displacement.shape[2:])}"
            )
    else:
        displacement, grid = read_transform(transform, fixed)
    write_displacement(output, displacement, grid.affine)
    say(str(output))


def invert(
    field: Field,
    output: cli.OutputFile,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="MOVING", help="The moving image, for the grid of the inverse. Default: the fixed grid."),
    ] = None,
    spacing: cli.Spacing = None,
) -> None:
    """Invert a displacement field: from moving to fixed. Reports where it folds and has no unique inverse."""
    _check_name(output, _NIFTI)
    spacing_mm = cli.parse_spacing(spacing, reference)
    displacement, fixed = read_field(field)
    onto = fixed if reference is None else read_any(reference, spacing_mm=spacing_mm)[1]
    inverse = inverted(displacement, fixed, onto)
    write_displacement(output, inverse.displacement, onto.affine)
    say(str(output))
    _report_inverse(inverse)


def compose(
    first: Annotated[
        Path, typer.Argument(metavar="FIRST", help="Displacement field from image A (fixed) to image B (moving).")
    ],
    second: Annotated[
        Path, typer.Argument(metavar="SECOND", help="Displacement field from image B (fixed) to image C (moving).")
    ],
    output: cli.OutputFile,
) -> None:
    """Compose two displacement fields into one from A to C, which warps C onto the grid of A."""
    _check_name(output, _NIFTI)
    (one, grid), (two, between) = read_field(first), read_field(second)
    total, beyond = composition.compose(one, grid, two, between)
    write_displacement(output, total, grid.affine)
    say(str(output))
    if beyond:
        say(f"WARNING: {beyond:.1%} of the voxels lie outside the grid of {second}, which is extrapolated there", err=True)


def _check_name(path: Path, suffixes: tuple[str, ...]) -> None:
    if not path.name.lower().endswith(suffixes):
        raise OutputError(f"{path}: expected a name ending in {' or '.join(suffixes)}")
