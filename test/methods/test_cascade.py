"""The cascade as a whole, on phantoms with known truth."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import cascade_config, mean_length
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.core.field import warp
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement, Judgement, Kernels, Masks, Triple
from mcbo.kernels import REFERENCE
from mcbo.kernels.cpu import COMPILED
from mcbo.methods.cascade import CascadeConfig, register_cascade
from mcbo.methods.cascade_case import CascadeCase, prepare
from mcbo.methods.config import Group
from mcbo.methods.presets import find_config
from mcbo.runtime import select_kernels
from mcbo.steps.mind import MindSettings
from mcbo.studies.phantom import Phantom, make_phantom

SHAPE = (64, 60, 68)


def run(
    fixed: Tensor, *movings: Tensor, config: CascadeConfig | None = None, spacing_mm: Triple = (1.0, 1.0, 1.0)
) -> tuple[Displacement, Judgement]:
    return register_cascade(
        fixed,
        Group(movings),
        spacing_mm=spacing_mm,
        config=config or cascade_config(),
        kernels=select_kernels(fixed.device),
        timer=StageTimer(),
    )


@pytest.fixture(scope="module")
def head() -> Phantom:
    return make_phantom(SHAPE, seed=7)


@pytest.fixture(scope="module")
def found(head: Phantom) -> Displacement:
    return run(head.fixed, head.cet1)[0]


def case_of(fixed: Tensor, moving: Tensor, mask: Tensor, kernels: Kernels) -> CascadeCase:
    return prepare(
        fixed,
        [moving],
        Masks(mask, (torch.ones_like(mask),)),
        spacing_mm=(1.0, 1.0, 1.0),
        margin=6,
        reach=3,
        kernels=kernels,
        timer=StageTimer(),
        share=0.0,
    )


@pytest.mark.parametrize("kernels", [REFERENCE, COMPILED], ids=["torch", "numba"])
def test_what_is_asked_about_first_changes_no_features(head: Phantom, kernels: Kernels) -> None:
    """Not even no motion, where the moving image shows nothing but one value."""
    mask = torch.zeros_like(head.fixed, dtype=torch.bool)
    mask[..., 8:24, 20:40, 20:40] = True
    far = torch.full_like(head.cet1, 0.5)
    far[..., 32:, :, :] = head.cet1[..., 32:, :, :]
    found = []
    for is_asked in (False, True):
        case = case_of(head.fixed, far, mask, kernels)
        case.motion = replace(case.motion, translation=torch.tensor([32.0, 0.0, 0.0], dtype=torch.float64))
        moved = case.rigid_displacement()
        if is_asked:
            case.on_grid(torch.zeros_like(moved), spacing=2, mind=MindSettings(radius=1, dilation=1))
        found.append(case.on_grid(moved, spacing=2, mind=MindSettings(radius=1, dilation=1)).modalities[0].features)
    assert torch.equal(*found)
    assert found[0].std() > 0.1


def test_what_the_rigid_motion_shows_is_made_once_for_each_motion(head: Phantom) -> None:
    made = []

    def sample(*images: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        made.append(images[2])
        return COMPILED.sample_known(*images, **options)

    case = case_of(head.fixed, head.cet1, torch.ones_like(head.fixed, dtype=torch.bool), replace(COMPILED, sample_known=sample))
    features = []
    for shift in (0.0, 3.0):
        case.motion = replace(case.motion, translation=torch.tensor([shift, 0.0, 0.0], dtype=torch.float64))
        assert torch.all(case.rigid_displacement()[:, 0] == shift)
        for scale in (1, 2):
            grid = case.on_grid(case.rigid_displacement(), spacing=2, mind=MindSettings(radius=scale, dilation=scale))
        features.append(grid.modalities[0].features)
        assert made[-1] is case.rigid_displacement()
    assert len(made) == 2
    assert not torch.equal(*features)


@pytest.mark.parametrize("kernels", [REFERENCE, COMPILED], ids=["torch", "numba"])
def test_what_is_bright_beyond_the_box_changes_no_features(head: Phantom, kernels: Kernels) -> None:
    """Nor do those of one scale depend on another's."""
    mask = torch.zeros_like(head.fixed, dtype=torch.bool)
    mask[..., 2:26, 10:40, 10:40] = True
    bright = head.cet1.clone()
    bright[..., 58:61, 50:53, 60:63] = 1000 * head.cet1.max()
    found = []
    for moving in (head.cet1, bright):
        case = case_of(head.fixed, moving, mask, kernels)
        scales = (MindSettings(radius=1, dilation=1), MindSettings(radius=2, dilation=2), MindSettings(radius=1, dilation=1))
        still = case.rigid_displacement()
        found.append([case.on_grid(still, spacing=2, mind=mind).modalities[0].features for mind in scales])
    for plain, beside in zip(*found, strict=True):
        assert torch.allclose(plain, beside, atol=1e-5)
    assert torch.allclose(found[0][0], found[0][2], atol=1e-6)
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-2)


