"""OME-Zarr: axes, scales, units, levels; displacements as coordinate transformations; and stores that are not to be trusted."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ngff_zarr
import numpy as np
import pytest
import torch
import zarr
from geometry import FIXED, smooth_field
from numpy.typing import NDArray

from mcbo.cli.main import main
from mcbo.core.errors import InputError, OutputError
from mcbo.geometry.grid import Grid
from mcbo.geometry.units import MM
from mcbo.io.images import read_any
from mcbo.io.microscopy.images import choices, finest_that_fits
from mcbo.io.microscopy.ngff_field import write_ngff_field
from mcbo.io.microscopy.selection import Selection, VoxelSize
from mcbo.io.nifti import write_displacement

STACK = np.arange(6 * 8 * 10, dtype=np.uint16).reshape(6, 8, 10)
"""z, y, x."""
SIZE = (0.5, 0.2, 0.1)
ONE = Selection(spacing=VoxelSize((0.5, 0.6, 2.0)))


def axes_of(names: str, unit: str | None = "micrometer") -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": name, "type": kinds.get(name, "space")} | ({"unit": unit} if unit and name in "xyz" else {}) for name in names
    ]


def write(
    path: Path,
    array: NDArray[Any],
    axes: Any = None,
    *,
    version: str = "0.5",
    scale: Sequence[float] = SIZE,
    translation: Sequence[float] | None = None,
    levels: int = 1,
    **options: Any,
) -> Path:
    """An image written with zarr alone, its metadata by hand; each level has half of the voxels along each axis in space."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    lead = array.ndim - 3
    datasets = []
    for number in range(levels):
        step = 2**number
        part = array[(slice(None),) * lead + (slice(None, None, step),) * 3]
        made = group.create_array(str(number), shape=part.shape, dtype=part.dtype, **options)
        made[...] = part
        sizes = [1.0] * lead + [step * size for size in scale]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": sizes}]
        if translation is not None:
            steps.append({"type": "translation", "translation": [0.0] * lead + list(translation)})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    image = {"axes": axes or axes_of("zyx"), "datasets": datasets, "name": "image"}
    about: Any = [image | {"version": version}] if version == "0.4" else [image]
    group.attrs.update({"multiscales": about} if version == "0.4" else {"ome": {"version": version, "multiscales": about}})
    return path


def values(path: Path, selection: Selection | None = None) -> NDArray[Any]:
    array: NDArray[Any] = read_any(path, selection or Selection())[0][0, 0].numpy().transpose(2, 1, 0)
    return array


def sizes(grid: Grid) -> tuple[float, ...]:
    return tuple(size / MM[grid.unit] for size in grid.spacing_mm)


