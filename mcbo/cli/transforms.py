"""Commands on displacements: ``warp``, ``export``, ``import``, ``invert``, ``compose``."""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement, Triple
from mcbo.geometry import continuation as composition
from mcbo.geometry.grid import Grid
from mcbo.geometry.inverse import Inverse, MappedPoints, fixed_to_moving, moving_to_fixed
from mcbo.geometry.inverse import invert as inverted
from mcbo.geometry.resample import Mode, resample
from mcbo.io.image_like import is_tiff
from mcbo.io.images import SUFFIXES_WRITTEN, read_any, read_field, read_intensities, read_labels, spacing_of, write_any
from mcbo.io.itk_files import read_transform, suffix_of, write_transform
from mcbo.io.landmarks import SUFFIXES, read_landmarks, write_landmarks
from mcbo.io.nifti import read_displacement, write_displacement

Direction: TypeAlias = Literal["fixed-to-moving", "moving-to-fixed"]

EXPORTS = {
    "itk": (".h5", (".h5", ".tfm")),
    "ants": (".nii.gz", (".nii.gz", ".nii")),
    "slicer": (".h5", (".h5", ".tfm", ".nrrd", ".mha", ".nii.gz", ".nii")),
    "npz": (".npz", (".npz",)),
    "short-name": (".nii.gz", (".nii.gz", ".nii", ".npz")),
}
"""What a displacement is exported to: the usual suffix, and all that are possible."""

_NIFTI = (".nii.gz", ".nii")
_LONG_NAME = re.compile(r"disp_(\d{4})_0000_(\d{4})_0001(\.nii\.gz|\.nii|\.npz)")

FieldArgument = Annotated[Path, typer.Argument(metavar="FIELD", help="Displacement as this program writes it, NIfTI.")]
SpacingOption = Annotated[
    str | None, typer.Option(metavar="X,Y,Z", help="Voxel size of a TIFF, mm: columns, rows, slices.", show_default=False)
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="FILE", help="Where the result goes.")]


def warp(
    field: FieldArgument,
    output: OutputOption,
    image: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Intensities to bring over, trilinearly.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Labels to bring over; they stay whole numbers.", show_default=False)
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Landmarks to bring over: .csv, .fcsv, .mrk.json.", show_default=False),
    ] = None,
    direction: Annotated[
        Direction | None,
        typer.Option(
            help="From where to where. moving-to-fixed: what was drawn on the moving image, shown on the fixed one (default "
            "for images and labels). fixed-to-moving: what was marked in the fixed image, found in the moving one (default for "
            "points). Points marked in the moving image need moving-to-fixed.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[
        Literal["voxel", "mm"] | None,
        typer.Option(
            help="Of a .csv: voxels of the image the points lie in, counted from 0 (default), or mm in the world, RAS.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE",
            help="The moving image, for its grid: where images go fixed-to-moving, or for points in its voxels. "
            "Default for points: the fixed grid.",
            show_default=False,
        ),
    ] = None,
    interpolation: Annotated[
        Literal["label", "nearest"],
        typer.Option(help="Of labels. label: that with the largest trilinear share, for smooth borders."),
    ] = "label",
    outside: Annotated[float, typer.Option(metavar="X", help="Value where the image says nothing.")] = 0.0,
    spacing: SpacingOption = None,
) -> None:
    """Bring an image, labels or points from one image to the other.

    One displacement does all: an image moves from moving to fixed by looking up, for each fixed voxel, where it lies in the
    moving image; a point of the fixed image is looked up in the same way. The other way goes through the inverse.
    """
    if sum(given is not None for given in (image, labels, points)) != 1:
        raise InputError("warp: expected exactly one of --image, --labels and --points")
    _check_name(output, SUFFIXES if points else SUFFIXES_WRITTEN)
    spacing_mm = _spacing_mm(spacing, image, labels, reference)
    displacement, fixed = read_field(field)
    moving = None if reference is None else read_any(reference, spacing_mm=spacing_mm)[1]
    if points is not None:
        _warp_points(points, output, displacement, fixed, moving or fixed, direction or "fixed-to-moving", unit)
        return
    if unit is not None:
        raise InputError("--unit: expected with --points, got it with an image")
    mode: Mode = "linear" if labels is None else interpolation
    given = labels if image is None else image
    assert given is not None  # noqa: S101 - one of the three is given, see above
    volume, grid = (read_labels if image is None else read_intensities)(given, spacing_mm=spacing_mm)
    onto = fixed
    if direction == "fixed-to-moving":
        if moving is None:
            raise InputError("--reference: expected the moving image, onto whose grid the fixed image is to go")
        inverse = inverted(displacement, fixed, moving)
        _tell(inverse)
        displacement, onto = inverse.displacement, moving
    write_any(output, resample(volume, grid, onto, displacement=displacement, mode=mode, outside=outside), onto)
    typer.echo(f"{output}: {given.name}, {direction or 'moving-to-fixed'}")


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
    typer.echo(f"{output}: {len(world)} points, {direction}, in {'voxels' if in_voxels else 'mm'}")
    _tell_points(found)


