"""Images that are saved anew during a run: reports tell what was computed on, so that no other image counts as done."""

import gzip
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import paper_config, write_dataset, write_nifti

from mcbo.cli.main import main
from mcbo.core.errors import InputError
from mcbo.core.timing import StageTimer
from mcbo.dataset.learn2reg import open_input
from mcbo.geometry.grid import Grid
from mcbo.io import images, nifti_header
from mcbo.io.files import digest
from mcbo.io.formats.parts import image_digest
from mcbo.io.formats.registry import format_of
from mcbo.io.images import read_digested, write_any
from mcbo.io.microscopy.selection import Selection, VoxelSize
from mcbo.io.nifti import Image, read_image
from mcbo.report import CaseReport
from mcbo.runs import load as load_module
from mcbo.runs.case import CaseRun
from mcbo.runs.load import load
from mcbo.runs.options import Options, Setup
from mcbo.runtime import ready_kernels
from mcbo.studies.phantom import make_phantom

SHAPE = (14, 12, 17)
API = "mcbo.api.register.ready_kernels"
NAMES = [f"ReMIND2Reg_0001_000{channel}.nii.gz" for channel in range(3)]


def volume(seed: int) -> torch.Tensor:
    return make_phantom(SHAPE, seed=seed).cet1


def save(path: Path, seed: int, *, to: tuple[int, int, int] = SHAPE) -> Path:
    return write_nifti(path, volume(seed)[0, 0, : to[0], : to[1], : to[2]].numpy())


def replaced(path: Path, seed: int) -> None:
    """Saved as most programs do: written beside it and renamed."""
    save(path.with_name("new.nii.gz"), seed).replace(path)


def overwritten(path: Path, seed: int) -> None:
    """The same file with other bytes, as many as before, and the same times as far as a user can set them."""
    before = path.stat()
    raw = gzip.decompress(path.read_bytes())
    scratch = save(path.with_name("new.nii"), seed)
    data, scratch_name = raw[:352] + scratch.read_bytes()[352:], scratch
    scratch_name.unlink()
    path.write_bytes(gzip.compress(data, 0).ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for channel, name in enumerate(NAMES):
        save(tmp_path / "imagesTr" / name, channel)
    write_dataset(tmp_path, [(NAMES[0], name) for name in NAMES[1:]])
    return tmp_path


def loaded(data: Path, *earlier: CaseReport) -> CaseRun:
    (case,) = open_input(data, split="val").cases
    setup = Setup(paper_config(), Options(data / "out"), torch.device("cpu"))
    return load(case, setup, earlier=earlier, timer=StageTimer())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("tail", [b"", bytes(2**21)])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("extension", [0, 2**21])
def test_an_image_is_digested_as_it_is_read(tmp_path: Path, tail: bytes, compress: bool, extension: int) -> None:
    values = volume(1)[0, 0].numpy()
    image = nibabel.Nifti1Image(values, np.eye(4))
    if extension:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", bytes(extension)))
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    path.write_bytes((gzip.compress(path.read_bytes()) if compress else path.read_bytes()) + tail)
    found = read_image(path)
    assert found.sha256 == sha256(path) == digest(path)
    assert np.array_equal(found.volume[0, 0].numpy(), values)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("change", [replaced, overwritten])
@pytest.mark.parametrize("has_earlier", [True, False])
def test_the_report_tells_of_the_bytes_that_were_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, channel: int, change: Callable[[Path, int], None], has_earlier: bool
) -> None:
    """Saved anew after the digest that looks for an earlier result, and before it is read."""
    path = data / "imagesTr" / NAMES[channel]

    def reading(file: Path) -> Image:
        if file == path:
            change(path, 7)
        return read_image(file)

    monkeypatch.setattr(load_module, "read_image", reading)
    run = loaded(data, *([CaseReport(inputs={})] if has_earlier else []))
    assert run.fixed is not None
    image = [run.fixed, *run.movings.values()][channel]
    assert torch.equal(image.volume, volume(7))
    assert run.result.report.inputs == {str(data / "imagesTr" / name): sha256(data / "imagesTr" / name) for name in NAMES}


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("change", [replaced, overwritten])
def test_an_image_saved_anew_after_it_was_read_is_not_the_one_computed_on(
    data: Path, channel: int, change: Callable[[Path, int], None]
) -> None:
    before = [sha256(data / "imagesTr" / name) for name in NAMES]
    report = loaded(data).result.report
    assert list(report.inputs.values()) == before
    for name in ("disp_0001_0000_0001_0001.nii.gz", "disp_0001_0000_0001_0002.nii.gz"):
        (data / "out").mkdir(exist_ok=True)
        (data / "out" / name).write_bytes(b"a result")
        report.written[name] = sha256(data / "out" / name)
    assert not loaded(data, report).result.is_fresh
    change(data / "imagesTr" / NAMES[channel], 7)
    assert loaded(data, report).result.is_fresh


