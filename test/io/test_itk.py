"""Round trips with SimpleITK, on an oblique, anisotropic pair of different grids."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
import torch
from geometry import FIXED, MOVING, as_itk_transform, as_sitk, blobs, inner_points, itk_points, smooth_field

from mcbo.core.errors import InputError, OutputError, ShapeError
from mcbo.geometry.grid import Grid
from mcbo.geometry.inverse import fixed_to_moving
from mcbo.geometry.resample import resample
from mcbo.io import itk_files
from mcbo.io.images import read_any, read_intensities, read_labels, write_any
from mcbo.io.itk import from_sitk, from_vectors, to_sitk, to_transform, to_vectors
from mcbo.io.itk_files import read_transform, write_transform

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

FIELD = smooth_field(FIXED, largest=3)
SHEARED = Grid(FIXED.shape, FIXED.affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))


def test_images_there_and_back() -> None:
    volume = blobs(MOVING)
    image = to_sitk(volume, MOVING)
    assert image.GetPixel(3, 5, 7) == volume[0, 0, 3, 5, 7]
    again, grid = from_sitk(image)
    assert torch.equal(again, volume)
    assert grid.matches(MOVING, within_voxels=1e-9)


def test_our_transform_takes_points_as_we_do() -> None:
    world = inner_points(FIXED, 200)
    ours = fixed_to_moving(world, FIELD, FIXED).world
    assert (ours - itk_points(to_transform(FIELD, FIXED), world)).norm(dim=1).max() <= 1e-3
    assert (ours - itk_points(as_itk_transform(FIELD, FIXED), world)).norm(dim=1).max() <= 1e-3


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".nii.gz", ".nii", ".nrrd", ".mha"])
def test_itk_reads_what_we_write_and_we_read_it_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"field{suffix}"
    write_transform(path, FIELD, FIXED)
    if suffix in (".h5", ".tfm"):
        transform = sitk.ReadTransform(str(path))
    else:
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    world = inner_points(FIXED, 100, margin=0.1)  # NIfTI rounds the grid to float32
    assert (fixed_to_moving(world, FIELD, FIXED).world - itk_points(transform, world)).norm(dim=1).max() <= 1e-3
    volume = blobs(MOVING)
    theirs = sitk.Resample(as_sitk(volume[0, 0].numpy(), MOVING), to_sitk(blobs(FIXED), FIXED), transform, sitk.sitkLinear, -7)
    ours = resample(volume, MOVING, FIXED, displacement=FIELD, outside=-7)
    both = (ours != -7) & (from_sitk(theirs)[0] != -7)
    assert both.float().mean() > 0.3
    assert (ours - from_sitk(theirs)[0])[both].abs().max() <= 0.5
    again, grid = read_transform(path, None)
    assert grid.matches(FIXED)
    assert torch.allclose(again, FIELD, atol=1e-4)


def test_ants_finds_a_five_dimensional_image_of_vectors(tmp_path: Path) -> None:
    write_transform(tmp_path / "a.nii.gz", FIELD, FIXED)
    header = nibabel.Nifti1Image.from_filename(tmp_path / "a.nii.gz").header
    assert header.get_data_shape() == (*FIXED.shape, 1, 3)
    assert header["intent_code"] == 1007


def test_sheared_axes_are_kept_or_refused(tmp_path: Path) -> None:
    write_transform(tmp_path / "a.h5", FIELD, SHEARED)
    again, grid = read_transform(tmp_path / "a.h5", None)
    assert grid.matches(SHEARED)
    assert torch.allclose(again, FIELD, atol=1e-4)
    with pytest.raises(
        OutputError, match=r"a\.nii\.gz: expected a name ending in \.h5 or \.nrrd: ITK does not store sheared axes"
    ):
        write_transform(tmp_path / "a.nii.gz", FIELD, SHEARED)


def test_other_transforms_need_a_grid_and_then_do_the_same(tmp_path: Path) -> None:
    rigid = sitk.Euler3DTransform((10.0, -20.0, 5.0), 0.1, -0.2, 0.3, (4.0, 5.0, -6.0))
    chain = sitk.CompositeTransform([as_itk_transform(FIELD, FIXED), rigid])
    world = inner_points(FIXED, 50)
    for name, transform in (("rigid.tfm", rigid), ("rigid.mat", rigid), ("chain.h5", chain)):
        sitk.WriteTransform(transform, str(tmp_path / name))
        with pytest.raises(InputError, match=r"has no grid of its own: expected --reference"):
            read_transform(tmp_path / name, None)
        field, grid = read_transform(tmp_path / name, FIXED)
        found = fixed_to_moving(world, field, grid)
        assert (found.world - itk_points(transform, world)).norm(dim=1).max() <= (1e-3 if name != "chain.h5" else 0.5)


def test_what_is_no_transform_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.nrrd").write_text("hello")
    flat = sitk.DisplacementFieldTransform(sitk.Image((5, 5), sitk.sitkVectorFloat64))
    sitk.WriteTransform(flat, str(tmp_path / "flat.h5"))
    sitk.WriteImage(as_sitk(np.ones((4, 5, 6), np.float32), Grid((4, 5, 6), np.eye(4))), str(tmp_path / "scalar.nrrd"))
    for name, message in (
        ("absent.h5", "no such file"),
        ("text.h5", "cannot be read"),
        ("text.nrrd", "cannot be read"),
        ("flat.h5", "expected a transform of 3 dimensions, found 2"),
        ("scalar.nrrd", "expected 3 numbers per voxel, found 1"),
    ):
        with pytest.raises(InputError, match=rf"{name}: .*{message}"):
            read_transform(tmp_path / name, None)
    write_transform(tmp_path / "a.mha", FIELD, FIXED)
    with pytest.raises(InputError, match="expected the grid of --reference"):
        read_transform(tmp_path / "a.mha", MOVING)
    with pytest.raises(InputError, match="expected finite vectors"):
        from_vectors(to_vectors(FIELD * float("nan"), FIXED))


def test_what_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"expected a name ending in \.h5, \.tfm"):
        write_transform(tmp_path / "a.xyz", FIELD, FIXED)
    with pytest.raises(ShapeError, match="of its grid"):
        to_transform(FIELD, MOVING)
    monkeypatch.setattr(itk_files, "MAX_TEXT_VOXELS", 1000)
    with pytest.raises(OutputError, match=r"a\.tfm: expected a name ending in \.h5"):
        write_transform(tmp_path / "a.tfm", FIELD, FIXED)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_transform(tmp_path / "file" / "a.nrrd", FIELD, FIXED)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_images_and_labels_in_every_format(tmp_path: Path, name: str) -> None:
    volume = blobs(MOVING)
    write_any(tmp_path / name, volume, MOVING)
    again, grid = read_intensities(tmp_path / name)
    assert torch.equal(again, volume)
    assert grid.matches(MOVING, within_voxels=1e-3)
    for labels in (volume.int() - 300, (volume.long() // 30) + (1 << 40)):
        write_any(tmp_path / name, labels, MOVING)
        assert torch.equal(read_labels(tmp_path / name)[0], labels)


def test_images_that_simpleitk_writes_lie_where_it_says(tmp_path: Path) -> None:
    for name in ("a.nrrd", "a.mhd", "a.nii.gz"):
        sitk.WriteImage(as_sitk(blobs(MOVING)[0, 0].numpy(), MOVING), str(tmp_path / name))
        volume, grid = read_any(tmp_path / name)
        assert torch.equal(volume, blobs(MOVING))
        assert grid.matches(MOVING, within_voxels=1e-3)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: float\ndimension: 3\nsizes: 90000 90000 90000\nencoding: raw\nendian: little\n\n"
    (tmp_path / "huge.nrrd").write_bytes(header.encode())
    with pytest.raises(InputError, match=r"huge\.nrrd: expected at most \d+ numbers, found 729000000000000 in the header"):
        read_any(tmp_path / "huge.nrrd")
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["dim"][1:4] = 30000
    (tmp_path / "huge.nii").write_bytes(image.header.binaryblock + bytes(4))
    with pytest.raises(InputError, match=r"huge\.nii: expected an image of at most"):
        read_any(tmp_path / "huge.nii")


def test_labels_in_floating_point_count_if_whole(tmp_path: Path) -> None:
    write_any(tmp_path / "a.nii.gz", blobs(MOVING).round(), MOVING)
    assert torch.equal(read_labels(tmp_path / "a.nii.gz")[0], blobs(MOVING).round().int())
    write_any(tmp_path / "a.nii.gz", blobs(MOVING), MOVING)
    with pytest.raises(InputError, match="expected whole numbers as labels"):
        read_labels(tmp_path / "a.nii.gz")
    write_any(tmp_path / "a.nii.gz", blobs(MOVING) * float("inf"), MOVING)
    with pytest.raises(InputError, match="expected finite intensities"):
        read_intensities(tmp_path / "a.nii.gz")


def test_vectors_and_colors_are_no_image(tmp_path: Path) -> None:
    write_transform(tmp_path / "a.nrrd", FIELD, FIXED)
    with pytest.raises(InputError, match="expected one number per voxel, found 3"):
        read_any(tmp_path / "a.nrrd")
    with pytest.raises(OutputError, match=r"expected a name ending in \.nii\.gz or \.nii or \.nrrd or \.mha"):
        write_any(tmp_path / "a.jpg", blobs(FIXED), FIXED)


def test_a_field_that_has_its_own_grid_is_sampled_on_another(tmp_path: Path) -> None:
    sitk.WriteTransform(to_transform(FIELD, FIXED), str(tmp_path / "field.h5"))
    field, grid = read_transform(tmp_path / "field.h5", MOVING)
    voxels = MOVING.voxels(0, MOVING.shape[0])
    there = FIXED.to_voxels(MOVING.to_world(voxels))
    deep = FIXED.inside(there - 0.5) & FIXED.inside(there + 0.5)
    reached = grid.to_world(voxels + field[0].reshape(3, -1).T)[deep]
    assert grid is MOVING
    assert (reached - fixed_to_moving(MOVING.to_world(voxels)[deep], FIELD, FIXED).world).norm(dim=1).max() <= 1e-3


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".nii.gz", ".nrrd", ".mha"])
def test_what_itk_does_not_get_onto_the_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """ITK itself returns as if all were well."""
    name = "WriteTransform" if suffix in (".h5", ".tfm") else "WriteImage"
    whole = getattr(sitk, name)

    def cut(content: object, file: str, **options: object) -> None:
        whole(content, file, **options)
        size = Path(file).stat().st_size
        os.truncate(file, size - size // 3)

    monkeypatch.setattr(sitk, name, cut)
    path = tmp_path / f"field{suffix}"
    path.write_text("finished")
    with pytest.raises(OutputError, match=f"field{suffix}: cannot be written: "):
        write_transform(path, FIELD, FIXED)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "finished")]


@pytest.mark.parametrize("suffix", [".h5", ".nrrd"])
def test_names_that_are_not_utf_8_do_not_end_the_process(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / os.fsdecode(b"folder\xff") / os.fsdecode(b"field\xff" + suffix.encode())
    write_transform(path, FIELD, FIXED)
    assert read_transform(path.rename(tmp_path / f"field{suffix}"), None)[1].matches(FIXED)
    assert list(path.parent.iterdir()) == []


def test_an_image_may_have_voxels_that_are_no_numbers(tmp_path: Path) -> None:
    volume = blobs(MOVING)
    volume[0, 0, 0, 0, 0] = float("nan")
    write_any(tmp_path / "a.nrrd", volume, MOVING)
    assert torch.equal(read_any(tmp_path / "a.nrrd")[0].isnan(), volume.isnan())
