"""Commands on displacements: ``export``, ``import``, ``invert``, ``compose``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import torch
import typer

from mcbo.cli import options as cli
from mcbo.cli.outputs import check_outputs
from mcbo.cli.program import say
from mcbo.core.errors import InputError, OutputError
from mcbo.core.field import shape_of
from mcbo.core.types import Displacement
from mcbo.geometry import continuation as composition
from mcbo.geometry.grid import Grid
from mcbo.geometry.inverse import Inverse
from mcbo.geometry.inverse import invert as inverted
from mcbo.io.files import suffix_of
from mcbo.io.foreign.fields import Vectors
from mcbo.io.foreign.reader import read_foreign
from mcbo.io.images import read_any, read_field
from mcbo.io.itk_files import read_transform, write_transform
from mcbo.io.microscopy.images import finest_that_fits, selections
from mcbo.io.microscopy.ngff_field import SUFFIX, write_ngff_field
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti import read_displacement, write_displacement
from mcbo.io.nifti_header import Form
from mcbo.runtime import budget_bytes, select_device

EXPORTS = {
    "itk": (".h5", (".h5", ".tfm")),
    "ants": (".nii.gz", (".nii.gz", ".nii")),
    "slicer": (".h5", (".h5", ".tfm", ".nrrd", ".mha", ".nii.gz", ".nii")),
    "npz": (".npz", (".npz",)),
    "ome-zarr": (SUFFIX, (SUFFIX, ".zarr")),
}
"""Formats of ``export``: the default suffix, and all suffixes it can write."""

_NIFTI = (".nii.gz", ".nii")

_ORIGINAL = "The {} image, if ITK and this program read its header differently. The export then fits what ITK reads."

Field: TypeAlias = Annotated[Path, typer.Argument(metavar="FIELD", help="Displacement field written by MCBO, NIfTI.")]


def report_inverse(inverse: Inverse) -> None:
    """Says how good an inverse is."""
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
        Literal["itk", "ants", "slicer", "npz", "ome-zarr"],
        typer.Option(
            metavar="|".join(EXPORTS),
            help="itk: transform, .h5 or .tfm. ants: vectors in LPS, .nii.gz. slicer: .h5, or vectors in LPS (.nrrd, .mha, "
            ".nii.gz). npz: the array alone, as in Learn2Reg. ome-zarr: a coordinate transformation of OME-NGFF 0.6.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: beside FIELD, with the suffix of the format.")
    ] = None,
    fixed: Annotated[Path | None, typer.Option(metavar="IMAGE", help=_ORIGINAL.format("fixed"))] = None,
    moving: Annotated[Path | None, typer.Option(metavar="IMAGE", help=_ORIGINAL.format("moving"))] = None,
    series: cli.Series = None,
    geometry: cli.Geometry = "sform",
) -> None:
    """Convert a displacement field for ITK, ANTs, 3D Slicer, Learn2Reg, or OME-NGFF.

    It still maps from fixed to moving; for the first three in millimeters, LPS;
    for OME-NGFF in the unit of the fixed image, along its axes.
    """
    default, suffixes = EXPORTS[to]
    output = output or _beside(field, to, default)
    check_name(output, suffixes)
    if output.resolve() == field.resolve():
        raise OutputError(f"{output}: expected another name than that of FIELD")
    if to != "ome-zarr":  # a folder, which replaces none but its like
        check_outputs({"--output": output}, [field, fixed, moving])
    names = series_of((fixed, moving), series)
    displacement, grid = read_field(field)
    if to == "npz":
        write_displacement(output, displacement, grid.affine, grid.unit)
    elif to == "ome-zarr":
        write_ngff_field(output, displacement, grid)
    else:
        original, end = (
            None if path is None else grid_of(path, Selection(series=name), geometry)
            for path, name in zip((fixed, moving), names, strict=True)
        )
        if original is not None and not original.matches(grid):
            raise InputError(f"{fixed}: expected the grid of {field}, {grid.shape}, found {original.shape} or another position")
        write_transform(output, displacement, original or grid, end)
    say(str(output))


def _beside(field: Path, to: str, suffix: str) -> Path:
    stem = field.name.removesuffix(suffix_of(field))
    return field.with_name(f"{stem}_{to}{suffix}" if suffix == suffix_of(field) else f"{stem}{suffix}")


def import_(
    transform: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="ITK transform (.h5, .tfm, .mat, …), vectors (.nii.gz, .nrrd, .mha), .npz, or a transform of another program.",
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
    moving: Annotated[
        Path | None, typer.Option(metavar="MOVING", help="The moving image, for its grid. Required for transforms of FSL.")
    ] = None,
    vectors: Annotated[
        Vectors | None,
        typer.Option(
            metavar="KIND",
            help="What a field in NIfTI holds that does not say so itself: ras-displacement, ras-position, lps-displacement "
            "(in mm) or fsl.",
        ),
    ] = None,
    spacing: cli.Spacing = None,
    series: cli.Series = None,
    geometry: cli.Geometry = "sform",
) -> None:
    """Convert a transform of another program, from fixed to moving, to a displacement field.

    Reads those of ITK, ANTs, and 3D Slicer; fields of NiftyReg, SPM, and
    FNIRT; and linear transforms of FLIRT, FreeSurfer, MINC, and elastix.
    """
    check_name(output, _NIFTI)
    check_outputs({"--output": output}, [transform, reference, moving])
    fixed, its_moving = (
        _reference_grid(image, spacing if image == reference else None, name, geometry)
        for image, name in zip((reference, moving), series_of((reference, moving), series), strict=True)
    )
    if transform.suffix == ".npz":
        if fixed is None:
            raise InputError(f"{transform}: expected --reference with the fixed image: an .npz has no affine")
        displacement, grid = read_displacement(transform), fixed
        if tuple(displacement.shape[2:]) != grid.shape:
            raise InputError(
                f"{transform}: expected the shape {grid.shape} of {reference}, found {tuple(displacement.shape[2:])}"
            )
    else:
        found = read_foreign(transform, fixed, moving=its_moving, vectors=vectors)
        displacement, grid = found or read_transform(transform, fixed)
    if (volume := _volume_kept(displacement)) <= 0:
        times = f"{round(volume, 6) + 0.0:g}"  # no "-0", which some processors find
        say(f"WARNING: {transform}: it mirrors or flattens the image (volume × {times}): is it the right file?", err=True)
    write_displacement(output, displacement, grid.affine, grid.unit)
    say(str(output))


def _volume_kept(displacement: Displacement) -> float:
    """The factor by which the volume spanned by the lines through the middle changes; 0 if flattened, negative if mirrored."""
    shape = shape_of(displacement)
    edges = torch.eye(3, dtype=torch.float64)
    for axis, size in enumerate(shape):
        line = displacement[0].double().movedim(axis + 1, 1)  # (3, size, …)
        j, k = (n // 2 for other, n in enumerate(shape) if other != axis)
        edges[:, axis] += (line[:, -1, j, k] - line[:, 0, j, k]) / max(size - 1, 1)
    return round(float(torch.linalg.det(edges)), 9)


def invert(
    field: Field,
    output: cli.OutputFile,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="MOVING", help="The moving image, for the grid of the inverse. Default: the fixed grid."),
    ] = None,
    spacing: cli.Spacing = None,
    series: cli.Series = None,
    geometry: cli.Geometry = "sform",
) -> None:
    """Invert a displacement field: from moving to fixed. Reports where it folds and has no unique inverse."""
    check_name(output, _NIFTI)
    check_outputs({"--output": output}, [field, reference])
    (name,) = series_of([reference], series)
    moving = _reference_grid(reference, spacing, name, geometry)
    displacement, fixed = read_field(field)
    onto = moving or fixed
    inverse = inverted(displacement, fixed, onto)
    write_displacement(output, inverse.displacement, onto.affine, onto.unit)
    say(str(output))
    report_inverse(inverse)


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
    check_name(output, _NIFTI)
    check_outputs({"--output": output}, [first, second])
    (one, grid), (two, between) = read_field(first), read_field(second)
    total, beyond = composition.compose(one, grid, two, between)
    write_displacement(output, total, grid.affine, grid.unit)
    say(str(output))
    if beyond:
        say(f"WARNING: {beyond:.1%} of the voxels lie outside the grid of {second}, which is extrapolated there", err=True)


def series_of(images: Sequence[Path | None], series: list[str] | None) -> list[str | None]:
    """For each image the DICOM series that is named for it."""
    given = [path for path in images if path is not None]
    if series and not given:
        raise InputError("--series: expected for a folder with DICOM series only, but no image is given")
    named = iter(selections(given, series=series))
    return [None if path is None else next(named).series for path in images]


def _reference_grid(reference: Path | None, spacing: list[str] | None, series: str | None, form: Form) -> Grid | None:
    """The grid of an image that is named for it; of several channels and time points that of the first, since all share one."""
    if reference is None:
        if spacing:
            raise InputError("--spacing: expected with TIFF or OME-Zarr only, got it without --reference")
        return None
    path = finest_that_fits(reference, budget())
    return grid_of(path, replace(selections([path], spacing=spacing)[0], series=series), form)


def grid_of(path: Path, told: Selection, form: Form) -> Grid:
    """The grid of an image; its channels and time points share it."""
    return read_any(path, replace(told, channel=0, time=0, form=form))[1]


def budget() -> int:
    """Bytes that an image may take on the CPU."""
    return budget_bytes(select_device("cpu"), None)


def check_name(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raises ``OutputError`` for a file to write whose name does not end as it should."""
    if not path.name.lower().endswith(suffixes):
        raise OutputError(f"{path}: expected a name ending in {' or '.join(suffixes)}")
