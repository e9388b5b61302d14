"""Jobs of grand-challenge.org, as the site mounts them."""

import json
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from torch import Tensor

DIRECTION = (0.0, 0.8, -0.6, 1.0, 0.0, 0.0, 0.0, -0.6, -0.8)
"""Oblique, with axes that are not those of the world."""


def to_image(
    volume: Tensor,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
) -> sitk.Image:
    """A volume ``(1, 1, H, W, D)`` as an image of size H, W, D."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume[0, 0].numpy().T))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def entry(slug: str, *, socket: str = "socket", kind: str = "Image", name: str | None = None) -> dict[str, object]:
    """What ``inputs.json`` says of an image."""
    about = {"slug": slug, "relative_path": f"images/{slug}", "kind": kind, "super_kind": "Image"}
    return {socket: about, "file": None, "image": {"name": name or f"{slug}.mha"}, "value": None}


def write_job(folder: Path, images: Mapping[str, sitk.Image], *, suffix: str = ".mha", **names: str) -> Path:
    """Writes images by slug, and the ``inputs.json``; ``names`` are those of uploaded files, by slug with underscores."""
    for number, (slug, image) in enumerate(images.items()):
        path = folder / "images" / slug / f"{UUID(int=number)}{suffix}"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(image, str(path))
    entries = [entry(slug, name=names.get(slug.replace("-", "_"))) for slug in images]
    inputs = folder / "inputs.json"
    inputs.write_text(json.dumps(entries))
    return inputs


def field_of(path: Path) -> tuple[sitk.DisplacementFieldTransform, sitk.Image]:
    """A displacement field of the site as a transform, and as an image of vectors: by ITK alone, as in docs/challenge.md."""
    field = sitk.ReadImage(str(path))
    assert field.GetDimension() == 4
    assert field.GetNumberOfComponentsPerPixel() == 1
    vectors = sitk.Compose([field[..., component] for component in range(3)])
    return sitk.DisplacementFieldTransform(sitk.Cast(vectors, sitk.sitkVectorFloat64)), vectors


def world_of(image: sitk.Image, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """LPS positions of voxels ``(N, 3)``."""
    return np.array([image.TransformContinuousIndexToPhysicalPoint(voxel) for voxel in voxels.tolist()])
