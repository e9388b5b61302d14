"""What strangers' files may not do: lead elsewhere, take memory they do not fill, or speak to a terminal or a browser."""

import gzip
import json
import logging
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from front_doors import make_around
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from malformed import ESCAPES, FIELD, FIXED, PAIR, dataset_of
from numpy.typing import NDArray

import process
from evaluation.__main__ import main as judge
from evaluation.errors import EvaluationError
from evaluation.images import read_affine, read_grid, read_volume
from evaluation.landmarks import read_landmarks
from evaluation.pairs import Pair
from mcbo.core.errors import InputError
from mcbo.core.log import printable
from mcbo.dataset.learn2reg import open_input, parse_name
from mcbo.io.nifti import read_image
from mcbo.io.nifti_header import read_header, read_values
from mcbo.progress import set_up_logging
from mcbo.runs import load as case_load

IN_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
DTYPES = st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
SHAPES = st.lists(st.integers(1, 40), min_size=3, max_size=3, unique=True).map(tuple)
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, np.nan, np.inf]) | st.floats(-10, 10)


@given(
    shape=SHAPES, dtype=DTYPES, compress=st.booleans(), slope=st.sampled_from([1.0, 0.5, -3.0]), version=st.sampled_from([1, 2])
)
@IN_FOLDER
def test_both_readers_read_what_nibabel_wrote(
    tmp_path: Path, shape: tuple[int, int, int], dtype: type[np.generic], compress: bool, slope: float, version: int
) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    kinds: dict[int, Any] = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}
    image = kinds[version](values, np.diag([1.5, 2, 2.5, 1]), dtype=dtype)
    if np.issubdtype(dtype, np.integer):
        image.header.set_slope_inter(slope, 7)
    path = tmp_path / ("a.nii.gz" if compress else "a.nii")
    nibabel.save(image, path)
    expected = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    header = read_header(path)
    assert header.shape == shape
    assert np.array_equal(read_values(header), expected)
    assert read_grid(path)[0] == shape
    assert np.array_equal(read_volume(path, shape).astype(np.float32), expected)


@given(affine=arrays(np.float64, (3, 4), elements=NUMBERS), shape=SHAPES)
@IN_FOLDER
def test_any_affine_gives_an_image_or_a_sentence(tmp_path: Path, affine: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    header: Any = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header["sform_code"], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=True):
        header[name] = row
    values = np.arange(np.prod(shape), dtype=np.float32)
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + values.tobytes())
    stored = np.vstack([[header[name] for name in ("srow_x", "srow_y", "srow_z")], [[0, 0, 0, 1]]]).astype(np.float64)
    usable = bool(np.isfinite(stored).all()) and np.linalg.matrix_rank(stored) == 4
    if usable:
        assert np.array_equal(read_header(path).affine, stored)
        assert np.array_equal(read_affine(path), stored)
        return
    with pytest.raises(InputError, match=r"a\.nii: expected an affine that can be inverted, found"):
        read_header(path)
    with pytest.raises(EvaluationError, match=r"a\.nii: expected an affine that can be inverted, found"):
        read_affine(path)


@given(junk=st.binary(max_size=600), keep=st.integers(0, 352), compress=st.booleans())
@IN_FOLDER
def test_any_bytes_give_an_image_or_a_sentence(tmp_path: Path, junk: bytes, keep: int, compress: bool) -> None:
    """The beginning of a header that is right, then anything."""
    whole = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes()
    data = whole[:keep] + junk
    path = tmp_path / ("a.nii.gz" if compress else "a.nii")
    path.write_bytes(gzip.compress(data) if compress else data)
    for read in (read_image, read_grid):
        try:
            read(path)
        except (InputError, EvaluationError) as error:
            assert re.search(r"a\.nii(\.gz)?: expected .+(found|but) ", str(error))  # noqa: PT017 (it need not fail)


