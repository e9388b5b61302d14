"""Headers that readers take differently: what is exported fits what ITK itself reads in the very files."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
import torch
from geometry import FIXED, MOVING, blobs, smooth_field
from numpy.typing import NDArray

from mcbo.api.transform import Transform
from mcbo.cli.main import main
from mcbo.io.image_like import Geometry, to_volume
from mcbo.io.images import read_any, write_any
from mcbo.io.microscopy.selection import Selection
from mcbo.io.nifti import write_displacement

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

Affine = NDArray[np.float64]
FIELD = smooth_field(FIXED, largest=3)
SHIFT_MM = (20.0, -12.0, 9.0)


@dataclass(frozen=True)
class Kind:
    """A kind of header: the codes of its forms, how the forms are made of the right affine, and what else is set."""

    sform_code: int
    qform_code: int
    sform: Callable[[Affine], Affine] = lambda affine: affine
    qform: Callable[[Affine], Affine] = lambda affine: affine
    units: int = 2
    scale: float = 1.0  # numbers in the file per mm
    sizes: Callable[[Affine], Affine] = lambda sizes: sizes
    warns: str = ""


def shifted(affine: Affine) -> Affine:
    result = affine.copy()
    result[:3, 3] += SHIFT_MM
    return result


def sheared(affine: Affine) -> Affine:
    return np.asarray(affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))


def mirrored(affine: Affine) -> Affine:
    return np.asarray(affine @ np.array([[-1.0, 0, 0, 30], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


KINDS = {
    "both forms": Kind(1, 1),
    "sform": Kind(2, 0),
    "qform": Kind(0, 1),
    "scanner sform, another qform": Kind(
        1, 1, qform=shifted, warns="sform and qform differ by up to 25 mm; the sform was taken"
    ),
    "aligned sform, another qform": Kind(2, 1, qform=shifted, warns="--geometry qform takes what they take"),
    "Talairach sform, another qform": Kind(3, 1, qform=shifted, warns="25 mm elsewhere"),
    "MNI sform, another qform": Kind(4, 2, qform=shifted, warns="25 mm elsewhere"),
    "neither form": Kind(0, 0, warns="neither its sform nor its qform is set"),
    "sheared sform": Kind(1, 0, sform=sheared, warns="cannot read it"),
    "sheared sform, qform": Kind(1, 1, sform=sheared, warns="not at right angles"),
    "left-handed": Kind(1, 1, sform=mirrored, qform=mirrored),
    "microns": Kind(1, 1, units=3, scale=1e3),
    "meters": Kind(1, 1, units=1, scale=1e-3),
    "no unit": Kind(2, 2, units=0),
    "microns and seconds, another qform": Kind(2, 1, qform=shifted, units=3 + 8, scale=1e3, warns="25 mm elsewhere"),
    "other sizes": Kind(1, 0, sizes=lambda sizes: sizes * 1.5, warns="by pixdim"),
    "sizes of 0": Kind(1, 0, sizes=lambda sizes: sizes * 0, warns="by pixdim"),
}


def write_header(path: Path, array: NDArray[Any], affine: Affine, kind: Kind) -> None:
    """Field by field, as nibabel's own writer would set right what is to be wrong here."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(np.float32)
    scale = np.diag([kind.scale] * 3 + [1.0])
    header.set_qform(scale @ kind.qform(affine), code=kind.qform_code or 1)
    header.set_sform(scale @ kind.sform(affine), code=kind.sform_code)
    header["qform_code"] = kind.qform_code
    header["pixdim"][1:4] = kind.sizes(header["pixdim"][1:4].astype(np.float64))
    header["xyzt_units"] = kind.units
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(4) + array.astype(np.float32).tobytes(order="F"))


def as_nibabel_has_it(path: Path, kind: Kind) -> Affine:
    image: Any = nibabel.load(path)
    return np.asarray(np.diag([1 / kind.scale] * 3 + [1.0]) @ image.affine)


