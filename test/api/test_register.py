"""Registration of images of any grid: the API, the command, and what they write."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
import torch
from geometry import LPS, as_sitk, inner_points, make_grid, turn
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

import mcbo
from mcbo.api.result import file_names, labels_of
from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.core.log import log
from mcbo.core.types import Shape
from mcbo.geometry.grid import Grid
from mcbo.io.images import read_field
from mcbo.io.initial_transform import read_initial
from mcbo.io.nifti import write_volume
from mcbo.methods.working_grid import LEAST_ACROSS, MAX_VOXELS, canonical, working_grid
from mcbo.studies.phantom import make_phantom

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    sitk = pytest.importorskip("SimpleITK")

CENTER = np.array([20.0, -30.0, 15.0])
"""Of the head that is drawn, mm."""


def centered(shape: Shape, spacing_mm: tuple[float, float, float], angles: tuple[float, float, float]) -> Grid:
    """A grid around the head's center."""
    grid = make_grid(shape, spacing_mm, angles, (0, 0, 0))
    affine = np.array(grid.affine)
    affine[:3, 3] = CENTER - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


FIXED = centered((61, 56, 21), (0.9, 1.0, 2.7), (0.25, -0.2, 0.3))
MOVING = centered((56, 64, 60), (1.2, 1.1, 1.1), (-0.1, 0.2, 3.0))
TURN = turn([math.radians(angle) for angle in (5.0, -3.0, 2.0)])
SHIFT = np.array([3.0, -4.0, 2.0])


def motion(world: NDArray[np.float64]) -> NDArray[np.float64]:
    """The truth: a rigid motion and a bend of 1 mm, from fixed to moving world positions."""
    centered = world - CENTER
    bend = np.sin(2 * np.pi * centered[:, [1, 2, 0]] / 50)
    return np.asarray(centered @ TURN.T + CENTER + SHIFT + bend)


def draw(anatomy: Tensor, its_grid: Grid, grid: Grid, *, moved: bool) -> Tensor:
    """An anatomy on another grid, by scipy: voxel p shows it at p, or where the motion takes p; thick slices are means."""
    total = np.zeros(grid.shape)
    steps = [(np.arange(n) + 0.5) / n - 0.5 for n in map(round, grid.spacing_mm)]
    for offset in itertools.product(*steps):
        world = grid.to_world(grid.voxels(0, grid.shape[0]) + torch.tensor(offset)).numpy()
        positions = its_grid.to_voxels(torch.from_numpy(motion(world) if moved else world)).numpy()
        total += ndimage.map_coordinates(anatomy[0, 0].numpy(), positions.T, order=1).reshape(grid.shape)
    return torch.from_numpy(total / np.prod([len(s) for s in steps])).float()


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """T2 on the anisotropic, oblique fixed grid, ceT1 on the moving one; ``(H, W, D)``."""
    phantom = make_phantom((72, 70, 74), seed=3, amplitude=0)
    grid = centered((72, 70, 74), (1.0, 1.0, 1.0), (0, 0, 0))
    return draw(phantom.t2, grid, FIXED, moved=True), draw(phantom.cet1, grid, MOVING, moved=False)


@pytest.fixture(scope="module")
def found(pair: tuple[Tensor, Tensor]) -> mcbo.Result:
    return run(pair)


@pytest.fixture(scope="module")
def on_fixed_grid(pair: tuple[Tensor, Tensor]) -> mcbo.Result:
    return run(pair, "cascade")


@pytest.fixture
def world() -> Tensor:
    return inner_points(FIXED, 500, margin=2.0)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


def run(pair: tuple[Tensor, Tensor], preset: str = "auto") -> mcbo.Result:
    return mcbo.register((pair[0], FIXED.affine), (pair[1], MOVING.affine), preset=preset)


def error_mm(result: mcbo.Result, world: Tensor) -> NDArray[np.float64]:
    moved = result.warp_points(world.numpy(), unit="mm")
    return np.asarray(np.linalg.norm(moved - motion(world.numpy()), axis=1))