@given(text=st.text(st.sampled_from("0123456789.,;-+eE \n\r\tnaif_\ufeff٣"), max_size=40))
@IN_FOLDER
def test_any_text_gives_landmarks_or_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    try:
        points = read_landmarks(path)
    except EvaluationError as error:
        assert "a.csv: expected" in str(error)  # noqa: PT017 (it need not fail)
    else:
        assert points.ndim == 2
        assert points.shape[1] == 3
        assert np.abs(points).max() <= 1e6


@given(
    name=st.text(max_size=30),
    tail=st.sampled_from(["_0001_0002.nii.gz", "_00/1_0002.nii.gz", "_١٢٣٤_0002.nii", "_0001_../.nii"]),
)
def test_displacements_are_named_by_digits_alone(name: str, tail: str) -> None:
    try:
        _, case, channel = parse_name(Path(name + tail))
    except InputError:
        return
    assert re.fullmatch("[0-9]{4}_[0-9]{4}", f"{case}_{channel}", re.ASCII)
    pair = Pair(Path(f"x/{Path(name + tail).name}"), Path("x/T_0001_0001.nii.gz"))
    assert re.fullmatch("disp(_[0-9]{4}){4}", pair.field_name, re.ASCII)


def test_a_scaled_image_takes_little_more_than_its_float32_size(tmp_path: Path) -> None:
    shape = (96, 112, 128)
    values = np.random.default_rng(0).integers(0, 100, shape).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "a.nii.gz")
    read_image(tmp_path / "a.nii.gz")
    tracemalloc.start()
    volume = read_image(tmp_path / "a.nii.gz").volume
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.mean() == pytest.approx(values.mean() * 0.5 + 3, rel=1e-4)
    slab = 2**20 * (2 + 8 + 8)  # a block as it is on disk, in float64, scaled
    assert peak < 4 * values.size + 1.1 * slab + values.size / 8


