"""Linear systems on a grid of cells: the Laplacian, its diagonalization, and conjugate gradients."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mcbo.core.field import along_axis, shape_of
from mcbo.core.types import Shape

CG_TOLERANCE = 0.02


def laplacian(field: Tensor) -> Tensor:
    """Σ over face neighbors of (u − neighbor): the negative Laplacian with reflecting borders, of each of ``(…, h, w, d)``."""
    result = torch.zeros_like(field)
    for axis in (-3, -2, -1):
        size = field.shape[axis]
        if size > 1:
            step = field.diff(dim=axis)
            result.narrow(axis, 0, size - 1).sub_(step)
            result.narrow(axis, 1, size - 1).add_(step)
    return result


class CosineTransform:
    """Diagonalizes the Laplacian on a grid of cells: the preconditioner of the conjugate gradients.

    Products with the matrices of the orthonormal DCT-II, fast on every device; on the device and in the type of ``like``.
    """

    def __init__(self, shape: Shape, *, like: Tensor) -> None:
        self.matrices = []
        eigenvalues = like.new_zeros(shape, dtype=torch.float64)
        for axis, size in enumerate(shape):
            index = torch.arange(size, dtype=torch.float64, device=like.device)
            matrix = torch.cos(torch.pi / size * torch.outer(index, index + 0.5)) * (2 / size) ** 0.5
            matrix[0] /= 2**0.5
            self.matrices.append(matrix.to(like.dtype))
            eigenvalues += along_axis(2 - 2 * torch.cos(torch.pi * index / size), axis)
        self._eigenvalues = eigenvalues.to(like.dtype)

    def symbol(self, curvature: float, *, stretching: float = 0.0, bending: float = 0.0) -> Tensor:
        """Eigenvalues of ``curvature + stretching · Laplacian + bending · Laplacian²``, ``(h, w, d)``."""
        return curvature + self._eigenvalues * (stretching + bending * self._eigenvalues)

    def solve(self, right: Tensor, symbol: Tensor) -> Tensor:
        """Divides ``(1, 3, h, w, d)`` by a symbol in the space of cosines."""
        return self.apply(self.apply(right, inverse=False) / symbol, inverse=True)

    def solver(self, symbol: Tensor) -> Callable[[Tensor], Tensor]:
        """``solve`` with this symbol."""
        return partial(self.solve, symbol=symbol)

    def apply(self, field: Tensor, *, inverse: bool) -> Tensor:
        """Cosines of ``(1, 3, h, w, d)``, or back."""
        height, width, depth = shape_of(field)
        first, second, third = (matrix.T if inverse else matrix for matrix in self.matrices)
        field = (field.reshape(-1, depth) @ third.T).view(-1, width, depth)
        field = torch.bmm(second.expand(len(field), width, width), field).view(-1, height, width * depth)
        return torch.bmm(first.expand(len(field), height, height), field).view(1, -1, height, width, depth)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor], *, rounds: int
) -> Tensor:
    """Solves A·x = right, of any shape, to ``CG_TOLERANCE``, in at most ``rounds`` iterations.

    ``product`` applies A, ``precondition`` nearly its inverse; both are symmetric and positive.
    """

    def dot(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum(dtype=torch.float64))

    x = torch.zeros_like(right)
    residual = right.clone()
    z = precondition(residual)
    direction = z.clone()
    size = first = dot(residual, z)
    for _ in range(rounds):
        if size <= CG_TOLERANCE**2 * first or first == 0:
            break
        image = product(direction)
        length = size / max(dot(direction, image), 1e-30)
        x.add_(direction, alpha=length)
        residual.sub_(image, alpha=length)
        z = precondition(residual)
        after = dot(residual, z)
        direction = z.add_(direction, alpha=after / size)
        size = after
    return x