def inside(field: Tensor) -> Tensor:
    return field[..., 8:-8, 8:-8, 8:-8]


def test_a_known_displacement_is_recovered(head: Phantom, found: Displacement) -> None:
    before, after = mean_length(inside(head.displacement)), mean_length(inside(head.displacement - found))
    assert before > 3
    assert after < 0.4 * before


@pytest.mark.parametrize("task", ["ReMIND2Reg", "COMULIS3DCLEM"])
def test_the_work_of_all_stages_is_that_of_the_case(head: Phantom, task: str) -> None:
    """What the stages report as done never exceeds the case, and makes it up if none is left out."""
    done: list[float] = []
    config = cascade_config(task=task).accepting("full")
    register_cascade(
        head.fixed,
        Group([head.cet1]),
        spacing_mm=(1.0, 1.0, 1.0),
        config=config,
        kernels=select_kernels(head.fixed.device),
        timer=StageTimer(listener=lambda _, work: done.append(work)),
        share_of_case=0.5,
    )
    left_out = 0.0 if task == "COMULIS3DCLEM" else 0.3  # a finer grid that has less information
    assert 0.5 - left_out - 1e-9 <= sum(done) <= 0.5 + 1e-9


def test_in_a_wedge_too_and_both_modalities_share_the_work() -> None:
    phantom = make_phantom((72, 64, 68), seed=3, wedge=True)
    seen = phantom.fixed > 0
    both, judgement = run(phantom.fixed, phantom.cet1, phantom.t2)
    error = (phantom.displacement - both).norm(dim=1, keepdim=True)[seen].mean()
    assert error < 0.4 * phantom.displacement.norm(dim=1, keepdim=True)[seen].mean()
    assert judgement.chosen in ("rigid", "full")


@pytest.mark.parametrize("shift", [(2, 0, 0), (0, -5, 0), (0, 0, 10), (-20, 0, 0)])
def test_known_shifts_come_out_whole(head: Phantom, shift: tuple[int, int, int]) -> None:
    moving = torch.roll(head.cet1, shift, dims=(2, 3, 4))
    displacement, _ = run(head.cet1, moving)
    axis = next(axis for axis in range(3) if shift[axis])
    assert float(displacement[0, axis].mean()) == pytest.approx(shift[axis], rel=0.03)


def test_a_deformation_without_any_rigid_part_is_found_and_kept(head: Phantom) -> None:
    """Waves of three voxels that cancel out in the mean: no rigid motion makes anything better."""
    wave = 3 * torch.sin(2 * torch.pi * torch.arange(SHAPE[1]) / SHAPE[1]).view(1, 1, SHAPE[1], 1)
    truth = torch.zeros(1, 3, *SHAPE)
    truth[0, 0] = wave.expand(1, *SHAPE)[0]
    displacement, judgement = run(warp(head.t2, truth), head.cet1)
    assert judgement.chosen == "full"
    assert mean_length(inside(displacement - truth)) < 0.5 * mean_length(inside(truth))


def test_unrelated_images_move_by_less_than_two_voxels() -> None:
    for seed in range(3):
        noise = torch.rand((2, 1, 1, 32, 36, 40), generator=torch.Generator().manual_seed(seed))
        displacement, judgement = run(noise[0], noise[1])
        assert mean_length(displacement) < 2
        assert judgement.chosen in ("cautious", "identity")
        assert judgement.confidence < 0.1


def test_intensities_of_any_size(head: Phantom, found: Displacement) -> None:
    assert torch.equal(run(head.fixed * 2.0**110, head.cet1 * 2.0**-110)[0], found)


def test_a_result_that_is_not_the_full_one_has_a_reason_with_the_numbers_that_decided(head: Phantom) -> None:
    noise = torch.rand((2, 1, 1, 32, 36, 40), generator=torch.Generator().manual_seed(0))
    _, judgement = run(noise[0], noise[1])
    assert "standard deviations" in judgement.reason
    assert f"probability {judgement.confidence:.2f}, below 0.5" in judgement.reason
    assert judgement.reason in judgement.summary
    _, judgement = run(head.cet1, head.cet1)
    assert judgement.chosen == "identity"
    assert "no motion" in judgement.reason or "on average, below the 1.5" in judgement.reason
    _, judgement = run(head.fixed, head.cet1)
    assert (judgement.chosen, judgement.reason, judgement.explanation) == ("full", "", "")


