import math

import pytest
import torch
from helpers import constant_field, paper_config, random_tensor

from evaluation.metrics import regularity
from mcbo.core.errors import NonFiniteError
from mcbo.core.types import Displacement
from mcbo.kernels import REFERENCE
from mcbo.methods.presets import find_config
from mcbo.methods.quality import Sanity, at_centers, coarse_spacing, examine, folded_share, largest
from mcbo.studies.phantom import Phantom

SHAPE = (14, 11, 17)


def look(phantom: Phantom, displacement: Displacement) -> Sanity:
    moving = {"disp": phantom.cet1}
    return examine(phantom.fixed, moving, {"disp": displacement}, config=paper_config(), kernels=REFERENCE)["disp"]


def test_folds_of_a_field_that_turns_one_axis_around() -> None:
    field = torch.zeros(1, 3, *SHAPE)
    assert folded_share(field, voxels=1000) == 0
    field[0, 1] = -2 * torch.arange(SHAPE[1], dtype=torch.float32).view(1, -1, 1)  # p + u(p) = −p along axis 1
    assert folded_share(field, voxels=1000) == 1


@pytest.mark.parametrize("voxels", [1, 4000, 10**6])
def test_folds_are_counted_as_the_judge_counts_them(voxels: int) -> None:
    field = 3 * random_tensor(1, 3, 41, *SHAPE[1:])
    assert folded_share(field, voxels=voxels) == pytest.approx(regularity(field[0].movedim(0, -1).numpy()).folded_fraction)


def test_the_largest_component_along_each_axis() -> None:
    field = constant_field((1, -2, 0), SHAPE)
    field[0, 2, 3, 4, 5] = -7
    assert largest(field) == (1, 2, 7)


def test_search_ranges() -> None:
    assert paper_config().search_range(SHAPE) == pytest.approx((15.52,) * 3)  # 4·(0.36·6 + 0.27·4 + 0.27·2 + 0.1·1)
    large = find_config("ReMIND2Reg").search_range((200, 160, 240))
    assert large == pytest.approx((0.75 * 200 + 4, 0.75 * 160 + 4, 0.75 * 240 + 4))  # the cautious search has g = 4, R = 1
    for_microscopes = find_config("COMULIS3DCLEM").search_range((200, 160, 240))  # and a search with g = 4, 3, 2, R = 2
    assert for_microscopes == pytest.approx((0.75 * 200 + 22, 0.75 * 160 + 22, 0.75 * 240 + 22))
    assert find_config("ReMIND2Reg").search_range((12, 10, 14)) == (12, 10, 14)  # never more than the axis


def test_the_known_displacement_brings_features_together_and_its_reverse_does_not(phantom: Phantom) -> None:
    right = look(phantom, phantom.displacement)
    assert right.distance_after < 0.9 * right.distance_before
    assert right.warnings == []
    wrong = look(phantom, -phantom.displacement)
    assert wrong.distance_after > wrong.distance_before
    assert len(wrong.warnings) == 1
    assert "the feature distance did not fall" in wrong.warnings[0]


def test_identical_images_are_at_no_distance_and_no_motion_is_no_fault(phantom: Phantom) -> None:
    same = Phantom(**{**vars(phantom), "cet1": phantom.fixed})
    sanity = look(same, torch.zeros_like(phantom.displacement))
    assert sanity.distance_before == sanity.distance_after == pytest.approx(0, abs=1e-5)
    assert sanity.warnings == []


def test_a_displacement_at_the_end_of_the_search_range_is_told() -> None:
    sanity = Sanity(0.0, (3.0, 9.6, 1.0), (10.0, 10.0, 10.0), 0.5, 0.4)
    (sentence,) = sanity.warnings
    assert sentence.startswith("the largest displacement along axis 1, 9.6 voxels, is at the end of the search range of 10.0;")


def test_what_is_not_finite_is_refused(phantom: Phantom) -> None:
    broken = phantom.displacement.clone()
    broken[0, 1, 2, 3, 4] = math.nan
    with pytest.raises(NonFiniteError, match="result"):
        look(phantom, broken)


def test_the_coarse_grid() -> None:
    assert [coarse_spacing((8, n, 20)) for n in (96, 97, 256)] == [1, 2, 3]
    assert coarse_spacing((48, 64, 96)) == 2
    ramp = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(1, 1, 9, 9, 9)
    assert at_centers(ramp, 3)[0, 0, :, 0, 0].tolist() == [1, 4, 7]
    assert torch.equal(at_centers(ramp, 1), ramp)
