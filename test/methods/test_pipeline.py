import pytest
import torch
from helpers import TOLERANCE, mean_length, paper_config, run_register
from torch import Tensor

from mcbo.core.errors import InputError, MemoryBudgetError, NonFiniteError, ShapeError
from mcbo.core.field import check_finite, warp
from mcbo.methods.multilevel import tiles
from mcbo.studies.phantom import Phantom, make_phantom

COMULIS = paper_config("COMULIS3DCLEM")


@pytest.fixture(scope="module")
def found(phantom: Phantom) -> Tensor:
    pytest.importorskip("numba")
    return run_register(phantom.fixed, [phantom.cet1]).displacements[0]


def inside(field: Tensor) -> Tensor:
    return field[..., 8:-8, 8:-8, 8:-8]


def test_a_known_displacement_is_mostly_recovered() -> None:
    phantom = make_phantom((64, 60, 68), seed=7)
    found = run_register(phantom.fixed, [phantom.cet1]).displacements[0]
    before, after = mean_length(inside(phantom.displacement)), mean_length(inside(phantom.displacement - found))
    assert before > 3
    assert after < 0.5 * before


def test_the_memory_budget_does_not_change_a_bit(phantom: Phantom, found: Tensor) -> None:
    tight = run_register(phantom.fixed, [phantom.cet1], budget_gb=0.06).displacements[0]
    assert torch.equal(found, tight)


def test_two_runs_give_the_same_bits(phantom: Phantom, found: Tensor) -> None:
    assert torch.equal(found, run_register(phantom.fixed, [phantom.cet1]).displacements[0])


def test_equal_modalities_are_one_modality(phantom: Phantom, found: Tensor) -> None:
    both = run_register(phantom.fixed, [phantom.cet1, phantom.cet1]).displacements
    assert torch.equal(both[0], found)
    assert both[0] is both[1]


def test_fused_modalities_share_a_field_whatever_their_order(phantom: Phantom) -> None:
    ab = run_register(phantom.fixed, [phantom.cet1, phantom.t2]).displacements
    ba = run_register(phantom.fixed, [phantom.t2, phantom.cet1]).displacements
    assert ab[0] is ab[1]
    assert torch.equal(ab[0], ba[0])


def test_without_fusion_each_moving_image_has_its_own_field(phantom: Phantom) -> None:
    both = run_register(phantom.fixed, [phantom.cet1, phantom.t2], COMULIS).displacements
    alone = run_register(phantom.fixed, [phantom.t2], COMULIS).displacements
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[1], alone[0])


def test_identical_images_hardly_move(phantom: Phantom) -> None:
    """Adam moves identical images by 0.26 voxel; with its weight of 0.1 the whole by less."""
    field = run_register(phantom.cet1, [phantom.cet1]).displacements[0]
    assert mean_length(field) < 0.1


def test_swapped_inputs_give_nearly_the_inverse(phantom: Phantom, found: Tensor) -> None:
    swapped = run_register(phantom.cet1, [phantom.fixed]).displacements[0]
    remainder = inside(found + warp(swapped, found))
    assert mean_length(remainder) < 0.2 * mean_length(inside(found))


def test_permuted_axes_permute_the_field(phantom: Phantom, found: Tensor) -> None:
    order = (2, 0, 1)
    axes = [0, 1, *(axis + 2 for axis in order)]
    fixed, moving = phantom.fixed.permute(axes).contiguous(), phantom.cet1.permute(axes).contiguous()
    permuted = run_register(fixed, [moving]).displacements[0]
    expected = found.permute(axes)[:, list(order)]
    # Of equal candidates the first in the order of the axes is taken, so a few cells near the border differ.
    assert mean_length(permuted - expected) < TOLERANCE["field"]


def test_devices_agree(phantom: Phantom, found: Tensor, device: torch.device) -> None:
    there = run_register(phantom.fixed.to(device), [phantom.cet1.to(device)]).displacements[0]
    assert there.device.type == device.type
    assert mean_length(there.cpu() - found) < TOLERANCE["field"]


@pytest.mark.parametrize(("shape", "kept"), [((8, 9, 30), [1]), ((11, 10, 17), [2, 1]), ((31, 20, 33), [4, 2, 1])])
def test_small_and_odd_volumes_lose_the_levels_that_do_not_fit(shape: tuple[int, int, int], kept: list[int]) -> None:
    phantom = make_phantom(shape, seed=1)
    result = run_register(phantom.fixed, [phantom.cet1])
    assert [level.grid_spacing for level in result.levels] == kept
    assert result.displacements[0].shape == (1, 3, *shape)
    assert torch.isfinite(result.displacements[0]).all()
    assert len(result.dropped) == 4 - len(kept)


def test_a_constant_image_gives_a_finite_field(phantom: Phantom) -> None:
    field = run_register(phantom.fixed, [torch.full_like(phantom.fixed, 5.0)]).displacements[0]
    assert torch.isfinite(field).all()


def test_what_cannot_be_done_is_refused(phantom: Phantom) -> None:
    with pytest.raises(ShapeError, match=r"expected moving images of shape \(1, 1, 41, 36, 48\), got \(1, 1, 41, 36, 47\)"):
        run_register(phantom.fixed, [phantom.cet1[..., 1:]])
    with pytest.raises(InputError, match="at least 8 voxels"):
        run_register(phantom.fixed[..., :7], [phantom.cet1[..., :7]])
    with pytest.raises(MemoryBudgetError, match=r"need at least .* may use 10\.00 MB"):
        run_register(phantom.fixed, [phantom.cet1], budget_gb=0.01)
    with pytest.raises(NonFiniteError, match="'level 2 solve'"):
        check_finite(torch.tensor([1.0, float("nan")]), "level 2 solve")


def test_tiles_cover_every_voxel_once() -> None:
    count = torch.zeros(1, 1, 9, 10, 13)
    cut = tiles((9, 10, 13), 2)
    for tile in cut:
        count[tile] += 1
    assert len(cut) == 8
    assert torch.equal(count, torch.ones_like(count))
    assert tiles((9, 10, 13), 1) == [(slice(None), slice(None), slice(0, 9), slice(0, 10), slice(0, 13))]
