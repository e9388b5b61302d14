from dataclasses import replace

import pytest
import torch
from helpers import TensorCounter, paper_config, run_register

from mcbo.config import Cascade, Level
from mcbo.errors import MemoryBudgetError
from mcbo.kernels import REFERENCE
from mcbo.memory import check_cascade, max_rows, needed_bytes, rows_per_level, solve_bytes, tile_grid
from mcbo.phantom import make_phantom
from mcbo.tasks import find_config

CONFIG = paper_config()
SHAPE = (128, 120, 136)


def test_the_largest_tile_counts() -> None:
    assert tile_grid((9, 10, 13), Level(grid_spacing=1, weight=1, search_radius=4, tiles=2)) == (5, 5, 7)
    assert tile_grid((9, 10, 13), Level(grid_spacing=4, weight=1, search_radius=4)) == (2, 2, 3)


def test_a_smaller_budget_means_thinner_slabs_that_fit() -> None:
    for budget in (10**10, 8 * 10**8, 7 * 10**8):
        rows = rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=budget, thickest=64)
        assert needed_bytes(SHAPE, CONFIG, movings=2, rows=rows) <= budget
        assert all(1 <= count <= max_rows(tile_grid(SHAPE, level)) for level, count in zip(CONFIG.levels, rows, strict=True))
    thick = rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=10**10, thickest=64)
    assert rows[-1] < thick[-1] == max_rows((64, 60, 68)) == 16
    assert max_rows((4, 1000, 1000)) == 1
    assert max(rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=10**10, thickest=8)) == 8


def test_too_small_a_budget_is_refused_with_figures() -> None:
    with pytest.raises(MemoryBudgetError, match=r"128×120×136 voxels .* at least \d\.\d\d GB .* may use 0\.50 GB"):
        rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=5 * 10**8, thickest=64)


def test_fewer_passes_need_less() -> None:
    grid = (64, 60, 68)
    assert solve_bytes(grid, search_radius=4, passes=2, rows=4) < solve_bytes(grid, search_radius=4, passes=7, rows=4)


def test_both_modalities_of_a_challenge_case_fit_a_16_gb_gpu_twice() -> None:
    assert needed_bytes((256, 256, 256), CONFIG, movings=2) < 8e9


@pytest.mark.parametrize("movings", [1, 2])
def test_the_model_agrees_with_the_bytes_of_all_tensors(movings: int) -> None:
    """The torch reference, which is what a GPU runs; a CPU holds the same tensors."""
    phantom = make_phantom((44, 40, 48))
    images = (phantom.fixed, phantom.cet1, phantom.t2)[: movings + 1]
    with TensorCounter(images) as counter:
        run_register(images[0], images[1:], CONFIG, kernels=REFERENCE)
    model = needed_bytes((44, 40, 48), CONFIG, movings=movings)
    print(f"{movings} moving: counted {counter.peak_bytes / 1e6:.1f} MB, model {model / 1e6:.1f} MB")
    assert counter.peak_bytes == pytest.approx(model, rel=0.2)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("movings", [1, 2])
def test_the_model_of_the_cascade_agrees_too(movings: int) -> None:
    """Without the start from afar, whose grids have one size for all volumes; in a small one they would count most."""
    config = find_config("ReMIND2Reg", "cascade")
    assert isinstance(config, Cascade)
    phantom = make_phantom((56, 48, 52))
    images = (phantom.fixed, phantom.cet1, phantom.t2)[: movings + 1]
    with TensorCounter(images) as counter:
        run_register(images[0], images[1:], replace(config, start=None), kernels=REFERENCE)
    model = needed_bytes((56, 48, 52), config, movings=movings)
    print(f"{movings} moving: counted {counter.peak_bytes / 1e6:.1f} MB, model {model / 1e6:.1f} MB")
    assert counter.peak_bytes == pytest.approx(model, rel=0.2)


def test_the_cascade_fits_as_well_and_says_what_it_needs() -> None:
    config = find_config("ReMIND2Reg", "cascade")
    assert isinstance(config, Cascade)
    assert needed_bytes((256, 256, 256), config, movings=2) < 8e9
    with pytest.raises(MemoryBudgetError, match=r"256×256×256 voxels with 2 moving .* at least \d\.\d\d GB"):
        check_cascade((256, 256, 256), config, movings=2, budget_bytes=10**9)
