import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import write_nifti
from numpy.typing import NDArray
from torch import Tensor

from mcbo.core.errors import InputError
from mcbo.io import nifti, nifti_header
from mcbo.io.files import digest
from mcbo.io.nifti import in_file_order, read_displacement, read_image, read_voxels, write_displacement, write_volume
from mcbo.io.nifti_header import read_header, read_values

RAMP = np.arange(4 * 5 * 6).reshape(4, 5, 6)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, np.int32])
def test_any_number_type_is_read_as_float32(tmp_path: Path, dtype: type[np.generic]) -> None:
    image = read_image(write_nifti(tmp_path / "a.nii.gz", RAMP.astype(dtype)))
    assert image.volume.dtype == torch.float32
    assert np.array_equal(image.volume[0, 0].numpy(), RAMP)


def test_scaled_negative_and_four_dimensional_with_one_volume(tmp_path: Path) -> None:
    nifti = nibabel.Nifti1Image(RAMP[..., None].astype(np.int16), np.diag([0.5, 0.5, 2, 1]))
    nifti.header.set_slope_inter(0.5, -1000)
    nibabel.save(nifti, tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert image.volume.shape == (1, 1, 4, 5, 6)
    assert image.volume.max() < 0
    assert np.allclose(image.volume[0, 0].numpy(), 0.5 * RAMP - 1000)
    assert np.array_equal(image.affine, np.diag([0.5, 0.5, 2, 1]))


def spoiled(value: float) -> NDArray[np.float64]:
    array = RAMP.astype(np.float64)
    array[1, 2, 3] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 6, 2), np.float32), r"expected a 3D image, found 4D data of shape \(4, 5, 6, 2\)"),
        (np.zeros((4, 5), np.float32), r"expected a 3D image, found 2D"),
        (spoiled(np.nan), "expected finite intensities, found 1 voxel"),
        (spoiled(-np.inf), "expected finite intensities, found 1 voxel"),
        (spoiled(1e300), "expected finite intensities, found 1 voxel"),
        (np.full((4, 5, 6), 7, np.int16), "expected an image with structure to register, found only the value 7"),
        (RAMP.astype(np.complex64), "expected one number per voxel, found data of type complex64"),
    ],
)
def test_what_cannot_be_registered_is_named(tmp_path: Path, array: NDArray[np.generic], message: str) -> None:
    path = write_nifti(tmp_path / "broken.nii.gz", array)
    with pytest.raises(InputError, match=rf"broken\.nii\.gz: {message}"):
        read_image(path)


def test_color_images_are_refused(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(InputError, match="expected one number per voxel"):
        read_image(tmp_path / "rgb.nii")


def test_missing_empty_foreign_and_cut_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.nii\.gz: no such file"):
        read_image(tmp_path / "absent.nii.gz")
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(InputError, match=r"empty\.nii\.gz: expected a NIfTI image, found an empty file"):
        read_image(tmp_path / "empty.nii.gz")
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
    with pytest.raises(InputError, match=r"text\.nii\.gz: expected a whole NIfTI image, found none"):
        read_image(tmp_path / "text.nii.gz")
    (tmp_path / "plain.nii").write_text("hello")
    with pytest.raises(InputError, match=r"plain\.nii: expected a whole NIfTI image"):
        read_image(tmp_path / "plain.nii")
    rng = np.random.default_rng(0)
    whole = write_nifti(tmp_path / "whole.nii.gz", rng.random((16, 16, 16)))
    for share in (0.01, 0.3, 0.6, 0.99):
        cut = tmp_path / "cut.nii.gz"
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        with pytest.raises(InputError, match=r"cut\.nii\.gz: expected a whole NIfTI image"):
            read_image(cut)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 0, 1, 1])])
def test_an_affine_that_cannot_be_inverted_is_refused(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    nifti = nibabel.Nifti1Image(RAMP.astype(np.float32), np.eye(4))
    nifti.header["sform_code"], nifti.header["qform_code"] = 1, 0
    for row, values in zip(("srow_x", "srow_y", "srow_z"), affine, strict=False):
        nifti.header[row] = values
    path = tmp_path / "a.nii"
    path.write_bytes(nifti.header.binaryblock + bytes(4) + RAMP.astype(np.float32).tobytes(order="F"))
    with pytest.raises(InputError, match=r"a\.nii: expected an affine that can be inverted"):
        read_image(path)


def test_surfaces_are_no_images(tmp_path: Path) -> None:
    nibabel.save(nibabel.GiftiImage(), tmp_path / "a.gii")
    with pytest.raises(InputError, match=r"a\.gii: expected a whole NIfTI image, found none"):
        read_image(tmp_path / "a.gii")


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="expected a displacement, but it cannot be read"):
        read_displacement(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "npz"])
