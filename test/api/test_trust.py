"""What a result says of itself: uncertainty, motion and shift, as files, for landmarks, and on the page."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from geometry import make_grid

import mcbo
from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.studies.phantom import make_phantom

SHAPE = (48, 44, 52)
GRID = make_grid(SHAPE, (0.8, 1.0, 1.2), (0.1, 0, 0.2), (5, -8, 40))
EXTRAS = ("uncertainty", "motion", "shift")


@pytest.fixture(scope="module")
def images() -> tuple[Any, Any]:
    phantom = make_phantom(SHAPE, seed=3)
    return phantom.fixed[0, 0].numpy(), phantom.cet1[0, 0].numpy()


@pytest.fixture(scope="module")
def out(images: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files of a result, whose images are in µm."""
    folder = tmp_path_factory.mktemp("trust")
    for name, image in zip(("fixed", "moving"), images, strict=True):
        file = nibabel.Nifti1Image(image, GRID.affine)
        file.header.set_xyzt_units("micron")
        nibabel.save(file, folder / f"{name}.nii.gz")
    words = [word for kind in EXTRAS for word in ("--also", kind)]
    paths = [str(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    assert main(["register", *paths, "--output", str(folder / "out"), *words, "--accept", "full"]) == 0
    return folder / "out"


def values(path: Path) -> Any:
    file = nibabel.load(path)
    assert file.header.get_xyzt_units()[0] == "micron"  # type: ignore[attr-defined]
    return np.asarray(file.dataobj)  # type: ignore[attr-defined]


def test_motion_is_the_length_of_the_displacement_in_the_unit_of_the_image(out: Path) -> None:
    lengths = np.linalg.norm(values(out / "displacement.nii.gz") @ GRID.affine[:3, :3].T, axis=-1)
    assert np.abs(values(out / "motion.nii.gz") - lengths).max() < 0.8 / 128
    shift = values(out / "shift.nii.gz")
    assert 0 <= shift.min() < 0.1
    assert np.median(shift) < np.median(lengths)


def test_the_report_sums_up_the_shift(out: Path) -> None:
    case = json.loads((out / "report.json").read_text())["cases"]["result"]
    shift = case["shift"]["moving"]
    seen = values(out / "uncertainty.nii.gz")
    assert shift["largest_mm"] * 1e3 <= values(out / "shift.nii.gz").max() + 0.01
    assert 0 < shift["median_mm"] < shift["largest_mm"] < 0.05
    assert 0.2 < np.isfinite(seen).mean() < 1
    assert 0.02 < np.nanmedian(seen) < 5
    assert set(case["files"]["moving"]) == {"displacement", "transform", "inverse", "warped", *EXTRAS}


def test_every_landmark_is_told_how_far_it_is_trusted(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bounds = values(out / "uncertainty.nii.gz")
    known = tuple(np.argwhere(np.isfinite(bounds))[5000].tolist())
    unknown = tuple(np.argwhere(~np.isfinite(bounds))[0].tolist())
    points = tmp_path / "points.csv"
    points.write_text("".join(",".join(map(str, point)) + "\n" for point in (known, unknown)))
    assert main(["warp", str(out / "displacement.nii.gz"), "--points", str(points), "--output", str(tmp_path / "x.csv")]) == 0
    told = capsys.readouterr().out
    assert "point 1: within " in told
    assert f"{bounds[known]:.2g} µm" in told
    assert "point 2: unknown, outside of what both images show" in told


def test_the_page_shows_uncertainty_and_shift(out: Path) -> None:
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "<h4>Uncertainty, in µm</h4>" in page
    assert "Shift beyond a rigid motion of " in page


def test_what_was_not_asked_for_cannot_be_written(images: tuple[Any, Any], tmp_path: Path) -> None:
    result = mcbo.register(*images, affine=GRID.affine, preset="cascade")
    with pytest.raises(InputError, match="also: expected a result whose uncertainty was asked for"):
        result.save(tmp_path, also="uncertainty")
    with pytest.raises(InputError, match="also: expected some of uncertainty, motion, shift, got doubt"):
        result.save(tmp_path, also=["doubt"])
    assert not list(tmp_path.iterdir())
    names = {path.name for path in result.save(tmp_path, without=("transform", "inverse", "warped"), also=["shift"])}
    assert names == {"displacement.nii.gz", "shift.nii.gz", "report.json"}
