import itertools
from dataclasses import replace

import pytest
import torch
from helpers import cascade_config

from mcbo.core.field import sample
from mcbo.core.types import Shape, Triple
from mcbo.geometry import rigid
from mcbo.geometry.mask import field_of_view
from mcbo.kernels import REFERENCE
from mcbo.runtime import select_kernels
from mcbo.steps import initialization
from mcbo.steps.initialization import Coarse, Pose, ball, find_start
from mcbo.studies.phantom import make_phantom

SPACING_MM = (1.0, 1.5, 1.0)


def test_the_ball_of_rotations_begins_with_none_and_is_symmetric() -> None:
    vectors = ball(20.0, 10.0)
    assert vectors[0] == (0.0, 0.0, 0.0)
    assert len(vectors) == len(set(vectors)) == 33
    assert {(-x, -y, -z) for x, y, z in vectors} == set(vectors)
    assert {tuple(v[axis] for axis in order) for v in vectors for order in itertools.permutations(range(3))} == set(vectors)


def test_voxels_that_are_absurdly_thin_take_no_more_time_or_memory() -> None:
    """A cell as thick as it is wide would have 10¹⁵ of them."""
    settings = cascade_config().start
    assert settings
    phantom = make_phantom((32, 28, 36), seed=2)
    known = field_of_view(phantom.fixed)
    kernels = select_kernels(known.device)
    found = find_start(
        phantom.fixed, known, [phantom.fixed], [known], spacing_mm=(1e-15, 1.0, 1.0), settings=settings, kernels=kernels
    )
    u = rigid.to_displacement(found, (32, 28, 36), offset=(0, 0, 0), spacing_mm=(1e-15, 1.0, 1.0), like=phantom.fixed)
    assert not u.any()


@pytest.mark.parametrize(
    ("rotation_deg", "shift_mm"), [((0.0, 0.0, 0.0), (18.0, 0.0, -9.0)), ((0.0, 0.0, 14.0), (0.0, 20.0, 5.0))]
)
def test_a_far_start_is_found(rotation_deg: Triple, shift_mm: Triple) -> None:
    """Within what the search that follows can reach: four cells of six voxels."""
    settings = cascade_config().start
    assert settings
    phantom = make_phantom((64, 48, 72), seed=2)
    shape = (64, 48, 72)
    center = torch.tensor([(n - 1) / 2 * s for n, s in zip(shape, SPACING_MM, strict=True)], dtype=torch.float64)
    turned = rigid.rotation_of(rotation_deg)
    truth = rigid.Rigid(turned, center + torch.tensor(shift_mm, dtype=torch.float64) - turned @ center)
    u = rigid.to_displacement(truth, shape, offset=(0, 0, 0), spacing_mm=SPACING_MM, like=phantom.fixed)
    fixed = sample(phantom.t2, u, offset=(0, 0, 0), outside="border")
    found = find_start(
        fixed,
        field_of_view(fixed),
        [phantom.cet1],
        [field_of_view(phantom.cet1)],
        spacing_mm=SPACING_MM,
        settings=settings,
        kernels=select_kernels(fixed.device),
    )
    v = rigid.to_displacement(found, shape, offset=(0, 0, 0), spacing_mm=SPACING_MM, like=fixed)
    assert float((u - v).norm(dim=1).mean()) < 6
    assert float(u.norm(dim=1).mean()) > 12


def test_aligned_images_start_from_no_motion() -> None:
    settings = cascade_config().start
    assert settings
    phantom = make_phantom((40, 36, 44), seed=2)
    everywhere = torch.ones_like(phantom.t2, dtype=torch.bool)
    found = find_start(
        phantom.t2,
        everywhere,
        [phantom.cet1],
        [everywhere],
        spacing_mm=(1.0, 1.0, 1.0),
        settings=settings,
        kernels=select_kernels(phantom.t2.device),
    )
    assert torch.equal(found.rotation, torch.eye(3, dtype=torch.float64))
    assert not found.translation.any()


@pytest.mark.parametrize(("shape", "bytes_at_once"), [((40, 28, 52), 1e9), ((33, 48, 36), 1e9), ((36, 41, 30), 4e7)])
def test_poses_in_batches_are_those_one_by_one(
    shape: Shape, bytes_at_once: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two modalities; with less memory, each batch is done in several parts."""
    monkeypatch.setattr(initialization, "BATCH_BYTES", bytes_at_once)
    settings = cascade_config().start
    assert settings
    settings = replace(settings, cells=20, check_cells=28)
    phantom = make_phantom(shape, seed=4, wedge=True)
    fixed, *movings = (
        image.roll(shift, dims=2).to(device)
        for image, shift in zip((phantom.fixed, phantom.cet1, phantom.t2), (0, 5, 5), strict=True)
    )
    known, masks = field_of_view(fixed), [field_of_view(moving) for moving in movings]

    def searched(batch: int) -> tuple[list[tuple[float, Pose]], list[Pose], list[float], rigid.Rigid]:
        kernels = replace(REFERENCE, batch=batch)
        images = Coarse(fixed, known, movings, masks, spacing_mm=SPACING_MM, size=20, dilation=1, kernels=kernels)
        found = images.correlate(ball(20.0, 10.0), min_overlap=0.25)
        climbed = images.climb([pose for _, pose in found[:3]], min_overlap=0.25)
        start = find_start(fixed, known, movings, masks, spacing_mm=SPACING_MM, settings=settings, kernels=kernels)
        return found, climbed, images.scores(climbed, min_overlap=0.25), start

    (found, climbed, scores, start), (expected, peaks, best, the_start) = searched(64), searched(1)
    assert [pose for _, pose in found] == [pose for _, pose in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert climbed == peaks
    assert scores == pytest.approx(best, abs=1e-5)
    assert min(scores[0], found[0][0]) > 0.2
    assert torch.allclose(start.rotation, the_start.rotation, atol=1e-12)
    assert torch.allclose(start.translation, the_start.translation, atol=1e-9)
    assert start.translation.any()
