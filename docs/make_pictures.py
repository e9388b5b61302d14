"""Draws the pictures of the documentation, beside this file and the same each time: ``python docs/make_pictures.py``.

``demo.png`` takes half a minute, since the demo is run for it.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from mcbo.io.nifti import read_displacement
from mcbo.studies.demo import SHAPE as SHAPE_OF_DEMO
from mcbo.studies.demo_results import draw_case
from mcbo.studies.phantom import make_phantom

SHAPE = (6, 5)
SIZE_MM = (2.0, 4.0)
P = (1, 1)
U = (3, 2)

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#8a8a8a"
"""Told apart by the color-blind (Okabe and Ito); what they mean is written beside them, too."""


def draw_directions() -> Figure:
    """The three questions at once: one arrow ``u`` from ``p`` to ``p + u`` over a small grid of voxels of 2 × 4 mm."""
    figure = Figure(figsize=(10.6, 4.8), dpi=150)
    fixed, moving = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.055, right=0.88, top=0.82, bottom=0.23, wspace=0.34)
    for axes, title in ((fixed, "fixed image"), (moving, "moving image")):
        _draw_grid(axes)
        axes.set_title(title, fontsize=13, fontweight="bold", pad=14)
    q = (P[0] + U[0], P[1] + U[1])
    _fill(fixed, P, BLUE)
    _label(fixed, P, "p", "white")
    moving.add_patch(
        Rectangle(_corner(P), SIZE_MM[1], SIZE_MM[0], fill=False, edgecolor=BLUE, linewidth=2, linestyle=(0, (3, 2)))
    )
    _fill(moving, q, ORANGE)
    _draw_arrow(moving, q)
    _draw_lookup(figure, fixed, moving, q)
    figure.text(
        0.47,
        0.025,
        f"the file says: u(p) = ({U[0]}, {U[1]}) voxels     "
        f"= ({U[0] * SIZE_MM[0]:g}, {U[1] * SIZE_MM[1]:g}) mm, since a voxel is {SIZE_MM[0]:g} × {SIZE_MM[1]:g} mm",
        ha="center",
        fontsize=12,
    )
    return figure


def _draw_grid(axes: Axes) -> None:
    """Voxels in their size in mm; axis 0 runs down and axis 1 to the right, as arrays are printed."""
    height, width = SHAPE[0] * SIZE_MM[0], SHAPE[1] * SIZE_MM[1]
    for row in range(SHAPE[0] + 1):
        axes.plot([0, width], [row * SIZE_MM[0]] * 2, color="#c4c4c4", linewidth=1, zorder=0)
    for column in range(SHAPE[1] + 1):
        axes.plot([column * SIZE_MM[1]] * 2, [0, height], color="#c4c4c4", linewidth=1, zorder=0)
    axes.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks([(n + 0.5) * SIZE_MM[1] for n in range(SHAPE[1])], [str(n) for n in range(SHAPE[1])])
    axes.set_yticks([(n + 0.5) * SIZE_MM[0] for n in range(SHAPE[0])], [str(n) for n in range(SHAPE[0])])
    axes.tick_params(length=0, labelsize=10, colors="#444444")
    axes.set_ylabel(f"axis 0 ↓  ({SIZE_MM[0]:g} mm)", fontsize=11)
    axes.set_xlabel(f"axis 1 →  ({SIZE_MM[1]:g} mm)", fontsize=11)
    axes.spines[:].set_visible(False)


def _corner(voxel: tuple[int, int]) -> tuple[float, float]:
    return voxel[1] * SIZE_MM[1], voxel[0] * SIZE_MM[0]


def _center(voxel: tuple[int, int]) -> tuple[float, float]:
    return (voxel[1] + 0.5) * SIZE_MM[1], (voxel[0] + 0.5) * SIZE_MM[0]


def _fill(axes: Axes, voxel: tuple[int, int], color: str) -> None:
    axes.add_patch(Rectangle(_corner(voxel), SIZE_MM[1], SIZE_MM[0], facecolor=color, edgecolor="none", zorder=1))


def _label(axes: Axes, voxel: tuple[int, int], text: str, color: str) -> None:
    axes.text(*_center(voxel), text, color=color, ha="center", va="center", fontsize=13, style="italic", zorder=5)


def _draw_arrow(axes: Axes, q: tuple[int, int]) -> None:
    """The displacement, and its two components as dashed legs."""
    (x, y), (right, down) = _center(P), _center(q)
    axes.annotate(
        "",
        (right, down),
        (x, y),
        arrowprops={"arrowstyle": "-|>", "linewidth": 2.6, "color": "black", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 18},
        zorder=4,
    )
    axes.plot([x, x], [y, down], color=GRAY, linestyle="--", linewidth=1.6, zorder=3)
    axes.plot([x, right], [down, down], color=GRAY, linestyle="--", linewidth=1.6, zorder=3)
    axes.text(x - 0.4, (y + down) / 2, f"u[0] = {U[0]}\n{U[0] * SIZE_MM[0]:g} mm", ha="right", va="center", fontsize=11)
    axes.text(
        (x + right) / 2 - 0.6, down + 1.2, f"u[1] = {U[1]},  {U[1] * SIZE_MM[1]:g} mm", ha="center", va="top", fontsize=11
    )
    axes.text((x + right) / 2 + 0.9, (y + down) / 2 - 0.3, "u(p)", ha="left", va="bottom", fontsize=14, style="italic")
    axes.text(x, y - 1.16, "voxel p", ha="center", va="bottom", fontsize=11, color=BLUE)
    axes.annotate(
        "p + u(p)",
        (right + 2, down),
        (SHAPE[1] * SIZE_MM[1] + 0.7, down),
        va="center",
        fontsize=13,
        style="italic",
        color=ORANGE,
    )


def _draw_lookup(figure: Figure, fixed: Axes, moving: Axes, q: tuple[int, int]) -> None:
    """The value comes the other way."""
    below = SIZE_MM[0] / 2
    (x, y), (right, down) = _center(P), _center(q)
    figure.add_artist(
        ConnectionPatch(
            (right, down + below),
            (x, y + below),
            "data",
            "data",
            axesA=moving,
            axesB=fixed,
            arrowstyle="-|>",
            mutation_scale=18,
            connectionstyle="angle3,angleA=-140,angleB=-58",
            color=ORANGE,
            linewidth=1.6,
        )
    )
    figure.text(0.49, 0.18, "warped(p) = moving(p + u(p))", ha="center", fontsize=12, style="italic", color=ORANGE)


def draw_demo() -> bytes:
    """What the demo finds for its first moving image, as PNG."""
    phantom = make_phantom(SHAPE_OF_DEMO, wedge=True)
    with TemporaryDirectory() as folder:
        program = Path(__file__).parents[1] / "process.py"
        subprocess.run([sys.executable, program, "--demo", "--output", folder, "--quiet"], check=True)
        found = read_displacement(Path(folder) / "results" / "disp_0001_0000_0001_0001.nii.gz")
    return draw_case(phantom, [found])


if __name__ == "__main__":
    mpl.use("agg")
    draw_directions().savefig(Path(__file__).with_name("directions.png"))
    Path(__file__).with_name("demo.png").write_bytes(draw_demo())
