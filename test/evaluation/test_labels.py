"""Label maps of any integers, and of thousands of labels: the right numbers, in a time that grows with the voxels."""

import json
import math
import time
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import surface_distance
from helpers import write_dataset
from numpy.typing import NDArray
from scipy import ndimage

from evaluation.__main__ import SOME_FAILED, main
from evaluation.errors import EvaluationError
from evaluation.images import read_labels
from evaluation.metrics import dice, dices, hd95, hd95s

NAMES = [f"ReMIND2Reg_0001_000{channel}.nii.gz" for channel in range(2)]


def of_the_library(fixed: NDArray[np.integer], warped: NDArray[np.integer], label: int) -> tuple[float, float]:
    one, other = fixed == label, warped == label
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        surfaces = surface_distance.compute_surface_distances(one, other, (1.0, 1.0, 1.0))
        hausdorff = surface_distance.compute_robust_hausdorff(surfaces, 95.0)
    return float(surface_distance.compute_dice_coefficient(one, other)), float(hausdorff)


@pytest.mark.parametrize("kind", ["noise", "regions", "one voxel each", "touching the border"])
@pytest.mark.parametrize("shape", [(20, 21, 22), (9, 30, 14), (5, 5, 5)])
def test_all_labels_at_once_are_as_one_by_one(kind: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(len(kind))
    fixed = rng.integers(0, 4, shape)
    if kind == "regions":
        fixed = np.digitize(ndimage.gaussian_filter(rng.standard_normal(shape), 2), [-0.1, 0, 0.1])
    elif kind == "one voxel each":
        fixed = np.where(rng.random(shape) < 0.05, rng.integers(0, 9, shape), 0)
    elif kind == "touching the border":
        fixed = np.ones(shape, int)
        fixed[1:] = 2
    warped = ndimage.shift(fixed, (1, 0, -1), order=0)
    labels = sorted(set(np.unique(fixed)) & set(np.unique(warped)) - {0})
    assert labels
    expected = [of_the_library(fixed, warped, int(label)) for label in labels]
    assert dices(fixed, warped, labels) == pytest.approx([value for value, _ in expected], abs=1e-12)
    assert hd95s(fixed, warped, labels) == pytest.approx([value for _, value in expected], abs=1e-12)
    assert [hd95(fixed, warped, int(label)) for label in labels] == hd95s(fixed, warped, labels)
    assert [dice(fixed, warped, int(label)) for label in labels] == dices(fixed, warped, labels)


def test_large_surfaces_are_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    fixed, warped = rng.integers(0, 3, (2, 12, 13, 14))
    compared = hd95s(fixed, warped, [1, 2])
    monkeypatch.setattr("evaluation.metrics._FEW", 0)
    assert hd95s(fixed, warped, [1, 2]) == compared


def test_a_label_that_is_away() -> None:
    fixed, warped = np.zeros((2, 6, 7, 8), int)
    fixed[1:3, 1:3, 1:3], warped[2:4, 2:4, 2:4] = 1, 2
    assert hd95s(fixed, warped, [1, 2, 3]) == [math.inf] * 3
    assert dices(fixed, warped, [1, 2]) == [0.0, 0.0]
    assert math.isnan(dice(fixed, warped, 3))
    assert hd95s(np.zeros_like(fixed), np.zeros_like(fixed), []) == []


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", [(NAMES[0], NAMES[1])])


def score(dataset: Path, fixed: NDArray[np.generic], moving: NDArray[np.generic], *more: str) -> dict[str, object]:
    """The case as ``score`` reports it, for these label maps and no displacement."""
    folder = dataset.parent
    shape = fixed.shape
    for name, labels in zip(NAMES, (fixed, moving), strict=True):
        for kind, array in (("imagesTr", np.zeros(shape, np.int16)), ("labelsTr", labels)):
            (folder / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4), dtype=array.dtype), folder / kind / name)
    predictions = folder.parent / "predictions"
    predictions.mkdir(exist_ok=True)
    field = nibabel.Nifti1Image(np.zeros((*shape, 3), np.float32), np.eye(4))
    nibabel.save(field, predictions / "disp_0001_0000_0001_0001.nii.gz")
    judged = ["score", "--dataset", str(dataset), "--predictions", str(predictions), "--output", str(folder / "scores.json")]
    status = main([*judged, "--metrics", "dice,hd95", *more])
    content = json.loads((folder / "scores.json").read_text())
    (case,) = content["cases"].values()
    assert (status == SOME_FAILED) == ("error" in case)
    found: dict[str, object] = case
    return found


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_labels_of_any_type_are_told_apart(dataset: Path, dtype: type[np.generic]) -> None:
    """Neighbors at the end of what the type holds: floating point would make them one, and 32 bits would wrap them."""
    is_whole = np.issubdtype(dtype, np.integer)
    top = min(int(np.iinfo(dtype).max), 2**63 - 1) if is_whole else 2**24 if dtype == np.float32 else 2**53 - 1  # type: ignore[type-var]
    low = top - 2**32 if top > 2**33 and is_whole else 3
    fixed = np.zeros((8, 9, 10), dtype)
    fixed[1:3], fixed[3:5], fixed[5:7] = low, top - 1, top
    moving = fixed.copy()
    moving[6] = top - 1
    case = score(dataset, fixed, moving)
    assert case["DSC"]["labels"] == [low, top - 1, top]  # type: ignore[index]
    assert case["DSC"]["detailed"] == pytest.approx([1, 0.8, 2 / 3])  # type: ignore[index]