def _tell_points(found: MappedPoints) -> None:
    for name, which in (("lie outside of the fixed grid", found.outside), ("have no one answer: FIELD folds", found.folded)):
        numbers = ", ".join(str(n + 1) for n in which.nonzero()[:, 0].tolist()[:20])
        if numbers:
            typer.echo(f"WARNING: {int(which.sum())} points {name}: {numbers}", err=True)
    if found.residual_mm.any():
        typer.echo(f"largest residual: {float(found.residual_mm.max()):.2g} mm")


def _tell(inverse: Inverse) -> None:
    typer.echo(
        f"inverse: residual at most {inverse.residual_voxels:.2g} voxels; {inverse.outside:.1%} of the voxels lie outside of "
        "the fixed image"
    )
    if inverse.folded:
        typer.echo(
            f"WARNING: {inverse.folded:.2%} of the others have no one fixed point, because FIELD folds there: trust none",
            err=True,
        )


def export(
    field: FieldArgument,
    to: Annotated[
        Literal["itk", "ants", "slicer", "npz", "short-name"],
        typer.Option(
            help="itk: transform .h5 or .tfm. ants: LPS vectors, .nii.gz. slicer: .h5, or LPS vectors (.nrrd, .mha, .nii.gz). "
            "npz: the array alone, for Learn2Reg. short-name: disp_0099_0099.nii.gz of disp_0099_0000_0099_0001.nii.gz."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: beside FIELD, with the format's suffix.", show_default=False)
    ] = None,
) -> None:
    """Write a displacement as other programs read it: fixed to moving still, in LPS millimeters for itk, ants and slicer."""
    usual, suffixes = EXPORTS[to]
    output = output or (_short_name(field) if to == "short-name" else _beside(field, to, usual))
    _check_name(output, suffixes)
    if output.resolve() == field.resolve():
        raise OutputError(f"{output}: expected another name than that of FIELD")
    displacement, grid = read_field(field)
    if to in ("npz", "short-name"):
        write_displacement(output, displacement, grid.affine)
    else:
        write_transform(output, displacement, grid)
    typer.echo(str(output))


def _beside(field: Path, to: str, suffix: str) -> Path:
    stem = field.name.removesuffix(suffix_of(field))
    return field.with_name(f"{stem}_{to}{suffix}" if suffix == suffix_of(field) else f"{stem}{suffix}")


def _short_name(field: Path) -> Path:
    match = _LONG_NAME.fullmatch(field.name)
    if match is None:
        raise InputError(f"{field}: expected a name like disp_0099_0000_0099_0001.nii.gz; other channels have no short name")
    return field.with_name(f"disp_{match[1]}_{match[2]}{match[3]}")


def import_(
    transform: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="ITK transform (.h5, .tfm, .mat …), LPS vectors (.nii.gz, .nrrd, .mha), or .npz."),
    ],
    output: OutputOption,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FIXED",
            help="The fixed image, for its grid: needed for .npz and for transforms that are no displacement field.",
            show_default=False,
        ),
    ] = None,
    spacing: SpacingOption = None,
) -> None:
    """Read a transform of ITK, ANTs or 3D Slicer, fixed to moving, as a displacement of this program."""
    _check_name(output, _NIFTI)
    spacing_mm = _spacing_mm(spacing, reference)
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
    typer.echo(str(output))


def invert(
    field: FieldArgument,
    output: OutputOption,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="MOVING", help="The moving image, for its grid. Default: the fixed grid.", show_default=False),
    ] = None,
    spacing: SpacingOption = None,
) -> None:
    """The displacement back: fixed and moving change places. What has no one answer is told."""
    _check_name(output, _NIFTI)
    spacing_mm = _spacing_mm(spacing, reference)
    displacement, fixed = read_field(field)
    onto = fixed if reference is None else read_any(reference, spacing_mm=spacing_mm)[1]
    inverse = inverted(displacement, fixed, onto)
    write_displacement(output, inverse.displacement, onto.affine)
    typer.echo(str(output))
    _tell(inverse)


def compose(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Displacement from image A (fixed) to image B.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Displacement from image B (fixed) to image C.")],
    output: OutputOption,
) -> None:
    """Two displacements as one, from A to C by way of B: warping C with it gives C on the grid of A."""
    _check_name(output, _NIFTI)
    (one, grid), (two, between) = read_field(first), read_field(second)
    total, beyond = composition.compose(one, grid, two, between)
    write_displacement(output, total, grid.affine)
    typer.echo(str(output))
    if beyond:
        typer.echo(
            f"WARNING: {beyond:.1%} of the voxels lie outside of the grid of {second}, which is continued there", err=True
        )


def _spacing_mm(spacing: str | None, *paths: Path | None) -> Triple | None:
    if spacing is None:
        return None
    if not any(path is not None and is_tiff(path) for path in paths):
        raise InputError("--spacing: expected with TIFF files, which do not tell theirs; the others do")
    return spacing_of(spacing)


def _check_name(path: Path, suffixes: tuple[str, ...]) -> None:
    if not path.name.lower().endswith(suffixes):
        raise OutputError(f"{path}: expected a name ending in {' or '.join(suffixes)}")


def add_to(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    for name, command in (("warp", warp), ("export", export), ("import", import_), ("invert", invert), ("compose", compose)):
        app.command(name)(command)
