"""Do ANTs and this program agree? Run by hand: ANTs is too large to be installed for the tests.

    python3 -m venv ants && ants/bin/pip install antspyx==0.6.3
    .venv/bin/python test/manual/ants_check.py ants/bin/python

An oblique, anisotropic pair of different grids: the displacement is exported for ANTs, and ``ants.apply_transforms`` and
``ants.apply_transforms_to_points`` are compared with ``warp``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from geometry import FIXED, LPS, MOVING, blobs, inner_points, smooth_field

from mcbo.cli.main import main
from mcbo.io.images import read_intensities, write_any
from mcbo.io.nifti import write_displacement

ANTS = """
import sys
import ants, pandas
folder = sys.argv[1]
fixed, moving = (ants.image_read(f"{folder}/{name}.nii.gz") for name in ("fixed", "moving"))
warp = [f"{folder}/field_ants.nii.gz"]
labels = ants.image_read(f"{folder}/labels.nii.gz")
for name, given, interpolator in (("image", moving, "linear"), ("nearest", labels, "nearestNeighbor")):
    warped = ants.apply_transforms(fixed, given, warp, interpolator=interpolator, defaultvalue=0)
    ants.image_write(warped, f"{folder}/ants_{name}.nii.gz")
points = pandas.read_csv(f"{folder}/points_lps.csv")
ants.apply_transforms_to_points(3, points, warp).to_csv(f"{folder}/ants_points.csv", index=False)
"""


def run(*words: object) -> None:
    if main([str(word) for word in words]):
        sys.exit(f"failed: {words}")


def check(ants_python: str, folder: Path) -> None:
    field = folder / "field.nii.gz"
    write_displacement(field, smooth_field(FIXED, largest=3), FIXED.affine)
    write_any(folder / "fixed.nii.gz", blobs(FIXED), FIXED)
    write_any(folder / "moving.nii.gz", blobs(MOVING), MOVING)
    write_any(folder / "labels.nii.gz", (blobs(MOVING) // 20).int(), MOVING)
    world = inner_points(FIXED, 500).numpy()
    np.savetxt(folder / "points.csv", world, delimiter=",", fmt="%.9f")
    np.savetxt(folder / "points_lps.csv", world @ LPS, delimiter=",", fmt="%.9f", header="x,y,z", comments="")
    run("export", field, "--to", "ants")
    run("warp", field, "--image", folder / "moving.nii.gz", "--output", folder / "image.nii.gz")
    run(
        "warp", field, "--labels", folder / "labels.nii.gz", "--interpolation", "nearest", "--output", folder / "nearest.nii.gz"
    )
    run("warp", field, "--points", folder / "points.csv", "--unit", "mm", "--output", folder / "moved.csv")
    subprocess.run([ants_python, "-c", ANTS, str(folder)], check=True)

    ours, theirs = (read_intensities(folder / f"{name}image.nii.gz")[0] for name in ("", "ants_"))
    both = (ours > 0) & (theirs > 0)  # the image has no zero of its own
    difference = (ours - theirs)[both].abs()
    print(
        f"image: {both.float().mean():.0%} of the voxels seen by both, {((ours > 0) != (theirs > 0)).float().mean():.2%} by one"
    )
    print(f"image: largest difference {difference.max() / 100:.5%} of the range, mean {difference.mean() / 100:.5%}")
    nearest, theirs = (read_intensities(folder / f"{name}nearest.nii.gz")[0] for name in ("", "ants_"))
    print(f"labels, nearest: {(nearest != theirs).float().mean():.3%} of the voxels differ")
    moved, theirs_moved = (
        np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=n) for n, name in enumerate(("moved", "ants_points"))
    )
    distance = np.linalg.norm(moved - theirs_moved[:, :3] @ LPS, axis=1)
    print(f"points: moved by {np.linalg.norm(moved - world, axis=1).mean():.2f} mm; largest distance {distance.max():.2g} mm")
    if float(difference.max()) > 0.5 or distance.max() > 1e-3:
        sys.exit("they do not agree")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}\nexpected the python of an environment that has antspyx")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        check(sys.argv[1], Path(name))
