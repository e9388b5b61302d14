"""A head phantom with a known displacement: folded cortex in ceT1-, T2-, and ultrasound-like contrast.

A drawing, not a simulation of physics: results on it say little about patients. Shape and seed determine everything.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage

from mcbo.core.types import Displacement, Shape, Volume

Array = NDArray[np.float64]

VOXEL_MM = 1
"""Side of a voxel, where a phantom is shown or written."""

# Intensities of white matter, gray matter, sulci, ventricles, tumor.
_CET1 = (1.0, 0.7, 0.25, 0.25, 1.35)
_T2 = (0.45, 0.62, 1.0, 1.0, 0.85)
_ULTRASOUND = (0.42, 0.28, 0.95, 0.06, 0.70)  # sulci and tumors are echogenic, the fluid in the ventricles is not
_UNIT = 400.0  # intensity of 1.0, so that rounding to int16 loses little
_LANDMARKS = 20  # at most


@dataclass(frozen=True)
class Phantom:
    """A case with a known displacement.

    Attributes:
        fixed: the ultrasound-like image, ``(1, 1, H, W, D)``.
        cet1, t2: the moving images, of the same shape.
        displacement: fixed to moving, ``(1, 3, H, W, D)`` voxels.
        fixed_landmarks: ``(n, 3)`` voxels, on structures visible in the fixed image.
        moving_landmarks: the same in the moving images.
    """

    fixed: Volume
    cet1: Volume
    t2: Volume
    displacement: Displacement
    fixed_landmarks: Array
    moving_landmarks: Array


def make_phantom(shape: Shape, *, seed: int = 0, wedge: bool = False, amplitude: float = 1.0) -> Phantom:
    """Draws a phantom.

    Args:
        shape: voxels, at least 8 along each axis.
        seed: of all random numbers.
        wedge: limit the fixed image to the wedge that a probe at the low end of axis 0 sees, with 0 elsewhere.
        amplitude: scales the displacement; 0 for none.
    """
    rng = np.random.default_rng(seed)
    tissues = _draw_tissues(shape, rng)
    displacement = amplitude * _draw_displacement(shape, rng)
    positions = np.indices(shape) + displacement
    moved = _stack(lambda tissue: ndimage.map_coordinates(tissue, positions, order=1, mode="nearest"), tissues)

    cet1 = _render(tissues, _CET1, rng)
    t2 = _render(tissues, _T2, rng)
    fixed = _speckle(np.tensordot(_ULTRASOUND, moved, axes=1), rng)
    seen = _wedge(shape) if wedge else np.ones(shape, dtype=bool)
    fixed *= seen

    landmarks = _choose_landmarks(moved, seen, rng)
    return Phantom(
        fixed=_volume(fixed),
        cet1=_volume(cet1),
        t2=_volume(t2),
        displacement=torch.from_numpy(displacement.astype(np.float32))[None],
        fixed_landmarks=landmarks.astype(np.float64),
        moving_landmarks=landmarks + displacement[:, *landmarks.T].T,
    )


def _stack(function: Callable[..., Array], *items: Iterable[object]) -> Array:
    """What a function makes of each item, in threads: most of scipy runs without Python's lock."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(function, *items)))


def _smooth_noise(shape: Shape, sigmas: Sequence[float], rng: np.random.Generator) -> Array:
    """Gaussian noises, each smoothed with a standard deviation in voxels, normalized to mean 0 and standard deviation 1."""

    def smooth(noise: Array, sigma: float) -> Array:
        noise = _gaussian(noise, sigma)
        return np.asarray((noise - noise.mean()) / noise.std())

    return _stack(smooth, [rng.standard_normal(shape) for _ in sigmas], sigmas)


def _gaussian(noise: Array, sigma: float) -> Array:
    """``ndimage.gaussian_filter(noise, sigma, mode="wrap")`` by Fourier transforms, which a large sigma makes no slower."""
    spectrum = fft.rfftn(noise)
    for axis, size in enumerate(noise.shape):
        weights = ndimage.gaussian_filter1d(np.eye(1, size)[0], sigma, mode="wrap")  # the same forwards and backwards
        transfer = fft.fft(weights).real[: spectrum.shape[axis]]
        spectrum *= transfer.reshape([-1 if axis == other else 1 for other in range(3)])
    return np.asarray(fft.irfftn(spectrum, s=noise.shape))


