import torch
from helpers import constant_field, random_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcbo.core.types import Shape
from mcbo.geometry.rigid import Rigid, fit_rigid, fit_trimmed, identity, rotation_of, rotations_of, to_displacement

VECTORS = st.tuples(*[st.floats(-2, 2)] * 3)


def motion_of(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> Rigid:
    """A rotation by |turn| radians around turn, and 10 times the shift."""
    x, y, z = turn
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return Rigid(torch.linalg.matrix_exp(skew), 10 * torch.tensor(shift, dtype=torch.float64))


def cloud(count: int, seed: int = 0) -> Tensor:
    """Points in a box of 60×80×100 mm that begins at 20, 30, 40."""
    return random_tensor(count, 3, seed=seed).double() * torch.tensor([60.0, 80, 100]) + torch.tensor([20.0, 30, 40])


def assert_same(found: Rigid, expected: Rigid) -> None:
    assert torch.allclose(found.rotation, expected.rotation, atol=1e-9)
    assert torch.allclose(found.translation, expected.translation, atol=1e-7)


def test_a_quarter_turn_by_hand() -> None:
    motion = motion_of((0, 0, torch.pi / 2), (0.1, 0.2, 0.3))
    found = motion.apply(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([[1.0, 3, 3], [0, 2, 3], [1, 2, 4]], dtype=torch.float64))


@given(turn=VECTORS, shift=VECTORS)
@settings(deadline=None, max_examples=40)
def test_a_motion_is_found_from_points_that_moved_by_it(
    turn: tuple[float, float, float], shift: tuple[float, float, float]
) -> None:
    motion, points = motion_of(turn, shift), cloud(20)
    targets = motion.apply(points)
    weights = random_tensor(20, seed=1).double()
    targets[3], weights[3] = 1000.0, 0.0  # what has no weight does not count
    assert_same(fit_rigid(points, targets, weights), motion)


def test_mirrored_points_are_turned_and_not_mirrored() -> None:
    """Of the half turns that undo a mirror along axis 1, the one around the longest axis leaves the least distance."""
    points = torch.diag(torch.tensor([10.0, 20.0, 30.0])).double()
    points = torch.cat([points, -points])
    found = fit_rigid(points, points * torch.tensor([1.0, -1.0, 1.0]), torch.ones(6, dtype=torch.float64))
    assert_same(found, Rigid(torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double(), torch.zeros(3, dtype=torch.float64)))


@given(turn=VECTORS, shift=VECTORS)
@settings(deadline=None, max_examples=30)
def test_two_in_five_may_be_wrong(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> None:
    motion, points = motion_of(turn, shift), cloud(200)
    targets = motion.apply(points)
    targets[:80] += 60 * random_tensor(80, 3, seed=2) - 30
    weights = torch.ones(200, dtype=torch.float64)
    assert_same(fit_trimmed(points, targets, weights, keep=0.5, rounds=50), motion)
    everything = fit_trimmed(points, targets, weights, keep=1.0, rounds=50)
    assert_same(everything, fit_rigid(points, targets, weights))


def test_the_kept_half_is_half_of_the_weight() -> None:
    """Three in five points are wrong, all by the same motion, but the others weigh four times as much."""
    motion, other, points = motion_of((0.1, 0.2, -0.1), (1, 2, 3)), motion_of((0, 0, 0.3), (0, -1, 0)), cloud(200)
    targets = torch.cat([other.apply(points[:120]), motion.apply(points[120:])])
    weights = torch.cat([torch.full((120,), 0.5), torch.full((80,), 2.0)]).double()
    assert_same(fit_trimmed(points, targets, weights, keep=0.5, rounds=50), motion)
    assert_same(fit_trimmed(points, targets, torch.ones_like(weights), keep=0.5, rounds=50), other)


@given(turn=VECTORS, shift=VECTORS, offset=st.tuples(*[st.integers(0, 50)] * 3))
@settings(deadline=None, max_examples=30)
def test_the_displacement_of_a_motion_takes_each_voxel_where_the_motion_takes_it(
    turn: tuple[float, float, float], shift: tuple[float, float, float], offset: Shape
) -> None:
    motion, shape, spacing_mm = motion_of(turn, shift), (3, 4, 5), (0.5, 1.25, 3.0)
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(n) + o for n, o in zip(shape, offset, strict=True)), indexing="ij"), dim=-1
    )
    points = grid.view(-1, 3) * torch.tensor(spacing_mm, dtype=torch.float64)
    expected = (motion.apply(points) - points) / torch.tensor(spacing_mm, dtype=torch.float64)
    found = to_displacement(motion, shape, offset=offset, spacing_mm=spacing_mm, like=torch.empty(0))
    assert torch.allclose(found[0], expected.float().T.reshape(3, *shape), atol=1e-4)


def test_no_motion_and_a_shift_by_whole_voxels(device: torch.device) -> None:
    shift = Rigid(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 6.0], dtype=torch.float64))
    for motion, vector in ((identity(), (0, 0, 0)), (shift, (2, -2, 3))):
        found = to_displacement(motion, (3, 4, 5), offset=(7, 8, 9), spacing_mm=(0.5, 1, 2), like=torch.empty(0, device=device))
        assert torch.equal(found, constant_field(vector, (3, 4, 5)).to(device))


def test_several_motions_at_once(device: torch.device) -> None:
    vectors = [(0.0, 0.0, 0.0), (10.0, -20.0, 5.0), (0.0, 90.0, 0.0)]
    shifts = 10 * random_tensor(3, 3).double()

    def displaced(motion: Rigid) -> Tensor:
        like = torch.empty(0, device=device)
        return to_displacement(motion, (3, 4, 5), offset=(1, 0, 2), spacing_mm=(0.5, 1.25, 3.0), like=like)

    found = displaced(Rigid(rotations_of(vectors), shifts))
    assert found.shape == (3, 3, 3, 4, 5)
    for one, vector, shift in zip(found, vectors, shifts, strict=True):
        assert torch.allclose(one, displaced(Rigid(rotation_of(vector), shift))[0])
    quarter = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)
    assert torch.allclose(rotations_of(vectors)[2], quarter, atol=1e-12)
