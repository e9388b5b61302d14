"""Transforms of other programs: each made here after its format's description, with a motion that is known in millimeters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from geometry import FIXED, MOVING, make_grid
from numpy.typing import NDArray
from torch import Tensor

from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.foreign.reader import read_foreign
from mcbo.io.images import read_field
from mcbo.io.initial_transform import read_initial

SHIFT = np.array([3.0, -4.0, 5.0])
"""From fixed to moving, RAS mm."""

LEFT = Grid((10, 9, 8), np.array([[-2.0, 0, 0, 7], [0, 2, 0, -3], [0, 0, 2, 5], [0, 0, 0, 1]]))
RIGHT = Grid((10, 9, 8), np.array([[2.0, 0, 0, 1], [0, 2, 0, 4], [0, 0, 2, -6], [0, 0, 0, 1]]))
"""The same voxels, one mirrored in the world: FSL takes the first as it is, and counts axis 0 of the second from its end."""


def positions(grid: Grid) -> NDArray[np.float64]:
    """RAS mm of all voxels: ``(H, W, D, 3)``."""
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return np.asarray(voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3], dtype=np.float64)


def fsl_positions(grid: Grid) -> NDArray[np.float64]:
    """The same in FSL's coordinates: voxels times their size, axis 0 from the end where the affine does not mirror."""
    found = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1) * np.array(grid.spacing_mm)
    if np.linalg.det(grid.affine) > 0:
        found[..., 0] = found[::-1, ..., 0]
    return np.asarray(found, dtype=np.float64)


def write(path: Path, vectors: NDArray[Any], grid: Grid, intent: int = 0, name: str = "", p1: float = 0, rank: int = 5) -> Path:
    """A field in NIfTI, ``(H, W, D, 1, 3)`` unless its rank is 4."""
    values = np.broadcast_to(vectors, (*grid.shape, 3)).astype(np.float32)
    image = nibabel.Nifti1Image(values[..., None, :] if rank == 5 else values, grid.affine)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = intent, name, p1
    nibabel.save(image, path)
    return path


def motion_mm(found: tuple[Tensor, Grid] | None) -> NDArray[np.float64]:
    """A displacement in RAS mm: ``(H, W, D, 3)``."""
    assert found is not None
    displacement, grid = found
    return np.asarray(displacement[0].movedim(0, -1).double().numpy() @ grid.affine[:3, :3].T)


FIELDS: dict[str, Callable[[Path, Grid], Path]] = {
    "NiftyReg, positions": lambda p, g: write(p, positions(g) + SHIFT, g, 1007, "NREG_TRANS", 0),
    "NiftyReg, displacements": lambda p, g: write(p, SHIFT, g, 1007, "NREG_TRANS", 1),
    "SPM's y_": lambda p, g: write(p, positions(g) + SHIFT, g, 1007, "Mapping"),
    "SynthMorph by surfa": lambda p, g: write(p, SHIFT, g, 1006),
    "SynthMorph, 4D": lambda p, g: write(p, SHIFT, g, 1006, rank=4),
    "ITK and ANTs": lambda p, g: write(p, SHIFT * (-1, -1, 1), g, 1007),
}


@pytest.mark.parametrize("grid", [FIXED, LEFT, RIGHT], ids=["oblique", "mirrored", "plain"])
@pytest.mark.parametrize("name", FIELDS)
def test_what_a_field_says_of_itself_counts(tmp_path: Path, name: str, grid: Grid) -> None:
    path = FIELDS[name](tmp_path / "field.nii.gz", grid)
    assert np.abs(motion_mm(read_foreign(path, grid)) - SHIFT).max() < 1e-4
    with pytest.raises(InputError, match="grid of --reference"):
        read_foreign(path, MOVING)
    with pytest.raises(InputError, match=r"expected a displacement in voxels, found .*`mcbo import"):
        read_field(path)


