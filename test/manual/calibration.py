"""Stated bounds of errors against true errors, on datasets whose true displacement is known (docs/results.md, "Uncertainty").

    python test/manual/calibration.py DATASET_JSON…

Truths are ``truth/CASE.npz`` beside the JSON, see ``mcbo.studies.truth``. All moving images of a case are registered jointly.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mcbo
from mcbo.core.types import Displacement
from mcbo.dataset.learn2reg import read_json
from mcbo.io.nifti import read_image
from mcbo.methods.presets import DEFAULT_TASK
from mcbo.studies.truth import Truth, read_truths

COMULIS = "COMULIS3DCLEM"
EDGES_MM = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, np.inf)


def errors(truth: Truth, displacement: Displacement, spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances from the truth, ``(h, w, d)`` mm, on its voxels."""
    n = truth.step
    found = displacement[0, :, ::n, ::n, ::n].movedim(0, -1).numpy()
    return np.asarray(np.linalg.norm((found - truth.displacement) * spacing_mm, axis=-1))


def measure(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds and errors, mm, of all cases of a dataset, at every voxel of their truths in the field of view."""
    cases = read_json(path, split="val").cases
    truths = read_truths(path.parent / "truth", cases, required=True)
    task = COMULIS if COMULIS in path.name else DEFAULT_TASK
    bounds, found = [], []
    for case in cases:
        movings = [str(pair.moving) for pair in case.pairs]
        result = mcbo.register(str(case.fixed), movings, preset="cascade", task=task, uncertainty=True)
        truth = truths[case.name]
        spacing = np.linalg.norm(read_image(case.fixed).affine[:3, :3], axis=0)
        bound = result.bounds[0][0, 0, :: truth.step, :: truth.step, :: truth.step].numpy()
        known = truth.seen & np.isfinite(bound)
        bounds.append(bound[known])
        found.append(errors(truth, result.transforms[0].tensor, spacing)[known])
        print(f"{path.parent.name} {case.name}: {result.summary}; {known.sum() / truth.seen.sum():.0%} of the field of view")
    return np.concatenate(bounds), np.concatenate(found)


def table(name: str, bounds: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    """Prints a row of Markdown for each bin of the bound."""
    for low, high in itertools.pairwise(EDGES_MM):
        inside = (bounds > low) & (bounds <= high)
        if inside.any():
            these = found[inside]
            print(
                f"| {name} | {low:g} to {high:g} mm | {inside.mean():.1%} | {np.mean(these):.2f} mm | "
                f"{np.quantile(these, 0.8):.2f} mm | {(these <= bounds[inside]).mean():.0%} |"
            )
    if (bounds <= 1).any():
        print(f"{name}: of the voxels with at most 1 mm, {(found[bounds <= 1] <= 1).mean():.1%} are")


def main() -> None:
    for text in sys.argv[1:]:
        path = Path(text)
        table(path.parent.name, *measure(path))


if __name__ == "__main__":
    main()
