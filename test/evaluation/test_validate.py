"""What ``validate`` says of right displacements (nothing), and of each mistake that the challenge has seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers import write_dataset
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from evaluation.__main__ import ALL_SCORED, BAD_INPUT, main
from evaluation.pairs import Pair, read_pairs
from evaluation.submission import examine

Field = NDArray[np.float32]
Shape = tuple[int, int, int]

SHAPE: Shape = (26, 24, 30)
SPACING = (0.8, 1.25, 2.0)
NAME = "disp_0001_0000_0001_0001"


@dataclass(frozen=True)
class Case:
    """A dataset of one pair, and its right displacement."""

    dataset: Path
    field: Field
    affine: NDArray[np.float64]

    @property
    def pair(self) -> Pair:
        return read_pairs(self.dataset)[0]

    def write(self, field: NDArray[Any], *, affine: NDArray[np.float64] | None = None) -> Path:
        """Writes a displacement, and returns its folder."""
        folder = self.dataset.parents[1] / "predictions"
        folder.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(field, self.affine if affine is None else affine), folder / f"{NAME}.nii.gz")
        return folder


def smooth_field(rng: np.random.Generator, shape: Shape, *, width: float = 5, size: float = 2) -> Field:
    """A shift, and a deformation that is smooth."""
    waves = np.stack([gaussian_filter(rng.normal(size=shape), width) for _ in range(3)], axis=-1)
    return np.asarray(size * (waves / waves.std() / 2 + rng.choice([-1, 1], 3) * rng.uniform(0.7, 1.3, 3)), np.float32)


def make_case(
    folder: Path,
    seed: int,
    *,
    shape: Shape = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
    landmarks: bool = False,
    related: bool = True,
) -> Case:
    """A moving image of random blobs, and a fixed one that is the same, moved and in other gray values; or of other blobs."""
    rng = np.random.default_rng(seed)
    field = smooth_field(rng, shape)
    affine = np.diag((-spacing[0], -spacing[1], spacing[2], 1.0))
    positions = np.indices(shape) + np.moveaxis(field, -1, 0)
    moving = gaussian_filter(rng.normal(size=shape), 1.5)
    other = (
        map_coordinates(moving, positions, order=1, mode="nearest") if related else gaussian_filter(rng.normal(size=shape), 1.5)
    )
    dataset = write_dataset(folder, [("T_0001_0000.nii.gz", "T_0001_0001.nii.gz")], name="T")
    (folder / "imagesTr").mkdir()
    for channel, image in (("0000", 2 - np.exp(other * 4)), ("0001", 1 + moving)):
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), folder / "imagesTr" / f"T_0001_{channel}.nii.gz")
    if landmarks:
        (folder / "landmarksTr").mkdir()
        fixed = rng.uniform(4, np.array(shape) - 5, (12, 3))
        moved = fixed + np.stack([map_coordinates(field[..., a], fixed.T, order=1) for a in range(3)], axis=1)
        for channel, points in (("0000", fixed), ("0001", moved)):
            np.savetxt(folder / "landmarksTr" / f"T_0001_{channel}.csv", points, delimiter=",")
    return Case(dataset, field, affine)


def validate(case: Case, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines about problems, and about what was fixed."""
    status = main(["validate", "--dataset", str(case.dataset), "--predictions", str(folder), *arguments])
    *lines, summary = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if not line.startswith(("fixed:", "NOT FIXED:"))]
    assert summary == f"1 pair(s), {len(problems)} problem(s)"
    assert status == (BAD_INPUT if problems else ALL_SCORED)
    return lines


def inverse(field: Field) -> Field:
    """v with v(q) = −u(q + v(q)), by repetition."""
    grid = np.indices(field.shape[:3])
    found = -field
    for _ in range(30):
        at = grid + np.moveaxis(found, -1, 0)
        found = -np.stack([map_coordinates(field[..., a], at, order=1, mode="nearest") for a in range(3)], axis=-1)
    return found