@pytest.mark.parametrize(
    ("vectors", "value"),
    [
        ("ras-displacement", SHIFT),
        ("lps-displacement", SHIFT * (-1, -1, 1)),
        ("ras-position", positions(FIXED) + SHIFT),
    ],
)
@pytest.mark.parametrize("rank", [4, 5])
def test_a_field_that_does_not_say_is_refused_unless_the_user_does(
    tmp_path: Path, vectors: Any, value: NDArray[np.float64], rank: int
) -> None:
    path = write(tmp_path / "field.nii.gz", value, FIXED, rank=rank)
    with pytest.raises(InputError, match=rf"found {rank}D data that does not say what its vectors are.*--vectors"):
        read_foreign(path, FIXED)
    assert np.abs(motion_mm(read_foreign(path, FIXED, vectors=vectors)) - SHIFT).max() < 1e-4
    said = write(tmp_path / "said.nii.gz", SHIFT, FIXED, 1007, "NREG_TRANS", 1)
    if vectors != "ras-displacement":
        with pytest.raises(InputError, match="expected --vectors ras-displacement or none, since the file says so"):
            read_foreign(said, FIXED, vectors=vectors)


@pytest.mark.parametrize("kind", ["relative", "absolute"])
@pytest.mark.parametrize(("fixed", "moving"), [(LEFT, LEFT), (LEFT, RIGHT), (RIGHT, LEFT), (RIGHT, RIGHT)])
def test_fields_of_fnirt_in_coordinates_of_both_images(tmp_path: Path, fixed: Grid, moving: Grid, kind: str) -> None:
    bent = SHIFT + np.sin(positions(fixed)[..., ::-1] / 5)
    there = (positions(fixed) + bent - moving.affine[:3, 3]) @ np.linalg.inv(moving.affine[:3, :3]).T * moving.spacing_mm
    if moving is RIGHT:
        there[..., 0] = 2 * 9 - there[..., 0]
    value = there - (fsl_positions(fixed) if kind == "relative" else 0)
    path = write(tmp_path / "warp.nii.gz", value, fixed, 2006, rank=4)
    with pytest.raises(InputError, match="expected --moving with the moving image"):
        read_foreign(path, None)
    assert np.abs(motion_mm(read_foreign(path, None, moving=moving)) - bent).max() < 1e-4
    plain = write(tmp_path / "plain.nii.gz", value, fixed, rank=4)
    assert np.abs(motion_mm(read_foreign(plain, None, moving=moving, vectors="fsl")) - bent).max() < 1e-4


@pytest.mark.parametrize(
    ("intent", "name", "p1", "message"),
    [
        (1007, "NREG_TRANS", 2, "found a cubic spline grid: `reg_transform"),
        (1007, "NREG_TRANS", 3, "found a velocity field: `reg_transform"),
        (1007, "NREG_TRANS", 5, "found a velocity grid: `reg_transform"),
        (1007, "NREG_TRANS", 77, "found an unknown kind: `reg_transform"),
        (1007, "NREG_TRANS", float("nan"), "found an unknown kind"),
        (1007, "NREG_CPP_FILE", 0, "calls itself 'NREG_CPP_FILE'"),
        (2007, "", 0, "coefficients of splines by FSL's FNIRT: `fnirtfileutils"),
        (2009, "", 0, "coefficients of splines by FSL's FNIRT"),
        (2016, "", 0, "coefficients of splines by FSL's TOPUP"),
        (1005, "", 0, r"calls itself '' \(intent 1005\)"),
        (0, "mine", 0, "calls itself 'mine'"),
    ],
)
@pytest.mark.parametrize("rank", [4, 5])
def test_fields_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, intent: int, name: str, p1: float, message: str, rank: int
) -> None:
    path = write(tmp_path / "field.nii.gz", SHIFT, FIXED, intent, name, p1, rank)
    with pytest.raises(InputError, match=rf"field\.nii\.gz: .*{message}"):
        read_foreign(path, None, moving=MOVING)
    with pytest.raises(InputError, match=rf"field\.nii\.gz: .*{message}"):
        read_field(path)


