"""A case as the stages of the cascade see it: images, masks and features within the fixed image's field of view."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mcbo.core.field import shape_of
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Features, Kernels, Mask, Masks, Shape, Triple, Volume
from mcbo.geometry import cells, rigid
from mcbo.geometry.mask import bounding_box
from mcbo.kernels import features_source
from mcbo.steps.gauss_newton import Modality
from mcbo.steps.mind import FeatureSource, MindSettings


@dataclass(frozen=True)
class _View:
    """A rigid motion, its displacement (or that of a result), and each moving image warped by it, with what is known there."""

    motion: rigid.Rigid
    displacement: Displacement
    warped: dict[int, tuple[Volume, Mask]] = field(default_factory=dict)


@dataclass
class CascadeCase:
    """A case within the box around the fixed image's field of view, and the motion found so far.

    Attributes:
        fixed: ``(1, 1, h, w, d)``, filled beyond its mask.
        mask: of the fixed image, of the same shape.
        movings: whole moving images, filled beyond their masks.
        masks: of the moving images.
        offset: where the box begins in the whole volume, voxels.
        spacing_mm: voxel size along axes 0, 1, 2.
        whole_mask: of the whole fixed image.
        kernels: the compute kernels.
        timer: measures the stages.
        share: of the case's work in a stage, for the progress shown.
        motion: the rigid motion so far.
    """

    fixed: Volume
    mask: Mask
    movings: Sequence[Volume]
    masks: Sequence[Mask]
    offset: Shape
    spacing_mm: Triple
    whole_mask: Mask
    kernels: Kernels
    timer: StageTimer
    share: float
    motion: rigid.Rigid = field(default_factory=rigid.identity)
    _view: _View | None = None
    _source: tuple[MindSettings, FeatureSource] | None = None
    _variances: tuple[MindSettings, dict[int, Tensor]] | None = None
    _pooled: tuple[tuple[MindSettings, int], tuple[Features, Tensor]] | None = None

    @property
    def shape(self) -> Shape:
        return shape_of(self.fixed)

    def rigid_displacement(self) -> Displacement:
        """The motion so far, ``(1, 3, h, w, d)`` voxels; kept until there is another, and not to be written to."""
        if self._view is None or self._view.motion is not self.motion:
            self._view = None  # before memory is needed for the next
            displacement = rigid.to_displacement(
                self.motion,
                self.shape,
                offset=self.offset,
                spacing_mm=self.spacing_mm,
                like=self.fixed,
                linear=self.kernels.linear_displacement,
            )
            self._view = _View(self.motion, displacement)
        return self._view.displacement

    def look_under(self, result: Displacement) -> None:
        """Takes the displacement of a result, ``(1, 3, h, w, d)`` voxels, for that of the motion so far."""
        self._view = _View(self.motion, result)

    def _pooled_fixed(self, mind: MindSettings, spacing: int) -> tuple[Features, Tensor]:
        """The fixed image's features on a grid of cells, and what is known there; those of the last scale and grid are kept."""
        if self._source is None or self._source[0] != mind:
            self._source = None  # before memory is needed for the next
            self._source = mind, features_source(self.fixed, mind, self.kernels)
        if self._pooled is None or self._pooled[0] != (mind, spacing):
            self._pooled = (mind, spacing), self._source[1].pooled_known(self.mask, spacing)
        return self._pooled[1]

    def on_grid(self, displacement: Displacement, *, spacing: int, mind: MindSettings) -> "OnGrid":
        """Features of the fixed and of the warped moving images on a grid of cells."""
        with self.timer.stage("features"):
            pooled, known = self._pooled_fixed(mind, spacing)
        modalities = [self._modality(number, displacement, spacing=spacing, mind=mind) for number in range(len(self.movings))]
        return OnGrid(pooled, known, modalities, self.kernels)

    def _modality(self, number: int, displacement: Displacement, *, spacing: int, mind: MindSettings) -> Modality:
        with self.timer.stage("features"):
            warped, seen = self._warped(number, displacement)
            source = features_source(warped, mind, self.kernels, mean_variance=self._variance(number, mind))
            return Modality(*source.pooled_known(seen, spacing))

    def _warped(self, number: int, displacement: Displacement) -> tuple[Volume, Mask]:
        """A moving image and what is known of it, ``(1, 1, h, w, d)``; under the rigid motion so far, they are kept."""
        kept = self._view.warped if self._view and displacement is self._view.displacement else {}
        if number not in kept:
            moving, mask = self.movings[number], self.masks[number]
            kept[number] = self.kernels.sample_known(moving, mask, displacement, offset=self.offset)
        return kept[number]

    def _variance(self, number: int, mind: MindSettings) -> Tensor:
        """Of what the box shows of a moving image under the motion when it is first asked; kept, as others hardly change it.

        The whole moving image would not do: what is bright outside the box would make all that is inside count as flat. Nor
        would any displacement that is asked about: under none, the box may show nothing of the moving image.
        """
        if self._variances is None or self._variances[0] != mind:
            self._variances = mind, {}
        found = self._variances[1]
        if number not in found:
            warped, _ = self._warped(number, self.rigid_displacement())
            found[number] = self.kernels.variance_of(warped, radius=mind.radius, dilation=mind.dilation)
        return found[number]


@dataclass(frozen=True)
class OnGrid:
    """Input of a stage: features of cells, and the known share of each cell."""

    fixed: Features
    known: Tensor
    modalities: list[Modality]
    kernels: Kernels

    def joint(self) -> tuple[Features, Features, Tensor, Tensor]:
        """All modalities as channels of one: fixed and moving features, and what is known of either."""
        fixed = self.fixed.repeat(1, len(self.modalities), 1, 1, 1)
        moving = torch.cat([m.features for m in self.modalities], dim=1)
        return fixed, moving, self.known, torch.stack([m.known for m in self.modalities]).amin(dim=0)

    def similarity(self) -> Tensor:
        """The highest similarity of a modality, times the root of the share of the fixed image that both show: a float64."""
        shared = [self.known * (m.known > cells.KNOWN_CELL_SHARE) for m in self.modalities]
        overlap = torch.stack([weight.sum() for weight in shared]).amin() / self.known.sum().clamp(min=1e-6)
        scores = [
            self.kernels.similarities(self.fixed, m.features, weight) for m, weight in zip(self.modalities, shared, strict=True)
        ]
        return torch.cat(scores).amax() * overlap.double().clamp(max=1).sqrt()


def prepare(
    fixed: Volume,
    movings: Sequence[Volume],
    known: Masks,
    *,
    spacing_mm: Triple,
    margin: int,
    reach: int,
    kernels: Kernels,
    timer: StageTimer,
    share: float,
) -> CascadeCase:
    """Fills the images ``reach`` voxels beyond their masks, and cuts out the fixed field of view plus ``margin`` voxels."""
    mask, masks = known.fixed, known.movings
    box = bounding_box(mask, margin=margin)
    index = (slice(None), slice(None), *box)
    return CascadeCase(
        fixed=kernels.fill_outside(fixed[index], mask[index], reach=reach),
        mask=mask[index].contiguous(),
        movings=[kernels.fill_outside(moving, m, reach=reach) for moving, m in zip(movings, masks, strict=True)],
        masks=masks,
        offset=(box[0].start, box[1].start, box[2].start),
        spacing_mm=spacing_mm,
        whole_mask=mask,
        kernels=kernels,
        timer=timer,
        share=share,
    )