def reoriented(
    volume: Tensor, grid: Grid, axes: tuple[int, ...], flipped: tuple[int, ...]
) -> tuple[Tensor, NDArray[np.float64]]:
    """The same image stored with its axes in another order and direction, by nibabel."""
    image = nibabel.Nifti1Image(volume.numpy(), grid.affine)
    turned = image.as_reoriented(np.array([[axes.index(a), -1 if axes.index(a) in flipped else 1] for a in range(3)]))
    return torch.from_numpy(np.ascontiguousarray(turned.get_fdata(dtype=np.float32))), np.asarray(turned.affine)


def test_a_known_motion_between_oblique_anisotropic_grids_is_recovered(found: mcbo.Result, world: Tensor) -> None:
    before = np.linalg.norm(motion(world.numpy()) - world.numpy(), axis=1)
    after = error_mm(found, world)
    assert before.mean() > 5
    assert after.mean() < 1


def test_on_the_fixed_grid_too(on_fixed_grid: mcbo.Result, world: Tensor) -> None:
    assert error_mm(on_fixed_grid, world).mean() < 2


@pytest.mark.parametrize(("which", "axes", "flipped"), [(0, (2, 0, 1), (0,)), (1, (1, 0, 2), (1, 2))])
def test_how_axes_are_stored_does_not_matter(
    pair: tuple[Tensor, Tensor],
    found: mcbo.Result,
    world: Tensor,
    which: int,
    axes: tuple[int, ...],
    flipped: tuple[int, ...],
) -> None:
    images = [(pair[0], FIXED.affine), (pair[1], MOVING.affine)]
    images[which] = reoriented(pair[which], (FIXED, MOVING)[which], axes, flipped)
    assert images[which][0].shape != pair[which].shape or axes == (0, 1, 2)
    again = mcbo.register(images[0], images[1], preset="auto")
    here, there = (result.warp_points(world.numpy(), unit="mm") for result in (again, found))
    assert np.linalg.norm(here - there, axis=1).mean() < 0.02


def test_all_kinds_of_images_give_the_same(tmp_path: Path) -> None:
    phantom = make_phantom((33, 30, 36), seed=7)
    fixed, moving = phantom.fixed[0, 0], phantom.cet1[0, 0]
    grid = make_grid((33, 30, 36), (1.0, 1.2, 0.9), (0.2, 0.1, -0.3), (5, -8, 40))
    arrays = fixed.numpy(), moving.numpy()
    expected = mcbo.register(arrays[0], arrays[1], affine=grid.affine, preset="cascade").displacement
    assert expected.shape == (33, 30, 36, 3)
    images = [nibabel.Nifti1Image(array, grid.affine) for array in arrays]
    itk_images = [as_sitk(array, grid) for array in arrays]
    nibabel.save(images[0], tmp_path / "fixed.nii.gz")
    nibabel.save(images[1], tmp_path / "moving.nii.gz")
    sitk.WriteImage(itk_images[0], str(tmp_path / "fixed.nrrd"))
    sitk.WriteImage(itk_images[1], str(tmp_path / "moving.mha"))
    kinds: dict[str, list[Any]] = {
        "tensors": [(image, grid.affine) for image in (fixed, moving)],
        "nibabel, SimpleITK": [images[0], itk_images[1]],
        "SimpleITK, NIfTI": [itk_images[0], str(tmp_path / "moving.nii.gz")],
        "NRRD, MetaImage": [tmp_path / "fixed.nrrd", tmp_path / "moving.mha"],
    }
    alone = mcbo.register(tmp_path / "fixed.nii.gz", images[0], preset="cascade")
    assert np.abs(alone.displacement).max() < 0.02
    for kind, (one, other) in kinds.items():
        result = mcbo.register(one, [other], preset="cascade")
        assert np.abs(result.displacement - expected).max() < 0.02, kind
        assert np.allclose(result.affine, grid.affine, atol=1e-4), kind


def test_an_image_does_not_move_against_itself(pair: tuple[Tensor, Tensor], world: Tensor) -> None:
    image = (pair[1], MOVING.affine)
    result = mcbo.register(image, reoriented(pair[1], MOVING, (2, 1, 0), (1,)), preset="auto")
    moved = result.warp_points(world.numpy(), unit="mm")
    assert np.linalg.norm(moved - world.numpy(), axis=1).max() < 0.05
    assert result.confidence is not None
    assert result.confidence > 0.9


