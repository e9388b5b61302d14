"""From where images are registered: from where they lie, and if that is refused, from where they are found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.api.preset import AUTO
from mcbo.core.errors import McboError, NoOverlapError
from mcbo.core.field import format_shape
from mcbo.core.log import log
from mcbo.core.timing import StageTimer
from mcbo.core.types import Judgement, Kernels, Shape
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import MM, symbol_of
from mcbo.methods.config import Preset, Registration, check_size
from mcbo.methods.quality import Sanity
from mcbo.methods.working_grid import MAX_RATIO, working_grid
from mcbo.methods.world import Placed, centering, locate, register_in_world
from mcbo.runtime import within_memory


@dataclass(frozen=True)
class Found:
    """What a registration found.

    Attributes:
        registration: the displacements and their judgements.
        checks: of their quality.
        working: the grid that they were found on.
        motion: the initial motion, ``(4, 4)``.
        note: what the user should know of it: a sentence, or nothing.
    """

    registration: Registration
    checks: list[Sanity]
    working: Grid
    motion: NDArray[np.float64]
    note: str = ""

    @property
    def is_doubtful(self) -> bool:
        """Whether no moving image was aligned."""
        doubts = [self.registration.config.doubt(judgement) for judgement in self.registration.judgements]
        return None not in doubts


@dataclass(frozen=True)
class Search:
    """What a registration needs besides the initial motion.

    Attributes:
        images: where they lie, the fixed one first.
        config: the preset.
        budget_bytes: memory that the case may use.
        timer: measures the stages.
        kernels: compute kernels.
        preset: its name as the user gave it, which decides the working grid.
        names: of the images in errors.
        bounds: whether those of the errors are wanted.
        seeks: whether the images may be brought elsewhere than the user says.
    """

    images: Sequence[Placed]
    config: Preset
    budget_bytes: int
    timer: StageTimer
    kernels: Kernels
    preset: str
    names: Sequence[str]
    bounds: bool
    seeks: bool

    def run(self, initial: NDArray[np.float64]) -> Found:
        """Registers from an initial motion, ``(4, 4)``; if that is refused, from where the fixed image is found.

        Raises:
            NoOverlapError: if the images do not overlap where they lie, and are not aligned from where their centers coincide.
            McboError: as ``world.register_in_world``.
        """
        try:
            first = self._from(initial, self.config)
        except NoOverlapError:
            begin = centering(self.images)
            found = (self._settled(begin) or self._elsewhere(begin)) if self.seeks else None
            if found is None:
                raise
            return self._told("do not overlap", found, initial, [0.0] * len(found.checks), found.checks)
        found = self._elsewhere(initial) if self.seeks and first.is_doubtful else None
        if found is None:
            return first
        before = [judgement.similarity["identity"] for judgement in first.registration.judgements]
        return self._told("do not match", found, initial, before, first.checks)

    def _elsewhere(self, initial: NDArray[np.float64]) -> Found | None:
        """From where the fixed image is found; None if it is not, or if moving images may each lie elsewhere."""
        fixed, *movings = self.images
        if self.config.joint(len(movings)) != len(movings):
            return None
        try:
            with self.timer.stage("locate"):
                motion = locate(fixed, movings, initial=initial, config=self.config, kernels=self.kernels)
            if motion is None:
                return None
            log.info("the images do not match where they lie: registering them from where the fixed one seems to be")
            return self._settled(motion)
        except McboError as error:  # what was found before stands
            log.info("the fixed image is not sought elsewhere: %s", error)
            return None

    def _settled(self, initial: NDArray[np.float64]) -> Found | None:
        """A registration from where images were brought; None if it is doubtful."""
        found = self._from(initial, self.config.once_located())
        return None if found.is_doubtful else found

    def _told(
        self,
        what: str,
        found: Found,
        initial: NDArray[np.float64],
        before: Sequence[float],
        checks_before: Sequence[Sanity],
    ) -> Found:
        """What was found elsewhere, compared with how the images were before, and as the result of the user's preset."""
        judgements = [_located(now, then) for now, then in zip(found.registration.judgements, before, strict=True)]
        checks = [
            replace(now, distance_before=then.distance_before) for now, then in zip(found.checks, checks_before, strict=True)
        ]
        grid = self.images[0].grid
        center = grid.to_world((torch.tensor(grid.shape, dtype=torch.float64) - 1)[None] / 2)[0].numpy()
        shift = (found.motion - initial)[:3] @ [*center, 1.0]
        away = float(np.linalg.norm(shift)) / MM[grid.unit]
        return replace(
            found,
            registration=replace(found.registration, config=self.config, judgements=tuple(judgements)),
            checks=checks,
            note=f"the images {what} where they lie: the fixed image was found {away:.3g} {symbol_of(grid.unit)} away "
            "from there; look at the result before you use it",
        )

    def _from(self, initial: NDArray[np.float64], config: Preset) -> Found:
        fixed, *movings = self.images
        working = self._working_grid(initial, config)
        joint = config.joint(len(movings))

        def attempt(budget: int) -> Found:
            registration, checks = register_in_world(
                fixed,
                movings,
                initial=initial,
                working=working,
                config=config,
                kernels=self.kernels,
                budget_bytes=budget,
                timer=self.timer,
                names=self.names[1:],
                bounds=self.bounds,
            )
            return Found(registration, checks, working, initial)

        return within_memory(
            attempt,
            who=self.names[0],
            device=fixed.volume.device,
            budget_bytes=self.budget_bytes,
            least_bytes=lambda: config.least_bytes(working.shape, movings=joint, kernels=self.kernels),
            warn=log.warning,
        )

    def _working_grid(self, initial: NDArray[np.float64], config: Preset) -> Grid:
        """The fixed grid, or for ``auto`` an isotropic one."""
        fixed, *movings = (image.grid for image in self.images)
        size = fixed.spacing_mm
        if self.preset != AUTO:
            if max(size) / min(size) > MAX_RATIO and config.uses_masks:
                log.info("the fixed image's voxels are anisotropic, %s: preset %s does better", _sizes(fixed), AUTO)
            return fixed
        joint = config.joint(len(movings))

        def fits(shape: Shape) -> bool:
            return config.least_bytes(shape, movings=joint, kernels=self.kernels) <= self.budget_bytes

        working, is_coarser = working_grid(fixed, movings, initial=initial, oversampling=config.times_finer, fits=fits)
        check_size(working.shape)
        log.info("working grid: %s voxels of %s", format_shape(working.shape), _sizes(working))
        if is_coarser:
            log.warning("its voxels are larger than the fixed image's finest side (%s), so that it fits", _sizes(fixed))
        return working


def _located(now: Judgement, before: float) -> Judgement:
    """The judgement of a result from where images were brought, a rigid motion; ``before`` is identity's similarity."""
    similarity = now.similarity | {"identity": before}
    if now.chosen != "identity":
        return replace(now, similarity=similarity)
    reason = "no result is more similar than the rigid motion by which the images were brought together"
    return replace(now, chosen="rigid", similarity=similarity | {"rigid": now.similarity["identity"]}, reason=reason)


def _sizes(grid: Grid) -> str:
    return "×".join(f"{size / MM[grid.unit]:.3g}" for size in grid.spacing_mm) + f" {symbol_of(grid.unit)}"