def grid(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.moveaxis(np.indices(shape[:3]), 0, -1)


MILLIMETERS = np.array(SPACING, np.float32)
LPS = np.array([-1, -1, 1], np.float32)
ITK = MILLIMETERS  # the affine has the directions of LPS: its first two axes run backward

WRONG: dict[str, tuple[Callable[[Field], NDArray[Any]], str, bool]] = {
    "half resolution": (lambda u: u[::2, ::2, ::2] / 2, "half resolution", False),
    "half resolution, channel first": (lambda u: np.moveaxis(u[::2, ::2, ::2] / 2, -1, 0), "half resolution", False),
    "channel first": (lambda u: np.moveaxis(u, -1, 0), "channel first", True),
    "millimeters": (lambda u: u * MILLIMETERS, "in millimeters", True),
    "twice": (lambda u: u * 2, "too large by a factor of 2", True),
    "half": (lambda u: u / 2, "too small by a factor of 2", True),
    "reversed axes": (lambda u: u.transpose(2, 1, 0, 3), "its axes are reversed", True),
    "reversed axes, channel first": (lambda u: u.transpose(3, 2, 1, 0), "its axes are reversed", True),
    "other axes": (lambda u: u.transpose(1, 0, 2, 3), "its axes are in another order", True),
    "backward axes": (lambda u: u[::-1], "reversed axes (x backward)", True),
    "sign": (lambda u: -u, "from moving to fixed", True),
    "swapped": (inverse, "fixed and moving swapped", False),
    "z/y/x": (lambda u: u[..., ::-1], "z/y/x", True),
    "y/x/z": (lambda u: u[..., [1, 0, 2]], "components (1, 0, 2)", True),
    "y/z/x": (lambda u: u[..., [1, 2, 0]], "components (2, 0, 1)", True),
    "LPS": (lambda u: u * LPS, "x and y components reversed, as between LPS and RAS", True),
    "vectors of ITK": (lambda u: (u * ITK)[:, :, :, None], "ITK writes fields like this", True),
    "normalized": (lambda u: u[..., ::-1] / ((np.array(SHAPE)[::-1] - 1) / 2), "normalized coordinates (−1 to 1), x/y/z", True),
    "normalized, in order": (lambda u: u / ((np.array(SHAPE) - 1) / 2), "normalized coordinates (−1 to 1):", True),
    "positions": (lambda u: u + grid(u.shape), "positions, not displacements", True),
    "float64": (lambda u: u.astype(np.float64), "expected float32", True),
    "NaN": (lambda u: np.where(u == u[3, 3, 3], np.nan, u), "NaN or infinite", False),
}
"""Each made from a right displacement by one line: what is said, and whether it can be corrected without loss."""


@pytest.mark.parametrize("landmarks", [True, False], ids=["landmarks", "images"])
@pytest.mark.parametrize("mistake", WRONG)
def test_each_mistake_is_named_and_corrected_if_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str, landmarks: bool
) -> None:
    case = make_case(tmp_path / "data", 0, landmarks=landmarks)
    spoil, phrase, lossless = WRONG[mistake]
    wrong = spoil(case.field)
    folder = case.write(wrong if wrong.dtype == np.float64 and mistake == "float64" else wrong.astype(np.float32))
    lines = validate(case, folder, capsys, "--fix", str(tmp_path / "fixed"))
    problem, told = lines
    assert phrase in problem
    assert str(folder / NAME) in problem
    if lossless:
        assert told == f"fixed: {tmp_path / 'fixed' / NAME}.nii.gz"
        found: Any = nibabel.load(tmp_path / "fixed" / f"{NAME}.nii.gz")
        assert found.get_data_dtype() == np.float32
        assert np.asarray(found.dataobj) == pytest.approx(case.field, abs=1e-5)
        assert validate(case, tmp_path / "fixed", capsys) == []
    else:
        assert told == f"NOT FIXED: {NAME}: it cannot be corrected without loss"
        assert not (tmp_path / "fixed" / f"{NAME}.nii.gz").exists()


@pytest.mark.parametrize(
    ("spoil", "phrase"),
    [
        (lambda u: u * 3, "halve it (its landmarks are "),
        (lambda u: u * 3, "; something else may be wrong, too)"),
        (lambda u: u * -0.3, "expected a displacement that helps, but its landmarks are "),
    ],
)
def test_what_no_mistake_explains_is_not_fixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Field], Field], phrase: str
) -> None:
    case = make_case(tmp_path / "data", 0, landmarks=True)
    problem, told = validate(case, case.write(spoil(case.field)), capsys, "--fix", str(tmp_path / "fixed"))
    assert phrase in problem
    assert told.startswith(f"NOT FIXED: {NAME}: ")
    assert not (tmp_path / "fixed" / f"{NAME}.nii.gz").exists()


