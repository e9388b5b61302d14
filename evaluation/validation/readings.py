"""The ways in which a displacement may have been written by mistake, as data: other readings of its array."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np

from evaluation.images import Array, Shape
from evaluation.metrics import Field

_ORDER = "xyz"


@dataclass(frozen=True)
class Reading:
    """Another way to read an array of displacements: axes reordered and reversed, then each vector multiplied by a matrix.

    Attributes:
        name: what the displacement is if this is the right way: "in millimeters".
        remedy: what to do then.
        matrix: ``(3, 3)``.
        axes: order of the array's axes, as for ``numpy.transpose``.
        reversed_axes: which axes run backward, after the reordering.
        lossless: whether reading it so is the right displacement, or only shows that another one is needed.
        opposite: whether it reverses every vector.
    """

    name: str
    remedy: str
    matrix: Array
    axes: tuple[int, int, int] = (0, 1, 2)
    reversed_axes: tuple[int, ...] = ()
    lossless: bool = True
    opposite: bool = False

    @property
    def shrinks(self) -> bool:
        """Whether it makes displacements smaller."""
        return abs(float(np.linalg.det(self.matrix))) < 0.8

    @property
    def does_nothing(self) -> bool:
        """Whether it reads an array as it is written."""
        return self.same_as(AS_WRITTEN)

    def same_as(self, other: "Reading") -> bool:
        """Whether both read every array alike."""
        same_axes = (self.axes, self.reversed_axes) == (other.axes, other.reversed_axes)
        return same_axes and np.allclose(self.matrix, other.matrix, rtol=1e-4, atol=1e-6)

    def view(self, field: Field) -> Field:
        """A field with its axes as this reading has them; its vectors are as they were."""
        return np.flip(field.transpose(*self.axes, 3), self.reversed_axes)

    def vectors(self, values: Array) -> Array:
        """Vectors ``(n, 3)`` of ``view``, as this reading has them."""
        return np.asarray(values @ self.matrix.T)

    def correct(self, field: Field) -> Field:
        """The whole field, read so, in float32."""
        return (self.view(field).astype(np.float64) @ self.matrix.T).astype(np.float32)


AS_WRITTEN = Reading("as written", "", np.eye(3))


def likely_readings(shape: Shape, spacing: Array, affine: Array) -> list[Reading]:
    """The mistakes that the challenge has seen, the most usual first; those that are one for this grid are named together.

    Args:
        shape: of the fixed image.
        spacing: its voxel size, mm.
        affine: its affine, voxel to RAS mm.
    """
    found: list[Reading] = []
    for reading in _all_readings(shape, spacing, affine):
        if reading.does_nothing:
            continue
        twin = next((i for i, other in enumerate(found) if reading.same_as(other)), None)
        if twin is None:
            found.append(reading)
        elif " or " not in found[twin].name:
            first = found[twin]
            name, remedy = f"{first.name} or {reading.name}", f"{first.remedy}; or {reading.remedy}"
            found[twin] = replace(first, name=name, remedy=remedy)
    return found


def _all_readings(shape: Shape, spacing: Array, affine: Array) -> Iterator[Reading]:
    one = np.eye(3)
    yield Reading(
        "in millimeters", "the challenge wants voxels, so divide component a by the spacing along axis a", np.diag(1 / spacing)
    )
    yield Reading("too large by a factor of 2", "halve it", one / 2)
    yield Reading("too small by a factor of 2", "double it", one * 2)
    yield Reading(
        "from moving to fixed (fixed and moving swapped, or the sign reversed)",
        "the challenge samples moving(p + u(p)), so write the inverse field, or reverse the sign",
        -one,
        opposite=True,
    )
    for order in permutations(range(3)):
        called = "in reverse, z/y/x, order" if order == (2, 1, 0) else "in another x/y/z order"
        take = f"component a has to move along array axis a, so take components {order} of the last axis"
        yield Reading(f"with its components {called}", take, one[list(order)])
    half = (np.array(shape) - 1) / 2
    torch = "in torch's normalized coordinates (−1 to 1)"
    yield Reading(
        f"{torch}, x/y/z reversed", "multiply component a of the reversed last axis by (size − 1) / 2", np.diag(half)[:, ::-1]
    )
    yield Reading(torch, "multiply component a by (size − 1) / 2 of array axis a", np.diag(half))
    for count in (2, 1):
        for axes in combinations(range(3), count):
            signs = np.where(np.isin(range(3), axes), -1.0, 1.0)
            lps = ", as between LPS and RAS" if axes == (0, 1) else ""
            yield Reading(
                f"with the sign of its {_listed(axes)} component{'s'[: count > 1]} reversed{lps}",
                f"multiply the components by {tuple(signs.astype(int).tolist())}",
                np.diag(signs),
            )
    yield in_itk_convention(affine)
    yield Reading("in millimeters of the world (RAS)", _CONVERT, np.asarray(np.linalg.inv(affine[:3, :3]), np.float64))
    for order in ((2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)):
        if tuple(shape[axis] for axis in order) == shape:
            back = tuple(int(i) for i in np.argsort(order))
            called = "reversed axes (z, y, x, as in arrays of SimpleITK)" if order == (2, 1, 0) else "its axes in another order"
            kept = (back[0], back[1], back[2])
            yield Reading(f"with {called}", f"transpose it: numpy.transpose(field, {(*back, 3)})", one, axes=kept)
            both = f"transpose it and its components: numpy.transpose(field, {(*back, 3)})[..., {list(back)}]"
            yield Reading(f"with {called}, of array and components", both, one[list(back)], axes=kept)
    for count in (1, 2, 3):
        for axes in combinations(range(3), count):
            backward = f"along reversed axes ({_listed(axes)} backward)"
            flip = f"numpy.flip(field, {axes})"
            yield Reading(backward, f"turn it round: {flip}", one, reversed_axes=axes)
            signs = np.where(np.isin(range(3), axes), -1.0, 1.0)
            both = f"turn it round, and multiply the components by {tuple(signs.astype(int).tolist())}: {flip}"
            yield Reading(f"{backward}, with their components", both, np.diag(signs), reversed_axes=axes)


def in_itk_convention(affine: Array) -> Reading:
    """A displacement in LPS millimeters, on the grid of an affine, voxel to RAS mm."""
    to_voxel = np.asarray(np.linalg.inv(affine[:3, :3]), dtype=np.float64)
    return Reading("in ITK's convention (LPS, millimeters)", _CONVERT, to_voxel @ np.diag((-1.0, -1.0, 1.0)))


_CONVERT = "convert it to voxels along the axes of the array, with the affine of the fixed image"


def _listed(axes: Sequence[int]) -> str:
    return " and ".join(_ORDER[axis] for axis in axes)
