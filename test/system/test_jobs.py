"""``process.py`` as an algorithm of grand-challenge.org: jobs as the site mounts them, in this process."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import write_dataset, write_nifti
from jobs import DIRECTION, field_of, to_image, world_of, write_job
from numpy.typing import NDArray

import process
from mcbo.api import grand_challenge
from mcbo.core.errors import NonFiniteError
from mcbo.io.nifti import read_displacement
from mcbo.studies.phantom import Phantom, make_phantom

FAST = ("--preset", "mcbo2024", "--device", "cpu")
OUTPUT = Path("images/displacement-field/output.mha")


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom((40, 36, 32), seed=5, wedge=True)


@pytest.fixture(scope="module")
def small() -> Phantom:
    return make_phantom((14, 12, 17), seed=3)


@pytest.fixture
def job(tmp_path: Path, small: Phantom) -> Path:
    """A small one with an ultrasound and an MR image."""
    images = {"intraoperative-ultrasound": to_image(small.fixed), "preoperative-mri": to_image(small.cet1)}
    return write_job(tmp_path / "input", images).parent


def run(job: Path, *arguments: str) -> int:
    return process.main(["--input", str(job), "--output", str(job.parent / "output"), *FAST, *arguments])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def to_ras(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points * (-1, -1, 1)


def test_the_field_takes_fixed_points_to_moving_ones_in_itk(tmp_path: Path, phantom: Phantom) -> None:
    """Two modalities, fused; a grid with oblique axes and three voxel sizes."""
    fixed, t2, cet1 = (
        to_image(volume, spacing=(1.0, 1.2, 0.9), origin=(10, -20, 30), direction=DIRECTION)
        for volume in (phantom.fixed, phantom.t2, phantom.cet1)
    )
    case = "ReMIND2Reg_0099_000{}.nii.gz".format
    names = {"intraop_us": case(0), "preop_t2": case(2), "preop_cet1": case(1)}
    inputs = write_job(tmp_path / "in", {"preop-t2": t2, "preop-cet1": cet1, "intraop-us": fixed}, **names)
    out = tmp_path / "out"
    assert process.main(["--input", str(inputs.parent), "--output", str(out), "--device", "cpu", "--challenge-format"]) == 0
    official = ["disp_0099_0000_0099_0001.nii.gz", "disp_0099_0000_0099_0002.nii.gz"]
    assert files(out) == [*official, str(OUTPUT), "report.json"]

    transform, vectors = field_of(out / OUTPUT)
    assert vectors.GetSize() == fixed.GetSize() == (40, 36, 32)
    assert np.allclose(vectors.GetDirection(), fixed.GetDirection())
    assert np.allclose((*vectors.GetOrigin(), *vectors.GetSpacing()), (*fixed.GetOrigin(), *fixed.GetSpacing()))

    # TRE, by ITK alone
    start, truth = (world_of(fixed, points) for points in (phantom.fixed_landmarks, phantom.moving_landmarks))
    found = np.array([transform.TransformPoint(point) for point in start.tolist()])
    assert np.linalg.norm(found - truth, axis=1).mean() < 0.6 * np.linalg.norm(start - truth, axis=1).mean()

    # the challenge's file, by nibabel alone: p + u(p) voxels, in the world
    voxels = np.random.default_rng(0).integers(0, fixed.GetSize(), size=(500, 3))
    for name in official:
        image = nibabel.nifti1.load(out / name)
        u = np.asarray(image.dataobj)[tuple(voxels.T)]
        assert np.abs(u).max() > 0.5
        moved = to_ras(nibabel.affines.apply_affine(image.affine, voxels + u))
        by_itk = np.array([transform.TransformPoint(point) for point in world_of(fixed, voxels.astype(float)).tolist()])
        assert np.abs(moved - by_itk).max() < 1e-3


def test_a_job_gives_the_displacement_of_the_same_images_as_a_dataset(tmp_path: Path, small: Phantom) -> None:
    volumes = {"us": small.fixed, "cet1": small.cet1, "t2": small.t2}
    names = [f"ReMIND2Reg_0001_000{channel}.nii.gz" for channel in range(3)]
    for name, volume in zip(names, volumes.values(), strict=True):
        write_nifti(tmp_path / "imagesTr" / name, volume[0, 0].numpy())
    dataset = write_dataset(tmp_path, [(names[0], names[1]), (names[0], names[2])])
    assert process.main([str(dataset), "--output", str(tmp_path / "one"), *FAST]) == 0
    job = write_job(tmp_path / "job", {slug: to_image(volume) for slug, volume in volumes.items()})
    other = tmp_path / "other"
    assert process.main([str(job), "--output", str(other), *FAST, "--challenge-format", "--format", "npz"]) == 0
    assert files(other) == ["displacement.npz", str(OUTPUT), "report.json"]
    one = read_displacement(tmp_path / "one/disp_0001_0000_0001_0002.nii.gz")
    assert bool(one.any())
    assert one.equal(read_displacement(other / "displacement.npz"))


def test_images_on_other_grids_are_placed_by_their_headers(tmp_path: Path, phantom: Phantom) -> None:
    fixed, there = (
        to_image(v, spacing=(1.0, 1.1, 1.0), origin=(5, 0, -7), direction=DIRECTION) for v in (phantom.fixed, phantom.t2)
    )
    corners = world_of(fixed, np.array(np.meshgrid((0, 39), (0, 35), (0, 31)), dtype=float).reshape(3, 8).T)
    grid = sitk.Image([int(n) for n in np.ceil(np.ptp(corners, axis=0) / 1.25)], sitk.sitkFloat32)
    grid.SetSpacing((1.25, 1.25, 1.25))
    grid.SetOrigin(corners.min(axis=0).tolist())
    moving = sitk.Resample(there, grid)
    job = write_job(tmp_path / "in", {"fixed": fixed, "moving": moving}, suffix=".nii.gz")
    assert process.main(["--input", str(job.parent), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    transform, vectors = field_of(tmp_path / "out" / OUTPUT)
    assert vectors.GetSize() == fixed.GetSize()
    start, truth = (world_of(fixed, points) for points in (phantom.fixed_landmarks, phantom.moving_landmarks))
    found = np.array([transform.TransformPoint(point) for point in start.tolist()])
    assert np.linalg.norm(found - truth, axis=1).mean() < 0.6 * np.linalg.norm(start - truth, axis=1).mean()


def test_tiff_stacks_take_their_voxel_size_from_an_option(
    tmp_path: Path, small: Phantom, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {"em": to_image(small.fixed), "lm": to_image(small.t2)}
    job = write_job(
        tmp_path / "in", {slug: sitk.Cast(image * 100, sitk.sitkUInt16) for slug, image in images.items()}, suffix=".tif"
    )
    arguments = ["--input", str(job.parent), "--output", str(tmp_path / "out"), *FAST, "--spacing", "0.5,0.5,2"]
    assert process.main(arguments) == 0
    field = sitk.ReadImage(str(tmp_path / "out" / OUTPUT))
    assert field.GetSize() == (14, 12, 17, 3)
    assert field.GetSpacing() == (0.5, 0.5, 2.0, 1.0)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["cases"]["job"]["settings"] == {"task": "COMULIS3DCLEM", "sockets": {"em": "EM", "lm": "LM"}}
    assert "\n" in capsys.readouterr().out


def test_slugs_and_options_come_from_the_environment(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = {"intraoperative-ultrasound": "moving", "preoperative-mri": "fixed", "warp": "displacement"}
    values = {"SOCKETS": json.dumps(roles), "INPUT": str(job), "OUTPUT": str(job.parent / "output"), "CHALLENGE_FORMAT": "1"}
    for name, value in {**values, "PRESET": "mcbo2024"}.items():
        monkeypatch.setenv(f"MCBO_{name}", value)
    monkeypatch.setenv("GRAND_CHALLENGE_COMPONENT_API_METHOD", "exec")
    assert process.main([]) == 0
    assert files(job.parent / "output") == ["displacement.nii.gz", "images/warp/output.mha", "report.json"]
    case = json.loads((job.parent / "output/report.json").read_text())["cases"]["job"]
    assert [Path(image).parent.name for image in case["images"]] == ["preoperative-mri", "intraoperative-ultrasound"]
    assert list(case["files"]) == ["intraoperative-ultrasound"]
    assert {"read", "write"} <= set(case["stages"])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("missing", "socket 'preoperative-mri': expected one image (.mha, .tif or .nii.gz) in"),
        ("cut", "socket 'preoperative-mri': "),
        ("constant", "socket 'preoperative-mri': preoperative-mri: expected an image with structure"),
        ("nan", "socket 'preoperative-mri': preoperative-mri: expected finite intensities, found 1 voxel(s)"),
        ("2d", "socket 'preoperative-mri': "),
        ("far", "preoperative-mri: expected it to overlap the fixed image in world coordinates"),
    ],
)
def test_a_broken_image_is_named_by_its_socket(
    job: Path, small: Phantom, capsys: pytest.CaptureFixture[str], spoil: str, sentence: str
) -> None:
    (victim,) = (job / "images/preoperative-mri").iterdir()
    array = small.cet1[0, 0].numpy().T.copy()
    array[0, 0, 0] = {"nan": np.nan}.get(spoil, array[0, 0, 0])
    image = sitk.GetImageFromArray({"constant": np.ones_like(array), "2d": array[0]}.get(spoil, array))
    if spoil == "far":
        image.SetOrigin((1000, 0, 0))
    whole = victim.read_bytes()
    victim.unlink()
    if spoil == "cut":
        victim.write_bytes(whole[: len(whole) // 2])
    elif spoil != "missing":
        sitk.WriteImage(image, str(victim))
    assert run(job) == process.BAD_INPUT
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1
    assert not [name for name in files(job.parent / "output") if name.endswith(".mha")]


def test_a_failed_job_leaves_no_field_of_an_earlier_one(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NonFiniteError("stage 'x' produced values that are not finite")

    assert run(job) == 0
    monkeypatch.setattr(grand_challenge, "register", fail)
    assert run(job) == process.SOME_FAILED
    assert files(job.parent / "output") == ["report.json"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--moving", "0001", "--shard", "1/2"], "--moving, --shard: expected none, since a job of grand-challenge.org is one"),
        (["--warped"], "--warped: expected none"),
        (["--on-failure", "zero"], "--on-failure: expected none"),
        (["--sockets", "{"], "--sockets or MCBO_SOCKETS: expected JSON"),
        (["--sockets", '{"preoperative-mri": "LM"}'], "found LM, ultrasound: choose a task with --task"),
        (["--task", "COMULIS3DCLEM", "--sockets", '{"preoperative-mri": "fixed"}'], "'preoperative-mri' (fixed)"),
        (["--task", "LUMIR"], "task 'LUMIR' is not known"),
        (["--preset", "best"], "preset 'best' is not known"),
        (["--spacing", "1,2"], "--spacing: expected three positive numbers"),
        (["--api-method", "rest"], "--api-method: expected one of exec, invoke, got 'rest'"),
        (["--api-method", "invoke", "a", "b"], "--api-method: expected a folder for its jobs, got a b"),
    ],
)
def test_options_that_a_job_does_not_have_are_refused(
    job: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run(job, *arguments) == process.BAD_INPUT
    assert sentence in capsys.readouterr().err
    assert not (job.parent / "output").exists()


def test_an_unknown_word_of_the_site_is_refused(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAND_CHALLENGE_COMPONENT_API_METHOD", "rest")
    assert run(job) == process.BAD_INPUT
    assert "GRAND_CHALLENGE_COMPONENT_API_METHOD: expected one of exec, invoke, got 'rest'" in capsys.readouterr().err
    assert run(job, "--api-method", "exec") == 0


def test_several_moving_images_need_a_preset_that_fuses_them(
    tmp_path: Path, small: Phantom, capsys: pytest.CaptureFixture[str]
) -> None:
    image = to_image(small.fixed)
    job = write_job(tmp_path / "in", {"em": image, "lm": image, "fm": image})
    assert process.main([str(job), "--output", str(tmp_path / "out")]) == process.BAD_INPUT
    assert "sockets 'fm', 'lm': expected one moving image, since preset cascade of COMULIS3DCLEM" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--sockets", "{}"], ["--spacing", "1,1,1"], ["--challenge-format"]])
def test_options_of_jobs_are_refused_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert process.main(["--input", str(tmp_path), "--output", str(tmp_path / "out"), *options]) == process.BAD_INPUT
    assert "expected with the inputs.json of a job only" in capsys.readouterr().err


def test_the_five_paths_of_psmareg_are_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert process.main([str(tmp_path / name) for name in "abcde"]) == process.BAD_INPUT
    assert "PSMAReg's five (fixed CT, fixed PET, moving CT, moving PET, output) are not supported" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_input_is_never_overwritten(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (job / "images/preoperative-mri").iterdir()
    path.rename(path.with_name("output.mha"))
    sockets = json.dumps({"intraoperative-ultrasound": "fixed"})
    inputs = json.loads((job / "inputs.json").read_text())
    inputs[1]["socket"]["slug"] = "mri"
    (job / "inputs.json").write_text(json.dumps(inputs))
    (job / "images/preoperative-mri").rename(job / "images/displacement-field")
    inputs[1]["socket"]["relative_path"] = "images/displacement-field"
    (job / "inputs.json").write_text(json.dumps(inputs))
    assert process.main([str(job), "--output", str(job), "--sockets", sockets]) == process.BAD_INPUT
    assert "expected another output than an input" in capsys.readouterr().err
    assert (job / OUTPUT).stat().st_size > 1000


def test_the_invoke_api_does_jobs_until_it_is_stopped(job: Path) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    output = job.parent / "output"
    environment = os.environ | {
        "GRAND_CHALLENGE_COMPONENT_API_METHOD": "invoke",
        "MCBO_INPUT": str(job),
        "MCBO_OUTPUT": str(output),
        "MCBO_PORT": str(port),
        "MCBO_PRESET": "mcbo2024",
        "OMP_NUM_THREADS": "1",
    }

    def ask(method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("localhost", port, timeout=60)
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    server = subprocess.Popen([sys.executable, process.__file__], env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                assert ask("GET", "/health")[0] == 200
                break
            except ConnectionRefusedError:
                assert server.poll() is None
                time.sleep(0.1)
        assert ask("POST", "/invoke") == (201, f"{output / OUTPUT}\n")
        first = (output / OUTPUT).read_bytes()
        (output / OUTPUT).unlink()
        inputs = (job / "inputs.json").rename(job / "hidden.json")
        status, text = ask("POST", "/invoke")
        assert status == 500
        assert text.endswith("inputs.json: no such file; expected the inputs of a job\n")
        inputs.rename(job / "inputs.json")
        assert ask("POST", "/invoke")[0] == 201
        assert (output / OUTPUT).read_bytes() == first
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == process.TERMINATED
    finally:
        server.kill()
        server.wait()
