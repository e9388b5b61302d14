"""Fields of vectors in NIfTI: what they are is told by the intent in the header, or else by the user.

All map points of the fixed image, on whose grid they are, to the moving one. Sources: the NIfTI-1 standard (intents 1006 and
1007); NiftyReg's ``NREG_TRANS_TYPE``; SPM's ``spm_deformations``; FSL's intents (FNIRT 2006 to 2009, TOPUP 2016 to 2018), whose
fields do not say whether they are relative or absolute; surfa, which writes SynthMorph's.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, apply_affine
from mcbo.io.files import shown
from mcbo.io.foreign import fsl
from mcbo.io.formats.format import check_count, check_memory
from mcbo.io.itk import LPS
from mcbo.io.nifti_header import Header, Intent, read_values

Vectors: TypeAlias = Literal["ras-displacement", "ras-position", "lps-displacement", "fsl"]
"""What the vectors of a file are: displacements in the world, positions in the moving image's, mm; or one of them as FSL's."""

DISPVECT, VECTOR = 1006, 1007
"""The standard's intents."""

_FNIRT = 2006
_COEFFICIENTS = {2007: "FNIRT", 2008: "FNIRT", 2009: "FNIRT", 2016: "TOPUP", 2017: "TOPUP", 2018: "TOPUP"}

_NIFTYREG: tuple[str, ...] = (
    "deformation field", "displacement field", "cubic spline grid", "velocity field", "velocity field", "velocity grid",
    "linear spline grid",
)  # fmt: skip
"""By the first parameter of the intent; only the first two are fields."""

_LARGE = 0.7
"""Sum of the logarithms of three stretches: 26 % along each axis. What is read as what it is not has far more."""

_LEAST = 1e-9
"""Added to a stretch of 0."""

_SAMPLE = 20_000
"""Voxels by which positions are told from displacements."""


def told(header: Header) -> Vectors | None:
    """What the header of a field says that it is; None if it does not say.

    Raises:
        InputError: for what cannot be read, with the way out; without the file's name.
    """
    intent = header.intent
    if intent.name == "NREG_TRANS":
        return _niftyreg(intent)
    if intent.code in _COEFFICIENTS:
        raise InputError(
            f"expected a field, found coefficients of splines by FSL's {_COEFFICIENTS[intent.code]}: "
            "`fnirtfileutils --in=FILE --ref=FIXED --withaff --out=NEW.nii.gz` makes a field of them"
        )
    if intent.code == _FNIRT:
        return "fsl"
    if intent.code == DISPVECT:
        return "ras-displacement"
    if intent.code == VECTOR and intent.name == "Mapping":  # SPM's y_*.nii
        return "ras-position"
    if intent.code == VECTOR and not intent.name and len(header.shape) == 5:  # ITK's, and so ANTs'
        return "lps-displacement"
    if intent.name or intent.code not in (0, VECTOR):
        raise InputError(
            f"expected a field of a known program, found one that calls itself {shown(intent.name)} (intent {intent.code}): "
            "convert it to displacements in LPS mm, as ITK has them"
        )
    return None


def read_vectors(header: Header, vectors: Vectors | None, moving: Grid | None) -> tuple[Displacement, Grid]:
    """A field as a displacement ``(1, 3, H, W, D)``, voxels of its grid, which is that of the fixed image.

    Args:
        header: of the file, ``(H, W, D, 3)`` or ``(H, W, D, 1, 3)``.
        vectors: what its values are, where it does not say itself.
        moving: grid of the moving image, which FSL's fields need.

    Raises:
        InputError: if it is something else, or says something else; without the file's name.
    """
    said = told(header)
    if said is not None and vectors not in (None, said):
        raise InputError(f"expected --vectors {said} or none, since the file says so, got {vectors}")
    kind = said or vectors
    shape = (*header.shape[:3], *header.shape[4:]) if header.shape[3:4] == (1,) else header.shape
    if len(shape) != 4 or shape[3] != 3 or header.dtype.kind not in "iuf":
        raise InputError(f"expected vectors of shape (H, W, D, 3) or (H, W, D, 1, 3), found {header.shape} of {header.dtype}")
    check_memory(check_count(header.shape), header.dtype.itemsize)
    if kind is None:
        raise InputError(
            f"expected a 3D image, found {len(header.shape)}D data that does not say what its vectors are. A displacement of "
            "MCBO or Learn2Reg, in voxels, needs no import; for others pass --vectors: ras-displacement (mm; SynthMorph, "
            "MRtrix), ras-position (mm; deformations of MRtrix), lps-displacement (mm; ITK) or fsl"
        )
    height, width, depth, _ = shape
    grid = Grid((height, width, depth), header.affine)
    values = read_values(header).reshape(shape)
    if not np.isfinite(values).all():
        raise InputError("expected finite vectors, found some that are NaN or infinite")
    return _convert(values, grid, _mapping(kind, values, grid, moving)), grid


