"""A displacement as a coordinate transformation of OME-NGFF, in an OME-Zarr of its own. Needs zarr.

Format: OME-Zarr 0.6 (RFC-5, "displacements"), https://ngff.openmicroscopy.org/rfc/5. Its input is the physical space of the
fixed image, its output the corresponding place of the moving image in that space.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mcbo.core.errors import InputError, OutputError
from mcbo.core.types import Displacement
from mcbo.geometry.grid import Grid, check_lives_on
from mcbo.geometry.units import MM, Unit
from mcbo.io.files import prepare_folder, reason_of
from mcbo.io.microscopy.ome_zarr import MISSING, is_ome_zarr
from mcbo.io.microscopy.physical import frame_of

SUFFIX = ".ome.zarr"

_CHUNK = 64
"""Voxels along each axis of a chunk: 3 MB."""

_UNITS: dict[Unit, str] = {"nm": "nanometer", "um": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter"}


def write_ngff_field(path: Path, displacement: Displacement, grid: Grid) -> None:
    """Writes a displacement ``(1, 3, H, W, D)``, voxels of the fixed grid, as an array ``(c, z, y, x)`` of lengths in its unit.

    The axes x, y, z run along axes 0, 1, 2 of the fixed image. Where these are not those of the world (LPS), the metadata have
    its affine, too.

    Raises:
        InputError: if zarr is not installed.
        OutputError: if the folder cannot be written, or is one of something else.
    """
    try:
        import zarr
    except ImportError as error:
        raise InputError(f"{path}: {MISSING}") from error
    check_lives_on(displacement, grid)
    if path.exists() and not is_ome_zarr(path):
        raise OutputError(f"{path}: expected a name that is free, or that of an OME-Zarr to be replaced, found something else")
    prepare_folder(path.parent)
    partial = path.with_name(f".partial-{path.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        group = zarr.create_group(zarr.storage.LocalStore(partial), attributes={"ome": _metadata(path, grid)})
        size = np.array(grid.spacing_mm) / MM[grid.unit]
        vectors = displacement[0].double().cpu().numpy() * size.reshape(3, 1, 1, 1)
        shape = (3, *grid.shape[::-1])
        chunks = (3, *(min(_CHUNK, n) for n in shape[1:]))
        array = group.create_array("0", shape=shape, chunks=chunks, dtype="float32", dimension_names=["c", "z", "y", "x"])
        array[:] = vectors[::-1].transpose(0, 3, 2, 1).astype(np.float32)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {reason_of(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _metadata(path: Path, grid: Grid) -> dict[str, Any]:
    frame = frame_of(grid)
    space = [{"name": name, "type": "space", "unit": _UNITS[grid.unit]} for name in "zyx"]
    systems = [
        {"name": "field", "axes": [{"name": "c", "type": "displacement", "discrete": True}, *space]},
        {"name": "fixed", "axes": space},
        {"name": "moving", "axes": space},
    ]
    placed = {
        "type": "sequence",
        "input": {"path": "0"},
        "output": {"name": "field"},
        "transformations": [
            {"type": "scale", "scale": [1.0, *(frame.size[::-1])]},
            {"type": "translation", "translation": [0.0, *(frame.origin[::-1])]},
        ],
    }
    ends = {"input": {"name": "fixed"}, "output": {"name": "moving"}}
    transformations: list[dict[str, Any]] = [
        {"type": "displacements", "name": "registration", **ends, "path": "0", "interpolation": "linear"}
    ]
    if not frame.is_lps:
        systems.append({"name": "LPS", "axes": space})
        matrix = np.eye(3, 4)
        matrix[:, :3] = frame.directions[::-1, ::-1]
        ends = {"input": {"name": "fixed"}, "output": {"name": "LPS"}}
        transformations.append({"type": "affine", "name": "world", **ends, "affine": matrix.tolist()})
    image = {
        "name": path.name.removesuffix(SUFFIX),
        "coordinateSystems": systems,
        "datasets": [{"path": "0", "coordinateTransformations": [placed]}],
        "coordinateTransformations": transformations,
    }
    return {"version": "0.6", "multiscales": [image]}