def test_the_user_overrules_the_judgement(head: Phantom, found: Displacement) -> None:
    """The full result where the search was not believed; no motion, and the rigid one alone, where it was."""
    noise = torch.rand((2, 1, 1, 32, 36, 40), generator=torch.Generator().manual_seed(0))
    displacement, judgement = run(noise[0], noise[1], config=cascade_config().accepting("full"))
    assert (judgement.chosen, judgement.overruled) == ("full", "cautious")
    assert "the judgement was cautious: the best rigid motion scores" in judgement.summary
    assert set(judgement.similarity) == {"identity", "rigid", "full"}
    assert second_derivative(displacement) > 3e-4
    displacement, judgement = run(head.fixed, head.cet1, config=cascade_config().accepting("identity"))
    assert (judgement.chosen, judgement.overruled, mean_length(displacement)) == ("identity", "full", 0)
    displacement, judgement = run(head.fixed, head.cet1, config=cascade_config().accepting("rigid"))
    assert (judgement.chosen, judgement.overruled) == ("rigid", "full")
    assert second_derivative(displacement) < 1e-4 < mean_length(displacement)
    displacement, judgement = run(head.fixed, head.cet1, config=cascade_config().accepting("full"))
    assert (judgement.chosen, judgement.overruled) == ("full", "")
    assert torch.equal(displacement, found)


def second_derivative(field: Displacement) -> float:
    """Largest along axis 0: 0 for a rigid motion, which is linear."""
    return float(field.diff(n=2, dim=2).abs().max())


def test_only_a_preset_that_judges_can_be_overruled() -> None:
    with pytest.raises(InputError, match="preset mcbo2024 does not judge its result"):
        find_config("ReMIND2Reg", "mcbo2024").accepting("full")
    with pytest.raises(InputError, match="expected one of full, rigid, identity, got 'best'"):
        cascade_config().accepting("best")  # type: ignore[arg-type]


def test_identical_images_do_not_move(head: Phantom) -> None:
    displacement, judgement = run(head.cet1, head.cet1)
    assert mean_length(displacement) < 0.02
    assert judgement.confidence > 0.9


def test_aligned_images_of_two_modalities_hardly_move(head: Phantom) -> None:
    displacement, _ = run(head.t2, head.cet1)
    assert mean_length(displacement) < 0.15


def test_noise_is_not_believed(head: Phantom) -> None:
    noise = torch.rand(head.fixed.shape, generator=torch.Generator().manual_seed(0))
    displacement, judgement = run(head.cet1, noise)
    assert mean_length(displacement) < 2
    assert judgement.chosen in ("cautious", "identity")
    assert judgement.confidence < cascade_config().judgement.doubtful


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 3, 4)])
def test_flipped_images_have_the_flipped_displacement(head: Phantom, found: Displacement, axes: tuple[int, ...]) -> None:
    flipped, _ = run(head.fixed.flip(axes), head.cet1.flip(axes))
    signs = torch.tensor([-1.0 if axis + 2 in axes else 1.0 for axis in range(3)]).view(1, 3, 1, 1, 1)
    assert mean_length(flipped.flip(axes) * signs - found) < 0.05


def test_permuted_axes_permute_the_displacement(head: Phantom, found: Displacement) -> None:
    order = (2, 0, 1)
    axes = [0, 1, *(axis + 2 for axis in order)]
    permuted, _ = run(head.fixed.permute(axes).contiguous(), head.cet1.permute(axes).contiguous())
    assert mean_length(permuted - found.permute(axes)[:, list(order)]) < 0.05


def test_two_runs_give_the_same_bits(head: Phantom, found: Displacement) -> None:
    assert torch.equal(found, run(head.fixed, head.cet1)[0])


def test_the_voxel_size_is_that_of_the_rigid_motion(head: Phantom) -> None:
    """Turned by 8° in the plane of axes 1 and 2 in millimeters, of voxels twice as long along axis 1."""
    spacing = (1.0, 2.0, 1.0)
    angle = torch.deg2rad(torch.tensor(8.0))
    index = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SHAPE], indexing="ij"))
    y, z = 2 * index[1], index[2]
    truth = torch.zeros(1, 3, *SHAPE)
    truth[0, 1] = (torch.cos(angle) * y - torch.sin(angle) * z - y) / 2
    truth[0, 2] = torch.sin(angle) * y + torch.cos(angle) * z - z
    fixed = warp(head.cet1, truth)
    displacement, _ = run(fixed, head.cet1, spacing_mm=spacing)
    assert mean_length(inside(displacement - truth)) < 0.3
    assert mean_length(inside(truth)) > 2


def test_small_volumes_are_done_too() -> None:
    for shape in ((8, 9, 10), (14, 12, 17)):
        phantom = make_phantom(shape, seed=1)
        for task in ("ReMIND2Reg", "COMULIS3DCLEM"):
            displacement, _ = run(phantom.fixed, phantom.cet1, config=cascade_config(task))
            assert displacement.shape == (1, 3, *shape)
            assert torch.isfinite(displacement).all()


def test_a_constant_image_stays_where_it_is(head: Phantom) -> None:
    displacement, judgement = run(head.fixed, torch.full_like(head.fixed, 5.0))
    assert mean_length(displacement) < 2
    assert judgement.confidence < cascade_config().judgement.doubtful
