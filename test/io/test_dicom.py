"""DICOM series; their geometry is that of ITK's own reader of series, and what the positions in the headers say."""

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import PATIENT, UID, dicom, write_series
from geometry import turn
from numpy.typing import NDArray

from mcbo.api.transform import Transform
from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.io.dicom.arrange import arrange
from mcbo.io.dicom.header import Slice
from mcbo.io.files import digest
from mcbo.io.images import read_any, read_field
from mcbo.io.itk import grid_of
from mcbo.io.microscopy.images import selections
from mcbo.io.microscopy.selection import Selection
from mcbo.studies.phantom import make_phantom

VALUES = np.random.default_rng(0).integers(-100, 1000, (5, 6, 7)).astype(np.int16)
"""Slices, rows, columns."""

FIRST = np.array([-11, -13.8, -15])


def turned_series(folder: Path, *, axes: NDArray[np.float64] | None = None, heights: Sequence[float] = (0, 2, 4, 6, 8)) -> Path:
    """``VALUES`` as a series whose planes are turned by a rotation, at heights along their normal."""
    axes = np.eye(3) if axes is None else axes
    positions = [(FIRST + axes[:, 2] * height).tolist() for height in heights]
    return write_series(folder, VALUES, positions, orientation=axes[:, :2].T.ravel().tolist())