def test_far_images_are_brought_together_and_the_displacement_holds_that_motion(
    pair: tuple[Tensor, Tensor], found: mcbo.Result, world: Tensor
) -> None:
    away = np.eye(4)
    away[:3, 3] = (400, -300, 200)
    far = (pair[1], away @ MOVING.affine)
    with pytest.raises(InputError, match=r"moving image 1: expected it to overlap .* --initial"):
        mcbo.register((pair[0], FIXED.affine), far, expect=(5, 3))
    with pytest.raises(InputError, match=r"moving image 1: expected it to overlap .* --initial"):
        mcbo.register((pair[0], FIXED.affine), (torch.rand(40, 50, 60), far[1]))
    there = found.warp_points(world.numpy(), unit="mm") + away[:3, 3]
    starts: list[dict[str, Any]] = [{"initial": away}, {"center": True}, {}]
    for start in starts:
        result = mcbo.register((pair[0], FIXED.affine), far, **start)
        here = result.warp_points(world.numpy(), unit="mm")
        assert np.linalg.norm(here - there, axis=1).mean() < (0.001 if "initial" in start else 1)
        notes = [one for one in result.report.warnings if "the images do not overlap where they lie" in one]
        assert len(notes) == (not start)
        if notes:
            assert float(notes[0].split(" found ")[1].split(" mm away")[0]) == pytest.approx(
                np.linalg.norm(away[:3, 3]), abs=30
            )
            assert result.report.judgement["moving"].similarity["identity"] == 0


def test_masks_keep_out_what_is_not_to_count(pair: tuple[Tensor, Tensor], world: Tensor) -> None:
    """A bright block that moves the other way is forgotten where both masks leave it out."""
    fixed, moving = pair[0].clone(), pair[1].clone()
    masks = [torch.ones(image.shape, dtype=torch.uint8) for image in pair]
    noise = torch.rand((25, 56, 21), generator=torch.Generator().manual_seed(1))
    fixed[:25], masks[0][:25] = 800 * noise, 0
    clean = mcbo.register((fixed, FIXED.affine), (moving, MOVING.affine), fixed_mask=masks[0].numpy(), moving_masks=masks[1])
    fixed[:25] = 300 * noise.flip(1)
    other = mcbo.register((fixed, FIXED.affine), (moving, MOVING.affine), fixed_mask=masks[0], moving_masks=[masks[1]])
    assert np.abs(clean.displacement - other.displacement).max() < 0.05
    seen = (FIXED.to_voxels(world)[:, 0] > 27).numpy()
    assert error_mm(clean, world)[seen].mean() < 2.5


def test_points_images_and_inverse_agree(found: mcbo.Result, pair: tuple[Tensor, Tensor], world: Tensor) -> None:
    there = found.warp_points(world.numpy(), unit="mm")
    back = found.warp_points(there, unit="mm", direction="moving-to-fixed")
    assert np.abs(back - world.numpy()).max() < 1e-3
    voxels = FIXED.to_voxels(world).numpy()
    assert np.allclose(MOVING.to_world(torch.from_numpy(found.warp_points(voxels))).numpy(), there, atol=1e-9)
    inside = MOVING.inside(MOVING.to_voxels(torch.from_numpy(there))).numpy()
    assert np.abs(found.inverse().warp_points(there[inside], unit="mm") - world.numpy()[inside]).mean() < 0.05
    itk = [found.to_itk().TransformPoint((LPS @ point).tolist()) for point in world.numpy()]
    assert np.abs(np.array(itk) @ LPS - there).max() < 1e-3
    warped = found.warp(pair[1])
    assert warped.shape == FIXED.shape
    labels = (pair[1] > 300).int()
    assert set(np.unique(found.warp(labels, labels=True))) == {0, 1}
    with pytest.raises(InputError, match="image: expected the shape of the moving image"):
        found.warp(pair[0])
    for large in (2.0**24 + 1, 2.0**40):  # float32 has the one no more, int32 not the other
        with pytest.raises(InputError, match="image: expected labels below 2²⁴, or stored as integers"):
            found.warp(np.where(labels.numpy(), large, 0), labels=True)
        assert found.warp(labels.long() * int(large), labels=True).max() == large
    with pytest.raises(InputError, match="image: expected whole numbers as labels"):
        found.warp(np.where(labels.numpy(), np.inf, 0), labels=True)
    with pytest.raises(InputError, match="image: outside: expected a whole number"):
        found.warp(labels, labels=True, outside=0.5)
    assert found.warp(pair[1].bfloat16()).shape == FIXED.shape
    with pytest.raises(InputError, match=r"points: expected finite numbers of shape \(N, 3\), got 'abc'"):
        found.warp_points("abc")


