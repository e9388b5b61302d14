"""Displacements as layers of napari, without napari: which files are opened, and what becomes of them."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mcbo.core.errors import McboError
from mcbo.geometry.units import Unit
from mcbo.io.nifti import write_displacement, write_volume
from mcbo.napari.layers import MAX_VECTORS, spread, vectors_layer
from mcbo.napari.reader import get_reader
from mcbo.napari.sample import demo

AFFINE = np.array([[0.0, -2, 0, 10], [1.5, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


def write_field(path: Path, unit: Unit = "mm") -> Path:
    displacement = torch.zeros(1, 3, 5, 6, 7)
    displacement[0, 1] = 2  # voxels of 2 mm
    displacement[0, 2, 4] = 1
    write_displacement(path, displacement, AFFINE, unit)
    return path


@pytest.mark.parametrize("name", ["displacement.nii.gz", "disp_0001_0002.nii"])
def test_a_displacement_is_a_layer_of_vectors(tmp_path: Path, name: str) -> None:
    path = str(write_field(tmp_path / name))
    reader = get_reader(path)
    assert reader is not None
    ((vectors, settings, kind),) = reader(path)
    assert kind == "vectors"
    assert vectors.shape == (5 * 6 * 7, 2, 3)
    affine = settings["affine"]  # from data, whose axes are in the order of the world's
    np.testing.assert_allclose(affine, nibabel.as_closest_canonical(nibabel.load(path)).affine)
    at = {tuple((affine @ [*start, 1])[:3].round(3)): affine[:3, :3] @ step for start, step in vectors}
    for voxel, step in (((0, 5, 6), (0, 2, 0)), ((4, 0, 0), (0, 2, 1)), ((2, 3, 4), (0, 2, 0))):
        np.testing.assert_allclose(at[tuple((AFFINE @ [*voxel, 1])[:3])], AFFINE[:3, :3] @ step)
    assert settings["units"] == ("mm",) * 3
    np.testing.assert_allclose(sorted(set(settings["features"]["length"].round(6))), [4, 5])  # mm; a step of 3 mm and one of 4


def test_micrometers_stay_micrometers(tmp_path: Path) -> None:
    path = str(write_field(tmp_path / "displacement.nii.gz", "um"))
    reader = get_reader(path)
    assert reader is not None
    ((_, settings, _),) = reader(path)
    np.testing.assert_allclose(settings["affine"], nibabel.as_closest_canonical(nibabel.load(path)).affine)
    np.testing.assert_allclose(settings["affine"][2, 3], 30_000)
    assert settings["units"] == ("um",) * 3
    assert settings["name"] == "displacement.nii.gz (µm)"
    np.testing.assert_allclose(settings["features"]["length"].max(), 5000)


def test_several_files_are_several_layers(tmp_path: Path) -> None:
    paths = [str(write_field(tmp_path / name)) for name in ("one.nii", "two.nii.gz")]
    reader = get_reader(paths)
    assert reader is not None
    assert [settings["name"] for _, settings, _ in reader(paths)] == ["one.nii (mm)", "two.nii.gz (mm)"]
    image = tmp_path / "image.nii"
    write_volume(image, torch.rand(1, 1, 5, 6, 7), np.eye(4))
    assert get_reader([paths[0], str(image)]) is None
    assert get_reader([]) is None


def series(shape: tuple[int, ...] = (5, 6, 7, 3), dtype: type = np.float32) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(np.zeros(shape, dtype), AFFINE, dtype=dtype)


def with_intent(code: int) -> nibabel.Nifti1Image:
    image = series()
    image.header.set_intent(code)
    return image


def with_time() -> nibabel.Nifti1Image:
    image = series()
    image.header.set_xyzt_units("mm", "sec")
    return image


@pytest.mark.parametrize(
    "make",
    [
        lambda: series((5, 6, 7)),
        lambda: series((5, 6, 7, 4)),
        lambda: series((5, 6, 7, 1, 3)),  # as ANTs has it
        lambda: series(dtype=np.int16),
        lambda: series(dtype=np.float64),
        lambda: with_intent(1006),  # vectors in millimeters
        lambda: with_intent(2006),  # of FSL
        with_time,
    ],
)
@pytest.mark.parametrize("name", ["other.nii", "other.nii.gz"])
def test_other_images_are_left_to_other_readers(tmp_path: Path, make: Callable[[], nibabel.Nifti1Image], name: str) -> None:
    path = tmp_path / name
    nibabel.save(make(), path)
    assert get_reader(str(path)) is None


def test_what_is_no_image_is_left_to_other_readers(tmp_path: Path) -> None:
    assert get_reader(str(tmp_path / "missing.nii.gz")) is None
    (tmp_path / "folder.nii").mkdir()
    assert get_reader(str(tmp_path / "folder.nii")) is None
    for content in (b"", b"text", b"\x1f\x8b broken"):
        (tmp_path / "file.nii.gz").write_bytes(content)
        assert get_reader(str(tmp_path / "file.nii.gz")) is None


def test_a_displacement_that_ends_too_early_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_field(tmp_path / "displacement.nii.gz")
    reader = get_reader(str(path))
    assert reader is not None
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(McboError, match=r"displacement\.nii\.gz"):
        reader(str(path))


def test_vectors_are_few_and_in_every_slice() -> None:
    shape = (150, 90, 60)
    places = spread(shape)
    assert len(places) <= MAX_VECTORS <= 10_000
    assert len(np.unique(places, axis=0)) == len(places) > 0.95 * MAX_VECTORS
    for axis, size in enumerate(shape):
        counts = np.bincount(places[:, axis], minlength=size)
        mean = len(places) / size
        assert len(counts) == size
        assert 0.7 * mean < counts.min() <= counts.max() < 1.3 * mean
    halves = (places < np.array(shape) // 2).astype(int) @ (4, 2, 1)
    assert np.ptp(np.bincount(halves)) < 0.02 * len(places)


def test_there_are_no_vectors_where_nothing_is_known() -> None:
    displacement = np.ones((4, 5, 6, 3), np.float32)
    displacement[0, 0, 0, 1] = np.nan
    known = np.zeros((4, 5, 6), dtype=bool)
    known[0, 0, :2] = True
    vectors, settings, _ = vectors_layer(displacement, np.eye(4), {}, name="u", known=known)
    np.testing.assert_array_equal(vectors, [[[0, 0, 1], [1, 1, 1]]])
    np.testing.assert_allclose(settings["features"]["length"], np.sqrt(3))
    none, _, _ = vectors_layer(displacement, np.eye(4), {}, name="u", known=np.zeros_like(known))
    assert none.shape == (0, 2, 3)


def test_the_sample_has_a_pair_of_one_grid() -> None:
    (fixed, _, _), (moving, settings, kind) = demo()
    assert fixed.shape == moving.shape
    assert (kind, settings["units"]) == ("image", ("mm",) * 3)