@pytest.mark.parametrize("unit", ["mm", "voxels"])
def test_positions_are_not_taken_for_displacements_in_voxels(tmp_path: Path, unit: str) -> None:
    voxels = np.stack(np.meshgrid(*map(np.arange, FIXED.shape), indexing="ij"), axis=-1)
    value = (positions(FIXED) if unit == "mm" else voxels) + SHIFT + np.sin(voxels / 4)
    with pytest.raises(InputError, match=f"expected displacements, found positions in {unit}, by their spread"):
        read_field(write(tmp_path / "warp.nii.gz", value, FIXED, rank=4))
    for harmless in (voxels * 0.2, SHIFT, np.sin(voxels / 4) * 3, 0 * SHIFT, -0.3 * voxels[..., [1, 0, 2]]):
        read_field(write(tmp_path / "disp.nii.gz", harmless, FIXED, rank=4))


# --- linear ---


def volume(grid: Grid) -> str:
    """Volume info as FreeSurfer writes it."""
    axes, center = grid.affine[:3, :3] / np.array(grid.spacing_mm), grid.affine @ [*np.array(grid.shape) / 2, 1]
    rows = {"volume": grid.shape, "voxelsize": grid.spacing_mm, "xras": axes[:, 0], "yras": axes[:, 1], "zras": axes[:, 2]}
    lines = [f"{key:<6} = {' '.join(f'{x:.9g}' for x in value)}" for key, value in (rows | {"cras": center[:3]}).items()]
    return "\n".join(["valid = 1  # volume info valid", "filename = a b = c.mgz", *lines])


def lta(matrix: NDArray[np.float64], kind: int, src: Grid, dst: Grid) -> str:
    rows = "\n".join(" ".join(f"{x:.15e}" for x in row) for row in matrix)
    return (
        f"# transform file a.lta\n# created by x\n\ntype      = {kind} # LINEAR\nnxforms   = 1\nmean      = 0 0 0\n"
        f"sigma     = 1\n1 4 4\n{rows}\nsrc volume info\n{volume(src)}\ndst volume info\n{volume(dst)}\nsubject x\nfscale 0.1\n"
    )