def test_the_command_writes_what_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom = make_phantom((33, 30, 36), seed=7)
    fixed, moving, output = tmp_path / "us.nii.gz", tmp_path / "t1.nii.gz", tmp_path / "out"
    write_volume(fixed, phantom.fixed, np.diag((1.0, 1.0, 1.1, 1)))
    write_volume(moving, phantom.cet1[..., 2:], np.diag((1.0, 1.0, 1.1, 1)))
    mask = tmp_path / "mask.nii.gz"
    write_volume(mask, torch.ones((1, 1, 33, 30, 34)), np.diag((1.0, 1.0, 1.1, 1)))
    arguments = ["register", str(fixed), str(moving), str(moving), "--output", str(output), "--log-json"]
    arguments += ["--moving-mask", str(mask), "--moving-mask", str(mask)]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"time", "level", "message"} == set(lines[0])
    written = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert written == {
        "displacement.nii.gz",
        "transform.h5",
        "inverse.nii.gz",
        "warped_t1.nii.gz",
        "warped_t1-2.nii.gz",
        "report.json",
    }
    entry = json.loads((output / "report.json").read_text())["cases"]["result"]
    assert entry["images"] == [str(fixed), str(moving), str(moving)]
    assert set(entry["written"]) == written - {"report.json"}
    assert list(entry["inputs"]) == [str(fixed), str(moving)]
    assert entry["judgement"]["t1"] == entry["judgement"]["t1-2"]
    before = (output / "report.json").read_bytes()
    assert main([*arguments[:-5], "--quiet", *arguments[-4:]]) == 0
    assert capsys.readouterr().out == ""
    assert (output / "report.json").read_bytes() == before
    assert main(["report", str(output)]) == 0
    assert "No pictures" not in (output / "report.html").read_text()
    (output / "warped_t1.nii.gz").write_bytes(b"cut off")
    assert main(arguments) == 0
    assert (output / "warped_t1.nii.gz").stat().st_size > 1000


def test_results_of_other_images_are_neither_taken_for_done_nor_left(tmp_path: Path) -> None:
    phantom = make_phantom((24, 25, 26), seed=7)
    for name, volume in (("a", phantom.fixed), ("b", phantom.cet1[..., 2:])):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "image.nii.gz", volume, np.eye(4))
    one, other, output = str(tmp_path / "a/image.nii.gz"), str(tmp_path / "b/image.nii.gz"), tmp_path / "out"
    assert main(["register", one, other, other, "--output", str(output)]) == 0
    (output / "warped_mine.nii.gz").write_bytes(b"somebody else's")
    assert main(["register", one, other, "--output", str(output), "--without", "transform"]) == 0
    names = {"displacement.nii.gz", "inverse.nii.gz", "warped.nii.gz", "report.json", "warped_mine.nii.gz"}
    assert {path.name for path in output.iterdir() if not path.name.startswith(".")} == names
    assert main(["register", other, one, "--output", str(output)]) == 0
    assert read_field(output / "displacement.nii.gz")[1].shape == (24, 25, 24)


