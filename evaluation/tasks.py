"""The metrics and the tasks as data: units, official programs, rankings and published results."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["mm", "voxels"]
Component = Literal["accuracy", "regularity"]
Program = Literal["remind2reg", "l2r"]
"""The two official evaluation programs. They differ in which quantile over cases they call ``30``."""


@dataclass(frozen=True)
class Published:
    """A published result: TRE as mean ± standard deviation over cases (None where not given), the split, and the source."""

    method: str
    mean: float
    std: float | None
    split: str
    source: str


@dataclass(frozen=True)
class Metric:
    """A metric of the official programs.

    Attributes:
        option: its name on the command line.
        name: its name in the official JSON.
        higher_is_better: which of two methods wins.
        quantile_30: the quantile over cases that the general program reports as ``30``.
        component: what it measures.
        meaning: for readers of a table.
        unit: of its numbers, where they have one that does not depend on the task.
        negligible: numbers below this are as good as 0 in a ranking.
    """

    option: str
    name: str
    higher_is_better: bool
    quantile_30: float
    meaning: str
    component: Component = "accuracy"
    unit: str = ""
    negligible: float = 0.0


METRICS: dict[str, Metric] = {
    metric.option: metric
    for metric in (
        Metric("tre", "TRE_lm", False, 0.7, "mean distance of corresponding landmarks"),
        Metric("sdlogj", "LogJacDetStd", False, 0.7, "standard deviation of log(det J + 3)", "regularity"),
        Metric("dice", "DSC", True, 0.3, "Dice coefficient of the labels"),
        Metric("hd95", "HD95", False, 0.3, "95th percentile of the Hausdorff distance of the labels", unit="voxels"),
        # Learn2Reg 2026 treats a volume below 0.005 % as none.
        Metric("ndv", "NDV", False, 0.7, "volume that the transform folds", "regularity", unit="%", negligible=0.005),
    )
}
REMIND2REG_QUANTILE_30 = 0.3
"""The ReMIND2Reg program uses this quantile for every metric."""


@dataclass(frozen=True)
class Task:
    """A task; the defaults are those of the general Learn2Reg program.

    Attributes:
        name: as in the dataset JSON.
        unit: of the TRE on its leaderboard.
        program: the one whose quantile is called ``30``.
        ranked_by: metrics of its leaderboard.
        published: results to show beside measured ones.
    """

    name: str
    unit: Unit = "mm"
    program: Program = "l2r"
    ranked_by: tuple[str, ...] = ("tre",)
    published: tuple[Published, ...] = ()


_PAPER = "Wang et al., arXiv 2409.05040, table"
_VALIDATION, _TEST = "val", "test"
_TEST_2025 = "Learn2Reg 2025, mean of ceT1 and T2"
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="ReMIND2Reg",
            program="remind2reg",
            published=(
                Published("initial", 3.727, 0.714, _VALIDATION, f"{_PAPER} 1"),
                Published("ConvexAdam-rigid", 2.773, 1.273, _VALIDATION, f"{_PAPER} 1"),
                Published("NiftyReg", 2.751, 1.333, _VALIDATION, f"{_PAPER} 1"),
                Published("MCBO", 2.224, 0.639, _VALIDATION, f"{_PAPER} 1"),
                Published("CrossKEY", 2.39, None, _VALIDATION, "reported by its authors"),
                Published("MCPO", 1.790, 0.536, _VALIDATION, "arXiv 2602.06288"),
                Published("initial", 5.10, None, _TEST, _TEST_2025),
                Published("MCPO", 3.05, None, _TEST, _TEST_2025),
                Published("honkamj", 3.05, None, _TEST, _TEST_2025),
                Published("VROC", 3.60, None, _TEST, _TEST_2025),
                Published("lichlo", 3.60, None, _TEST, _TEST_2025),
            ),
        ),
        Task(
            name="COMULIS3DCLEM",
            unit="voxels",  # the paper's table 2 says "TRE(LM)" and names no unit
            published=(
                Published("initial", 50.370, 20.355, _VALIDATION, f"{_PAPER} 2"),
                Published("MCBO", 49.609, 20.875, _VALIDATION, f"{_PAPER} 2; best case 13.882"),
            ),
        ),
    )
}


def find_task(name: str) -> Task:
    """The task of that name; for an unknown one, the defaults."""
    return TASKS.get(name) or Task(name)
