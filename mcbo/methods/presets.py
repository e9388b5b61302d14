"""The challenge tasks and their presets, as data. No other file knows a task's name."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mcbo.core.errors import InputError
from mcbo.io.files import shown
from mcbo.methods.cascade import CascadeConfig, DeformableSearch, GaussNewton, RigidStages
from mcbo.methods.config import Level, Preset
from mcbo.methods.hypotheses import Expected, HypothesisSettings, OverviewSettings
from mcbo.methods.judgement import JudgementSettings
from mcbo.methods.multilevel import MultilevelConfig
from mcbo.methods.uncertainty import UncertaintySettings
from mcbo.steps.adam import AdamSettings
from mcbo.steps.deformable_search import DeformStage
from mcbo.steps.gauss_newton import RefineStage
from mcbo.steps.initialization import InitializationSettings
from mcbo.steps.masked_search import SearchStage
from mcbo.steps.mind import MindSettings

# docs/method.md, step 7. Iterations and result smoothing: the paper, section 3; the rest: the original settings of ConvexAdam.
_ADAM = AdamSettings(
    grid_spacing=2,
    iterations=15,
    learning_rate=1.0,
    regularization_weight=1.25,
    parameter_box=3,
    parameter_rounds=3,
    result_box=5,
    result_rounds=3,
)
_COUPLING_WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # docs/method.md, step 4
_RADIUS = 4  # docs/method.md, step 2

# docs/method.md, "The preset cascade"; docs/ablation.md has what each number was chosen by.
_CASCADE = CascadeConfig(
    name="cascade",
    start=InitializationSettings(cells=32, max_degrees=20.0, step_degrees=10.0, min_overlap=0.25, kept=2),
    hypotheses=HypothesisSettings(
        overview=OverviewSettings(cells=96, mind=MindSettings(radius=1, dilation=1), pooled=2, rounds=3, iterations=3),
        closer=OverviewSettings(cells=128, mind=MindSettings(radius=2, dilation=1), pooled=3, rounds=3, iterations=3),
        unsure=(0.0, 6.0),
        mirrors=((0,), (1,), (2,), (0, 1, 2)),
    ),
    expected=Expected(voxels=10.0, mm=None, degrees=3.0),
    appearance=0,
    rigid=RigidStages(
        mind=MindSettings(radius=3, dilation=3),
        grid_spacings=(4,),
        rounds=3,
        iterations=3,
        cautious=SearchStage(grid_spacing=4, search_radius=1),
        coupling_weights=_COUPLING_WEIGHTS,
        trim_keep=0.5,
        trim_rounds=15,
    ),
    deformation=DeformableSearch(stages=(), coupling_weights=(0.03, 0.1, 0.3, 1.0)),
    refinement=GaussNewton(
        stages=(
            RefineStage(grid_spacing=3, mind=MindSettings(radius=2, dilation=2), rounds=2, iterations=3),
            RefineStage(grid_spacing=2, mind=MindSettings(radius=1, dilation=1), rounds=2, iterations=2),
        ),
        bending=0.6,
        cg_iterations=25,
    ),
    judgement=JudgementSettings(
        grid_spacing=3,
        mind=MindSettings(radius=1, dilation=2),
        even=4.0,
        odds=2.0,
        even_similarity=0.53,
        odds_similarity=40.0,
        even_nearby=2.3,
        odds_nearby=1.2,
        doubtful=0.5,
        cautious_reach=1.9,
        full_gain=0.0,
        small_motion=1.5,
        small_gain=0.08,
    ),
    uncertainty=UncertaintySettings(
        grid_spacing=4,
        mind=MindSettings(radius=1, dilation=2),
        iterations=2,
        scale=0.47,
        spread_power=1.15,
        rest_power=0.65,
    ),
    consistency_rounds=15,
    margin=12,
    modality_fusion="joint",
)


@dataclass(frozen=True)
class Task:
    """A Learn2Reg task.

    Attributes:
        name: as in the dataset JSON and the file names.
        modalities: of its images.
        presets: by name; the first is the default.
    """

    name: str
    modalities: tuple[str, ...]
    presets: dict[str, Preset]


_REMIND2REG = Task(
    name="ReMIND2Reg",
    modalities=("ultrasound", "ceT1", "T2", "MRI"),
    presets={
        "cascade": _CASCADE,
        "mcbo2024": MultilevelConfig(
            name="mcbo2024",
            mind=MindSettings(radius=1, dilation=2),  # docs/method.md, step 1
            levels=(  # weights: docs/method.md, step 8
                Level(grid_spacing=6, weight=0.36, search_radius=_RADIUS),
                Level(grid_spacing=4, weight=0.27, search_radius=_RADIUS),
                Level(grid_spacing=2, weight=0.27, search_radius=_RADIUS),
                Level(grid_spacing=1, weight=0.10, search_radius=_RADIUS, tiles=2, refinement=_ADAM),
            ),
            coupling_weights=_COUPLING_WEIGHTS,
            consistency_rounds=15,  # docs/method.md, step 5
            modality_fusion="maximum",
            stretch=True,
        ),
    },
)

_COMULIS3DCLEM = Task(
    name="COMULIS3DCLEM",
    modalities=("EM", "LM"),
    presets={
        "cascade": replace(
            _CASCADE,
            unit="um",
            oversampling=1.0,
            deformation=replace(
                _CASCADE.deformation,
                stages=tuple(
                    DeformStage(
                        grid_spacing=g, search_radius=2, mind=MindSettings(radius=2, dilation=2), stretching=3.0, clear=0.4
                    )
                    for g in (4, 3, 2)
                ),
            ),
            refinement=replace(_CASCADE.refinement, stages=()),
            expected=replace(_CASCADE.expected, voxels=20.0),
            appearance=2,
            rigid=replace(_CASCADE.rigid, grid_spacings=()),
            uncertainty=replace(_CASCADE.uncertainty, scale=1.65, spread_power=0.75, rest_power=0.27),
            modality_fusion=None,
        ),
        "mcbo2024": MultilevelConfig(
            name="mcbo2024",
            mind=MindSettings(radius=1, dilation=2),
            levels=(  # the paper, section 3: n = 1, 2, 4 with equal weights
                Level(grid_spacing=4, weight=1 / 3, search_radius=_RADIUS),
                Level(grid_spacing=2, weight=1 / 3, search_radius=_RADIUS),
                Level(grid_spacing=1, weight=1 / 3, search_radius=_RADIUS, tiles=2, refinement=_ADAM),
            ),
            coupling_weights=_COUPLING_WEIGHTS,
            consistency_rounds=15,
            modality_fusion=None,
            unit="um",
            stretch=True,
        ),
    },
)

TASKS: dict[str, Task] = {task.name: task for task in (_REMIND2REG, _COMULIS3DCLEM)}

DEFAULT_TASK = next(iter(TASKS))
"""For images whose names tell no task."""


def task_of(modalities: Iterable[str]) -> str:
    """The name of the task with these modalities; the default one, if there are none.

    Raises:
        InputError: if no task has all of them.
    """
    wanted = set(modalities)
    for task in TASKS.values():
        if wanted <= set(task.modalities):
            return task.name
    known = " or ".join(f"{', '.join(task.modalities)} ({task.name})" for task in TASKS.values())
    raise InputError(f"expected modalities of one task, {known}, found {', '.join(sorted(wanted))}: choose a task with --task")


def find_config(task: str, preset: str | None = None) -> Preset:
    """The config of a task's preset; without a preset, of its default.

    Raises:
        InputError: for an unknown name; the message lists the known ones.
    """
    if task not in TASKS:
        raise InputError(f"task {shown(task)} is not known: expected one of {', '.join(TASKS)} (choose one with --task)")
    presets = TASKS[task].presets
    if preset is None:
        return next(iter(presets.values()))
    if preset not in presets:
        raise InputError(f"preset {shown(preset)} is not known for {task}: expected one of {', '.join(presets)}")
    return presets[preset]