def as_itk_has_it(path: Path) -> Any:
    """The image, or None if ITK refuses it."""
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError:
        return None


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.mark.parametrize("odd", ["fixed", "moving"])
def test_what_is_exported_fits_what_itk_reads(tmp_path: Path, kind: Kind, odd: str, caplog: pytest.LogCaptureFixture) -> None:
    """A voxel of the fixed image leads to the same place of the moving one, in voxels, in ITK and by nibabel's affines."""
    kinds = {name: kind if name == odd else KINDS["both forms"] for name in ("fixed", "moving")}
    paths = {name: tmp_path / f"{name}.nii" for name in kinds}
    for (name, path), grid in zip(paths.items(), (FIXED, MOVING), strict=True):
        write_header(path, blobs(grid)[0, 0].numpy(), grid.affine, kinds[name])
    with caplog.at_level(logging.WARNING, logger="mcbo"):
        (_, fixed), (moving_volume, moving) = (read_any(path) for path in paths.values())
    assert kind.warns in caplog.text
    assert bool(caplog.text) == bool(kind.warns)
    start, end = (as_nibabel_has_it(paths[name], kinds[name]) for name in kinds)
    np.testing.assert_allclose((fixed if odd == "fixed" else moving).affine, start if odd == "fixed" else end, rtol=1e-6)

    seen = {name: as_itk_has_it(path) for name, path in paths.items()}
    if seen[odd] is None:
        assert "ITK, 3D Slicer and ANTs cannot read it" in caplog.text
        return
    transform = Transform(FIELD, fixed, moving)
    itk = transform.to_itk()
    generator = np.random.default_rng(1)
    for voxel in generator.integers(0, FIXED.shape, (50, 3)):
        moved = np.linalg.inv(end) @ start @ [*(voxel + FIELD[0, :, *voxel].numpy()), 1]
        world = itk.TransformPoint(seen["fixed"].TransformIndexToPhysicalPoint(voxel.tolist()))
        found = np.array(seen["moving"].TransformPhysicalPointToContinuousIndex(world))
        assert np.abs((found - moved[:3]) * moving.spacing_mm).max() <= 1e-3

    warped = sitk.Resample(seen["moving"], seen["fixed"], itk, sitk.sitkLinear, math.nan)
    theirs = sitk.GetArrayFromImage(warped).transpose(2, 1, 0)
    ours = transform.warp((moving_volume[0, 0], moving.affine), outside=math.nan)
    both = np.isfinite(ours) & np.isfinite(theirs)
    assert both.mean() > 0.1 or kind.sform_code + kind.qform_code == 0  # whose guess may be far away
    assert not both.any() or np.abs(ours - theirs)[both].max() <= 0.5


def test_what_is_written_is_read_alike_by_all(tmp_path: Path, kind: Kind) -> None:
    """Both forms are the same, in the unit of the image; of sheared axes, there is only an sform."""
    path, written = tmp_path / "image.nii", tmp_path / "out.nii.gz"
    write_header(path, blobs(FIXED)[0, 0].numpy(), FIXED.affine, kind)
    volume, grid = read_any(path)
    for what in ("image", "displacement"):
        if what == "image":
            write_any(written, volume, grid)
        else:
            write_displacement(written, FIELD, grid.affine, grid.unit)
        header: Any = nibabel.load(written).header
        assert header["sform_code"] == 2
        assert header["xyzt_units"] & 7 == (kind.units & 7 or 2)
        sform = header.get_sform()
        np.testing.assert_allclose(sform, kind.scale * grid.affine + np.diag([0, 0, 0, 1 - kind.scale]), rtol=1e-5)
        if kind.sform is sheared:
            assert header["qform_code"] == 0
        else:
            assert header["qform_code"] == 2
            np.testing.assert_allclose(header.get_qform(), sform, rtol=1e-4, atol=1e-4 * kind.scale)


def test_the_qform_is_taken_if_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    write_header(path, blobs(FIXED)[0, 0].numpy(), FIXED.affine, KINDS["MNI sform, another qform"])
    np.testing.assert_allclose(read_any(path, Selection(form="qform"))[1].affine, shifted(FIXED.affine), rtol=1e-5)
    np.testing.assert_allclose(read_any(path, Selection(form="sform"))[1].affine, FIXED.affine, rtol=1e-5)


