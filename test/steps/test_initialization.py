import itertools
from dataclasses import replace

import pytest
import torch
from helpers import cascade_config

from mcbo.core.types import Shape
from mcbo.geometry.mask import field_of_view
from mcbo.kernels import REFERENCE
from mcbo.steps import initialization
from mcbo.steps.initialization import Coarse, Pose, ball, fast_length, motions_of
from mcbo.studies.phantom import make_phantom

SPACING_MM = (1.0, 1.5, 1.0)


def test_the_ball_of_rotations_begins_with_none_and_is_symmetric() -> None:
    vectors = ball(20.0, 10.0)
    assert vectors[0] == (0.0, 0.0, 0.0)
    assert len(vectors) == len(set(vectors)) == 33
    assert {(-x, -y, -z) for x, y, z in vectors} == set(vectors)
    assert {tuple(v[axis] for axis in order) for v in vectors for order in itertools.permutations(range(3))} == set(vectors)


def test_lengths_that_transforms_are_fast_for() -> None:
    assert [fast_length(least) for least in (1, 7, 43, 46, 48, 121, 257)] == [1, 8, 45, 48, 48, 125, 270]


@pytest.mark.parametrize(("shape", "bytes_at_once"), [((40, 28, 52), 1e9), ((33, 48, 36), 1e9), ((36, 41, 30), 4e7)])
def test_poses_in_batches_are_those_one_by_one(
    shape: Shape, bytes_at_once: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two modalities; with less memory, each batch is done in several parts."""
    monkeypatch.setattr(initialization, "BATCH_BYTES", bytes_at_once)
    settings = cascade_config().start
    assert settings
    settings = replace(settings, cells=20)
    phantom = make_phantom(shape, seed=4, wedge=True)
    fixed, *movings = (
        image.roll(shift, dims=2).to(device)
        for image, shift in zip((phantom.fixed, phantom.cet1, phantom.t2), (0, 5, 5), strict=True)
    )
    known, masks = field_of_view(fixed), [field_of_view(moving) for moving in movings]

    def searched(batch: int) -> tuple[list[tuple[float, Pose]], list[Pose], list[float], list[list[Pose]]]:
        kernels = replace(REFERENCE, batch=batch)
        images = Coarse(fixed, known, movings, masks, spacing_mm=SPACING_MM, size=20, kernels=kernels)
        found = [pose for some in images.correlate(ball(20.0, 10.0), [(), (0, 2)], min_overlap=0.25) for pose in some]
        found.sort(key=lambda item: -item[0])
        climbed = images.climb([pose for _, pose in found[:3]], min_overlap=0.25)
        return found, climbed, images.scores(climbed, min_overlap=0.25), images.best_poses(settings, [(), (1,)])

    (found, climbed, scores, kept), (expected, peaks, best, the_kept) = searched(64), searched(1)
    assert [pose for _, pose in found] == [pose for _, pose in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert climbed == peaks
    assert scores == pytest.approx(best, abs=1e-5)
    assert min(scores[0], found[0][0]) > 0.2
    assert kept == the_kept


def test_mirrored_poses_are_those_of_mirrored_images(device: torch.device) -> None:
    """And the motion of points goes into the image that is not mirrored."""
    settings = cascade_config().start
    assert settings
    phantom = make_phantom((40, 28, 52), seed=4, wedge=True)
    fixed, moving = phantom.fixed.to(device), phantom.cet1.to(device)

    def best(image: torch.Tensor, mirror: tuple[int, ...]) -> Pose:
        images = Coarse(
            fixed, field_of_view(fixed), [image], [field_of_view(image)], spacing_mm=SPACING_MM, size=20, kernels=REFERENCE
        )
        return images.best_poses(settings, [mirror])[0][0]

    found, expected = best(moving, (0, 2)), best(moving.flip([2, 4]), ())
    assert found.mirror == (0, 2)
    assert found.rotation_deg == pytest.approx(expected.rotation_deg, abs=1e-6)
    assert found.shift_mm == pytest.approx(expected.shift_mm, abs=1e-6)
    motion = motions_of([found], (40, 28, 52), SPACING_MM)
    there = motions_of([expected], (40, 28, 52), SPACING_MM)
    point = torch.tensor([3.0, 5.0, 7.0], dtype=torch.float64)
    moved, other = motion[0].apply(point[None])[0], there[0].apply(point[None])[0]
    assert torch.allclose(moved, torch.stack([39.0 - other[0], other[1], 51.0 - other[2]]))


def test_poses_found_by_mirroring_the_fixed_image_score_as_was_found(device: torch.device) -> None:
    """About any point: the correlation with the mirrored fixed image is the similarity of the images under the pose."""
    phantom = make_phantom((40, 28, 52), seed=4, wedge=True)
    fixed, moving = phantom.fixed.to(device), phantom.cet1.roll(4, dims=3).to(device)
    images = Coarse(
        fixed,
        field_of_view(fixed),
        [moving],
        [field_of_view(moving)],
        spacing_mm=SPACING_MM,
        size=20,
        kernels=REFERENCE,
        mirror_mm=(3.0, -5.0, 7.0),
    )
    for found in images.correlate(
        [(0.0, 0.0, 0.0), (0.0, 0.0, 10.0), (10.0, 0.0, 10.0)], [(), (1,), (0, 1, 2)], min_overlap=0.25
    ):
        scores = images.scores([pose for _, pose in found], min_overlap=0.0)
        assert [score for score, _ in found] == pytest.approx(scores, abs=0.05)
        assert min(scores) > 0.1
