import torch
from helpers import constant_field, random_tensor

from mcbo.core.field import resize, warp
from mcbo.steps.consistency import make_consistent

SHAPE = (9, 10, 11)


def test_zero_stays_zero() -> None:
    zero = torch.zeros(1, 3, *SHAPE)
    assert all(torch.equal(u, zero) for u in make_consistent(zero, zero, rounds=15, stretch=True))


def test_exact_inverses_stay_in_the_middle(device: torch.device) -> None:
    forward = constant_field((1, -1, 0.5), SHAPE).to(device)
    f, b = make_consistent(forward, -forward, rounds=1, stretch=False)
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    assert torch.allclose(f[inside], forward[inside], atol=1e-5)
    assert torch.allclose(b[inside], -forward[inside], atol=1e-5)


def test_disagreeing_fields_meet_halfway() -> None:
    """f = 2, b = -1 along axis 0, both constant: one round gives 1.5 and -1.5 away from the border."""
    f, b = make_consistent(constant_field((2, 0, 0), SHAPE), constant_field((-1, 0, 0), SHAPE), rounds=1, stretch=False)
    assert torch.allclose(f[0, 0, 3:6, 5, 5], torch.full((3,), 1.5), atol=1e-5)
    assert torch.allclose(b[0, 0, 3:6, 5, 5], torch.full((3,), -1.5), atol=1e-5)


def test_rounds_bring_forward_and_backward_together() -> None:
    def error(forward: torch.Tensor, backward: torch.Tensor) -> float:
        return float((forward + warp(backward, forward)).norm(dim=1).mean())

    f = 4 * resize(random_tensor(1, 3, 3, 3, 3, seed=1) - 0.5, SHAPE, scale=1)
    b = 4 * resize(random_tensor(1, 3, 3, 3, 3, seed=2) - 0.5, SHAPE, scale=1)
    assert error(*make_consistent(f, b, rounds=15, stretch=False)) < 0.1 * error(f, b)


def test_swapping_the_two_swaps_the_result() -> None:
    f, b = random_tensor(1, 3, *SHAPE, seed=3), random_tensor(1, 3, *SHAPE, seed=4)
    assert all(
        torch.equal(x, y)
        for x, y in zip(
            make_consistent(f, b, rounds=3, stretch=True),
            reversed(make_consistent(b, f, rounds=3, stretch=True)),
            strict=True,
        )
    )
