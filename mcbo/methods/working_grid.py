"""The grid on which images from anywhere are registered, if it need not be the fixed image's own.

The presets count in voxels and were chosen on isotropic ones. So the voxels here are as long as wide and as small as the fixed
image's shortest side, but hardly finer than any moving image, unless that leaves too few: where electron microscopy meets light
microscopy, finer voxels show nothing that both images have. A margin keeps what the moving images show just beyond the fixed
one.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mcbo.core.errors import InputError
from mcbo.core.types import Shape
from mcbo.geometry.grid import Grid
from mcbo.methods.config import MIN_VOXELS

MAX_RATIO = 1.25
"""Of the longest to the shortest side of a voxel, up to which the fixed image's own voxels do."""
MARGIN = 0.25
"""Of the fixed image's extent, on either side, at most: that far beyond it moving images are looked at."""
MAX_VOXELS = 1 << 24
"""Of the grid, unless the fixed image itself has more: 256³."""
LEAST_ACROSS = 32
"""Voxels along the shortest side of the fixed image, for which voxels finer than any moving image are kept."""
OVERVIEW = 96
"""Voxels along the longest side of a grid that covers all images."""
_COARSER = 1.1
_EDGE = 1e-3


def working_grid(
    fixed: Grid,
    movings: Sequence[Grid],
    *,
    initial: NDArray[np.float64],
    oversampling: float,
    fits: Callable[[Shape], bool],
) -> tuple[Grid, bool]:
    """Chooses the grid; the same one however the images' axes are stored.

    Args:
        fixed: of the fixed image.
        movings: of the moving images.
        initial: ``(4, 4)``, from fixed to moving world positions (mm).
        oversampling: how many voxels there may be along the shortest side of a moving image's voxels; more, if the fixed image
            has them and else would have fewer than ``LEAST_ACROSS`` across.
        fits: whether a grid of that shape can be registered within memory. A margin is given up before voxels get larger.

    Raises:
        InputError: if ``oversampling`` is not above 0.

    Returns:
        The grid, and whether its voxels are larger than they should be, so that it fits.
    """
    if not oversampling > 0:
        raise InputError(f"oversampling: expected a number above 0, got {oversampling:g}")
    base = canonical(fixed)
    beyond = _reach_beyond(base, movings, initial)
    size = np.array(base.spacing_mm)
    if size.max() / size.min() > MAX_RATIO:
        size = np.full(3, size.min())
    extent_mm = np.array(base.shape) * np.array(base.spacing_mm)
    shown_mm = min(_finest_side(initial, movings) / oversampling, float(extent_mm.min()) / LEAST_ACROSS)
    if size.min() < shown_mm:
        size = np.full(3, shown_mm)
    most = max(MAX_VOXELS, math.prod(fixed.shape))

    def is_small(grid: Grid) -> bool:
        return math.prod(grid.shape) <= most and fits(grid.shape)

    for share in (MARGIN, MARGIN / 2, 0.0):
        grid = _grid(base, size, np.minimum(beyond, share))
        if is_small(grid):
            return grid, False
    while not is_small(grid) and min(grid.shape) > MIN_VOXELS:
        size = size * _COARSER
        grid = _grid(base, size, np.zeros((2, 3)))
    return grid, True


def whole_grid(fixed: Grid, movings: Sequence[Grid], *, initial: NDArray[np.float64]) -> Grid:
    """A coarse grid of isotropic voxels that covers the fixed image and all of the moving ones, where ``initial`` has them."""
    base = canonical(fixed)
    beyond = np.maximum(_reach_beyond(base, movings, initial), 0)
    extent_mm = np.array(base.shape) * np.array(base.spacing_mm) * (1 + beyond.sum(axis=0))
    return _grid(base, np.full(3, max(float(extent_mm.max()) / OVERVIEW, min(base.spacing_mm))), beyond)


def _finest_side(initial: NDArray[np.float64], movings: Sequence[Grid]) -> float:
    """The shortest side of the moving images' voxels, mm of the fixed image's world."""
    back = np.linalg.inv(initial)[:3, :3]
    return min(float(np.linalg.norm(back @ moving.affine[:3, :3], axis=0).min()) for moving in movings)


def canonical(grid: Grid) -> Grid:
    """The same voxels, their axes ordered and turned so that they lead right, front and up, as nearly as can be."""
    affine, shape = grid.affine, np.array(grid.shape)
    axes = [next(a for a, letter in enumerate(grid.orientation) if letter in pair) for pair in ("RL", "AP", "SI")]
    turned = np.eye(4)
    turned[:3, :3] = affine[:3, axes]
    turned[:3, 3] = affine[:3, 3]
    for new, old in enumerate(axes):
        if grid.orientation[old] in "LPI":
            turned[:3, 3] += affine[:3, old] * (shape[old] - 1)
            turned[:3, new] *= -1
    height, width, depth = shape[axes]
    return Grid((int(height), int(width), int(depth)), turned, grid.unit)


def _reach_beyond(base: Grid, movings: Sequence[Grid], initial: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far any moving image reaches beyond the fixed one: ``(2, 3)``, below and above, as shares of its extent."""
    back = np.linalg.inv(initial @ base.affine)
    sizes = np.array(base.shape)
    result = np.zeros((2, 3))
    for moving in movings:
        edges = [torch.tensor((-0.5, size - 0.5), dtype=torch.float64) for size in moving.shape]
        corners = moving.to_world(torch.cartesian_prod(*edges)).numpy() @ back[:3, :3].T + back[:3, 3]
        beyond = np.stack([-0.5 - corners.min(axis=0), corners.max(axis=0) - (sizes - 0.5)]) / sizes
        result = np.maximum(result, beyond)
    return result


def _grid(base: Grid, size_mm: NDArray[np.float64], beyond: NDArray[np.float64]) -> Grid:
    """Voxels of a size over the extent of a grid, and as many more as cover the shares ``(2, 3)`` beyond it."""
    old_mm = np.array(base.spacing_mm)
    extent_mm = np.array(base.shape) * old_mm
    inner = np.maximum(np.ceil(extent_mm / size_mm - _EDGE), 1)
    more = np.ceil(beyond * extent_mm / size_mm - _EDGE)
    # In voxels of the base: the middle of the inner voxels is that of the base.
    first = (np.array(base.shape) - 1) / 2 - ((inner - 1) / 2 + more[0]) * size_mm / old_mm
    affine = np.eye(4)
    affine[:3, :3] = base.affine[:3, :3] * (size_mm / old_mm)
    affine[:3, 3] = base.affine[:3, :3] @ first + base.affine[:3, 3]
    height, width, depth = (inner + more.sum(axis=0)).astype(int)
    return Grid((int(height), int(width), int(depth)), affine, base.unit)