def test_displacements_come_back_as_written(tmp_path: Path, suffix: str) -> None:
    field = torch.rand((1, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    affine = np.diag([0.5, 1, 2, 1])
    path = tmp_path / "new" / f"disp.{suffix}"
    assert write_displacement(path, field, affine) == digest(path)
    assert torch.equal(read_displacement(path), field)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if suffix != "npz":
        nifti = nibabel.load(path)
        assert nifti.shape == (4, 5, 6, 3)  # type: ignore[attr-defined]
        assert nifti.get_data_dtype() == np.float32  # type: ignore[attr-defined]
        assert np.array_equal(nifti.affine, affine)  # type: ignore[attr-defined]


def test_what_is_no_displacement_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", RAMP.astype(np.float32))
    with pytest.raises(InputError, match=r"expected a displacement of shape \(H, W, D, 3\), found \(4, 5, 6\)"):
        read_displacement(path)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_file_has_the_same_bytes_whatever_compresses_it_and_every_program_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "BLOCK_BYTES", 2**12)  # some 70 blocks
    monkeypatch.setattr(nifti, "BLOCK_VALUES", 2**11)
    rng = torch.Generator().manual_seed(0)
    field = torch.rand((1, 3, 25, 30, 33), generator=rng).cumsum(-1)
    plain = tmp_path / "plain.nii"
    write_displacement(plain, field, np.eye(4))
    seen: set[bytes] = set()
    for count in (1, 2, 3, 16):
        torch.set_num_threads(count)
        for laid_out in (field, in_file_order(field), field.double()):
            path = tmp_path / f"{len(seen)}.nii.gz"
            write_displacement(path, laid_out, np.eye(4))
            seen.add(path.read_bytes())
    assert len(seen) == 1
    assert gzip.decompress(seen.pop()) == plain.read_bytes()
    assert path.read_bytes()[3:8] == bytes(5)  # neither a name nor a time
    subprocess.run(["gzip", "-t", path], check=True)  # noqa: S607
    array = field[0].movedim(0, -1).numpy()
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj), array)  # type: ignore[attr-defined]
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # axes in reverse
    assert np.array_equal(by_itk.T, array)


def test_in_file_order_axis_0_is_the_fastest_and_nothing_else_changes() -> None:
    field = torch.rand((1, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(in_file_order(field), field)
    assert in_file_order(field).stride()[1:] == (120, 1, 4, 20)


TURNED = np.array([[0, 2, 0, -7], [1, 0, 0, 3], [0, 0, -3, 1], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [np.diag([0.5, 1, 2, 1]), TURNED])
@pytest.mark.parametrize("values", [torch.rand(1, 1, 4, 5, 6), 300 * torch.ones(1, 1, 4, 5, 6, dtype=torch.int64), RAMP])
def test_an_image_has_the_bytes_that_nibabel_gives_it(tmp_path: Path, values: Tensor, affine: NDArray[np.float64]) -> None:
    volume = torch.as_tensor(values).view(1, 1, 4, 5, 6)
    path = tmp_path / "a.nii"
    assert write_volume(path, volume, affine) == digest(path)
    assert torch.equal(read_voxels(path)[1], volume)
    array = volume[0, 0].numpy().astype(nibabel.load(path).get_data_dtype())  # type: ignore[attr-defined]
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    assert path.read_bytes() == image.to_bytes()


@pytest.mark.parametrize("shape", [(7,), (7, 6), (7, 6, 5), (5, 6, 7, 3), (3, 9, 4, 2, 2)])
def test_values_are_read_in_any_number_of_dimensions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(-99, 99, shape, dtype=np.int16)
    header = read_header(write_nifti(tmp_path / "a.nii.gz", array))
    for size in (1, 50, 2**20):
        monkeypatch.setattr(nifti_header, "BLOCK_VALUES", size)
        assert np.array_equal(read_values(header), array.reshape(header.shape))
