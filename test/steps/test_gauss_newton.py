from functools import partial

import numpy as np
import pytest
import torch
from helpers import TOLERANCE, TURNS, constant_field, random_tensor, skip_unless_it_runs, turned, turned_field
from hypothesis import given, settings
from torch import Tensor

from mcbo.core.field import box_sum
from mcbo.core.types import Kernels
from mcbo.kernels import REFERENCE
from mcbo.steps import gauss_newton, linear_solver
from mcbo.steps.gauss_newton import (
    Modality,
    bending_gradient,
    central_differences,
    data_terms,
    refine_by_gauss_newton,
    robust_weight,
)
from mcbo.steps.linear_solver import CosineTransform, conjugate_gradient, laplacian

SHAPE = (9, 11, 13)
SMALL = (3, 4, 5)
ENTRIES = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def points(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(size).double() for size in shape), indexing="ij"))


def waves(vector: tuple[float, float, float]) -> Tensor:
    """Six smooth features, moved by a vector."""
    place = (points() - torch.tensor(vector).view(3, 1, 1, 1)) * 0.5
    return torch.cat([place.cos(), place.sin()])[None].float()


def dense_bending(shape: tuple[int, int, int]) -> Tensor:
    """The square of the Laplacian as a matrix over all cells, made of those of paths."""
    paths = []
    for size in shape:
        links = torch.ones(size, size).triu(-1).tril(1).double()
        paths.append(torch.diag(links.sum(dim=1)) - links)
    i, j, k = (torch.eye(size, dtype=torch.float64) for size in shape)
    full = (
        torch.kron(torch.kron(paths[0], j), k) + torch.kron(torch.kron(i, paths[1]), k) + torch.kron(torch.kron(i, j), paths[2])
    )
    return full @ full


def test_slopes_are_those_of_numpy() -> None:
    volume = random_tensor(*SHAPE)
    for found, expected in zip(central_differences(volume), np.gradient(volume.numpy()), strict=True):
        assert np.allclose(found.numpy(), expected, atol=TOLERANCE["rounding"])
    assert all(float(slope.abs().max()) == 0 for slope in central_differences(torch.ones(1, 1, 1)))


def test_of_linear_features_gradient_and_hessian_are_exact(device: torch.device) -> None:
    """½·Σ (M(p + v) − F(p))² by autograd, M and F of one slope A per channel; its Hessian is A·Aᵀ."""
    slopes, offset = random_tensor(4, 3).double(), random_tensor(4, 1, 1, 1, seed=1).double()
    place = points()
    fixed = torch.einsum("ca,ahwd->chwd", slopes, place)
    v = torch.zeros_like(place, requires_grad=True)
    moved = torch.einsum("ca,ahwd->chwd", slopes, place + v) + offset
    ((moved - fixed).square().sum() / 2).backward()  # type: ignore[no-untyped-call]
    gradient, (hessian,), distance = data_terms(fixed[None].to(device), moved.detach()[None].to(device))
    assert v.grad is not None
    assert torch.allclose(gradient[0].cpu(), v.grad)
    expected = slopes.T @ slopes
    assert all(torch.allclose(h.cpu(), expected[a, b].expand(SHAPE)) for h, (a, b) in zip(hessian, ENTRIES, strict=True))
    assert torch.allclose(distance.cpu(), offset.square().sum().expand_as(distance))


def test_one_step_on_quadratic_features_is_exact_inside() -> None:
    """With slopes of the mean of both images, the step that solves H·v = −g is the shift itself."""
    shift = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)
    curves, slopes = random_tensor(5, 3, 3).double(), random_tensor(5, 3, seed=1).double()

    def features(place: Tensor) -> Tensor:
        return torch.einsum("cab,ahwd,bhwd->chwd", curves, place, place) + torch.einsum("ca,ahwd->chwd", slopes, place)

    gradient, (hessian,), _ = data_terms(features(points() + shift.view(3, 1, 1, 1))[None], features(points())[None])
    full = torch.empty(3, 3, *SHAPE, dtype=torch.float64)
    for entry, (a, b) in zip(hessian, ENTRIES, strict=True):
        full[a, b] = full[b, a] = entry
    inside = (slice(1, -1),) * 3
    step = torch.linalg.solve(full[:, :, *inside].flatten(2).movedim(2, 0), -gradient[0, :, *inside].flatten(1).T)
    assert torch.allclose(step, shift.expand_as(step))