def test_an_impossible_qform_beside_an_sform_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    write_header(path, blobs(FIXED)[0, 0].numpy(), FIXED.affine, KINDS["both forms"])
    block = bytearray(path.read_bytes())
    block[256:268] = np.array([3, 4, 5], np.float32).tobytes()  # a quaternion longer than 1
    path.write_bytes(block)
    np.testing.assert_allclose(read_any(path)[1].affine, FIXED.affine, rtol=1e-5)


@pytest.mark.parametrize("direction", ["fixed-to-moving", "moving-to-fixed"])
def test_markups_lie_where_slicer_has_the_image(tmp_path: Path, direction: str) -> None:
    """3D Slicer reads images with ITK, so that its points are in ITK's world."""
    moving = tmp_path / "moving.nii"
    write_header(moving, blobs(MOVING)[0, 0].numpy(), MOVING.affine, KINDS["aligned sform, another qform"])
    write_displacement(tmp_path / "field.nii.gz", FIELD, FIXED.affine)
    voxel = (20, 16, 12)
    start = FIXED.affine[:3] @ [*voxel, 1]
    end = FIXED.affine[:3] @ [*(torch.tensor(voxel) + FIELD[0, :, *voxel]).tolist(), 1] + SHIFT_MM
    given, expected = (start, end) if direction == "fixed-to-moving" else (end, start)
    points = [{"id": "1", "position": given.tolist()}]
    markups = {"markups": [{"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": points}]}
    (tmp_path / "a.mrk.json").write_text(json.dumps(markups))
    words = ["--points", "a.mrk.json", "--reference", "moving.nii", "--output", "b.mrk.json"]
    words = [str(tmp_path / word) if "." in word else word for word in words]
    assert main(["warp", str(tmp_path / "field.nii.gz"), *words, "--direction", direction]) == 0
    found = json.loads((tmp_path / "b.mrk.json").read_text())["markups"][0]["controlPoints"][0]["position"]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_an_export_fits_what_itk_reads_of_the_images(tmp_path: Path) -> None:
    moving = tmp_path / "moving.nii"
    write_header(moving, blobs(MOVING)[0, 0].numpy(), MOVING.affine, KINDS["aligned sform, another qform"])
    write_displacement(tmp_path / "field.nii.gz", FIELD, FIXED.affine)
    words = ["export", str(tmp_path / "field.nii.gz"), "--to", "itk", "--output", str(tmp_path / "field.h5")]
    voxel = (20, 16, 12)
    start = FIXED.affine[:3] @ [*voxel, 1]
    end = FIXED.affine[:3] @ [*(torch.tensor(voxel) + FIELD[0, :, *voxel]).tolist(), 1]
    flip = np.array([-1, -1, 1])
    for more, expected in ((), end), (("--moving", str(moving)), end + SHIFT_MM):
        assert main([*words, *more]) == 0
        found = sitk.ReadTransform(str(tmp_path / "field.h5")).TransformPoint((flip * start).tolist())
        np.testing.assert_allclose(flip * found, expected, atol=1e-3)


def test_an_import_knows_where_itk_has_the_fixed_image(tmp_path: Path) -> None:
    """A transform that moves nothing in ITK's world leads back to where the fixed image lies in ours."""
    path = tmp_path / "fixed.nii"
    write_header(path, blobs(FIXED)[0, 0].numpy(), FIXED.affine, KINDS["aligned sform, another qform"])
    sitk.WriteTransform(sitk.TranslationTransform(3), str(tmp_path / "none.tfm"))
    words = ["import", str(tmp_path / "none.tfm"), "--reference", str(path), "--output", str(tmp_path / "field.nii.gz")]
    assert main(words) == 0
    image: Any = nibabel.load(tmp_path / "field.nii.gz")
    field = np.asanyarray(image.dataobj)
    np.testing.assert_allclose(field @ FIXED.affine[:3, :3].T, np.broadcast_to(SHIFT_MM, field.shape), atol=1e-3)


def test_images_of_nibabel_know_their_unit() -> None:
    image = nibabel.Nifti1Image(blobs(FIXED)[0, 0].numpy(), np.diag([50.0, 50, 100, 1]))
    image.header.set_xyzt_units("micron")
    _, grid = to_volume(image, "image", Geometry())
    assert grid.spacing_mm == pytest.approx((0.05, 0.05, 0.1))
    assert grid.unit == "um"
