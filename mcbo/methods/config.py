"""What a method is: its settings, and what the rest of the program may ask of it (``multilevel.py``, ``cascade.py``).

Settings are frozen data; ``presets.py`` fills them in, and no step has a default of its own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.field import format_shape
from mcbo.core.timing import StageTimer
from mcbo.core.types import Choice, Displacement, Freedom, Judgement, Kernels, Masks, Shape, Triple, Volume
from mcbo.geometry.rigid import Rigid
from mcbo.geometry.units import Unit
from mcbo.steps.adam import AdamSettings

MIN_CELLS = 5
"""A level whose grid has fewer cells along an axis is left out: its box means and its search see little but border. The grid
is that of the whole volume; a tile of it may have fewer."""
MIN_VOXELS = 8
"""The smallest axis that is registered."""


@dataclass(frozen=True)
class Level:
    """One scale of the multilevel method.

    Attributes:
        grid_spacing: g, voxels per cell: the features are average-pooled by it.
        weight: of the level in the fusion.
        search_radius: R, cells: (2R+1)³ candidates.
        tiles: the volume is cut in this many parts along each axis, each solved alone.
        refinement: what follows the coarse solution, if anything.
    """

    grid_spacing: int
    weight: float
    search_radius: int
    tiles: int = 1
    refinement: AdamSettings | None = None


@dataclass(frozen=True)
class Group:
    """Moving images that share one displacement.

    Attributes:
        movings: ``(1, 1, H, W, D)`` intensities each.
        masks: where these and the fixed image are known, if the caller knows.
    """

    movings: Sequence[Volume]
    masks: Masks | None = None


@dataclass(frozen=True)
class Registration:
    """Result of a case.

    Attributes:
        displacements: one per moving image, ``(1, 3, H, W, D)`` voxels; the very same tensor where modalities are fused.
        config: the preset, fitted to the volume.
        levels: that were solved, where the preset has levels.
        dropped: levels of the preset that did not fit the volume.
        judgements: one per displacement, where the preset judges its result.
        bounds: of the errors (``uncertainty.py``), ``(1, 1, H, W, D)`` mm, one per displacement where they were asked for and
            the preset knows them; the very same tensor where modalities are fused.
    """

    displacements: tuple[Displacement, ...]
    config: "Preset"
    levels: tuple[Level, ...] = ()
    dropped: tuple[Level, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    bounds: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Preset(ABC):
    """A complete method: everything that decides a result. The kinds are frozen dataclasses.

    Attributes:
        name: of the preset.
        modality_fusion: how several moving modalities get one displacement, or None to register each alone.
        unit: in which people read lengths of such images; it decides no result.
        uses_masks: whether ``register`` takes masks.
        knows_uncertainty: whether ``bound_errors`` returns something.
    """

    name: str
    modality_fusion: str | None
    unit: Unit = field(default="mm", kw_only=True, metadata={"decides": False})
    uses_masks: ClassVar[bool] = False
    knows_uncertainty: ClassVar[bool] = False

    @property
    def times_finer(self) -> float:
        """How much finer than the moving images a grid that is chosen for them may be (``working_grid.py``)."""
        return math.inf

    @property
    def seeks(self) -> bool:
        """Whether images may be sought where they are not said to lie: not if the user says how far apart they are."""
        return False

    def joint(self, movings: int) -> int:
        """Of so many moving images of a case, how many share a displacement."""
        return max(movings, 1) if self.modality_fusion else 1

    @abstractmethod
    def register(
        self,
        fixed: Volume,
        groups: Sequence[Group],
        *,
        spacing_mm: Triple,
        kernels: Kernels,
        budget_bytes: int,
        timer: StageTimer,
    ) -> Registration:
        """Registers groups of moving images to a fixed image; see ``pipeline.register``, which is how to call it."""

    @abstractmethod
    def least_bytes(self, shape: Shape, *, movings: int, kernels: Kernels) -> int:
        """The memory model: bytes of all tensors of a case at their peak, computed as thriftily as possible.

        Args:
            shape: voxels.
            movings: moving images that share a displacement.
            kernels: the compute kernels.

        Raises:
            InputError: if the shape is too small for the preset.
        """

    @abstractmethod
    def peak_bytes(self, shape: Shape, *, movings: int, kernels: Kernels) -> int:
        """The same where memory is no concern."""

    @abstractmethod
    def search_range(self, shape: Shape) -> Triple:
        """How far the preset looks along axes 0, 1, 2 of a volume of that shape, voxels."""

    def bound_errors(
        self,
        fixed: Volume,
        group: Group,
        displacement: Displacement,
        judgement: Judgement,
        *,
        spacing_mm: Triple,
        kernels: Kernels,
        timer: StageTimer,
    ) -> Tensor | None:
        """A length for each voxel that four of five errors of a result stay below, see ``uncertainty.py``.

        Returns:
            ``(1, 1, H, W, D)`` mm, NaN where nothing is known; None if the preset does not know it.
        """
        del fixed, group, displacement, judgement, spacing_mm, kernels, timer
        return None

    def locate(
        self, fixed: Volume, movings: Sequence[Volume], masks: Masks, *, spacing_mm: Triple, kernels: Kernels
    ) -> Rigid | None:
        """Where the fixed image lies in moving ones that may be anywhere, as a motion of its points, mm of the grid.

        Images and masks are ``(1, 1, H, W, D)``, of one shape. None if it is not found.
        """
        del fixed, movings, masks, spacing_mm, kernels
        return None

    def once_located(self) -> "Preset":
        """The preset from a motion that ``locate`` found: coarse, so that a small step from there is no sign of chance."""
        return self

    def expecting(self, mm: float, degrees: float) -> "Preset":
        """The preset for images that usually are so far apart: a shift, mm, and a rotation.

        Raises:
            InputError: if the preset has no such expectation, or for numbers that are not above 0.
        """
        del mm, degrees
        raise InputError(f"preset {self.name} does not use an expected motion (--expect): expected none, or preset cascade")

    def accepting(self, choice: Choice) -> "Preset":
        """The preset that writes what the user demands, whatever its judgement is.

        Raises:
            InputError: if the preset does not judge its result, or for another word.
        """
        del choice
        raise InputError(f"preset {self.name} does not judge its result (--accept): expected none, or preset cascade")

    def restricted_to(self, freedom: Freedom) -> "Preset":
        """The preset that seeks a deformation, or an affine or rigid transform only.

        Raises:
            InputError: if the preset cannot be restricted, or for another word.
        """
        if freedom == "deformable":
            return self
        raise InputError(f"preset {self.name} seeks deformations only (--transform): expected deformable, or preset cascade")

    def doubt(self, judgement: Judgement) -> str | None:
        """Why the confidence in a result is low, as a sentence; None if it is not."""
        del judgement
        return None


def check_size(shape: Shape) -> None:
    """Raises InputError if an axis has fewer than ``MIN_VOXELS`` voxels."""
    if min(shape) < MIN_VOXELS:
        raise InputError(f"expected at least {MIN_VOXELS} voxels along every axis, got {format_shape(shape)}")
