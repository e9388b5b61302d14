"""Two images of microscopes, from their files to the page: registered where the files say they lie, in their own unit."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from helpers import cascade_config
from numpy.typing import NDArray
from scipy import ndimage

import mcbo
from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.io.files import digest
from mcbo.methods.config import Preset
from mcbo.qc.findings import look_at
from mcbo.qc.lengths import Lengths, lengths_of
from mcbo.qc.plane import planes_through
from mcbo.report import CaseReport, write_report

FINE, COARSE = (0.05, 0.05, 0.1), (0.1, 0.1, 0.2)
"""µm along x, y, z."""
SHIFT = (0.2, -0.15, 0.1)
"""µm, from fixed to moving."""


def textures(
    shape: tuple[int, int, int], size: tuple[float, ...], corner: tuple[float, ...], shift: tuple[float, ...]
) -> NDArray[Any]:
    """Noise that is smooth over 0.25 µm, where voxels of that size begin at a corner: ``(x, y, z)`` uint16."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((90, 90, 90)), 2)
    steps = [(np.arange(n) * s + c - d) / 0.1 + 10 for n, s, c, d in zip(shape, size, corner, shift, strict=True)]
    values = ndimage.map_coordinates(noise, np.meshgrid(*steps, indexing="ij"), order=3)
    image: NDArray[Any] = (30000 + 20000 * values / np.abs(values).max()).astype(np.uint16)
    return image


def write_ome(path: Path, image: NDArray[Any], size: tuple[float, ...], corner: tuple[float, ...]) -> Path:
    """OME-TIFF, which says how large voxels are, but not where the first one lies."""
    del corner
    about = {f"PhysicalSize{axis}": n for axis, n in zip("XYZ", size, strict=True)}
    tifffile.imwrite(path.with_suffix(".ome.tif"), image.T, metadata={"axes": "ZYX"} | about)
    return path.with_suffix(".ome.tif")


def write_imagej(path: Path, image: NDArray[Any], size: tuple[float, ...], corner: tuple[float, ...]) -> Path:
    origin = {f"{axis}origin": -c / n for axis, n, c in zip("xyz", size, corner, strict=True)}
    about = {"axes": "ZYX", "unit": "um", "spacing": size[2]} | origin
    tifffile.imwrite(path.with_suffix(".tif"), image.T, imagej=True, resolution=(1 / size[0], 1 / size[1]), metadata=about)
    return path.with_suffix(".tif")


