"""What was measured, as data: seconds and memory of a case, with machine and date. "Results" in the README has the same."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A case that was measured, from files to file.

    Attributes:
        preset: of the method.
        movings: moving images of the case.
        voxels: of the volume.
        seconds: that the case took.
        peak_memory_gb: of the process on a CPU, of the tensors on a GPU; None where it was not noted.
    """

    preset: str
    movings: int
    voxels: int
    seconds: float
    peak_memory_gb: float | None = None


@dataclass(frozen=True)
class FigureSet:
    """Figures of one task from one machine.

    Attributes:
        task: whose presets were measured; None where that is not known.
        is_gpu: whether on a GPU.
        origin: machine, date and where they stand, for people.
        figures: the figures.
    """

    task: str | None
    is_gpu: bool
    origin: str
    figures: tuple[Figure, ...]


def _scaled(preset: str, size: int, microseconds_per_voxel: float, peak_memory_gb: float | None = None) -> Figure:
    return Figure(preset, 1, size**3, 1e-6 * microseconds_per_voxel * size**3, peak_memory_gb)


PUBLISHED = FigureSet(
    task="ReMIND2Reg",
    is_gpu=False,
    origin="README, Results: two cores of an AMD EPYC, two threads, torch 2.13.0 on the CPU, 2026-11-24",
    figures=(
        _scaled("mcbo2024", 96, 2.66),
        _scaled("mcbo2024", 128, 2.67),
        _scaled("mcbo2024", 192, 3.08),
        _scaled("mcbo2024", 256, 2.98, 5.0),
        Figure("mcbo2024", 2, 256**3, 95, 6.3),
        Figure("cascade", 2, 256**3, 58, 4.3),
    ),
)