def check_displacement(header: Header) -> None:
    """Raises ``InputError``, without the file's name, if a field says that it is another program's, and so not in voxels."""
    intent = header.intent
    if len(header.shape) == 5 or intent.name or intent.code not in (0, VECTOR):
        kind = told(header)
        raise InputError(
            f"expected a displacement in voxels, found vectors of another program{f' ({kind})' if kind else ''}: "
            "`mcbo import FILE --output NEW.nii.gz` converts them"
        )


def looks_like_positions(values: NDArray[np.generic], grid: Grid) -> str | None:
    """``mm`` or ``voxels`` if vectors ``(H, W, D, 3)`` are positions in another image, rather than displacements; else None."""
    for unit, of_voxels in (("mm", grid.affine), ("voxels", np.eye(4))):
        as_positions, as_displacements = _strains(values, grid, of_voxels)
        if as_positions < _LARGE < as_displacements:
            return unit
    return None


@dataclass(frozen=True)
class _Mapping:
    """Where a voxel ``p`` with a vector ``v`` leads, RAS mm: ``at_voxel @ p + of_vector @ v``; ``(4, 4)`` and ``(3, 3)``."""

    at_voxel: NDArray[np.float64]
    of_vector: NDArray[np.float64]


def _niftyreg(intent: Intent) -> Vectors:
    if intent.parameter in (0, 1):
        return "ras-position" if intent.parameter == 0 else "ras-displacement"
    index = int(intent.parameter) if intent.parameter in range(len(_NIFTYREG)) else None
    found = "an unknown kind" if index is None else f"a {_NIFTYREG[index]}"
    raise InputError(
        f"expected a deformation or displacement field of NiftyReg, found {found}: "
        "`reg_transform -ref FIXED -def FILE NEW.nii.gz` makes a deformation field of it"
    )


def _mapping(kind: Vectors, values: NDArray[np.generic], grid: Grid, moving: Grid | None) -> _Mapping:
    nowhere = np.zeros((4, 4))
    if kind == "ras-displacement":
        return _Mapping(grid.affine, np.eye(3))
    if kind == "lps-displacement":
        return _Mapping(grid.affine, LPS[:3, :3])
    if kind == "ras-position":
        return _Mapping(nowhere, np.eye(3))
    if moving is None:
        raise InputError(
            "a field of FSL is in coordinates of both images: expected --moving with the moving image, for its grid"
        )
    to_world = fsl.to_world(moving)
    as_positions, as_displacements = _strains(values, grid, fsl.from_voxels(grid))
    if as_positions < as_displacements:
        log.info(
            "taken for absolute coordinates, as convertwarp --absout writes them: as displacements they would stretch more"
        )
        nowhere[:3, 3] = to_world[:3, 3]
        return _Mapping(nowhere, to_world[:3, :3])
    log.info("taken for relative displacements, as fnirt --fout writes them: as positions they would stretch more")
    return _Mapping(to_world @ fsl.from_voxels(grid), to_world[:3, :3])


def _strains(values: NDArray[np.generic], grid: Grid, of_voxels: NDArray[np.float64]) -> tuple[float, float]:
    """How far a field is from a rotation, read as positions, and as displacements: sums of the logarithms of its stretches.

    ``of_voxels`` is ``(4, 4)``, from voxels to the coordinates in which the vectors are.
    """
    step = max(1, round((np.prod(grid.shape, dtype=np.float64) / _SAMPLE) ** (1 / 3)))
    axes = [np.arange(0, size, step, dtype=np.float64) for size in grid.shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = np.asarray(values[::step, ::step, ::step], dtype=np.float64).reshape(-1, 3)
    own = voxels @ of_voxels[:3, :3].T
    slope = np.linalg.lstsq(own - own.mean(axis=0), vectors - vectors.mean(axis=0), rcond=None)[0]

    def strain(matrix: NDArray[np.float64]) -> float:
        return float(np.abs(np.log(np.linalg.svd(matrix, compute_uv=False) + _LEAST)).sum())

    return strain(slope), strain(slope + np.eye(3))


def _convert(values: NDArray[np.generic], grid: Grid, mapping: _Mapping) -> Displacement:
    """Vectors ``(H, W, D, 3)`` as a displacement in voxels."""
    result = torch.empty((1, 3, *grid.shape))
    of_vector = torch.from_numpy(mapping.of_vector)
    for first, last in grid.slabs():
        voxels = grid.voxels(first, last)
        vectors = torch.from_numpy(np.ascontiguousarray(values[first:last], dtype=np.float64)).reshape(-1, 3)
        world = apply_affine(mapping.at_voxel, voxels) + vectors @ of_vector.T
        result[0, :, first:last] = (grid.to_voxels(world) - voxels).T.reshape(3, last - first, *grid.shape[1:])
    return result