def refused(path: Path, selection: Selection | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_any(path, selection or Selection())
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i4", "f2", "f4", ">f8"])
def test_values_sizes_and_units(tmp_path: Path, version: str, dtype: str) -> None:
    array = (STACK % 120).astype(dtype)
    path = write(tmp_path / "a.ome.zarr", array, version=version, chunks=(2, 4, 4))
    volume, grid = read_any(path)
    assert volume.dtype == (torch.float32 if array.dtype.kind == "f" else torch.int32)
    assert np.array_equal(values(path), array)
    assert (grid.shape, grid.unit, grid.orientation) == ((10, 8, 6), "um", "LPS")
    assert sizes(grid) == pytest.approx((0.1, 0.2, 0.5))


@pytest.mark.parametrize("options", [{"compressors": None}, {"shards": (6, 8, 8), "chunks": (2, 4, 4)}])
def test_uncompressed_and_sharded(tmp_path: Path, options: dict[str, Any]) -> None:
    assert np.array_equal(values(write(tmp_path / "a.zarr", STACK, **options)), STACK)


@pytest.mark.parametrize(
    ("unit", "found", "mm"),
    [("nanometer", "nm", 1e-6), ("millimeter", "mm", 1.0), ("angstrom", "mm", 1e-7), ("meter", "m", 1e3)],
)
def test_units_are_honored(tmp_path: Path, unit: str, found: str, mm: float) -> None:
    grid = read_any(write(tmp_path / "a.zarr", STACK, axes_of("zyx", unit)))[1]
    assert grid.unit == found
    assert grid.spacing_mm == pytest.approx((0.1 * mm, 0.2 * mm, 0.5 * mm))


@pytest.mark.parametrize("unit", [None, "pixel"])
def test_a_scale_without_a_unit_of_length_is_no_voxel_size(tmp_path: Path, unit: str | None) -> None:
    path = write(tmp_path / "a.zarr", STACK, axes_of("zyx", unit), translation=(5.0, 2.0, 1.0))
    assert "expected --spacing" in refused(path)
    assert "its scale is 0.1×0.2×0.5 without a unit of length" in refused(path)
    grid = read_any(path, ONE)[1]
    assert grid.spacing_mm == pytest.approx((0.5, 0.6, 2.0))
    assert (-grid.affine[:2, 3]).tolist() == pytest.approx((5.0, 6.0))  # ten voxels each
    assert "the voxel size that the file states, 0.1×0.2×0.5 µm" in refused(write(tmp_path / "b.zarr", STACK), ONE)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_scale_and_translation_follow_each_other(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.zarr", STACK, version=version, translation=(30.0, 20.0, 10.0))
    store = path / (".zattrs" if version == "0.4" else "zarr.json")
    content = json.loads(store.read_text())
    image = (content if version == "0.4" else content["attributes"]["ome"])["multiscales"][0]
    image["coordinateTransformations"] = [{"type": "scale", "scale": [2.0, 2.0, 2.0]}]
    store.write_text(json.dumps(content))
    grid = read_any(path)[1]
    assert sizes(grid) == pytest.approx((0.2, 0.4, 1.0))
    assert (np.diag((-1, -1, 1)) @ grid.affine[:3, 3] / MM["um"]).tolist() == pytest.approx((20.0, 40.0, 60.0))


@pytest.mark.parametrize("names", ["zyx", "xyz", "yxz"])
def test_axes_count_by_their_names(tmp_path: Path, names: str) -> None:
    order = ["zyx".index(name) for name in names]
    path = write(tmp_path / "a.zarr", STACK.transpose(order), axes_of(names), scale=[SIZE[i] for i in order])
    assert np.array_equal(values(path), STACK)
    assert sizes(read_any(path)[1]) == pytest.approx((0.1, 0.2, 0.5))


def test_channel_and_time_are_selected(tmp_path: Path) -> None:
    hyper = np.arange(2 * 3 * 480, dtype=np.uint16).reshape(2, 3, 6, 8, 10)
    path = write(tmp_path / "a.zarr", hyper, axes_of("tczyx"))
    assert choices(path) == (3, 2)
    assert "expected --channel with a number from 0 to 2, found 3 channels" in refused(path, Selection(time=0))
    assert "expected --time with a number from 0 to 1, found 2 time points" in refused(path, Selection(channel=0))
    for channel, time in ((0, 1), (2, 0)):
        assert np.array_equal(values(path, Selection(channel, time)), hyper[time, channel])
    assert "found 'q' of size 3" in refused(
        write(tmp_path / "b.zarr", hyper[0], [{"name": "q", "type": "other"}, *axes_of("zyx")])
    )
    assert "found 2 axes in space" in refused(write(tmp_path / "c.zarr", STACK, axes_of("cyx")))


def test_the_level_that_fits_is_taken_and_can_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    big = np.arange(16 * 16 * 16, dtype=np.uint16).reshape(16, 16, 16)
    path = write(tmp_path / "a.ome.zarr", big, levels=3, translation=(0.1, 0.2, 0.3))
    with caplog.at_level("INFO"):
        assert finest_that_fits(path, 40 * 16**3) == path / "0"
        assert finest_that_fits(path, 40 * 16**3 - 1) == path / "1"
        assert finest_that_fits(path, 40) == path / "2"
    assert "level 1 of 0–2 (1), 8×8×8 voxels" in caplog.text
    for level in range(3):
        assert np.array_equal(values(path / str(level)), big[:: 2**level, :: 2**level, :: 2**level])
        assert sizes(read_any(path / str(level))[1]) == pytest.approx(tuple(2**level * size for size in (0.1, 0.2, 0.5)))
        assert finest_that_fits(path / str(level), 1) == path / str(level)
    assert np.array_equal(values(path), big)
    assert finest_that_fits(tmp_path / "absent.tif", 1) == tmp_path / "absent.tif"


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
def test_what_another_library_writes(tmp_path: Path, version: str) -> None:
    image = ngff_zarr.to_ngff_image(
        STACK,
        dims=["z", "y", "x"],
        scale=dict(zip("zyx", SIZE, strict=True)),
        translation={"z": 3.0, "y": 2.0, "x": 1.0},
        axes_units=dict.fromkeys("zyx", "micrometer"),
    )
    ngff_zarr.to_ome_zarr(str(tmp_path / "a.ome.zarr"), ngff_zarr.to_multiscales(image, scale_factors=[]), version=version)
    assert np.array_equal(values(tmp_path / "a.ome.zarr"), STACK)
    grid = read_any(tmp_path / "a.ome.zarr")[1]
    assert sizes(grid) == pytest.approx((0.1, 0.2, 0.5))
    assert (grid.affine[:3, 3] / MM["um"]).tolist() == pytest.approx((-1.0, -2.0, 3.0))


def test_groups_that_are_no_image_say_what_they_hold(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "all.zarr"), mode="w")
    write(tmp_path / "all.zarr/cell", STACK)
    assert "found a Zarr group without multiscales; it holds cell: name one of these" in refused(tmp_path / "all.zarr")
    zarr.create_array(str(tmp_path / "bare.zarr"), shape=(4, 4, 4), dtype="u1")
    assert "found an array that none lists as its level" in refused(tmp_path / "bare.zarr")


def edited(path: Path, name: str, change: Any) -> Path:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))
    return path


