"""The method and the judge share no code; what one reads, the other reads, and as the same."""

import gzip
import logging
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tables
from helpers import write_nifti
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sound import unusual

from evaluation.__main__ import SOME_FAILED
from evaluation.__main__ import main as judge
from evaluation.errors import EvaluationError
from evaluation.images import read_affine as judge_affine
from evaluation.images import read_grid, read_volume
from evaluation.landmarks import read_landmarks as judge_landmarks
from mcbo.core.errors import InputError
from mcbo.geometry.grid import Grid
from mcbo.io.images import read_intensities
from mcbo.io.landmarks import read_landmarks
from mcbo.io.nifti import check_finite, read_image, read_voxels
from mcbo.io.nifti_header import in_mm
from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import make_phantom

IMAGES = unusual()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image in which the points of ``tables`` lie."""
    nibabel.save(nibabel.Nifti1Image(np.zeros(tables.SHAPE, np.uint8), tables.AFFINE), tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


@pytest.mark.parametrize("name", tables.READ)
def test_both_read_a_table_as_the_same_points(image: Path, name: str) -> None:
    path = image.with_name("points.csv")
    path.write_bytes(tables.READ[name].encode())
    found = read_landmarks(path)
    grid = Grid(tables.SHAPE, tables.AFFINE)
    voxels = found.points if found.space == "table" else grid.to_voxels(found.to_ras())
    assert np.abs(voxels.numpy() - np.array(tables.VOXELS)).max() < 1e-9
    assert np.abs(judge_landmarks(path, inside=tables.SHAPE, image=image) - tables.VOXELS).max() < 1e-9


@pytest.mark.parametrize("name", tables.REFUSED)
def test_both_refuse_what_is_no_table_of_points(image: Path, name: str) -> None:
    path = image.with_name("points.csv")
    path.write_bytes(tables.REFUSED[name].encode())
    with pytest.raises(InputError, match=r"points\.csv: .*(expected|found)"):
        read_landmarks(path)
    with pytest.raises(EvaluationError, match=r"points\.csv: .*(expected|found)"):
        judge_landmarks(path, inside=tables.SHAPE, image=image)


class Heard(logging.Handler):
    """What both packages warn of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    loggers = [logging.getLogger(name) for name in ("mcbo", "evaluation")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", IMAGES)
def test_both_read_an_image_as_the_same_values_or_neither_does(tmp_path: Path, heard: Heard, name: str) -> None:
    """As labels or intensities; where bytes behind a stream are left out, both say so, once."""
    image = IMAGES[name]
    path = tmp_path / f"T_0001_0000{image.suffix}"
    path.write_bytes(image.data)
    if image.values is None:
        with pytest.raises(InputError):
            check_finite(read_intensities(path)[0], path)
        with pytest.raises(EvaluationError):
            read_volume(path, read_grid(path)[0])
        return
    header, volume, _ = read_voxels(path)
    affine = header.affine
    shape, zooms = read_grid(path)
    judged = read_volume(path, shape)
    assert np.array_equal(volume[0, 0].numpy(), image.values)
    assert np.array_equal(judged, image.values)
    assert np.array_equal(affine, judge_affine(path))
    assert (zooms > 0).all()
    assert len(heard.texts) == (2 if image.warned else 0)
    assert all(f"{path}: bytes behind its compressed data are ignored" in text for text in heard.texts)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=40).map(lambda tail: (None, None, tail))
    | st.tuples(st.integers(0, 2999), st.integers(0, 255), st.just(b""))
    | st.tuples(st.integers(0, 540), st.integers(0, 255), st.just(b"")),
    st.booleans(),
)
@example((253, 128, b""), False)  # codes of qform and sform below 0
@example((255, 128, b""), False)
def test_both_have_one_verdict_on_any_spoiled_byte(
    tmp_path: Path, spoil: tuple[int | None, int | None, bytes], packed: bool
) -> None:
    """Anything behind a file, or any byte of it replaced: both read the same, or neither reads it."""
    at, value, tail = spoil
    data = bytearray(IMAGES["packed" if packed else "plain"].data)
    if at is not None and value is not None:
        data[at % len(data)] = value
    path = tmp_path / "T_0001_0000.nii.gz"
    path.write_bytes(bytes(data) + tail)
    try:
        header, volume, _ = read_voxels(path)
        affine = header.affine
        check_finite(volume.float(), path)
        ours: object = volume[0, 0].numpy()
    except InputError:
        ours = None
    try:
        judged = judge_affine(path)
        theirs: object = read_volume(path, read_grid(path)[0])
    except EvaluationError:
        theirs = None
    assert (ours is None) == (theirs is None)
    if ours is not None:
        assert np.allclose(ours, theirs, rtol=1e-6)  # type: ignore[arg-type]
        assert np.array_equal(affine, in_mm(judged, header.unit))  # the organizers' figures are in the unit of the file


def test_what_process_reads_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset whose images are packed by name only, or have garbage behind, and labels of (X, Y, Z, 1): nobody objects."""
    phantom = make_phantom((24, 26, 28), seed=2)
    dataset = write_dataset(phantom, tmp_path / "data")
    fixed, moving = (next((tmp_path / "data/imagesTr").glob(f"*_000{n}.nii.gz")) for n in (0, 1))
    fixed.write_bytes(gzip.decompress(fixed.read_bytes()))
    moving.write_bytes(moving.read_bytes() + b"garbage")
    for image in (fixed, moving):
        labels = (read_image(image).volume[0, 0] > 0).numpy().astype(np.uint8)
        path = write_nifti(tmp_path / "data/labelsTr" / image.name, labels[..., None])
        path.write_bytes(path.read_bytes() + b"garbage")
    assert judge(["zero", "--dataset", str(dataset), "--output", str(tmp_path / "zero")]) == 0
    assert judge(["validate", "--dataset", str(dataset), "--predictions", str(tmp_path / "zero")]) == 0
    scored = ["score", "--dataset", str(dataset), "--predictions", str(tmp_path / "zero"), "--metrics", "tre,dice"]
    assert judge(scored) == SOME_FAILED  # the other modality has no labels
    assert f"WARNING: {tmp_path / 'data/labelsTr' / fixed.name}: bytes behind" in capsys.readouterr().err
    assert read_image(fixed).volume.shape == read_image(moving).volume.shape == (1, 1, 24, 26, 28)
