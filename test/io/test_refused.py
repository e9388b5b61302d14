"""Files that nothing here reads get a sentence with the way out."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import dicom

from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.foreign.reader import read_foreign
from mcbo.io.images import read_any

HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(600)


@pytest.mark.parametrize("name", ["a.mnc", "A.MNC", "b_grid_0.mnc"])
def test_minc_2_needs_h5py(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    (tmp_path / name).write_bytes(HDF5)
    with pytest.raises(InputError, match=rf"{name}: expected MINC 1 .*found MINC 2, which needs h5py: install it .* mnc2nii"):
        read_any(tmp_path / name)


def write_segmentation(path: Path, layers: int, key: str = "Segment0_Layer", line: str = "\n") -> Path:
    """As 3D Slicer writes one: the first axis lists layers, where there are several."""
    sizes, kinds = ("5 6 7", "domain domain domain") if layers == 1 else (f"{layers} 5 6 7", "list domain domain domain")
    directions = "(-1,0,0) (0,-1,0) (0,0,1)"
    header = [
        "NRRD0004", "# Complete NRRD file format specification at:", "type: unsigned char",
        f"dimension: {3 if layers == 1 else 4}", "space: left-posterior-superior", f"sizes: {sizes}",
        f"space directions: {'' if layers == 1 else 'none '}{directions}", f"kinds: {kinds}", "encoding: raw",
        "space origin: (1,2,3)", f"{key}:=0", "Segmentation_MasterRepresentation:=Binary labelmap", "", "",
    ]  # fmt: skip
    path.write_bytes(line.join(header).encode() + (np.arange(210 * layers) % 3).astype(np.uint8).tobytes())
    return path


@pytest.mark.parametrize("name", ["a.seg.nrrd", "b.nrrd", "C.SEG.NRRD"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_segments_that_overlap_are_named(tmp_path: Path, name: str, line: str) -> None:
    path = write_segmentation(tmp_path / name, 2, line=line)
    with pytest.raises(InputError, match=rf"{name}: expected one label per voxel, .*3D Slicer with 2 layers.*to a labelmap"):
        read_any(path)


def test_segments_that_do_not_overlap_are_labels(tmp_path: Path) -> None:
    volume, grid = read_any(write_segmentation(tmp_path / "a.seg.nrrd", 1))
    assert torch.equal(volume[0, 0].int(), torch.from_numpy((np.arange(210) % 3).reshape(7, 6, 5).T.astype(np.int32)))
    assert np.allclose(grid.affine[:3, 3], (-1, -2, 3))


def test_vectors_in_nrrd_are_no_segmentation(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image((5, 6, 7), sitk.sitkVectorFloat32, 3), str(tmp_path / "v.nrrd"))
    with pytest.raises(InputError, match="expected one number per voxel, found 3"):
        read_any(tmp_path / "v.nrrd")


ENHANCED = dicom(np.zeros((3, 10, 12), np.int16), sop_class="1.2.840.10008.5.1.4.1.1.4.1")


@pytest.mark.parametrize("name", ["a.dcm", "IM0", "1.2.840.113619"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_enhanced_dicom_is_named(tmp_path: Path, name: str, in_folder: bool) -> None:
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / name
    path.write_bytes(ENHANCED)
    with pytest.raises(InputError, match=r"several frames in one \(enhanced DICOM\), .*: convert it with dcm2niix"):
        read_any(path.parent if in_folder else path)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ('(Transform "BSplineTransform")\n(GridSpacing 10 10 10)', "'BSplineTransform'"),
        ('(Transform "RecursiveBSplineTransform")', "'RecursiveBSplineTransform'"),
        ('(Transform "SplineKernelTransform")', "'SplineKernelTransform'"),
        (
            '(Transform "AffineTransform")\n(InitialTransformParameterFileName "TransformParameters.0.txt")',
            "'AffineTransform' after another one, 'TransformParameters.0.txt'",
        ),
        ('(FixedImageDimension 2)\n(Transform "EulerTransform")', "'EulerTransform' with FixedImageDimension '2'"),
    ],
)
@pytest.mark.parametrize("name", ["TransformParameters.1.txt", "warp.tfm"])
def test_a_parameter_file_of_elastix_that_is_not_linear_is_named(tmp_path: Path, name: str, lines: str, found: str) -> None:
    path = tmp_path / name
    path.write_text(f"{lines}\n(NumberOfParameters 3)\n(TransformParameters 0 0 0)\n")
    remedy = "elastix' `transformix -def all -tp FILE -out DIR` writes"
    with pytest.raises(InputError, match=rf"{name}: expected a linear 3D transform of elastix .*, found {found}: {remedy}"):
        read_foreign(path, Grid((5, 6, 7), np.eye(4)))


@pytest.mark.parametrize("name", ["TransformParameters.0.toml", "a.txt"])
def test_a_parameter_file_of_elastix_in_toml_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('Direction = [1, 0]\nTransform = "BSplineTransform"\nTransformParameters = [0, 0, 0]\n')
    with pytest.raises(InputError, match=rf"{name}: expected a parameter file of elastix .*, found one in TOML: .*transformix"):
        read_foreign(tmp_path / name, Grid((5, 6, 7), np.eye(4)))