def test_stores_that_claim_what_they_do_not_hold(tmp_path: Path) -> None:
    def path_of(n: int) -> Path:
        return write(tmp_path / f"{n}.zarr", STACK, chunks=(2, 4, 4))

    huge = edited(path_of(0), "0/zarr.json", lambda about: about.update(shape=[10000, 10000, 10000]))
    assert "expected an image of at most" in refused(huge / "0")
    large = edited(path_of(1), "0/zarr.json", lambda about: about.update(shape=[1000, 1000, 1000]))
    assert "chunks" in refused(large)
    about = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4000, 4000, 4000]}}}
    assert "expected chunks of at most" in refused(edited(path_of(2), "0/zarr.json", lambda content: content.update(about)))
    sparse = edited(
        path_of(3),
        "0/zarr.json",
        lambda content: content.update(
            shape=[900] * 3, chunk_grid={"name": "regular", "configuration": {"chunk_shape": [100] * 3}}
        ),
    )
    assert "its metadata claim 1458000000 bytes" in refused(sparse)
    assert "cannot be read" in refused(edited(path_of(4), "0/zarr.json", lambda content: content.update(shape=[-6, 8, 10])))
    (path_of(5) / "zarr.json").write_text("[" * 100000)
    assert "cannot be read" in refused(tmp_path / "5.zarr")
    (path_of(6) / "zarr.json").write_bytes(b" " * (9 << 20))
    assert "expected metadata of at most" in refused(tmp_path / "6.zarr")
    chunk = next(file for file in (path_of(7) / "0").rglob("*") if file.is_file() and file.name != "zarr.json")
    chunk.write_bytes(b"cut off")
    assert "cannot be read" in refused(tmp_path / "7.zarr")