def test_what_is_expected_is_part_of_the_settings_and_a_finished_result_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phantom = make_phantom((24, 25, 26), seed=7)
    for name, volume in (("a", phantom.fixed), ("b", phantom.cet1)):
        write_volume(tmp_path / f"{name}.nii.gz", volume, np.eye(4))
    command = ["register", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz"), "--output", str(tmp_path / "out")]
    for arguments, is_skipped in (([], False), (["--expect", "5,3"], False), (["--expect", "5,3"], True), ([], False)):
        assert main([*command, *arguments]) == 0
        assert ("already finished" in capsys.readouterr().out) == is_skipped


@pytest.mark.parametrize("expect", [5, (5, 3, 1), ("a", "b"), "5,3", (0, 3), (5, math.nan)])
def test_expectations_are_two_positive_numbers(expect: Any) -> None:
    image = np.random.default_rng(0).random((20, 22, 26))
    with pytest.raises(InputError, match=r"expect: expected (two numbers|a shift of)"):
        mcbo.register(image, image, expect=expect)


def test_errors_are_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["register", str(tmp_path / "a.nii"), str(tmp_path / "b.nii"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--log-json"]) == 1
    said = json.loads(capsys.readouterr().err)
    assert said["level"] == "ERROR"
    assert said["message"].endswith("a.nii: no such file; expected a NIfTI image")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.nii.gz"], "Missing argument 'MOVING"),
        (["a.nii.gz", "b.nii.gz"], "a.nii.gz: no such file"),
        (
            ["a.nii.gz", "b.nii.gz", "--preset", "best"],
            "preset 'best' is not known for ReMIND2Reg: expected one of cascade, mcbo2024, auto",
        ),
        (["a.nii.gz", "b.nii.gz", "--task", "LUMIR"], "task 'LUMIR' is not known"),
        (["a.nii.gz", "b.nii.gz", "--center", "--initial", "m.txt"], "got several"),
        (["a.nii.gz", "b.nii.gz", "--spacing", "1,1,1"], "--spacing: expected with TIFF"),
        (["a.tif", "b.nii.gz", "--spacing", "1,0,1"], "--spacing: expected three positive numbers"),
        (["a.nii.gz", "b.nii.gz", "c.nii.gz", "--moving-mask", "d.nii.gz"], "expected one for each of 2 moving"),
        (["a.nii.gz", "b.nii.gz", "--preset", "mcbo2024", "--fixed-mask", "d.nii.gz"], "mcbo2024 does not use masks"),
        (["a.nii.gz", "b.nii.gz", "--preset", "mcbo2024", "--expect", "5,3"], "mcbo2024 does not use an expected motion"),
        (["a.nii.gz", "b.nii.gz", "--expect", "5"], "--expect: expected MM,DEG, such as 5,3, got '5'"),
        (["a.nii.gz", "b.nii.gz", "--expect", "a,b"], "--expect: expected MM,DEG, such as 5,3, got 'a,b'"),
        (["a.nii.gz", "b.nii.gz", "--expect", "5parsec,3"], "--expect: expected a shift in mm, or with a unit such as 0.5um"),
        (["a.nii.gz", "b.nii.gz", "--expect", "0,3"], "--expect: expected a finite shift in mm above 0, got 0"),
        (
            ["a.nii.gz", "b.nii.gz", "--expect", "5,inf"],
            "--expect: expected a finite rotation in degrees above 0 and below 180, got inf",
        ),
        (["a.nii.gz", "b.nii.gz", "--without", "field"], "--without: expected one of transform, inverse, warped, got 'field'"),
        (["a.nii.gz", "b.nii.gz", "--quiet", "--verbose"], "expected --quiet or --verbose, got both"),
        (["out/a.nii.gz", "b.nii.gz"], "--output: expected a folder without inputs, found that of out/a.nii.gz"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["register", *arguments, "--output", "out"]) == 1
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_thin_and_broken_arrays_are_refused() -> None:
    image = np.random.default_rng(0).random((20, 22, 6))
    with pytest.raises(InputError, match="fixed image: expected at least 8 voxels along every axis, got 20×22×6"):
        mcbo.register(image, image)
    with pytest.raises(InputError, match="moving image 2: expected a 3D image, got data of shape"):
        mcbo.register(image, [image, image[0]])
    with pytest.raises(InputError, match="moving image 1: expected finite intensities"):
        mcbo.register(image, image * np.nan)
    with pytest.raises(InputError, match=r"fixed image: .* found only the value 0"):
        mcbo.register(image * 0, image)
    with pytest.raises(InputError, match="got a list"):
        mcbo.register([image], image)
    with pytest.raises(InputError, match="affine or spacing, got both"):
        mcbo.register(image, image, affine=np.eye(4), spacing=(1, 1, 1))
    with pytest.raises(InputError, match=r"moving image 1: .* \(several images make a list\) its affine .* got 'b.nii.gz'"):
        mcbo.register(image, ("a.nii.gz", "b.nii.gz"))
    with pytest.raises(InputError, match="expected an affine as a 4×4 matrix"):
        mcbo.register(image, image, affine=[[1, 2], [3]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="spacing: expected three positive numbers, got 1"):
        mcbo.register(image, image, spacing=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a 4×4 matrix of numbers"):
        mcbo.register(image, image, initial=[[1, 2], [3]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="memory_gb: expected a number above 0, got nan"):
        mcbo.register(image, image, memory_gb=math.nan)


def test_the_version_costs_no_torch() -> None:
    code = "import sys, mcbo; assert mcbo.__version__; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mcbo.Transform.__module__ == "mcbo.api.transform"
    with pytest.raises(AttributeError, match="no attribute 'registre'"):
        _ = mcbo.registre


MATRIX = st.lists(st.floats(-50, 50), min_size=3, max_size=3).flatmap(
    lambda shift: st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3).map(lambda angles: rigid(angles, shift))
)


def rigid(angles: list[float], shift: list[float]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn(angles), shift
    return matrix


@given(MATRIX, st.sampled_from([".txt", ".tfm", ".h5"]))
@settings(max_examples=30, deadline=None)
def test_initial_motions_are_read_as_they_were_meant(
    tmp_path_factory: pytest.TempPathFactory, matrix: NDArray[np.float64], suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("initial")
    lps = np.diag((-1.0, -1, 1, 1)) @ matrix @ np.diag((-1.0, -1, 1, 1))
    transform = sitk.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist())
    sitk.WriteTransform(sitk.CompositeTransform([transform]), str(folder / f"itk{suffix}"))
    assert np.allclose(read_initial(folder / f"itk{suffix}"), matrix, atol=1e-9)
    np.savetxt(folder / "plain.txt", matrix)
    assert np.allclose(read_initial(folder / "plain.txt"), matrix)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_a_motion_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"any\.txt"):
        read_initial(path)


SIZES = st.tuples(*[st.integers(4, 40)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 4.0)] * 3)
ANGLES = st.tuples(*[st.floats(-3.0, 3.0)] * 3)


@given(SIZES, SPACINGS, ANGLES)
def test_the_working_grid_covers_the_fixed_image_with_isotropic_voxels(
    shape: Shape, spacing_mm: tuple[float, float, float], angles: tuple[float, float, float]
) -> None:
    fixed = make_grid(shape, spacing_mm, angles, (3, -200, 17))
    chosen, is_coarser = working_grid(fixed, [fixed], initial=np.eye(4), oversampling=2.0, fits=lambda _: True)
    assert not is_coarser
    assert max(chosen.spacing_mm) / min(chosen.spacing_mm) < 1.2501
    assert min(chosen.spacing_mm) == pytest.approx(min(fixed.spacing_mm))
    edges = torch.cartesian_prod(*(torch.tensor((-0.499, size - 0.501), dtype=torch.float64) for size in shape))
    assert bool(chosen.inside(chosen.to_voxels(fixed.to_world(edges))).all())
    excess = np.array(chosen.shape) * chosen.spacing_mm - np.array(canonical(fixed).shape) * canonical(fixed).spacing_mm
    assert excess.max() <= max(chosen.spacing_mm) + 1e-6


def test_the_working_grid_reaches_beyond_where_a_moving_image_does_and_grows_coarse_where_it_must() -> None:
    fixed = make_grid((20, 30, 40), (1.0, 1.0, 1.0), (0, 0, 0), (0, 0, 0))
    moving = make_grid((40, 30, 40), (1.0, 1.0, 1.0), (0, 0, 0), (-2, 0, 0))
    chosen, _ = working_grid(fixed, [moving], initial=np.eye(4), oversampling=2.0, fits=lambda _: True)
    assert chosen.shape == (2 + 20 + 5, 30, 40)
    assert chosen.affine[:3, 3].tolist() == [-2, 0, 0]
    chosen, is_coarser = working_grid(fixed, [moving], initial=np.eye(4), oversampling=2.0, fits=lambda shape: shape[0] <= 10)
    assert is_coarser
    assert chosen.shape[0] in (9, 10)
    huge = make_grid((2000, 30, 400), (0.1, 0.1, 1.0), (0, 0, 0), (0, 0, 0))
    chosen, is_coarser = working_grid(huge, [huge], initial=np.eye(4), oversampling=2.0, fits=lambda _: True)
    assert is_coarser
    assert np.prod(chosen.shape) <= max(MAX_VOXELS, 2000 * 30 * 400)


def test_the_working_grid_is_hardly_finer_than_the_moving_images() -> None:
    fixed = make_grid((66, 200, 210), (0.1, 0.05, 0.05), (0, 0, 0), (3, 4, 5))
    coarse = make_grid((40, 60, 70), (0.5, 0.2, 0.2), (0, 0, 0), (0, 0, 0))
    finest = partial(working_grid, fixed, fits=lambda _: True)
    for oversampling, side in ((2.0, 0.1), (1.0, 0.2), (0.1, 6.6 / LEAST_ACROSS)):
        chosen, is_coarser = finest([coarse], initial=np.eye(4), oversampling=oversampling)
        assert chosen.spacing_mm == pytest.approx((side, side, side))
        assert not is_coarser
    turned = np.diag([-2.0, 2.0, -2.0, 1.0])  # to the fixed image, the moving one looks half as large
    assert finest([coarse], initial=turned, oversampling=1.0)[0].spacing_mm == pytest.approx((0.1, 0.1, 0.1))
    fine = make_grid((40, 60, 70), (0.05, 0.2, 0.2), (0, 0, 0), (0, 0, 0))
    assert finest([coarse, fine], initial=np.eye(4), oversampling=1.0)[0].spacing_mm == pytest.approx((0.05, 0.05, 0.05))


def test_images_that_lie_elsewhere_are_found_unless_the_user_knows_better() -> None:
    """A part of a head, moved from its place: where it was is known."""
    phantom = make_phantom((72, 96, 84), amplitude=0.3)
    corner = 8, 30, 24
    part = phantom.fixed[0, 0, 8:64, 30:90, 24:80].numpy()
    fixed, whole = nibabel.Nifti1Image(part, np.eye(4)), nibabel.Nifti1Image(phantom.t2[0, 0].numpy(), np.eye(4))
    inside = np.argwhere(np.ones((4, 4, 4))) * 14.0 + 6
    true = inside + corner + [phantom.displacement[0, :, *(p + corner).astype(int)].numpy() for p in inside]
    assert np.linalg.norm(true - inside, axis=1).mean() > 35
    result = mcbo.register(fixed, whole, device="cpu")
    (note,) = result.report.warnings
    assert note.startswith("the images do not match where they lie: the fixed image was found ")
    assert float(note.split(" found ")[1].split(" mm away")[0]) == pytest.approx(np.linalg.norm(corner), abs=3)
    assert np.linalg.norm(result.warp_points(inside) - true, axis=1).mean() < 0.8
    assert np.array(result.report.initial)[:3, 3] == pytest.approx(corner, abs=6)
    kept = mcbo.register(fixed, whole, device="cpu", expect=(5, 3))
    assert kept.confidence is not None
    assert kept.confidence < 0.5
    assert np.array(kept.report.initial) == pytest.approx(np.eye(4))


def test_what_is_found_elsewhere_and_fits_at_once_is_no_identity() -> None:
    image = make_phantom((64, 72, 68)).t2[0, 0].numpy()
    part = nibabel.Nifti1Image(image[20:60, 24:68, 22:60].copy(), np.eye(4))
    result = mcbo.register(part, nibabel.Nifti1Image(image, np.eye(4)), device="cpu")
    assert result.displacement[20, 20, 20].tolist() == pytest.approx([20, 24, 22], abs=0.2)
    (judgement,) = result.report.judgement.values()
    assert judgement.chosen in ("rigid", "full")
    assert judgement.similarity[judgement.chosen] > judgement.similarity["identity"] + 0.5


def test_names_of_files() -> None:
    assert labels_of(["a/t1.nii.gz", "b/t1.nrrd", "", "x y.mha"]) == ["t1", "t1-2", "moving", "x_y"]
    (one,) = file_names(["t1"], shared=[])
    assert one["displacement"] == "displacement.nii.gz"
    two = file_names(["t1", "t2"], shared=["inverse"])
    assert [names["transform"] for names in two] == ["transform_t1.h5", "transform_t2.h5"]
    assert [names["inverse"] for names in two] == ["inverse.nii.gz"] * 2