def test_header_and_voxels_are_of_one_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, values_of = data / "imagesTr" / NAMES[0], nifti_header._values_of
    before, old = sha256(path), read_image(path)

    def saved_between(*arguments: object) -> object:
        save(path.with_name("new.nii.gz"), 7, to=(14, 12, 9)).replace(path)
        return values_of(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nifti_header, "_values_of", saved_between)
    found = read_image(path)
    assert torch.equal(found.volume, old.volume)
    assert found.sha256 == before != sha256(path)


@pytest.mark.parametrize("channel", [0, 1])
def test_an_image_of_another_shape_than_its_header_had_a_moment_ago(
    data: Path, monkeypatch: pytest.MonkeyPatch, channel: int
) -> None:
    path = data / "imagesTr" / NAMES[channel]

    def reading(file: Path) -> Image:
        if file == path:
            save(path.with_name("new.nii.gz"), 7, to=(14, 12, 9)).replace(path)
        return read_image(file)

    monkeypatch.setattr(load_module, "read_image", reading)
    run = loaded(data)
    message = f"{path}: expected a file that stays as it is while it is read, found that it changed: run again"
    assert list(run.result.failed.values()) == [message] * (2 - channel)
    assert (run.fixed is None) == (channel == 0)


def test_an_image_that_was_refused_and_then_mended_is_not_the_one_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / "imagesTr" / NAMES[2]
    whole = path.read_bytes()
    write_nifti(path, np.ones(SHAPE, np.float32))
    assert loaded(data).result.report.inputs[str(path)] == sha256(path)

    def reading(file: Path) -> Image:
        try:
            return read_image(file)
        finally:
            if file == path:
                path.write_bytes(whole)

    monkeypatch.setattr(load_module, "read_image", reading)
    run = loaded(data)
    assert list(run.movings) == ["disp_0001_0000_0001_0001"]
    assert run.result.report.inputs[str(path)] is None


def detached(path: Path, seed: int) -> None:
    """MetaImage or NRRD whose voxels are in a file of their own."""
    values = volume(seed)[0, 0].numpy()
    path.with_suffix(".raw").write_bytes(np.ascontiguousarray(values.T, dtype="<f4").tobytes())
    sizes = " ".join(map(str, values.shape))
    if path.suffix == ".mhd":
        lines = ["ObjectType = Image", "NDims = 3", f"DimSize = {sizes}", "ElementType = MET_FLOAT", "ElementDataFile = "]
        path.write_text("\n".join(lines) + path.with_suffix(".raw").name + "\n")
    else:
        lines = ["NRRD0004", "type: float", "dimension: 3", f"sizes: {sizes}", "endian: little", "encoding: raw"]
        path.write_text("\n".join(lines) + f"\ndata file: {path.with_suffix('.raw').name}\n")


def slices(path: Path, seed: int) -> None:
    from PIL import Image as Picture

    path.mkdir(exist_ok=True)
    for number, plane in enumerate(np.moveaxis(volume(seed)[0, 0].numpy(), 2, 0)):
        Picture.fromarray((255 * plane / plane.max()).astype(np.uint8)).save(path / f"{number:03d}.tif")


def written(path: Path, seed: int) -> None:
    if path.suffix in (".mhd", ".nhdr"):
        detached(path, seed)
    elif not path.suffix:
        slices(path, seed)
    else:
        write_any(path, volume(seed), Grid(SHAPE, np.eye(4)))


KINDS = ["moving.nii.gz", "moving.nii", "moving.nrrd", "moving.mha", "moving.mhd", "moving.nhdr", "moving"]


@pytest.fixture
def register(tmp_path: Path) -> Callable[..., bool]:
    """The command, into one folder; returns whether it computed anything."""
    save(tmp_path / "fixed.nii.gz", 0)
    computed: list[int] = []

    def call(moving: str, *more: str) -> bool:
        report = tmp_path / "out/report.json"
        before = report.stat().st_ino if report.exists() else None
        arguments = [str(tmp_path / "fixed.nii.gz"), str(tmp_path / moving), "--output", str(tmp_path / "out")]
        if "." not in moving:
            arguments += ["--spacing", "1,1,1"]
        without = [word for kind in ("transform", "inverse", "warped") for word in ("--without", kind)]
        assert main(["register", *arguments, "--preset", "cascade", "--device", "cpu", *without, *more]) == 0
        computed.append(1)
        return report.stat().st_ino != before

    return call