@pytest.mark.parametrize("path", ["../b.zarr/0", "/etc", "a/../../b.zarr/0", "..\\b.zarr\\0", "", "link"])
def test_the_paths_of_levels_stay_inside(tmp_path: Path, path: str) -> None:
    write(tmp_path / "b.zarr", STACK)
    store = write(tmp_path / "a.zarr", STACK)
    (store / "link").symlink_to(tmp_path / "b.zarr/0")

    def change(content: Any) -> None:
        content["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path

    assert "expected the path of an array within the folder" in refused(edited(store, "zarr.json", change))


def test_links_out_of_the_folder_and_pipes_are_refused(tmp_path: Path) -> None:
    links: list[Callable[[Path], object]] = [lambda file: file.symlink_to(tmp_path / "secret"), os.mkfifo]
    for number, make in enumerate(links):
        store = write(tmp_path / f"{number}.zarr", STACK, chunks=(6, 8, 10), compressors=None)
        (tmp_path / "secret").write_bytes(bytes(960))
        chunk = store / "0/c/0/0/0"
        chunk.unlink()
        make(chunk)
        assert "expected chunks" in refused(store)
    store = write(tmp_path / "2.zarr", STACK)
    (store / "0/again").symlink_to(store / "0")
    assert "found the link 'again'" in refused(store)


def test_codecs_that_run_code_are_refused(tmp_path: Path) -> None:
    for number, (key, value) in enumerate(
        (
            ("filters", [{"id": "pickle"}]),
            ("compressor", {"id": "pickle"}),
            ("filters", [{"id": "delta", "dtype": "<u2"}, {"id": "json2"}]),
        )
    ):
        store = write(tmp_path / f"{number}.zarr", STACK, version="0.4")
        sentence = refused(edited(store, "0/.zarray", lambda about, key=key, value=value: about.update({key: value})))
        assert "expected data in one of the codecs" in sentence or "cannot be read" in sentence
    store = write(tmp_path / "3.zarr", STACK, version="0.4")
    assert "3.zarr" in refused(edited(store, "0/.zarray", lambda about: about.update(dtype="|O", filters=[{"id": "pickle"}])))


def test_without_the_library_a_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.zarr", STACK)
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    assert "pip install 'mcbo[microscopy]'" in refused(path)
    with pytest.raises(InputError, match=r"pip install 'mcbo\[microscopy\]'"):
        write_ngff_field(tmp_path / "u.ome.zarr", smooth_field(FIXED, largest=1), FIXED)


MICROSCOPE = Grid((14, 12, 10), np.array([[-5e-5, 0, 0, -1e-3], [0, -5e-5, 0, 2e-3], [0, 0, 1e-4, 3e-3], [0, 0, 0, 1]]), "um")
NIFTI = Grid((14, 12, 10), np.diag((1.2, 0.8, 2.0, 1.0)))


@pytest.mark.parametrize("grid", [MICROSCOPE, NIFTI, FIXED], ids=["microscope", "flipped", "oblique"])
def test_a_displacement_is_read_by_another_library(tmp_path: Path, grid: Grid) -> None:
    """Within 0.001 voxels, and as a map of physical points: of ITK's convention, as that library has it."""
    displacement = smooth_field(grid, largest=2)
    write_ngff_field(tmp_path / "u.ome.zarr", displacement, grid)
    field: Any = ngff_zarr.from_ome_zarr(str(tmp_path / "u.ome.zarr"), validate=True)
    transform = field.metadata.coordinateTransformations[0]
    assert (transform.type, transform.input.name, transform.output.name) == ("displacements", "fixed", "moving")
    (itk,) = ngff_zarr.ngff_displacement_field_to_itk_transform(transform, field, ["z", "y", "x"])
    vectors = np.asarray(itk.parameters).reshape(*grid.shape[::-1], 3).transpose(3, 2, 1, 0)
    parameters = np.asarray(itk.fixedParameters)
    assert parameters[:3].tolist() == list(grid.shape)
    spacing = parameters[6:9]
    assert (spacing * MM[grid.unit]).tolist() == pytest.approx(grid.spacing_mm)
    assert np.abs(vectors / spacing.reshape(3, 1, 1, 1) - displacement[0].numpy()).max() < 1e-3
    units = {"um": "micrometer", "mm": "millimeter"}
    assert field.images[0].axes_units["x"] == units[grid.unit]
    lps = np.diag((-1.0, -1.0, 1.0))
    directions = np.eye(3)
    if len(field.metadata.coordinateTransformations) > 1:
        directions = np.array(field.metadata.coordinateTransformations[1].affine)[::-1, 2::-1]
    for voxel in ((0, 0, 0), (3, 5, 2)):
        physical = parameters[3:6] + spacing * voxel
        world = lps @ grid.affine[:3] @ (*voxel, 1)
        assert (directions @ physical * MM[grid.unit]).tolist() == pytest.approx(
            world.tolist(), abs=1e-6 * max(grid.spacing_mm)
        )


def test_export_writes_it_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    displacement = smooth_field(NIFTI, largest=2)
    write_displacement(tmp_path / "u.nii.gz", displacement, NIFTI.affine)
    for _ in range(2):  # the second replaces the first
        assert main(["export", str(tmp_path / "u.nii.gz"), "--to", "ome-zarr"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u.nii.gz", "u.ome.zarr"]
    array = zarr.open_array(str(tmp_path / "u.ome.zarr/0"), mode="r")
    expected = (displacement[0].numpy() * np.reshape(NIFTI.spacing_mm, (3, 1, 1, 1)))[::-1].transpose(0, 3, 2, 1)
    assert np.abs(np.asarray(array[...]) - expected).max() < 1e-5
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr/thesis.txt").write_text("not to be lost")
    assert main(["export", str(tmp_path / "u.nii.gz"), "--to", "ome-zarr", "--output", str(tmp_path / "mine.zarr")]) == 1
    assert "found something else" in capsys.readouterr().err
    assert (tmp_path / "mine.zarr/thesis.txt").is_file()
    with pytest.raises(OutputError):
        write_ngff_field(tmp_path / "u.nii.gz" / "x.ome.zarr", displacement, NIFTI)
