import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TensorCounter, cascade_config, paper_config, random_tensor, run_register
from numpy.typing import NDArray

from mcbo.core.errors import MemoryBudgetError
from mcbo.core.types import Shape
from mcbo.kernels import REFERENCE
from mcbo.kernels.cpu import COMPILED, correlation
from mcbo.kernels.simd import aligned_floats
from mcbo.methods.config import Level
from mcbo.methods.memory_model import Slabs, check_budget, slabs_per_level, solve_bytes, solved_bytes, thickest, tile_grid
from mcbo.studies.phantom import make_phantom

CONFIG = paper_config()
SHAPE = (128, 120, 136)


def test_the_largest_tile_counts() -> None:
    assert tile_grid((9, 10, 13), Level(grid_spacing=1, weight=1, search_radius=4, tiles=2)) == (5, 5, 7)
    assert tile_grid((9, 10, 13), Level(grid_spacing=4, weight=1, search_radius=4)) == (2, 2, 3)


def test_a_smaller_budget_means_thinner_slabs_that_fit() -> None:
    for budget in (10**10, 8 * 10**8, 7 * 10**8):
        slabs = slabs_per_level(SHAPE, CONFIG.levels, passes=7, movings=2, budget_bytes=budget, kernels=REFERENCE)
        assert solved_bytes(SHAPE, CONFIG.levels, passes=7, movings=2, slabs=slabs, kernels=REFERENCE) <= budget
        for level, its_slabs in zip(CONFIG.levels, slabs, strict=True):
            assert 1 <= its_slabs.rows <= thickest(tile_grid(SHAPE, level), REFERENCE)
    thick = slabs_per_level(SHAPE, CONFIG.levels, passes=7, movings=2, budget_bytes=10**10, kernels=REFERENCE)
    assert slabs[-1].rows < thick[-1].rows == thickest((64, 60, 68), REFERENCE) == 16
    assert thickest((4, 1000, 1000), REFERENCE) == 1


def test_small_solves_run_at_a_time_where_both_fit() -> None:
    shape = (120, 128, 124)  # tiles of 60×64×62 cells; the next shape has larger ones
    roomy = slabs_per_level(shape, CONFIG.levels, passes=7, movings=1, budget_bytes=10**10, kernels=COMPILED)
    assert roomy[-1] == Slabs(rows=4, at_once=2, lanes=16)
    both = solved_bytes(shape, CONFIG.levels, passes=7, movings=1, slabs=roomy, kernels=COMPILED)
    assert slabs_per_level(shape, CONFIG.levels, passes=7, movings=1, budget_bytes=both, kernels=COMPILED)[-1] == roomy[-1]
    tight = slabs_per_level(shape, CONFIG.levels, passes=7, movings=1, budget_bytes=both - 1, kernels=COMPILED)
    assert tight[-1] == Slabs(rows=8, at_once=1, lanes=16)
    assert slabs_per_level((120, 128, 132), CONFIG.levels, passes=7, movings=1, budget_bytes=10**10, kernels=COMPILED)[
        -1
    ] == Slabs(8, lanes=16)
    assert all(
        slabs.at_once == 1
        for slabs in slabs_per_level(shape, CONFIG.levels, passes=7, movings=1, budget_bytes=10**10, kernels=REFERENCE)
    )


def test_too_small_a_budget_is_refused_with_figures() -> None:
    with pytest.raises(MemoryBudgetError, match=r"128×120×136 voxels .* at least \d\.\d\d GB .* may use 0\.50 GB"):
        slabs_per_level(SHAPE, CONFIG.levels, passes=7, movings=2, budget_bytes=5 * 10**8, kernels=REFERENCE)


def test_fewer_passes_need_less() -> None:
    grid = (64, 60, 68)
    assert solve_bytes(grid, search_radius=4, passes=2, slabs=Slabs(4)) < solve_bytes(
        grid, search_radius=4, passes=7, slabs=Slabs(4)
    )


def test_both_modalities_of_a_challenge_case_fit_a_16_gb_gpu_twice() -> None:
    assert CONFIG.peak_bytes((256, 256, 256), movings=2, kernels=REFERENCE) < 8e9


@pytest.mark.parametrize("shape", [(20, 30, 32), (18, 40, 17), (30, 24, 33)])
@pytest.mark.parametrize("slabs", [Slabs(4, at_once=2, lanes=16), Slabs(8, lanes=16)])
def test_the_model_agrees_with_the_arrays_of_the_compiled_solve(
    shape: Shape, slabs: Slabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are held until the solve ends; with them, the features of both images."""
    made = []

    def counting(*sizes: int) -> NDArray[np.float32]:
        made.append(4 * math.prod(sizes))
        return aligned_floats(*sizes)

    monkeypatch.setattr(correlation, "aligned_floats", counting)
    fixed, moving = random_tensor(1, 12, *shape, seed=1), random_tensor(1, 12, *shape, seed=2)
    COMPILED.solve(fixed, moving, search_radius=4, coupling_weights=(0.1,) * 6, rows=slabs.rows)
    counted = slabs.at_once * sum(made) + 2 * 4 * 12 * math.prod(shape)
    model = solve_bytes(shape, search_radius=4, passes=7, slabs=slabs)
    assert counted == pytest.approx(model, rel=0.2)


@pytest.mark.parametrize("movings", [1, 2])
def test_the_model_agrees_with_the_bytes_of_all_tensors(movings: int) -> None:
    """The torch reference, which is what a GPU runs; a CPU holds the same tensors."""
    phantom = make_phantom((44, 40, 48))
    images = (phantom.fixed, phantom.cet1, phantom.t2)[: movings + 1]
    with TensorCounter(images) as counter:
        run_register(images[0], images[1:], CONFIG, kernels=REFERENCE)
    model = CONFIG.peak_bytes((44, 40, 48), movings=movings, kernels=REFERENCE)
    print(f"{movings} moving: counted {counter.peak_bytes / 1e6:.1f} MB, model {model / 1e6:.1f} MB")
    assert counter.peak_bytes == pytest.approx(model, rel=0.2)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("movings", [1, 2])
def test_the_model_of_the_cascade_agrees_too(movings: int) -> None:
    """Without the start from afar, whose grids have one size for all volumes; in a small one they would count most."""
    config = cascade_config()
    phantom = make_phantom((56, 48, 52))
    images = (phantom.fixed, phantom.cet1, phantom.t2)[: movings + 1]
    with TensorCounter(images) as counter:
        run_register(images[0], images[1:], replace(config, start=None), kernels=REFERENCE)
    model = config.peak_bytes((56, 48, 52), movings=movings, kernels=REFERENCE)
    print(f"{movings} moving: counted {counter.peak_bytes / 1e6:.1f} MB, model {model / 1e6:.1f} MB")
    assert counter.peak_bytes == pytest.approx(model, rel=0.2)


def test_the_cascade_fits_as_well_and_says_what_it_needs() -> None:
    config = cascade_config()
    assert config.peak_bytes((256, 256, 256), movings=2, kernels=REFERENCE) < 8e9
    needed = config.least_bytes((256, 256, 256), movings=2, kernels=REFERENCE)
    with pytest.raises(MemoryBudgetError, match=r"256×256×256 voxels with 2 moving .* at least \d\.\d\d GB"):
        check_budget((256, 256, 256), movings=2, needed=needed, budget_bytes=10**9)