def test_what_is_shared_and_over_how_many_cells_residuals_are_correlated(kernels: Kernels) -> None:
    noise = [random_tensor(1, 4, 22, 20, 24, seed=seed) for seed in range(3)]
    known = torch.ones(1, 1, 22, 20, 24, dtype=torch.bool)
    assert kernels.information_of(noise[0], noise[0], known).gain == pytest.approx(1)
    half = kernels.information_of(noise[0] + noise[1], noise[0] + noise[2], known)
    assert half.gain == pytest.approx(2 / 3, abs=0.02)  # ρ = ½
    assert half.correlation_cells == pytest.approx(1, abs=0.15)
    assert kernels.information_of(noise[0], noise[1], known).gain < 0.1
    smooth = box_sum(noise[1], size=3)
    cut = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    # Means over three cells are correlated by ⅔ and ⅓ with the next: 1 + 2·(⅔ + ⅓) = 3 cells along each axis.
    assert kernels.information_of(noise[0][cut], (noise[0] + smooth)[cut], known[cut]).correlation_cells == pytest.approx(
        27, rel=0.15
    )


def test_what_is_unknown_tells_nothing(kernels: Kernels) -> None:
    fixed, moved = random_tensor(1, 4, *SHAPE), random_tensor(1, 4, *SHAPE, seed=1) + random_tensor(1, 4, *SHAPE)
    known = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    box = (..., slice(2, 8), slice(0, 7), slice(5, 13))
    known[box] = True
    found, expected = kernels.information_of(fixed, moved, known), kernels.information_of(fixed[box], moved[box], known[box])
    assert found.gain == pytest.approx(expected.gain, rel=1e-4)
    assert found.correlation_cells == pytest.approx(expected.correlation_cells, rel=1e-4)


def test_robust_weights_by_hand() -> None:
    known = torch.ones(1, 1, *SHAPE)
    known[..., 6:] = 0
    for distance, expected in ((2.0, 1.0), (0.0, 4.0), (6.0, 0.25)):
        everywhere = torch.where(known > 0, distance, 50.0)
        found = robust_weight(everywhere, known, 2.0)[..., :6]
        assert torch.allclose(found, torch.full_like(found, expected), rtol=0.02)


def test_bending_is_half_the_gradient_of_its_energy_and_none_of_affine_fields_inside(device: torch.device) -> None:
    u = random_tensor(1, 3, *SHAPE).double().to(device).requires_grad_()
    (laplacian(u).square().sum() / 2).backward()  # type: ignore[no-untyped-call]
    assert u.grad is not None
    assert torch.allclose(bending_gradient(u.detach()), u.grad)
    affine = torch.einsum("ab,bhwd->ahwd", random_tensor(3, 3).double(), points())[None] + 5
    assert bending_gradient(affine)[..., 2:-2, 2:-2, 2:-2].abs().max() < 1e-12
    assert bending_gradient(constant_field((1, 2, 3), SHAPE)).abs().max() == 0


def test_cosines_solve_what_a_dense_matrix_solves(device: torch.device) -> None:
    right = random_tensor(1, 3, *SMALL).double()
    transform = CosineTransform(SMALL, like=right.to(device))
    found = transform.solve(right.to(device), transform.symbol(0.3, bending=2.0)).cpu()
    matrix = 0.3 * torch.eye(60, dtype=torch.float64) + 2 * dense_bending(SMALL)
    assert torch.allclose(found.view(3, 60).T, torch.linalg.solve(matrix, right.view(3, 60).T))