def test_a_mistake_is_one_of_all_displacements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three pairs with one displacement, as many as are doubled decide whether they are halved."""
    case = make_case(tmp_path / "data", 0, landmarks=True)
    for place, suffix in (("imagesTr", ".nii.gz"), ("landmarksTr", ".csv")):
        for number, channel in ((n, c) for n in (2, 3) for c in ("0000", "0001")):
            path = case.dataset.parent / place / f"T_000{number}_{channel}{suffix}"
            path.write_bytes(path.with_name(f"T_0001_{channel}{suffix}").read_bytes())
    write_dataset(case.dataset.parent, [(f"T_000{n}_0000.nii.gz", f"T_000{n}_0001.nii.gz") for n in (1, 2, 3)], name="T")
    folder = case.write(case.field * 2)
    names = [NAME.replace("1_000", f"{n}_000") for n in (1, 2, 3)]
    for doubled, told in ((1, ["NOT FIXED", "fixed", "fixed"]), (2, ["fixed", "fixed", "NOT FIXED"])):
        for number, name in enumerate(names):
            field = case.field * np.float32(2 if number < doubled else 1)
            nibabel.save(nibabel.Nifti1Image(field, case.affine), folder / f"{name}.nii.gz")
        main(["validate", "--dataset", str(case.dataset), "--predictions", str(folder), "--fix", str(tmp_path / f"f{doubled}")])
        lines = capsys.readouterr().out.splitlines()
        fixed = [line for line in lines if line.startswith(("fixed", "NOT FIXED"))]
        wanted = [line for line in told if line != "fixed"] if doubled == 1 else told
        assert [line.split(":")[0] for line in fixed] == wanted


@pytest.mark.parametrize("components", [False, True])
@pytest.mark.parametrize("landmarks", [True, False], ids=["landmarks", "images"])
def test_reversed_axes_of_a_cube(tmp_path: Path, capsys: pytest.CaptureFixture[str], landmarks: bool, components: bool) -> None:
    """Its shape says nothing."""
    case = make_case(tmp_path / "data", 1, shape=(26, 26, 26), landmarks=landmarks)
    wrong = case.field.transpose(2, 1, 0, 3)
    folder = case.write(wrong[..., ::-1] if components else wrong)
    problem, _ = validate(case, folder, capsys, "--fix", str(tmp_path / "fixed"))
    assert "with reversed axes (z, y, x" in problem
    assert ("of array and components" in problem) == components
    assert validate(case, tmp_path / "fixed", capsys) == []


def test_on_half_millimeters_two_mistakes_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(tmp_path / "data", 2, spacing=(0.5, 0.5, 0.5), landmarks=True)
    (problem,) = validate(case, case.write(case.field * np.float32(0.5)), capsys)
    assert "in millimeters or too small by a factor of 2" in problem


def test_the_affine_is_corrected_and_what_is_right_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(tmp_path / "data", 3, landmarks=True)
    folder = case.write(case.field, affine=np.eye(4))
    problem, _ = validate(case, folder, capsys, "--fix", str(tmp_path / "fixed"))
    assert "expected the affine of T_0001_0000.nii.gz" in problem
    assert validate(case, tmp_path / "fixed", capsys, "--fix", str(tmp_path / "again")) == []
    name = f"{NAME}.nii.gz"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "fixed" / name).read_bytes()
    assert main(["validate", "--dataset", str(case.dataset), "--predictions", str(folder), "--fix", str(folder)]) == BAD_INPUT
    assert "expected another folder" in capsys.readouterr().err


def test_an_archive_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(tmp_path / "data", 4, landmarks=True)
    folder = tmp_path / "predictions"
    folder.mkdir()
    np.savez(folder / f"{NAME}.npz", np.moveaxis(case.field, -1, 0).astype(np.float16))
    assert "channel first" in validate(case, folder, capsys, "--fix", str(tmp_path / "fixed"))[0]
    assert validate(case, tmp_path / "fixed", capsys) == []


def test_displacements_in_another_unit_leave_the_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(tmp_path / "data", 5, landmarks=True)
    (problem,) = validate(case, case.write(case.field * np.float32(1000)), capsys)
    assert "expected displacements in voxels, found some that take 100% of the voxels out of the volume" in problem


def right_cases(folder: Path) -> Iterator[tuple[str, Case]]:
    """Fifty: with landmarks, with images alone, and with images that have nothing to do with each other."""
    rng = np.random.default_rng(9)
    kinds = (("landmarks", True, True), ("images", False, True), ("strangers", False, False))
    for seed in range(50):
        kind, landmarks, related = kinds[seed % 3]
        cube = seed % 4 == 0
        sizes = (22, 22, 22) if cube else tuple(int(n) for n in rng.integers(18, 30, 3))
        x, y, z = (float(s) for s in rng.choice([0.5, 0.8, 1.0, 2.5], 3))
        shape = (sizes[0], sizes[1], sizes[2])
        yield kind, make_case(folder / str(seed), seed, shape=shape, spacing=(x, y, z), landmarks=landmarks, related=related)


def test_nothing_is_said_of_fifty_right_displacements(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    for kind, case in right_cases(tmp_path):
        noise = rng.normal(0, 0.1, case.field.shape) if kind == "landmarks" else 0
        folder = case.write((case.field + noise).astype(np.float32))
        assert examine(case.pair, folder).problems == [], case.dataset
    assert examine(case.pair, case.write(np.zeros_like(case.field))).problems == []