def moved(by: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


XFM = "MNI Transform File\n% to talairach\n\nTransform_Type = Linear;\nLinear_Transform =\n1 0 0 -3\n0 1 0 4\n0 0 1 -5;\n"
ELASTIX = """// comment
(Transform "{name}")
(TransformParameters {numbers})
(InitialTransformParameterFileName "{before}")
(HowToCombineTransforms "Compose")
(FixedImageDimension 3)
(MovingImageDimension 3)
(CenterOfRotationPoint 10.0 20.0 -5.0)
(UseDirectionCosines "true")
"""
TRANSLATION = ELASTIX.format(name="TranslationTransform", numbers="-3 4 5", before="NoInitialTransform")

LINEAR: dict[str, tuple[str, str]] = {
    "elastix": ("TransformParameters.0.txt", TRANSLATION),
    "elastix, old": ("t.txt", TRANSLATION.replace("ParameterFile", "ParametersFile")),
    "elastix, rigid": ("t.txt", TRANSLATION.replace("Translation", "Euler").replace("-3 4 5", "0 0 0 -3 4 5")),
    "elastix, similarity": ("t.txt", TRANSLATION.replace("Translation", "Similarity").replace("-3 4 5", "0 0 0 -3 4 5 1")),
    "elastix, affine": ("t.txt", TRANSLATION.replace("Translation", "Affine").replace("-3 4 5", "1 0 0 0 1 0 0 0 1 -3 4 5")),
    "MINC, FreeSurfer's talairach": ("talairach.xfm", XFM),
    "FreeSurfer, RAS": ("a.lta", lta(moved(-SHIFT), 1, MOVING, FIXED)),
    "FreeSurfer, voxels": (
        "a.lta",
        lta(np.linalg.inv(FIXED.affine) @ moved(-SHIFT) @ MOVING.affine, 0, MOVING, FIXED),
    ),
    "NiftyReg's matrix": ("affine.txt", "1 0 0 3\n0 1 0 -4\n0 0 1 5\n0 0 0 1\n"),
}
"""All of them move by ``SHIFT``."""


@pytest.mark.parametrize("name", LINEAR)
def test_linear_transforms(tmp_path: Path, name: str) -> None:
    file, text = LINEAR[name]
    path = tmp_path / file
    path.write_text(text)
    assert np.abs(motion_mm(read_foreign(path, FIXED)) - SHIFT).max() < 1e-4
    assert np.allclose(read_initial(path), moved(SHIFT), atol=1e-5)
    with pytest.raises(InputError, match="expected --reference with the fixed image"):
        read_foreign(path, None)


@pytest.mark.parametrize("order", ["false", "true"])
def test_a_rotation_of_elastix_is_that_of_itk(tmp_path: Path, order: str) -> None:
    """Of 90° about x and then about y around (10, 20, −5) LPS, or the other way round; worked out by hand."""
    numbers = f"{np.pi / 2} {np.pi / 2} 0 0 0 0"
    text = ELASTIX.format(name="EulerTransform", numbers=numbers, before="NoInitialTransform") + f'(ComputeZYX "{order}")\n'
    (tmp_path / "t.txt").write_text(text)
    about_x, about_y = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    turn = about_y @ about_x if order == "true" else about_x @ about_y
    center = np.array([10.0, 20, -5])
    found = read_initial(tmp_path / "t.txt")
    for lps in np.eye(3):
        expected = turn @ (lps - center) + center
        assert np.allclose(found @ [-lps[0], -lps[1], lps[2], 1], [-expected[0], -expected[1], expected[2], 1], atol=1e-6)


@pytest.mark.parametrize(("fixed", "moving"), [(LEFT, LEFT), (LEFT, RIGHT), (RIGHT, LEFT), (RIGHT, RIGHT)])
def test_flirt_needs_both_images(tmp_path: Path, fixed: Grid, moving: Grid) -> None:
    """A voxel size along axes 0 and 2, from moving to fixed, in voxels that FSL may count from the other end."""
    path = tmp_path / "flirt.mat"
    path.write_text("1  0  0  2  \n0  1  0  0  \n0  0  1  -2  \n0  0  0  1  \n")
    with pytest.raises(InputError, match=r"flirt\.mat: .*FLIRT's.*--moving"):
        read_foreign(path, fixed)
    found = positions(fixed) + motion_mm(read_foreign(path, fixed, moving=moving))
    back = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"), axis=-1).astype(float)
    if fixed is RIGHT:
        back[..., 0] = 9 - back[..., 0]
    back += (-1, 0, 1)
    if moving is RIGHT:
        back[..., 0] = 9 - back[..., 0]
    assert np.abs(found - (back @ moving.affine[:3, :3].T + moving.affine[:3, 3])).max() < 1e-4
    assert np.allclose(read_initial(path, LEFT, LEFT), moved(np.array([2.0, 0, 2])))


REFUSED: dict[str, tuple[str, str, str]] = {
    "elastix, splines": (
        "t.txt", ELASTIX.format(name="BSplineTransform", numbers="1 2", before="NoInitialTransform"),
        "linear 3D transform of elastix .*found 'BSplineTransform': .*transformix -def all",
    ),
    "elastix, after another": (
        "t.txt", ELASTIX.format(name="TranslationTransform", numbers="1 2 3", before="/x/TransformParameters.0.txt"),
        "after another one, '/x/TransformParameters.0.txt': .*transformix",
    ),
    "elastix, 2D": ("t.txt", TRANSLATION.replace("Dimension 3", "Dimension 2"), "FixedImageDimension '2': .*transformix"),
    "elastix, half": ("t.txt", TRANSLATION.replace("-3 4 5", "-3 4"), "expected 3 TransformParameters"),
    "elastix, words": ("t.txt", TRANSLATION.replace("-3 4 5", "a b c"), "expected numbers under TransformParameters"),
    "elastix, not finite": ("t.txt", TRANSLATION.replace("-3 4 5", "1 2 nan"), "expected finite numbers"),
    "MINC, grid": (
        "a.xfm", "MNI Transform File\n\nTransform_Type = Grid_Transform;\nDisplacement_Volume = a_grid_0.mnc;\n",
        "found 'Grid_Transform': apply it with mincresample",
    ),
    "MINC, two": ("a.xfm", XFM + XFM[19:], "found 'Linear, Linear'"),
    "MINC, half": ("a.xfm", XFM.replace("0 1 0 4", ""), "expected a Linear_Transform of three lines"),
    "FreeSurfer, inverse": (
        "a.lta", lta(moved(SHIFT), 1, FIXED, MOVING), "found its src there: `lta_convert --inlta FILE --invert",
    ),
    "FreeSurfer, of nitransforms": (
        "a.lta", "# LTA file created by NiTransforms\n" + lta(moved(SHIFT), 1, FIXED, MOVING),
        "write it with nitransforms as ITK's",
    ),
    "FreeSurfer, several": (
        "a.lta", lta(moved(SHIFT), 1, MOVING, FIXED).replace("nxforms   = 1", "nxforms   = 3"), "found 3 of",
    ),
    "FreeSurfer, tkRAS": ("a.lta", lta(moved(SHIFT), 21, MOVING, FIXED), "of type 21: `lta_convert"),
    "FreeSurfer, voxels of nothing": (
        "a.lta", lta(moved(SHIFT), 0, MOVING, FIXED).replace("valid = 1", "valid = 0"), "expected valid volume info",
    ),
    "FreeSurfer, cut": ("a.lta", lta(moved(SHIFT), 0, MOVING, FIXED)[:300], "expected"),
    "FreeSurfer, register.dat": (
        "register.dat", "bert\n1.0\n1.0\n0.15\n1 0 0 3\n0 1 0 -4\n0 0 1 5\n0 0 0 1\nround\n", "lta_convert --inreg",
    ),
    "FreeSurfer, warp": ("a.mgz", "x", "mri_warp_convert -g MOVING --inras FILE --outlps"),
    "FreeSurfer, morph": ("a.m3z", "x", "mri_warp_convert -g MOVING --inm3z FILE --outlps"),
    "MIRTK": ("a.dof", "DOF: 6\n0 0 0 1 2 3\n", "mirtk convert-dof"),
    "flat": ("a.lta", lta(np.diag([1.0, 1, 0, 1]), 1, MOVING, FIXED), "that can be inverted"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_transforms_that_cannot_be_read_are_refused_by_name(tmp_path: Path, name: str) -> None:
    file, text, message = REFUSED[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=rf"{file}: .*{message}"):
        read_foreign(tmp_path / file, FIXED, moving=MOVING)


def test_import_writes_what_the_file_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = make_grid((12, 10, 8), (1.5, 1.2, 1), (0.1, 0.2, 0.3), (1, 2, 3))
    write(tmp_path / "def.nii.gz", positions(grid) + SHIFT, grid, 1007, "NREG_TRANS", 0)
    nibabel.save(nibabel.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine), tmp_path / "fixed.nii.gz")
    (tmp_path / "TransformParameters.0.txt").write_text(TRANSLATION)
    for name in ("def.nii.gz", "TransformParameters.0.txt"):
        words = [str(tmp_path / name), "--reference", str(tmp_path / "fixed.nii.gz"), "--output", str(tmp_path / "u.nii.gz")]
        assert main(["import", *words]) == 0
        displacement, found = read_field(tmp_path / "u.nii.gz")
        assert np.abs(motion_mm((displacement, found)) - SHIFT).max() < 1e-4
        assert (
            main(["warp", str(tmp_path / name), "--image", str(tmp_path / "fixed.nii.gz"), "--output", str(tmp_path / "w.nii")])
            == 1
        )
        assert "mcbo import" in capsys.readouterr().err


def test_registration_starts_from_flirts_matrix(tmp_path: Path) -> None:
    (tmp_path / "flirt.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    assert torch.allclose(
        torch.from_numpy(read_initial(tmp_path / "flirt.mat", LEFT, RIGHT)),
        torch.from_numpy(
            RIGHT.affine @ np.array([[-1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ np.linalg.inv(LEFT.affine)
        ),
    )