@pytest.mark.parametrize("kind", ["link", "folder link", "absolute"])
def test_trusted_paths_may_lead_elsewhere(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_around(tmp_path)
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    dataset = data / "ReMIND2Reg_dataset.json"
    (data / "imagesTr").rename(elsewhere)
    if kind == "folder link":
        (data / "imagesTr").symlink_to(elsewhere)
    elif kind == "link":
        (data / "imagesTr").mkdir()
        for image in elsewhere.iterdir():
            (data / "imagesTr" / image.name).symlink_to(image)
    else:
        dataset_of(str(elsewhere / f"{FIXED}.nii.gz"))(dataset)
    zero = ["zero", "--dataset", str(dataset), "--output", str(tmp_path / "zero")]
    method = [str(dataset), "--output", str(tmp_path / "out"), "--case", "0009"]
    assert judge(zero) == process.main(method) == 1
    assert capsys.readouterr().err.count("allow it with --trust-paths or MCBO_TRUST_PATHS=1") == 2
    assert judge([*zero, "--trust-paths"]) == 0
    assert process.main([*method, "--trust-paths"]) == 1
    assert "case 0009 is not in the dataset: expected one of 0001" in capsys.readouterr().err
    monkeypatch.setenv("MCBO_TRUST_PATHS", "1")
    assert judge(zero) == 0
    assert process.main(method) == 1
    assert "case 0009 is not in the dataset: expected one of 0001" in capsys.readouterr().err


def test_a_folder_without_json_is_no_way_out_either(tmp_path: Path) -> None:
    make_around(tmp_path)
    image = tmp_path / "data" / PAIR["fixed"]
    image.rename(tmp_path / image.name)
    image.symlink_to(tmp_path / image.name)
    with pytest.raises(InputError, match="expected a path inside the dataset's folder"):
        open_input(image.parent, split="val")
    assert len(open_input(image.parent, split="val", trust_paths=True).cases) == 1


def test_paths_that_stay_inside_are_fine_however_they_are_written(tmp_path: Path) -> None:
    make_around(tmp_path)
    dataset = tmp_path / "data" / "ReMIND2Reg_dataset.json"
    inside = tmp_path / "data" / PAIR["fixed"]
    (tmp_path / "data" / "more").symlink_to("imagesTr")
    (tmp_path / "by_link").symlink_to(tmp_path / "data")
    for text in (str(inside), f"./imagesTr/../imagesTr/{FIXED}.nii.gz", f"more/{FIXED}.nii.gz"):
        dataset_of(text)(dataset)
        for opened in (dataset, tmp_path / "by_link" / dataset.name):
            assert inside.samefile(open_input(opened, split="val").cases[0].fixed)
            assert judge(["zero", "--dataset", str(opened), "--output", str(tmp_path / "zero")]) == 0


def test_a_case_beyond_the_budget_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_around(tmp_path)
    monkeypatch.setattr(case_load, "read_image", lambda path: pytest.fail(f"{path} was read"))
    for preset in ("cascade", "mcbo2024"):
        arguments = [str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--preset", preset, "--memory-gb", "0.00001"]
        (tmp_path / "data" / PAIR["fixed"]).write_bytes(nibabel.Nifti1Image(np.zeros((21, 22, 23)), np.eye(4)).to_bytes())
        assert process.main(arguments) == process.BAD_INPUT
        assert re.search(
            r"21×22×23 voxels with 1 moving image\(s\) need at least [\d.]+ [GM]B of memory, but the run may use 0\.01 MB",
            capsys.readouterr().err,
        )


def test_a_large_dataset_is_opened_at_once(tmp_path: Path) -> None:
    """40,000 pairs; what grows with their square would take minutes."""
    entries = [
        {"fixed": f"a/T_{i // 4:04d}_000{i % 4}.nii.gz", "moving": f"a/T_{i // 4:04d}_0009.nii.gz"} for i in range(40_000)
    ]
    path = tmp_path / "x_dataset.json"
    path.write_text(json.dumps({"name": "T", "registration_val": entries}))
    assert len(open_input(path, split="val").cases) == 40_000


def test_nothing_raw_reaches_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = f"a{ESCAPES}\r\nERROR: forged\ud800"
    assert printable(hostile).isprintable()
    assert printable("a 9×8, ä") == "a 9×8, ä"
    set_up_logging()
    logging.getLogger("mcbo").error("%s", hostile)
    assert capsys.readouterr().err == "ERROR: a\\x1b[31m\\x07\\u202e\\r\\nERROR: forged\\ud800\n"


@pytest.mark.parametrize("suffix", [".html", ".md", ".csv", ".json"])
def test_names_are_text_in_every_page(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_around(tmp_path)
    hostile = f"<script>alert('1')</script>\"|{ESCAPES}\ud800"
    dataset = tmp_path / "data" / "ReMIND2Reg_dataset.json"
    dataset_of(PAIR["fixed"], name=hostile)(dataset)
    assert judge(["zero", "--dataset", str(dataset), "--output", str(tmp_path / "predictions")]) == 0
    out = tmp_path / f"board{suffix}"
    arguments = ["--dataset", str(dataset), "--output", str(out), "--metrics", "tre"]
    assert judge(["leaderboard", f"{hostile}={tmp_path / 'predictions'}", *arguments]) == 0
    text = out.read_text()
    if suffix in (".html", ".md"):
        assert "<script" not in text
        assert "&lt;script&gt;" in text or "&lt;script>" in text
    if suffix == ".html":
        page = tmp_path / "scores.html"
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"evaluation_methods": [{"metric": "tre", "name": hostile}], "task_name": hostile}))
        judged = ["score", "--dataset", str(dataset), "--predictions", str(tmp_path / "predictions"), "--config", str(config)]
        assert judge([*judged, "--html", str(page), "--csv", str(tmp_path / "scores.csv")]) == 0
        assert "<script" not in page.read_text()
        assert page.read_text().count("&lt;script&gt;") >= 2
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_a_pipe_among_the_predictions_does_not_stop_the_judge(tmp_path: Path) -> None:
    make_around(tmp_path)
    os.mkfifo(tmp_path / "predictions" / f"{FIELD}.nii.gz")
    judged = ["--dataset", str(tmp_path / "data" / "ReMIND2Reg_dataset.json"), "--predictions", str(tmp_path / "predictions")]
    assert judge(["score", *judged]) == 2
    assert judge(["validate", *judged]) == 1
