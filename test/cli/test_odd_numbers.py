"""Numbers that no option can mean: a sentence from every command, and from Python, before anything is computed."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers import write_nifti
from hostile import make_around
from numpy.typing import NDArray

import mcbo
import process
from mcbo.cli.main import main
from mcbo.core.errors import DeviceError, InputError
from mcbo.io.images import as_labels, read_any, read_intensities, read_labels
from mcbo.io.nifti import read_image, to_tensor
from mcbo.runtime import MAX_MEMORY_GB, budget_bytes, check_device_name, max_threads, use_available_cores

DIGITS = "9" * 5000
NOT_ABOVE_0 = ["nan", "-inf", "-1", "0", "-0.0", "1e-400"]
TOO_LARGE = ["inf", "1e300", "1e400", DIGITS, "1e20"]


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("around")
    make_around(folder)
    (folder / "stack.tif").write_bytes(b"never read")
    return folder


def method(folder: Path, *more: str) -> int:
    return process.main([str(folder / "data"), "--output", str(folder / "out"), "--device", "cpu", *more])


def register(folder: Path, *more: str) -> int:
    images = [str(folder / f"data/imagesTr/ReMIND2Reg_0001_000{channel}.nii.gz") for channel in (0, 1)]
    return main(["register", *images, "--output", str(folder / "result"), "--device", "cpu", *more])


def refused(status: int, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    told = capsys.readouterr().err
    assert status == 1
    assert "Traceback" not in told
    assert len(told) < 9000
    for word in words:
        assert word in " ".join(told.replace("│", "").split())


@pytest.mark.parametrize("value", [*NOT_ABOVE_0, *TOO_LARGE])
@pytest.mark.parametrize("command", [method, register])
def test_memory(around: Path, capsys: pytest.CaptureFixture[str], command: Callable[..., int], value: str) -> None:
    refused(command(around, f"--memory-gb={value}"), capsys, "--memory-gb: expected a number above 0")


@pytest.mark.parametrize("value", [*NOT_ABOVE_0, *TOO_LARGE, "1e-300"])
@pytest.mark.parametrize("place", ["{},3", "3,{}"])
@pytest.mark.parametrize("command", [method, register])
def test_expect(around: Path, capsys: pytest.CaptureFixture[str], command: Callable[..., int], place: str, value: str) -> None:
    refused(command(around, f"--expect={place.format(value)}"), capsys, "expect: expected a")


@pytest.mark.parametrize("value", [*NOT_ABOVE_0, "inf", "1e400", DIGITS])
def test_spacing(around: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    stack, out, field = str(around / "stack.tif"), str(tmp_path / "out.nii.gz"), str(next((around / "predictions").iterdir()))
    sentence = "--spacing: expected three positive numbers such as 0.5,0.5,2, in mm or with a unit (0.5,0.5,2um), got"
    for arguments in (
        ["register", stack, stack, "--output", str(tmp_path / "result")],
        ["warp", field, "--image", stack, "--output", out],
        ["import", field, "--reference", stack, "--output", out],
        ["invert", field, "--reference", stack, "--output", out],
    ):
        refused(main([*arguments, f"--spacing=1,{value},1"]), capsys, sentence)


@pytest.mark.parametrize("value", ["nan", "-1", "0", "1e3", "1000000", DIGITS, str(10**18)])
def test_workers(around: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    refused(method(around, f"--workers={value}"), capsys, "--workers")


@pytest.mark.parametrize("value", [*NOT_ABOVE_0, *TOO_LARGE])
def test_case_timeout(around: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    refused(method(around, f"--case-timeout={value}", "--workers", "1"), capsys, "expected a number of seconds above 0")
    assert threading.TIMEOUT_MAX < 1e20


@pytest.mark.parametrize(
    "value", ["0/3", "4/3", "-1/3", "1/0", f"1/{DIGITS}", f"{DIGITS}/{DIGITS}", "nan/3", "1e0/3", "1/٣", "1/1e300"]
)
def test_shard(around: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    refused(method(around, f"--shard={value}"), capsys, "--shard: expected I/N with I from 1 to N, such as 3/8, got")


@pytest.mark.parametrize(
    "value", ["cuda:-1", "cuda:nan", f"cuda:{DIGITS}", "cuda:٣", "cuda:1e3", "cuda:99999", "cuda:", "cuda:0:0"]
)
def test_device(around: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    for command in (method, register):
        refused(command(around, "--device", value), capsys, "is not known: expected auto, cpu, cuda or cuda:N")
    refused(main(["benchmark", "--device", value]), capsys, "is not known: expected auto, cpu, cuda or cuda:N")
    with pytest.raises(DeviceError, match="is not known"):
        check_device_name(value)
    check_device_name("cuda:9999")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("size", ["nan", "-1", "0", "15", "1025", "1e3", str(10**18), DIGITS]),
        ("scaling", ["16,-1", "16,1025", f"16,{10**18}", f"16,{DIGITS}", "nan", "16,,20"]),
        ("repeat", ["nan", "-1", "0", "1001", str(10**18), DIGITS]),
        ("modalities", ["nan", "-1", "0", "3", str(10**18), DIGITS]),
        ("threads", ["nan", "-1", "0", "1000000", str(10**18), DIGITS, "1,1000000", "1,0", "1,-1"]),
    ],
)
def test_benchmark(capsys: pytest.CaptureFixture[str], option: str, values: list[str]) -> None:
    for value in values:
        refused(main(["benchmark", f"--{option}={value}"]), capsys, f"--{option}")


def test_a_phantom_that_does_not_fit_into_memory_is_not_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcbo.studies.benchmark.budget_bytes", lambda *_: 10**9)
    refused(
        main(["benchmark", "--size", "256"]),
        capsys,
        "a phantom of 256³ voxels takes 3.4 GB to draw, but the run may use 1.0 GB",
    )


@pytest.mark.parametrize("value", ["nan", "inf", "1e300", "0.5", "1e19", DIGITS])
def test_outside_of_labels(around: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    labels = write_nifti(tmp_path / "labels.nii.gz", np.ones((16, 16, 16), np.uint8))
    field = str(next((around / "predictions").iterdir()))
    arguments = ["warp", field, "--labels", str(labels), "--output", str(tmp_path / "out.nii.gz"), f"--outside={value}"]
    refused(main(arguments), capsys, "outside: expected a whole number")


@pytest.mark.parametrize(
    "change", [f"levels.{DIGITS}.search_radius=2", "levels.٣.search_radius=2", f"stretch={DIGITS}", "levels.-1.search_radius=2"]
)
def test_a_change_of_a_preset(around: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    dataset = str(around / "data/ReMIND2Reg_dataset.json")
    refused(main(["ablate", "--dataset", dataset, f"--change=mcbo2024:{change}"]), capsys, "--change")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [({"memory_gb": value}, "memory_gb: expected a number above 0") for value in (math.nan, math.inf, -math.inf, 0, -1, 1e300)]
    + [
        ({"expect": (value, 3)}, "expect: expected a shift of 1e-09 to 1e\\+06 mm and a rotation of 0.001 to 180 degrees, got")
        for value in (math.nan, math.inf, 0, -1, 1e300, 1e-300)
    ]
    + [
        ({"expect": (3, 181)}, "expect: expected a shift"),
        ({"spacing": (1, 1, 1e300)}, "grid: expected voxels of 1e-12 mm or more within"),
    ]
    + [({"device": f"cuda:{DIGITS}"}, "is not known")],
)
def test_from_python(more: dict[str, Any], sentence: str) -> None:
    image = np.random.default_rng(0).random((16, 16, 16))
    with pytest.raises((InputError, DeviceError), match=sentence):
        mcbo.register(image, image, **{"device": "cpu"} | more)


def test_a_budget_is_a_number_of_bytes_whatever_is_asked_for() -> None:
    assert budget_bytes(torch.device("cpu"), 1e300) == int(MAX_MEMORY_GB * 1e9)


@pytest.mark.parametrize("threads", [1, 2, 1_000_000])
def test_a_million_threads_are_not_started(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    taken: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    use_available_cores()
    assert taken == [min(threads, 12)]
    assert max_threads() == 12


LARGE = np.array([0, 1, 2**63, 2**64 - 1], np.uint64).repeat(8).reshape(2, 4, 4)


def test_whole_numbers_beyond_63_bits_are_what_they_are(tmp_path: Path) -> None:
    """As intensities, they are those numbers; as labels, they are a sentence."""
    expected: NDArray[np.float32] = LARGE.astype(np.float32)
    assert expected.max() == 2.0**64
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(LARGE, np.eye(4), dtype=np.uint64), path)
    assert np.array_equal(read_image(path).volume[0, 0].numpy(), expected)
    assert np.array_equal(read_intensities(path)[0][0, 0].numpy(), expected)
    assert np.array_equal(to_tensor(LARGE).numpy(), expected)
    for labels in (lambda: read_labels(path), lambda: as_labels(to_tensor(LARGE))):
        with pytest.raises(InputError, match="expected labels below 2²⁴, or stored as integers below 2⁶³, found larger ones"):
            labels()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_whole_numbers_of_63_bits_stay_apart(tmp_path: Path, suffix: str, dtype: type[np.generic]) -> None:
    sitk = pytest.importorskip("SimpleITK")
    values = (np.arange(48, dtype=np.uint64) + np.uint64(2**63 - 48)).astype(dtype).reshape(3, 4, 4)
    path = tmp_path / f"a{suffix}"
    if suffix == ".nii.gz":
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4), dtype=dtype), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(values.T)), str(path))
    found = read_any(path)[0]
    assert np.array_equal(found[0, 0].numpy(), values.astype(np.int64))