def test_labels_beyond_64_bits_are_a_sentence(dataset: Path, tmp_path: Path) -> None:
    fixed = np.zeros((8, 9, 10), np.uint64)
    fixed[2:5] = 2**63
    case = score(dataset, fixed, fixed)
    assert str(case["error"]).endswith("expected labels below 2⁶³, found 9223372036854775808")
    floating = fixed.astype(np.float64)
    assert "expected labels below 2⁵³, or stored as integers, found" in str(score(dataset, floating, floating)["error"])
    nibabel.save(nibabel.Nifti1Image(np.full((2, 3, 4), 1.6), np.eye(4)), tmp_path / "a.nii")
    assert (read_labels(tmp_path / "a.nii", (2, 3, 4)) == 2).all()
    with pytest.raises(EvaluationError, match=r"expected shape \(2, 3, 5\)"):
        read_labels(tmp_path / "a.nii", (2, 3, 5))


def test_negative_labels_and_the_background_count_where_they_are_asked_for(dataset: Path) -> None:
    fixed = np.full((8, 9, 10), -5, np.int16)
    fixed[2:5] = 0
    case = score(dataset, fixed, fixed)
    assert case["DSC"]["labels"] == [-5]  # type: ignore[index]
    config = dataset.parent / "config.json"
    methods = [{"metric": "dice", "name": "DSC", "labels": [0, 7]}]
    config.write_text(json.dumps({"evaluation_methods": methods}))
    case = score(dataset, fixed, fixed, "--config", str(config))
    assert case["DSC"]["detailed"] == [1.0, None]  # type: ignore[index]


def test_thousands_of_labels_take_no_more_time_than_their_voxels(dataset: Path) -> None:
    fixed, moving = np.random.default_rng(0).integers(0, 3000, (2, 32, 32, 32)).astype(np.int32) * 1_000_003 % (2**31 - 1)
    start = time.process_time()
    case = score(dataset, fixed, moving)
    assert time.process_time() - start < 10
    assert len(case["HD95"]["labels"]) > 2000  # type: ignore[index]
    assert isinstance(case["DSC"]["mean"], float)  # type: ignore[index]


def test_an_image_taken_for_labels_is_a_sentence(dataset: Path) -> None:
    fixed = np.arange(32**3, dtype=np.int32).reshape(32, 32, 32)
    case = score(dataset, fixed, fixed)
    assert str(case["error"]).endswith("expected at most 16384 labels, found 32768; is it an image?")
