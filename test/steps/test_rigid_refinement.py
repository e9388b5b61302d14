"""Gauss–Newton for a rigid motion, on smooth features that are functions of the place."""

import torch
from torch import Tensor

from mcbo.core.types import Kernels
from mcbo.geometry import rigid
from mcbo.kernels import REFERENCE
from mcbo.steps.gauss_newton import Modality
from mcbo.steps.rigid_refinement import refine_rigid

SHAPE = (20, 24, 18)
CELL_MM = torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64)
TRUTH = rigid.Rigid(rigid.rotation_of((2.0, -3.0, 1.0)), torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64))


def places() -> Tensor:
    axes = [torch.arange(n, dtype=torch.float64) for n in SHAPE]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) * CELL_MM


def features(points: Tensor) -> Tensor:
    """Waves of about eight cells, ``(1, 4, h, w, d)``, at ``(n, 3)`` points, mm."""
    waves = torch.tensor([[0.4, 0.1, 0.0], [0.0, 0.7, 0.2], [0.1, 0.0, 0.5], [0.3, 0.4, -0.3]], dtype=torch.float64)
    return torch.sin(points @ waves.T).T.reshape(1, 4, *SHAPE).float()


def refined(moving: Tensor, kernels: Kernels, *, iterations: int = 5) -> rigid.Rigid:
    known = torch.ones(1, 1, *SHAPE)
    fixed = features(TRUTH.apply(places().reshape(-1, 3)))
    return refine_rigid(
        fixed,
        known,
        [Modality(moving, known)],
        first_mm=places()[0, 0, 0],
        cell_mm=CELL_MM,
        iterations=iterations,
        kernels=kernels,
    )[0]


def test_a_known_motion_is_found(kernels: Kernels) -> None:
    found = refined(features(places().reshape(-1, 3)), kernels)
    points = places().reshape(-1, 3)
    assert float((TRUTH.apply(points) - points).norm(dim=1).mean()) > 1
    assert float((TRUTH.apply(points) - found.apply(points)).norm(dim=1).mean()) < 0.1


def test_it_is_a_rotation(kernels: Kernels) -> None:
    rotation = refined(features(places().reshape(-1, 3)), kernels).rotation
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert float(torch.linalg.det(rotation)) > 0


def test_the_same_features_do_not_move(kernels: Kernels) -> None:
    found = refined(features(TRUTH.apply(places().reshape(-1, 3))), kernels)
    assert torch.allclose(found.rotation, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.translation, torch.zeros(3, dtype=torch.float64), atol=1e-5)


def test_flat_features_do_not_move(kernels: Kernels) -> None:
    found = refined(torch.zeros(1, 4, *SHAPE), kernels, iterations=1)
    assert torch.isfinite(found.rotation).all()
    assert torch.isfinite(found.translation).all()


def test_motions_in_a_batch_are_those_one_by_one(device: torch.device) -> None:
    """Two modalities; features that move differently and are known in different places."""
    points = places().reshape(-1, 3)
    known = torch.ones(1, 1, *SHAPE, device=device)
    partly = known.clone()
    partly[..., :5, :] = 0
    fixed = features(TRUTH.apply(points)).to(device)
    moved = [features(points).to(device), features(points + 0.5).to(device)]

    def found(*modalities: Modality) -> rigid.Rigid:
        return refine_rigid(
            fixed,
            known,
            modalities,
            first_mm=places()[0, 0, 0].to(device),
            cell_mm=CELL_MM.to(device),
            iterations=3,
            kernels=REFERENCE,
        )

    batch = found(
        Modality(torch.cat(moved), torch.cat([known, partly])),
        Modality(torch.cat([moved[1], moved[1]]), torch.cat([partly, known])),
    )
    first = found(Modality(moved[0], known), Modality(moved[1], partly))
    second = found(Modality(moved[1], partly), Modality(moved[1], known))
    assert not torch.allclose(first.translation, second.translation, atol=0.1)
    for one, other in ((batch[0], first[0]), (batch[1], second[0])):
        assert torch.allclose(one.rotation, other.rotation, atol=1e-6)
        assert torch.allclose(one.translation, other.translation, atol=1e-5)