def _draw_tissues(shape: Shape, rng: np.random.Generator) -> Array:
    """Fractions of white matter, gray matter, sulci, ventricles, and tumor, ``(5, H, W, D)``; all 0 outside the head."""
    size = float(np.mean(shape))
    axes = [np.linspace(-1, 1, n) for n in shape]
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    rough, fold, deep = _smooth_noise(shape, (0.10 * size, 0.035 * size, 0.05 * size), rng)  # sulci lie where fold is near 0
    inside = (1.02 - radius) * size / 2 + 0.02 * size * rough  # depth below the surface, voxels
    tumor_at = np.array([-0.25, 0.2, 0.15]).reshape(3, 1, 1, 1)
    from_tumor = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")) - tumor_at, axis=0)

    head = inside > -0.03 * size
    cortex = inside < 0.22 * size
    tumor = (from_tumor + 0.03 * fold < 0.17) & (inside > 0)
    ventricles = (radius + 0.06 * deep < 0.18) & ~tumor
    sulci = head & ((inside < 0) | (cortex & (np.abs(fold) < 0.16))) & ~tumor & ~ventricles
    free = head & ~tumor & ~ventricles & ~sulci
    gray = free & ((cortex & (np.abs(fold) < 0.6)) | (inside < 0.05 * size) | (deep > 1.3))
    white = free & ~gray
    return _stack(
        lambda tissue: ndimage.gaussian_filter(tissue.astype(np.float64), 0.6), (white, gray, sulci, ventricles, tumor)
    )


def _draw_displacement(shape: Shape, rng: np.random.Generator) -> Array:
    """A small rotation, a shift, and a smooth deformation, ``(3, H, W, D)`` voxels; on average about 5 % of the size."""
    size = float(np.mean(shape))
    angles = np.deg2rad(rng.uniform(-2.5, 2.5, 3))
    centered = np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    rotation = np.cross(angles, centered, axisb=0, axisc=0)
    shift = rng.uniform(0.02, 0.035, 3) * rng.choice([-1, 1], 3) * size
    bend = _smooth_noise(shape, (0.14 * size,) * 3, rng)
    return np.asarray(rotation + shift.reshape(3, 1, 1, 1) + 0.012 * size * bend)


def _render(tissues: Array, intensities: tuple[float, ...], rng: np.random.Generator) -> Array:
    """An MR-like image: tissue intensities, a bias field, and noise."""
    shape = tissues.shape[1], tissues.shape[2], tissues.shape[3]
    image = np.tensordot(intensities, tissues, axes=1)
    bias = 1 + 0.08 * _smooth_noise(shape, [0.2 * float(np.mean(shape))], rng)[0]
    return np.asarray(np.maximum(image * bias + 0.015 * rng.standard_normal(shape), 0))


def _speckle(echo: Array, rng: np.random.Generator) -> Array:
    """An ultrasound-like image: echogenicity times fully developed speckle (the magnitude of smoothed complex noise)."""
    real, imaginary = (ndimage.gaussian_filter(rng.standard_normal(echo.shape), (0.6, 0.9, 0.9)) for _ in range(2))
    magnitude = np.hypot(real, imaginary)
    return np.asarray(0.05 + echo * (0.55 + 0.45 * magnitude / magnitude.mean()))


def _wedge(shape: Shape) -> NDArray[np.bool_]:
    """The view of a probe at the center of the low face of axis 0: 84° by 76°, to 92 % of the depth."""
    height, width, depth = shape
    rows, columns, slices = np.indices(shape)
    distance = rows + 0.12 * height
    across = np.abs(columns - (width - 1) / 2) / distance
    along = np.abs(slices - (depth - 1) / 2) / distance
    reach = np.sqrt(rows**2 + (columns - (width - 1) / 2) ** 2 + (slices - (depth - 1) / 2) ** 2)
    return np.asarray((across < np.tan(np.deg2rad(42))) & (along < np.tan(np.deg2rad(38))) & (reach < 0.92 * height))


def _choose_landmarks(tissues: Array, seen: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Voxels on strong edges, well inside the brain and the field of view, at a distance from each other."""
    shape = seen.shape
    margin = max(2, min(shape) // 16)
    brain = ndimage.binary_erosion(seen & (tissues.sum(axis=0) > 0.9), iterations=margin)
    edges = ndimage.gaussian_gradient_magnitude(np.tensordot(_CET1, tissues, axes=1), 1.0)
    if not brain.any():  # too small a volume to have an inside
        brain = np.ones(shape, dtype=bool)
    strong = np.argwhere(brain & (edges >= np.quantile(edges[brain], 0.8)))
    apart = 0.09 * float(np.mean(shape))
    chosen: list[NDArray[np.int64]] = []
    for point in rng.permutation(strong):
        if all(np.linalg.norm(point - other) >= apart for other in chosen):
            chosen.append(point)
        if len(chosen) == _LANDMARKS:
            break
    return np.array(chosen)


def _volume(image: Array) -> Volume:
    return torch.from_numpy(np.rint(_UNIT * image).astype(np.float32))[None, None]
