import itertools

import pytest
import torch
from helpers import cascade_config

from mcbo.core.field import sample
from mcbo.core.types import Triple
from mcbo.geometry import rigid
from mcbo.geometry.mask import field_of_view
from mcbo.runtime import select_kernels
from mcbo.steps.initialization import ball, find_start
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
