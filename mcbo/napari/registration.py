"""The registration of two layers: from their images to the layers that show the result, and to what there is to say of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcbo.api.register import register
from mcbo.api.transform import sentence_of
from mcbo.core.errors import InputError
from mcbo.core.types import Judgement
from mcbo.geometry.units import Unit
from mcbo.io.nifti import to_nibabel
from mcbo.napari.layers import LayerData, common_world, place_of, vectors_layer, voxels_of

_OVERLAY = "magenta"
"""A color of napari, for a registered image."""


@dataclass(frozen=True)
class Pair:
    """Two layers that can be registered, as far as this does not take reading their voxels.

    Attributes:
        fixed, moving: the layers.
        affines: voxel to world, mm, ``(4, 4)``, of both.
        unit: for people.
        note: what was assumed about it.
        settings: that put a layer onto the fixed one's grid.
    """

    fixed: Any
    moving: Any
    affines: tuple[NDArray[np.float64], NDArray[np.float64]]
    unit: Unit
    note: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What is shown of a registration: layers, a text, and those of its sentences that say why the result is doubtful."""

    layers: list[LayerData]
    text: str
    warnings: list[str]


def pair_of(fixed: Any, moving: Any) -> Pair:
    """Checks two layers of napari; raises ``InputError`` if they cannot be registered."""
    if fixed is None or moving is None:
        raise InputError("expected two layers with images, one fixed and one moving; open or add them first")
    if fixed == moving:
        raise InputError(f"expected two layers, got '{fixed.name}' as the fixed and as the moving one")
    place = place_of(fixed)
    one, other, unit, note = common_world(place, place_of(moving))
    return Pair(fixed, moving, (one, other), unit, note, place.settings)


def register_pair(pair: Pair, task: str) -> Outcome:
    """Registers the moving layer to the fixed one; raises ``McboError`` if that fails."""
    volumes = (voxels_of(pair.fixed), voxels_of(pair.moving))
    names = (pair.fixed.name, pair.moving.name)
    # as images of nibabel, which carry their unit, so that lengths are told in it
    fixed, moving = (to_nibabel(array, affine, pair.unit) for array, affine in zip(volumes, pair.affines, strict=True))
    result = register(fixed, moving, task=task, names=names)
    known = result.fixed_image.known()[0, 0].cpu().numpy()
    warped = np.asarray(result.warp(moving).dataobj)
    image = {**pair.settings, **_look(pair), "name": f"{names[1]} registered to {names[0]}"}
    arrows = vectors_layer(
        result.displacement, pair.affines[0], pair.settings, name="displacement", unit=pair.unit, known=known
    )
    transform = result.transforms[0]
    parts = [*_verdict(result.judgement), *result.report.warnings, sentence_of(transform.tensor, transform.fixed), pair.note]
    return Outcome([(warped, image, "image"), arrows], "\n\n".join(part for part in parts if part), result.report.warnings)


def _look(pair: Pair) -> dict[str, Any]:
    """Of the registered image: as the moving one, but of another color than the fixed one, to which it is added."""
    same = pair.moving.colormap.name == pair.fixed.colormap.name
    color = _OVERLAY if same else pair.moving.colormap
    return {"colormap": color, "contrast_limits": pair.moving.contrast_limits, "blending": "additive"}


def _verdict(judgement: Judgement | None) -> list[str]:
    """What was chosen, how sure it is and why it is not the full result, in paragraphs."""
    if judgement is None:
        return []
    reason = f"Reason: {judgement.explanation}" if judgement.explanation else ""
    return [f"Chosen: {judgement.chosen} result\nConfidence: {judgement.confidence:.2f}", reason]