def write_zarr(path: Path, image: NDArray[Any], size: tuple[float, ...], corner: tuple[float, ...]) -> Path:
    group = zarr.open_group(str(path.with_suffix(".ome.zarr")), mode="w")
    group.create_array("0", data=np.ascontiguousarray(image.T))
    steps = [{"type": "scale", "scale": size[::-1]}, {"type": "translation", "translation": corner[::-1]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    datasets: Any = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path.with_suffix(".ome.zarr")


Writer = Callable[[Path, NDArray[Any], tuple[float, ...], tuple[float, ...]], Path]


@pytest.mark.parametrize("write", [write_ome, write_imagej, write_zarr])
def test_two_microscopes_are_registered_without_options(
    tmp_path: Path, write: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    corner = (0.0, 0.0, 0.0) if write is write_ome else (0.4, 0.5, 0.6)
    fixed = write(tmp_path / "em", textures((32, 30, 18), FINE, corner, (0, 0, 0)), FINE, corner)
    moving = write(tmp_path / "lm", textures((26, 25, 18), COARSE, (0, 0, 0), SHIFT), COARSE, (0.0, 0.0, 0.0))
    words = ["--output", str(tmp_path / "out"), "--without", "inverse", "--without", "transform"]
    assert main(["register", str(fixed), str(moving), *words]) == 0
    assert re.search(r"working grid: \S+ voxels of 0\.05×0\.05×0\.05 µm", capsys.readouterr().out)
    found: Any = nibabel.load(tmp_path / "out/displacement.nii.gz")
    assert np.abs(np.diag(found.affine)[:3]).tolist() == pytest.approx(FINE)
    assert found.header.get_xyzt_units()[0] == "micron"
    micron = np.asarray(found.dataobj)[6:-6, 6:-6, 4:-4] * FINE
    # In physical coordinates, both images lie where they say: what remains is the shift.
    assert np.abs(micron.mean(axis=(0, 1, 2)) - SHIFT).max() < 0.02
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert "XY plane, axis 2 at" in text
    assert "XZ plane" in text
    assert "YZ plane" in text
    assert re.search(r'class="bar"[^>]*>0\.5 µm<', text)
    assert "Displacement, length in µm" in text
    for word in ("patient", "axial", "coronal", "sagittal", "anterior", " mm"):
        assert word not in text, word


def test_an_image_of_several_channels_from_python(tmp_path: Path) -> None:
    image = textures((24, 22, 12), FINE, (0, 0, 0), (0, 0, 0))
    both = np.stack([np.zeros_like(image), image]).transpose(3, 0, 2, 1)
    path = tmp_path / "two.tif"
    tifffile.imwrite(path, both, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(InputError, match="found 2 channels"):
        mcbo.register(path, path, spacing=FINE)
    mask = tmp_path / "mask.tif"
    tifffile.imwrite(mask, np.ones(image.T.shape, np.uint8))  # on its image's voxels, whose size it does not state
    result = mcbo.register(path, path, spacing="0.05,0.05,0.1um", channel=1, fixed_mask=mask)
    assert np.abs(result.displacement).max() < 0.5
    assert np.allclose(result.warp(path, channel=1)[4:-4, 4:-4, 4:-4], image[4:-4, 4:-4, 4:-4], rtol=0.2)
    with pytest.raises(InputError, match="found 2 channels"):
        result.warp(path)
    with pytest.raises(InputError, match="no spacing, channel, time or series of an image that is no path"):
        result.warp(image, channel=1)
    result.save(tmp_path / "out", without=("inverse", "transform", "warped"))
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "XY plane" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_a_folder_that_has_changed_is_another_input(tmp_path: Path) -> None:
    """Else its registration would count as finished."""
    folder = tmp_path / "slices"
    (folder / "below").mkdir(parents=True)
    for name in ("s1.tif", "s2.tif", "below/s3.tif"):
        (folder / name).write_bytes(b"a slice")
    first = digest(folder)
    assert first is not None
    (folder / "below/s3.tif").write_bytes(b"A slice")
    assert digest(folder) != first
    (folder / "below/s3.tif").write_bytes(b"a slice")
    assert digest(folder) == first
    (folder / "s2.tif").rename(folder / "s4.tif")
    assert digest(folder) != first


@pytest.mark.parametrize(
    ("stated", "task", "spacing", "expected"),
    [
        ("mm", "mm", (0.5, 0.5, 0.5), ("mm", 1.0)),
        ("um", "mm", (1e-4, 1e-4, 2e-4), ("µm", 1e3)),
        ("nm", "um", (1e-6, 1e-6, 1e-6), ("nm", 1e6)),
        ("mm", "um", (3.2, 0.8, 0.8), ("µm", 1.0)),  # a header that says nothing, or mm, of a microscope's image
        ("mm", "um", (5e-5, 5e-5, 1e-4), ("µm", 1e3)),
        ("cm", "mm", (1.0, 1.0, 1.0), ("mm", 1.0)),
        ("mm", "mm", (5e-5, 5e-5, 1e-4), ("µm", 1e3)),  # whose file lost its unit
    ],
)
def test_the_unit_that_is_shown(stated: Any, task: Any, spacing: tuple[float, ...], expected: tuple[str, float]) -> None:
    lengths = lengths_of(stated, task, spacing)
    assert lengths.symbol == expected[0]
    assert lengths.per_mm == pytest.approx(expected[1])


def write_run(folder: Path, config: Preset) -> None:
    """A run of a dataset of one pair, moved by 2 voxels along axis 0."""
    affine = np.diag([3.2, 0.8, 0.8, 1.0])
    rng = np.random.default_rng(5)
    images = [folder / f"Task_0001_000{channel}.nii.gz" for channel in range(2)]
    for path in images:
        nibabel.save(nibabel.Nifti1Image(rng.random((10, 24, 20)).astype(np.float32), affine), path)
    name = "disp_0001_0000_0001_0001.nii.gz"
    field = np.broadcast_to(np.array((2.0, 0, 0), np.float32), (10, 24, 20, 3))
    nibabel.save(nibabel.Nifti1Image(field, affine), folder / name)
    case = CaseReport(inputs={str(path): None for path in images}, written={name: None}, failed={})
    write_report(folder / "report.json", {"0001": case}, config, "cpu")


def test_the_page_of_a_microscopy_dataset_has_no_patient(tmp_path: Path) -> None:
    write_run(tmp_path, cascade_config("COMULIS3DCLEM"))
    assert main(["report", str(tmp_path)]) == 0
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "6.40 µm (largest)" in text
    for word in ("patient", "axial", "coronal", "sagittal", "anterior", " mm"):
        assert word not in text, word
    assert asdict(cascade_config("COMULIS3DCLEM"))["unit"] == "um"
    (pair,) = look_at(tmp_path / "report.json").cases[0].pairs
    assert pair.lengths == Lengths("µm", 1.0)


def test_the_page_of_patients_is_as_it_was(tmp_path: Path) -> None:
    write_run(tmp_path, cascade_config("ReMIND2Reg"))
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "6.4 mm (largest)" in text
    assert "the patient's right is on the left" in text
    assert "sagittal, axis 0 at" in text


def test_planes_of_microscopes_are_shown_as_the_voxels_are_counted() -> None:
    affine = np.diag([-0.1, -0.2, 0.3, 1.0])
    views = planes_through((1, 2, 3), shape=(4, 5, 6), affine=affine, is_microscopy=True)
    assert [(view.name, view.axis, view.across, view.down) for view in views] == [
        ("XY plane", 2, 0, 1),
        ("XZ plane", 1, 0, 2),
        ("YZ plane", 0, 2, 1),
    ]
    assert [view.letters for view in views] == [("", "X →", "", "Y ↓"), ("", "X →", "", "Z ↓"), ("", "Z →", "", "Y ↓")]
    assert not any(view.down_flipped or view.across_flipped for view in views)
