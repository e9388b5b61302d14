import pytest

from mcbo.config import Level
from mcbo.errors import MemoryBudgetError
from mcbo.memory import max_rows, resident_bytes, rows_per_level, slab_bytes, tile_grid
from mcbo.tasks import find_config

CONFIG = find_config("ReMIND2Reg")
SHAPE = (128, 120, 136)


def test_the_largest_tile_counts() -> None:
    assert tile_grid((9, 10, 13), Level(grid_spacing=1, weight=1, search_radius=4, tiles=2)) == (5, 5, 7)
    assert tile_grid((9, 10, 13), Level(grid_spacing=4, weight=1, search_radius=4)) == (2, 2, 3)


def test_a_smaller_budget_means_thinner_slabs_that_fit() -> None:
    resident = resident_bytes(SHAPE, movings=2, levels=4)
    passes = len(CONFIG.coupling_weights) + 1
    for budget in (10**10, 2 * 10**9, 12 * 10**8):
        rows = rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=budget)
        for level, count in zip(CONFIG.levels, rows, strict=True):
            grid = tile_grid(SHAPE, level)
            assert 1 <= count <= max_rows(grid)
            assert resident + slab_bytes(grid, search_radius=4, passes=passes, rows=count) <= budget
    thick = rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=10**10)
    thin = rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=12 * 10**8)
    assert thin[-1] < thick[-1] == max_rows((64, 60, 68)) == 16
    assert max_rows((4, 1000, 1000)) == 1


def test_too_small_a_budget_is_refused_with_figures() -> None:
    with pytest.raises(MemoryBudgetError, match=r"128×120×136 voxels .* at least \d\.\d\d GB .* may use 0\.50 GB"):
        rows_per_level(SHAPE, CONFIG, movings=2, budget_bytes=5 * 10**8)


def test_fewer_passes_need_less() -> None:
    grid = (64, 60, 68)
    assert slab_bytes(grid, search_radius=4, passes=2, rows=4) < slab_bytes(grid, search_radius=4, passes=7, rows=4)