@pytest.mark.parametrize("name", KINDS)
def test_register_sees_that_any_part_of_an_image_is_another(tmp_path: Path, register: Callable[..., bool], name: str) -> None:
    written(tmp_path / name, 1)
    assert register(name)
    assert not register(name)
    written(tmp_path / name, 2)
    assert register(name)
    assert not register(name)


@pytest.mark.parametrize("name", ["moving.nii.gz", "moving.nrrd", "moving.mhd", "moving"])
def test_register_tells_of_what_it_read(
    tmp_path: Path, register: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Saved anew while it computes: the next run computes again."""
    written(tmp_path / name, 1)

    def meanwhile(device: torch.device) -> object:
        written(tmp_path / name, 2)
        return ready_kernels(device)

    monkeypatch.setattr(API, meanwhile)
    assert register(name)
    monkeypatch.setattr(API, ready_kernels)
    assert register(name)
    assert not register(name)


@pytest.mark.parametrize("role", ["--initial", "--fixed-mask"])
def test_register_tells_of_masks_and_alignments_that_it_read(
    tmp_path: Path, register: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    (tmp_path / "inputs").mkdir()
    path = tmp_path / "inputs" / ("start.txt" if role == "--initial" else "mask.nii.gz")

    def write(seed: int) -> None:
        if role == "--initial":
            np.savetxt(path, np.diag((1.0, 1, 1, 1)) + np.eye(4, k=3) * seed / 10)
        else:
            mask = np.ones(SHAPE, np.uint8)
            mask[:seed] = 0
            write_nifti(path, mask)

    write(1)
    save(tmp_path / "moving.nii.gz", 1)

    def meanwhile(device: torch.device) -> object:
        write(2)
        return ready_kernels(device)

    monkeypatch.setattr(API, meanwhile)
    more = (role, str(path))
    assert register("moving.nii.gz", *more)
    monkeypatch.setattr(API, ready_kernels)
    assert register("moving.nii.gz", *more)
    assert not register("moving.nii.gz", *more)


def test_an_alignment_that_is_not_there_is_not_none(
    tmp_path: Path, register: Callable[..., bool], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "moving.nii.gz", 1)
    assert register("moving.nii.gz")
    for role in ("--initial", "--fixed-mask", "--moving-mask"):
        arguments = [str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"), "--output", str(tmp_path / "out")]
        assert main(["register", *arguments, role, str(tmp_path / "absent.nii.gz"), "--device", "cpu"]) == 1
        assert "absent.nii.gz: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", KINDS[2:])
def test_a_foreign_image_saved_anew_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    written(path, 1)
    known = format_of(path)

    def meanwhile(path: Path, selection: Selection) -> tuple[torch.Tensor, Grid]:
        written(path, 2)
        return known.read(path, selection)

    monkeypatch.setattr(images, "format_of", lambda _: replace(known, read=meanwhile))
    with pytest.raises(InputError, match="expected a file that stays as it is while it is read, found that it changed"):
        read_digested(path, Selection(spacing=None if path.suffix else VoxelSize((1.0, 1.0, 1.0))))


def test_parts_that_are_not_known_are_never_the_same(tmp_path: Path) -> None:
    detached(tmp_path / "a.mhd", 1)
    assert image_digest(tmp_path / "a.mhd") is not None
    text = (tmp_path / "a.mhd").read_text()
    for named in ("a%03d.raw 1 9 1", "absent.raw"):
        (tmp_path / "a.mhd").write_text(text.replace("a.raw", named))
        assert image_digest(tmp_path / "a.mhd") is None
    (tmp_path / "a.mhd").write_text(text.replace("a.raw", "LIST\na.raw\nb.raw"))
    assert image_digest(tmp_path / "a.mhd") is None
    shutil.copy(tmp_path / "a.raw", tmp_path / "b.raw")
    before = image_digest(tmp_path / "a.mhd")
    (tmp_path / "b.raw").write_bytes(b"other")
    assert None is not before != image_digest(tmp_path / "a.mhd")
    before = image_digest(tmp_path)
    (tmp_path / "b.raw").write_bytes(b"another")
    assert None is not before != image_digest(tmp_path)
    assert image_digest(tmp_path / "absent") is None


def test_both_files_of_analyze_count(tmp_path: Path) -> None:
    image = nibabel.Spm99AnalyzeImage(volume(1)[0, 0].numpy(), np.eye(4))
    nibabel.save(image, tmp_path / "a.img")
    for name in ("a.img", "a.hdr"):
        before = image_digest(tmp_path / name)
        with (tmp_path / "a.img").open("ab") as file:
            file.write(b"more")
        assert None is not before != image_digest(tmp_path / name)