def test_conjugate_gradients_solve_a_dense_system(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_solver, "CG_TOLERANCE", 1e-8)
    slopes, right = random_tensor(3, 3, *SMALL).double() - 0.5, random_tensor(1, 3, *SMALL, seed=1).double()
    hessian = torch.stack([(slopes[:, a] * slopes[:, b]).sum(dim=0) for a, b in ENTRIES])
    matrix = torch.kron(torch.eye(3, dtype=torch.float64), 0.1 * dense_bending(SMALL)) + 1e-6 * torch.eye(180)
    for entry, (a, b) in zip(hessian, ENTRIES, strict=True):
        for row, column in {(a, b), (b, a)}:
            matrix[row * 60 : row * 60 + 60, column * 60 : column * 60 + 60] += torch.diag(entry.flatten())
    transform = CosineTransform(SMALL, like=right.to(device))
    symbol = transform.symbol(0.2, bending=0.1)
    product = gauss_newton.bent(hessian.to(device), 0.1)
    found = conjugate_gradient(product, right.to(device), partial(transform.solve, symbol=symbol), rounds=1000)
    assert torch.allclose(found.cpu().flatten(), torch.linalg.solve(matrix, right.flatten()), rtol=1e-4, atol=1e-6)


def test_a_known_shift_is_found_whatever_an_unrelated_modality_says(device: torch.device, kernels: Kernels) -> None:
    skip_unless_it_runs(kernels, device)
    shift, known = (0.6, -0.4, 0.8), torch.ones(1, 1, *SHAPE, device=device)
    right = Modality(waves(shift).to(device), known)
    unrelated = Modality(random_tensor(1, 6, *SHAPE).to(device), known)
    for modalities in ([right], [right, unrelated]):
        found, density = refine_by_gauss_newton(
            waves((0, 0, 0)).to(device),
            known,
            modalities,
            torch.zeros(1, 3, *SHAPE, device=device),
            bending=1e-4,
            iterations=8,
            cg_iterations=50,
            kernels=kernels,
        )
        assert (found.cpu() - constant_field(shift, SHAPE))[..., 2:-2, 2:-2, 2:-2].abs().max() < 0.05
        assert density > 0


def test_where_nothing_is_known_what_bends_is_undone() -> None:
    """Of all fields without a Laplacian, that are the constant ones, the nearest to the deviation is left: its mean."""
    deviation, nothing = random_tensor(1, 3, *SHAPE).double(), torch.zeros(1, 1, *SHAPE).double()
    found, density = refine_by_gauss_newton(
        waves((0, 0, 0)).double(),
        nothing,
        [Modality(waves((1, 1, 1)).double(), nothing)],
        deviation,
        bending=1.0,
        iterations=2,
        cg_iterations=20,
        kernels=REFERENCE,
    )
    assert density == 0
    assert torch.allclose(deviation + found, deviation.mean(dim=(2, 3, 4), keepdim=True).expand_as(found), atol=1e-3)


@given(turn=TURNS)
@settings(deadline=None, max_examples=10)
def test_turned_images_have_a_turned_displacement(turn: tuple[list[int], list[int]]) -> None:
    fixed, moving = waves((0, 0, 0)), waves((0.6, -0.4, 0.8)) + 0.2 * random_tensor(1, 6, *SHAPE)
    fixed_known, known = random_tensor(1, 1, *SHAPE, seed=1), (random_tensor(1, 1, *SHAPE, seed=2) > 0.2).float()
    deviation = random_tensor(1, 3, *SHAPE, seed=3)

    def refined(turn: tuple[list[int], list[int]]) -> Tensor:
        a, b, c, d = (turned(tensor, *turn).double() for tensor in (fixed, fixed_known, moving, known))
        kwargs = {"bending": 0.1, "iterations": 2, "cg_iterations": 20, "kernels": REFERENCE}
        return refine_by_gauss_newton(a, b, [Modality(c, d)], turned_field(deviation, *turn).double(), **kwargs)[0]  # type: ignore[arg-type]

    assert torch.allclose(refined(turn), turned_field(refined(([0, 1, 2], [])), *turn), atol=1e-3)