def by_itk(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.2, 0.5), (np.pi / 2, 0, 0), (0, np.pi / 2, 0.1)])
@pytest.mark.parametrize("heights", [(0, 2, 4, 6, 8), (8, 6, 4, 2, 0), (4, 0, 8, 2, 6), (-3.5, -1, 1.5, 4, 6.5)])
def test_slices_lie_where_their_headers_say(tmp_path: Path, angles: Sequence[float], heights: Sequence[float]) -> None:
    """Axial, oblique, coronal, sagittal; ascending, descending, interleaved: as ITK has it, and as the positions are."""
    axes = turn(angles)
    folder = turned_series(tmp_path / "series", axes=axes, heights=heights)
    volume, grid = read_any(folder)
    image = by_itk(folder)
    assert grid_of(image).matches(grid, within_voxels=1e-4)
    assert np.array_equal(volume[0, 0].numpy(), sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert volume.dtype == torch.int32
    for n in range(5):
        rank = sorted(heights).index(heights[n])
        lps = FIRST + axes @ [3 * 1.0, 2 * 1.2, heights[n]]
        found = grid.to_voxels(torch.tensor([[-lps[0], -lps[1], lps[2]]]))
        assert torch.allclose(found, torch.tensor([[3.0, 2, rank]], dtype=torch.float64), atol=1e-4)
        assert volume[0, 0, 3, 2, rank] == VALUES[n, 2, 3]


@pytest.mark.parametrize("slopes", [(1, 1, 1), (1, 0.5, 2.25), (2, 2, 2), (1e-3, 2e-3, 3e-3)])
def test_intensities_are_rescaled_slice_by_slice(tmp_path: Path, slopes: Sequence[float]) -> None:
    """As in PET, where each slice has a slope; ITK's reader of series would take the type of the first for all."""
    (tmp_path / "s").mkdir()
    for n, slope in enumerate(slopes):
        data = dicom(VALUES[n], position=(0, 0, 2 * n), uid=f"{UID}.{n + 1}", slope=slope, intercept=-7)
        (tmp_path / "s" / f"{n}.dcm").write_bytes(data)
    true = np.stack([VALUES[n] * slope - 7 for n, slope in enumerate(slopes)])
    volume, _ = read_any(tmp_path / "s")
    assert volume.is_floating_point() == any(slope != int(slope) for slope in slopes)
    assert np.allclose(volume[0, 0].numpy(), true.transpose(2, 1, 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_pixels_of_any_type(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = (VALUES % 251).astype(dtype)
    volume, _ = read_any(write_series(tmp_path / "s", values, [(0, 0, n) for n in range(5)]))
    assert np.array_equal(volume[0, 0].numpy(), values.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ((0, 2, 6, 8, 10), r"2 mm apart, found 1 missing: 1 between 'IM10' and 'IM17' \(4 mm apart\); copy all"),
        ((0, 2, 4, 10, 12), r"found 2 missing: 2 between 'IM17' and 'IM24' \(6 mm apart\)"),
        ((12, 10, 6, 2, 0), r"found 2 missing: 1 between 'IM24' and 'IM17' \(4 mm apart\), 1 between 'IM17' and 'IM10' \(4"),
        ((0, 2, 6), r"2 mm apart, found 1 missing: 1 between 'IM10' and 'IM17'"),
        ((0, 2, 4.4, 6, 8.9), "slices at equal distances, found 1.6 to 2.9 mm, the largest between 'IM24' and 'IM31'"),
        ((0, 2, 0, 2, 4), "found 5 slices at 3 places: several volumes in one series"),
        ((0,), "slices of a volume, found one"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path: Path, heights: Sequence[float], message: str) -> None:
    with pytest.raises(InputError, match=rf"series: expected .*{message}"):
        read_any(turned_series(tmp_path / "series", heights=heights))


def test_colors_and_files_of_several_frames_are_refused(tmp_path: Path) -> None:
    colors = np.stack([VALUES % 256] * 3, axis=-1).astype(np.uint8)
    with pytest.raises(InputError, match=r"found 3 \(a color image\)"):
        read_any(write_series(tmp_path / "colors", colors, [(0, 0, n) for n in range(5)]))
    write_series(tmp_path / "frames", VALUES[None], [(0, 0, 0)])
    with pytest.raises(InputError, match=r"several frames in one \(enhanced DICOM\).*dcm2niix"):
        read_any(tmp_path / "frames")


def made(*, heights: Sequence[float] = (0, 2, 4), **tags: Any) -> list[Slice]:
    """Slices as GDCM's headers tell them; a list of texts for a tag has one for each slice."""
    slices = []
    for n, height in enumerate(heights):
        header: dict[str, Any] = {
            "position": f"0\\0\\{height}", "orientation": "1\\0\\0\\0\\1\\0", "spacing": "1.2\\1", "size": (7, 6, 1),
            "numbers": 1, "type": 2, "uid": str(n),
        }  # fmt: skip
        header |= {name: value[n] if isinstance(value, list) else value for name, value in tags.items()}
        slices.append(Slice(Path(f"series/{n}"), {name: value for name, value in header.items() if value is not None}))
    return slices


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"position": None}, "expected slices with their position in the header, found '' in '0'"),
        ({"orientation": "1\\0\\0"}, "expected slices with their orientation in the header"),
        ({"position": "a\\b\\c"}, "expected slices with their position"),
        ({"position": ["0\\0\\0", "0\\0\\nan", "0\\0\\4"]}, r"expected slices with their position .* in '1'"),
        ({"spacing": None}, "expected slices with their spacing"),
        ({"spacing": "0\\0"}, "pixels with a size"),
        (
            {"orientation": ["1\\0\\0\\0\\1\\0"] * 2 + ["0\\1\\0\\0\\0\\1"]},
            "expected parallel slices .* that '0' and '2' differ",
        ),
        ({"spacing": ["1.2\\1", "1.2\\1", "2\\2"]}, "expected parallel slices with pixels of one size, found that '0' and '2'"),
        ({"size": [(7, 6, 1), (7, 6, 1), (8, 6, 1)]}, "expected slices of one size, found 7×6, 8×6"),
        ({"numbers": 3}, r"expected one number per pixel, found 3 \(a color image\)"),
        ({"image type": "ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC"}, r"side by side in one \(a mosaic of Siemens\): .*dcm2niix"),
        ({"frames": "4"}, r"several frames in one \(enhanced DICOM\).*dcm2niix"),
        (
            {"heights": (0, 0, 2, 2), "echo time": ["30", "60", "30", "60"]},
            "found 4 slices at 2 places: .*differ in echo time; convert it with dcm2niix",
        ),
        ({"heights": (0, 0, 2, 2), "b-value": ["0", "1000", "0", "1000"]}, "differ in b-value"),
        ({"heights": (0, 0, 2, 2), "temporal position": ["1", "2", "1", "2"]}, "differ in temporal position"),
        ({"heights": (0, 5, 10, 15, 17, 19, 21)}, "equal distances, found 2 to 5 mm"),
        ({"orientation": "1\\0\\0\\1\\0\\0"}, "expected axes of length 1 at right angles"),
        ({"size": (40000, 40000, 1)}, "expected at most 1073741824 numbers"),
    ],
)
def test_headers_that_make_no_volume_are_refused(tags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        arrange(made(**tags))


def test_a_small_difference_of_distances_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ordered, grid = arrange(made(heights=(0, 2.1, 4, 6, 8)))
    assert [one.text("uid") for one in ordered] == ["0", "1", "2", "3", "4"]
    assert grid.spacing_mm == (1, 1.2, 2)
    assert "found 1.9 to 2.1 mm" in caplog.text
    assert "off by up to 0.1 mm" in caplog.text
    caplog.clear()
    arrange(made(heights=(0, 2.001, 4, 6, 8)))
    assert not caplog.text


def test_a_tilted_gantry_shears_the_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each slice 1 mm further to the back than its distance of 2 mm says: 26.6°."""
    _, grid = arrange(made(position=["0\\0\\0", "0\\1\\2", "0\\2\\4"]))
    assert np.allclose(grid.affine[:3, 2], (0, -1, 2))
    assert "by 26.6° (a tilted gantry)" in caplog.text
    positions = [(0, n, 2 * n) for n in range(5)]
    read, where = read_any(write_series(tmp_path / "tilted", VALUES, positions))
    assert where.in_itk is not None
    assert grid_of(by_itk(tmp_path / "tilted")).matches(where.seen_by_itk(), within_voxels=1e-4)
    assert where.to_world(torch.tensor([[0.0, 0, 4]])).tolist() == [[0, -4, 8]]
    assert read[0, 0, 3, 2, 4] == VALUES[4, 2, 3]
    caplog.clear()
    _, grid = arrange(made(position=["0\\0\\0", "0\\0.001\\2", "0\\0.002\\4"]))
    assert np.allclose(grid.affine[:3, 2], (0, 0, 2))
    assert not caplog.text


def test_copies_of_a_slice_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = turned_series(tmp_path / "series")
    volume, grid = read_any(folder)
    for path in list(folder.iterdir())[:2]:
        shutil.copy(path, folder / f"{path.name} (1)")
    again, same = read_any(folder)
    assert torch.equal(again, volume)
    assert same.matches(grid)
    assert "2 file(s) are copies of others" in caplog.text


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Two series in one folder, beside what else such folders have."""
    folder = write_series(tmp_path / "export", VALUES, [(0, 0, 2 * n) for n in range(5)])
    write_series(folder, VALUES, [(0, 0, 3 * n) for n in range(3)], prefix="T1", series=f"{UID}.2", description="T1")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(200))
    (folder / "README.TXT").write_text("Viewer")
    (folder / "REPORT").write_bytes(bytes(128) + b"DICM" + bytes(300))
    return folder


def test_several_series_are_listed_and_one_is_chosen(several: Path) -> None:
    listed = rf"one of 2 DICOM series: 'T2 axial', 5 slices, '{UID}\.1'; 'T1', 3 slices, '{UID}\.2'"
    with pytest.raises(InputError, match=f"export: expected --series with the description or UID of {listed}"):
        read_any(several)
    for name, depth in ((f"{UID}.1", 5), ("T2 axial", 5), ("t1", 3), (f"{UID}.2", 3)):
        assert read_any(several, Selection(series=name))[0].shape == (1, 1, 7, 6, depth)
    with pytest.raises(InputError, match="of one of 2 DICOM series, got 'T3': 'T2 axial', 5 slices"):
        read_any(several, Selection(series="T3"))


def test_python_chooses_a_series_to_warp(several: Path) -> None:
    _, grid = read_any(several, Selection(series="T1"))
    transform = Transform(torch.zeros(1, 3, *grid.shape), grid, grid)
    assert np.allclose(transform.warp(several, series="T1"), VALUES[:3].transpose(2, 1, 0))
    with pytest.raises(InputError, match="expected --series"):
        transform.warp(several)
    with pytest.raises(InputError, match="image: expected no spacing, channel, time or series of an image that is no path"):
        transform.warp(VALUES, series="T1")


def test_what_is_no_image_is_named_and_left_out(several: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_any(several, Selection(series="T1"))
    assert "export: ignored 2 file(s) that are no DICOM images: README.TXT, REPORT" in caplog.text


@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize("cut", [2, 60])
def test_a_slice_that_is_cut_off_is_not_left_out(tmp_path: Path, number: int, cut: int) -> None:
    folder = turned_series(tmp_path / "series")
    path = sorted(folder.iterdir())[number]
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=f"series: expected whole DICOM images, found '{path.name}', which cannot be read: it"):
        read_any(folder)


def names_of(images: Sequence[object], series: Any) -> list[str | None]:
    return [one.series for one in selections(images, series=series)]


def test_each_image_takes_its_series(several: Path, tmp_path: Path) -> None:
    single, nifti = turned_series(tmp_path / "single"), Path("a.nii.gz")
    assert names_of([several, several], ["T1", "T2 axial"]) == ["T1", "T2 axial"]
    assert names_of([several, nifti, single], ["T1"]) == ["T1", None, None]
    assert names_of([nifti, several], ["-", "T1"]) == [None, "T1"]
    assert names_of([single, nifti], "T1") == ["T1", None]
    assert names_of([single, several], None) == [None, None]
    for images, series, message in (
        ([several, several], ["T1"], "--series: expected one for each of 2 images, since some are in one folder, got it once"),
        ([several, nifti], ["T1", "T2"], r"a folder with DICOM series only, got 'T2' for a\.nii\.gz"),
        ([nifti, nifti], "T1", "a folder with DICOM series only, got 'T1', but none is given"),
        ([several, several], ["T1", "T2", "T3"], r"once, or once for each of 2 image\(s\), in their order, got it 3 times"),
    ):
        with pytest.raises(InputError, match=message):
            selections(images, series=series)
    with pytest.raises(InputError, match="of the only DICOM series, got 'T1': 'T2 axial', 5 slices"):
        read_any(single, Selection(series="T1"))


def test_a_description_of_two_series_does_not_choose(several: Path) -> None:
    write_series(several, VALUES, [(0, 0, 3 * n) for n in range(3)], prefix="U", series=f"{UID}.3", description="T1")
    with pytest.raises(InputError, match="one of 3 DICOM series, got 'T1', which is that of several: "):
        read_any(several, Selection(series="T1"))


def test_descriptions_may_have_any_letters(several: Path) -> None:
    """Also those of ISO 8859-1, DICOM's ``ISO_IR 100``."""
    write_series(several, VALUES, [(0, 0, n) for n in range(4)], prefix="U", series=f"{UID}.3", description="Schädel")
    assert read_any(several, Selection(series="Schädel"))[0].shape[-1] == 4


def test_what_is_no_series_gets_a_sentence_that_fits(tmp_path: Path) -> None:
    slice_ = next(turned_series(tmp_path / "series").iterdir())
    (tmp_path / "frames.dcm").write_bytes(dicom(VALUES))
    (tmp_path / "single.ima").write_bytes(dicom(VALUES[0]))
    (tmp_path / "old").write_bytes(dicom(VALUES[0], preamble=False))
    (tmp_path / "implicit").write_bytes(b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + bytes(200))
    (tmp_path / "other").write_bytes(b"\x08\0\0\0" + b"\xff" * 200)
    (tmp_path / "text.dcm").write_text("hello")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(200))
    (tmp_path / "report").write_bytes(bytes(128) + b"DICM" + bytes(200))
    for name, message in (
        (f"series/{slice_.name}", r"found one slice of a DICOM series: give its folder, '.*series'$"),
        ("single.ima", "found one slice of a DICOM series"),
        ("old", "found one slice of a DICOM series"),
        ("implicit", "cannot be read as a DICOM image"),
        ("other", "expected an image in a file ending in"),
        ("frames.dcm", r"several frames in one \(enhanced DICOM\).*convert it with dcm2niix"),
        ("text.dcm", "found a file that cannot be read as a DICOM image: give a folder of slices"),
        ("report", "found a file that cannot be read as a DICOM image"),
        ("DICOMDIR", "index of a medium"),
        ("absent.dcm", "no such file"),
    ):
        with pytest.raises(InputError, match=f"{Path(name).name}: .*{message}"):
            read_any(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it is empty"),
        (["a.nii.gz", "b.nrrd"], r"it has volumes in files of their own: give one of them, '.*a\.nii\.gz', '.*b\.nrrd'"),
        (["1.png", "2.png", "x.txt"], r"it has 2 \.png, 1 \.txt: save the slices as TIFF"),
        (["1.jpg"], r"it has 1 \.jpg: save the slices as TIFF"),
        (["a.txt", "b"], r"it has 1 \.txt, 1 without suffix"),
        (["deep/"], "it has 1 folder"),
    ],
)
def test_a_folder_of_other_things_is_told_what_it_has(tmp_path: Path, names: list[str], message: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_text("x")
    begin = "folder: expected TIFF files in this folder, one per slice, found none, and no DICOM: "
    with pytest.raises(InputError, match=begin + message):
        read_any(folder)


def test_a_folder_of_slices_of_two_formats_is_refused(tmp_path: Path) -> None:
    folder = turned_series(tmp_path / "series")
    (folder / "1.tif").write_bytes(b"II*")
    with pytest.raises(InputError, match="series: expected a DICOM series, or TIFF files, found both: move one of them"):
        read_any(folder)


def test_a_series_further_down_is_found(tmp_path: Path) -> None:
    (tmp_path / "patient/study").mkdir(parents=True)
    turned_series(tmp_path / "patient/study/series")
    with pytest.raises(InputError, match=r"folders in it have DICOM files: give one of them, '.*patient/study/series'"):
        read_any(tmp_path)


def test_a_folder_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    folder = turned_series(tmp_path / "series")
    before = digest(folder)
    assert before is not None
    assert digest(folder) == before
    next(folder.iterdir()).write_bytes(b"other")
    assert digest(folder) != before


def test_two_series_register_and_the_report_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one folder, chosen by name; the same command then finds its work done, until a file of the folder changes."""
    phantom = make_phantom((22, 20, 18), seed=7)
    folder = tmp_path / "export"
    for number, (name, volume) in enumerate((("US", phantom.fixed), ("ceT1", phantom.cet1)), 1):
        slices = (volume[0, 0].numpy() * 1000).astype(np.int16).transpose(2, 1, 0)
        positions = [(0, 0, 1.5 * n) for n in range(len(slices))]
        write_series(folder, slices, positions, prefix=name, series=f"{UID}.{number}", description=name)
    words = ["register", str(folder), str(folder), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "one of 2 DICOM series: 'US', 18 slices" in capsys.readouterr().err
    words += ["--series", "US", "--series", "ceT1"]
    assert main(words) == 0
    field, grid = read_field(tmp_path / "out/displacement.nii.gz")
    assert field.shape[2:] == (22, 20, 18)
    assert grid.spacing_mm == pytest.approx((1, 1.2, 1.5))
    report = json.loads((tmp_path / "out/report.json").read_text())["cases"]["result"]
    assert report["settings"]["series"] == ["US", "ceT1"]
    capsys.readouterr()
    assert main(words) == 0
    assert "already finished" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "No pictures" not in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for file in (tmp_path / "out").iterdir():
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert PATIENT.partition("^")[0].encode() not in data, f"{file} names the patient"
    warp = ["warp", str(tmp_path / "out/displacement.nii.gz"), "--image", str(folder), "--output", str(tmp_path / "w.nii.gz")]
    assert main([*warp, "--series", "ceT1"]) == 0
    assert "WARNING" not in capsys.readouterr().err
