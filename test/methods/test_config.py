import math

import pytest
from helpers import paper_config
from hypothesis import given
from hypothesis import strategies as st

from mcbo.core.errors import InputError
from mcbo.methods.cascade import CascadeConfig
from mcbo.methods.config import MIN_CELLS, MIN_VOXELS
from mcbo.methods.multilevel import MultilevelConfig
from mcbo.methods.presets import TASKS, find_config

PRESETS = [preset for task in TASKS.values() for preset in task.presets.values()]
ALL = [preset for preset in PRESETS if isinstance(preset, MultilevelConfig)]
CASCADES = [preset for preset in PRESETS if isinstance(preset, CascadeConfig)]


@pytest.mark.parametrize("config", ALL, ids=lambda c: c.name)
def test_weights_sum_to_one_and_levels_go_from_coarse_to_fine(config: MultilevelConfig) -> None:
    assert math.fsum(level.weight for level in config.levels) == pytest.approx(1)
    spacings = [level.grid_spacing for level in config.levels]
    assert spacings == sorted(spacings, reverse=True)


@pytest.mark.parametrize("config", CASCADES, ids=lambda c: c.name)
def test_stages_of_a_cascade_go_from_coarse_to_fine(config: CascadeConfig) -> None:
    several = [[stage.grid_spacing for stage in stages] for stages in (config.deformation.stages, config.refinement.stages)]
    for spacings in (list(config.rigid.grid_spacings), *several):
        assert spacings == sorted(spacings, reverse=True)
    assert config.feature_reach == 6


def test_the_default_is_the_cascade() -> None:
    for task in TASKS:
        assert find_config(task).name == "cascade"


def test_the_numbers_of_the_paper() -> None:
    remind = paper_config()
    assert {level.grid_spacing: level.weight for level in remind.levels} == {6: 0.36, 4: 0.27, 2: 0.27, 1: 0.10}
    comulis = paper_config("COMULIS3DCLEM")
    assert [level.grid_spacing for level in comulis.levels] == [4, 2, 1]
    assert comulis.modality_fusion is None


@given(shape=st.tuples(*[st.integers(MIN_VOXELS, 64)] * 3), config=st.sampled_from(ALL))
def test_levels_that_do_not_fit_are_dropped_and_the_others_keep_their_ratios(
    shape: tuple[int, int, int], config: MultilevelConfig
) -> None:
    fitted, dropped = config.fit(shape)
    assert len(fitted.levels) + len(dropped) == len(config.levels)
    assert all(min(shape) // level.grid_spacing >= MIN_CELLS for level in fitted.levels)
    assert all(min(shape) // level.grid_spacing < MIN_CELLS for level in dropped)
    assert math.fsum(level.weight for level in fitted.levels) == pytest.approx(1)
    before = {level.grid_spacing: level.weight for level in config.levels}
    ratios = {level.weight / before[level.grid_spacing] for level in fitted.levels}
    assert max(ratios) == pytest.approx(min(ratios))


def test_too_small_a_volume_is_refused() -> None:
    with pytest.raises(InputError, match="at least 8 voxels along every axis, got 7×20×20"):
        ALL[0].fit((7, 20, 20))


def test_what_is_expected_belongs_to_the_cascade() -> None:
    cascade = find_config("COMULIS3DCLEM").expecting(5.0, 2.0)
    assert isinstance(cascade, CascadeConfig)
    assert cascade.expected.shift_mm((0.5, 0.5, 3.0)) == 5
    default = find_config("COMULIS3DCLEM")
    assert isinstance(default, CascadeConfig)
    assert default.expected.shift_mm((0.5, 0.5, 3.0)) == 10  # 20 of the shortest sides of a voxel
    with pytest.raises(InputError, match="preset mcbo2024 does not use an expected motion"):
        find_config("ReMIND2Reg", "mcbo2024").expecting(5.0, 2.0)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'BrainT1' is not known: expected one of ReMIND2Reg, COMULIS3DCLEM"):
        find_config("BrainT1")
    with pytest.raises(InputError, match=r"preset 'best' is not known for ReMIND2Reg: expected one of cascade, mcbo2024"):
        find_config("ReMIND2Reg", "best")
