"""The command line, in this process: what it writes, what it says, how it exits."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from helpers import write_dataset, write_nifti

import process
from mcbo import __version__
from mcbo.core.errors import OutputError
from mcbo.io.nifti import read_displacement
from mcbo.methods import pipeline
from mcbo.report import earlier_cases, write_report
from mcbo.runs import compute as case_compute
from mcbo.runs import ledger
from mcbo.studies import demo
from mcbo.studies.phantom import make_phantom

SHAPE = (14, 12, 17)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases of ReMIND2Reg: the first with both moving modalities, the second with ceT1 alone."""
    folder = tmp_path_factory.mktemp("data")
    for case in ("0098", "0099"):
        phantom = make_phantom(SHAPE, seed=int(case))
        for channel, image in enumerate((phantom.fixed, phantom.cet1, phantom.t2)):
            write_nifti(folder / "imagesTr" / f"ReMIND2Reg_{case}_000{channel}.nii.gz", image[0, 0].numpy().astype(np.int16))
    pairs = [("0098", "1"), ("0098", "2"), ("0099", "1")]
    write_dataset(folder, [(f"ReMIND2Reg_{c}_0000.nii.gz", f"ReMIND2Reg_{c}_000{m}.nii.gz") for c, m in pairs])
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_dataset_json_gives_a_field_per_pair_and_a_report(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(data / "ReMIND2Reg_dataset.json"), "--output", str(tmp_path), "--device", "cpu", "--preset", "mcbo2024"]
    assert process.main(arguments) == 0
    names = ["disp_0098_0000_0098_0001", "disp_0098_0000_0098_0002", "disp_0099_0000_0099_0001"]
    assert files(tmp_path) == [*(f"{name}.nii.gz" for name in names), "report.json"]
    first, second = (read_displacement(tmp_path / f"{name}.nii.gz") for name in names[:2])
    assert first.shape == (1, 3, *SHAPE)
    assert first.equal(second)  # the modalities are fused
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["name"] == "mcbo2024"
    assert report["versions"]["mcbo"] == __version__
    assert report["device"].startswith("cpu")
    case = report["cases"]["0098"]
    assert [level["grid_spacing"] for level in case["levels"]] == [2, 1]
    assert {"read", "features", "level 1 solve", "level 1 consistency", "level 1 refine", "write"} <= set(case["stages"])
    assert all(stage["peak_memory_mb"] > 50 for stage in case["stages"].values())
    output = capsys.readouterr()
    assert re.search(r"device: cpu \(.*no GPU in use", output.out)
    assert "level 6 left out" in output.out
    assert "3 displacement(s) written" in output.out
    assert output.err == ""


def test_a_folder_with_images_alone_and_fewer_things_asked_for(data: Path, tmp_path: Path) -> None:
    arguments = ["--input", str(data / "imagesTr"), "--output", str(tmp_path), "--case", "0098", "--moving", "0002"]
    assert process.main([*arguments, "--format", "npz", "--warped"]) == 0
    assert files(tmp_path) == ["disp_0098_0000_0098_0002.npz", "report.json", "warped_0098_0000_0098_0002.nii.gz"]
    assert nibabel.load(tmp_path / "warped_0098_0000_0098_0002.nii.gz").shape == SHAPE  # type: ignore[attr-defined]


def test_the_channel_written_does_not_change_the_field(data: Path, tmp_path: Path) -> None:
    for channel in ("0001", "0002"):
        arguments = [str(data), "--output", str(tmp_path), "--case", "0098", "--moving", channel]
        assert process.main(arguments) == 0
    one, two = (read_displacement(tmp_path / f"disp_0098_0000_0098_{channel}.nii.gz") for channel in ("0001", "0002"))
    assert one.equal(two)


@pytest.mark.parametrize("suffix", ["nii.gz", "npz"])
def test_three_paths(data: Path, tmp_path: Path, suffix: str) -> None:
    fixed, moving = (str(data / "imagesTr" / f"ReMIND2Reg_0099_000{c}.nii.gz") for c in range(2))
    output = tmp_path / "deep" / f"field.{suffix}"
    assert process.main([fixed, moving, str(output)]) == 0
    assert files(tmp_path) == sorted([f"deep/field.{suffix}", "deep/field.report.json"])
    assert read_displacement(output).shape == (1, 3, *SHAPE)


def test_options_can_come_from_the_environment(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INPUT": str(data), "OUTPUT": str(tmp_path), "MOVING": "0001", "CASE": "0099"}.items():
        monkeypatch.setenv(f"MCBO_{name}", value)
    assert process.main([]) == 0
    assert files(tmp_path) == ["disp_0099_0000_0099_0001.nii.gz", "report.json"]


def test_the_report_says_how_far_a_result_can_be_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom = make_phantom((40, 36, 44), seed=3)
    noise = torch.rand(phantom.fixed.shape, generator=torch.Generator().manual_seed(0))
    for channel, image in (("0000", phantom.t2), ("0001", phantom.cet1), ("0002", noise)):
        write_nifti(tmp_path / f"COMULIS3DCLEM_0001_{channel}.nii.gz", image[0, 0].numpy())
    assert process.main(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    related, unrelated = (report["cases"]["0001"]["judgement"][f"disp_0001_0000_0001_000{k}"] for k in (1, 2))
    assert related["confidence"] > 0.4
    assert related["chosen"] in ("identity", "rigid", "full")
    assert unrelated["confidence"] < 0.05
    assert unrelated["chosen"] in ("identity", "cautious")
    error = capsys.readouterr().err
    assert "disp_0001_0000_0001_0002: low confidence: the probability" in error
    assert "disp_0001_0000_0001_0001" not in error


def test_microscopy_needs_no_particular_channels(tmp_path: Path) -> None:
    phantom = make_phantom((8, 24, 20), seed=3)
    for channel, image in (("0004", phantom.fixed), ("0007", phantom.t2)):
        write_nifti(tmp_path / "imagesTr" / f"COMULIS3DCLEM_0001_{channel}.nii.gz", image[0, 0].numpy())
    dataset = write_dataset(
        tmp_path, [("COMULIS3DCLEM_0001_0004.nii.gz", "COMULIS3DCLEM_0001_0007.nii.gz")], name="COMULIS3DCLEM"
    )
    assert process.main([str(dataset), "--output", str(tmp_path / "out"), "--preset", "mcbo2024"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [level["grid_spacing"] for level in report["config"]["levels"]] == [4, 2, 1]
    assert files(tmp_path / "out") == ["disp_0001_0004_0001_0007.nii.gz", "report.json"]


def broken_dataset(folder: Path, data: Path, spoil: str) -> Path:
    """A copy of the data with case 0099's moving image spoiled."""
    for file in (data / "imagesTr").iterdir():
        target = folder / "imagesTr" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    victim = folder / "imagesTr" / "ReMIND2Reg_0099_0001.nii.gz"
    array = np.asarray(nibabel.load(victim).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    if spoil == "nan":
        array[0, 0, 0] = np.nan
    elif spoil == "shape":
        array = array[1:]
    elif spoil == "4d":
        array = np.stack([array, array], axis=-1)
    elif spoil == "constant":
        array[:] = 3
    victim.unlink()
    if spoil == "cut":
        whole = write_nifti(folder / "whole.nii.gz", array)
        victim.write_bytes(whole.read_bytes()[:2000])
    elif spoil != "missing":
        write_nifti(victim, array)
    dataset = folder / "ReMIND2Reg_dataset.json"
    dataset.write_bytes((data / "ReMIND2Reg_dataset.json").read_bytes())
    return dataset


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nan", "expected finite intensities, found 1 voxel(s)"),
        ("shape", "expected the shape of the fixed image ReMIND2Reg_0099_0000.nii.gz, 14×12×17, found 13×12×17"),
        ("4d", "expected a 3D image, found 4D data"),
        ("constant", "found only the value 3"),
        ("cut", "expected a whole NIfTI image"),
        ("missing", "no such file"),
    ],
)
def test_a_broken_case_is_named_and_the_others_are_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str, message: str
) -> None:
    dataset = broken_dataset(tmp_path, data, spoil)
    out = tmp_path / "out"
    assert process.main([str(dataset), "--output", str(out)]) == process.SOME_FAILED
    assert "disp_0099_0000_0099_0001.nii.gz" not in files(out)
    assert "disp_0098_0000_0098_0002.nii.gz" in files(out)
    errors = capsys.readouterr().err
    assert re.search(r"disp_0099_0000_0099_0001 is not written: .*ReMIND2Reg_0099_0001\.nii\.gz", errors)
    assert "1 not written: disp_0099_0000_0099_0001" in errors
    assert message in errors
    failed = json.loads((out / "report.json").read_text())["cases"]["0099"]["failed"]
    assert message in failed["disp_0099_0000_0099_0001"]


def test_if_nothing_could_be_started_the_status_is_1(data: Path, tmp_path: Path) -> None:
    dataset = broken_dataset(tmp_path, data, "nan")
    assert process.main([str(dataset), "--output", str(tmp_path / "out"), "--case", "0099"]) == process.BAD_INPUT


@pytest.mark.parametrize("arguments", [[], ["--moving", "0001"]])
def test_a_broken_modality_does_not_take_the_other_with_it(data: Path, tmp_path: Path, arguments: list[str]) -> None:
    dataset = broken_dataset(tmp_path, data, "none")
    (tmp_path / "imagesTr" / "ReMIND2Reg_0098_0002.nii.gz").unlink()
    out = tmp_path / "out"
    expected = process.ALL_WRITTEN if arguments else process.SOME_FAILED
    assert process.main([str(dataset), "--output", str(out), "--case", "0098", *arguments]) == expected
    assert files(out) == ["disp_0098_0000_0098_0001.nii.gz", "report.json"]
    alone = tmp_path / "alone.nii.gz"
    fixed, moving = (str(data / "imagesTr" / f"ReMIND2Reg_0098_000{c}.nii.gz") for c in range(2))
    assert process.main([fixed, moving, str(alone)]) == 0
    assert read_displacement(alone).equal(read_displacement(out / "disp_0098_0000_0098_0001.nii.gz"))


def test_an_output_in_the_way_costs_its_own_pair_only(data: Path, tmp_path: Path) -> None:
    (tmp_path / "disp_0098_0000_0098_0002.nii.gz" / "x").mkdir(parents=True)
    assert process.main([str(data), "--output", str(tmp_path), "--case", "0098"]) == process.SOME_FAILED
    assert files(tmp_path) == ["disp_0098_0000_0098_0001.nii.gz", "report.json"]


def test_a_report_that_cannot_be_written_is_a_failure_among_successes(data: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json" / "x").mkdir(parents=True)
    assert process.main([str(data), "--output", str(tmp_path), "--case", "0099"]) == process.SOME_FAILED
    assert files(tmp_path) == ["disp_0099_0000_0099_0001.nii.gz"]


def test_a_report_that_cannot_be_written_does_not_stop_the_cases(data: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json" / "x").mkdir(parents=True)
    assert process.main([str(data), "--output", str(tmp_path)]) == process.SOME_FAILED
    assert len(files(tmp_path)) == 3


def test_a_report_that_is_written_in_the_end_is_no_failure(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [OutputError("the disk is full")]

    def fail_once(*args: Any, **kwargs: Any) -> None:
        if errors:
            raise errors.pop()
        write_report(*args, **kwargs)

    monkeypatch.setattr(ledger, "write_report", fail_once)
    assert process.main([str(data), "--output", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "report.json").read_text())["cases"]) == {"0098", "0099"}


def test_a_failed_pair_leaves_no_field_of_an_earlier_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = broken_dataset(tmp_path, data, "none")
    arguments = [str(dataset), "--output", str(tmp_path / "out"), "--case", "0099"]
    assert process.main(arguments) == 0
    (tmp_path / "imagesTr" / "ReMIND2Reg_0099_0000.nii.gz").write_bytes(b"")
    assert process.main(arguments) == process.BAD_INPUT
    assert files(tmp_path / "out") == ["report.json"]
    assert "is removed: it is not a result of this run" in capsys.readouterr().err


def test_what_was_written_stays_while_its_images_are_out_of_reach(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    arguments = [str(tmp_path), "--output", str(out), "--case", "0098"]
    assert process.main(arguments) == 0
    before = {path.name: path.read_bytes() for path in out.glob("disp_*")}
    (tmp_path / "imagesTr").rename(tmp_path / "unmounted")
    for more in ([], ["--overwrite"], ["--on-failure", "zero"]):
        assert process.main([*arguments, *more]) == process.SOME_FAILED
        assert "unreachable; the result of an earlier run is kept" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.glob("disp_*")} == before
    (tmp_path / "unmounted").rename(tmp_path / "imagesTr")
    (tmp_path / "imagesTr" / "ReMIND2Reg_0098_0002.nii.gz").unlink()
    assert process.main(arguments) == process.SOME_FAILED
    told = capsys.readouterr()
    assert "disp_0098_0000_0098_0002 is not done" in told.err
    assert "disp_0098_0000_0098_0001" not in told.err
    assert {path.name: path.read_bytes() for path in out.glob("disp_*")} == before


def test_channels_written_one_after_the_other_are_both_remembered(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(data), "--output", str(tmp_path), "--case", "0098"]
    for channel in ("0001", "0002"):
        assert process.main([*arguments, "--moving", channel]) == 0
    assert "done before" not in capsys.readouterr().out
    assert process.main(arguments) == 0
    assert "done before" in capsys.readouterr().out
    assert process.main([str(data), "--output", str(tmp_path), "--case", "0099", "--overwrite"]) == 0
    assert set(json.loads((tmp_path / "report.json").read_text())["cases"]) == {"0098", "0099"}


def test_a_warped_image_does_not_overwrite_an_input_either(data: Path, tmp_path: Path) -> None:
    moving = tmp_path / "warped_x.nii.gz"
    moving.write_bytes((data / "imagesTr" / "ReMIND2Reg_0099_0001.nii.gz").read_bytes())
    fixed = data / "imagesTr" / "ReMIND2Reg_0099_0000.nii.gz"
    assert process.main([str(fixed), str(moving), str(tmp_path / "x.nii.gz"), "--warped"]) == process.BAD_INPUT


def test_a_pair_whose_warped_image_cannot_be_written_has_no_field(data: Path, tmp_path: Path) -> None:
    (tmp_path / "warped_0098_0000_0098_0002.nii.gz" / "x").mkdir(parents=True)
    arguments = [str(data), "--output", str(tmp_path), "--case", "0098", "--warped"]
    assert process.main(arguments) == process.SOME_FAILED
    names = ["disp_0098_0000_0098_0001.nii.gz", "report.json", "warped_0098_0000_0098_0001.nii.gz"]
    assert files(tmp_path) == names
    case = json.loads((tmp_path / "report.json").read_text())["cases"]["0098"]
    assert list(case["failed"]) == ["disp_0098_0000_0098_0002"]
    assert sorted(case["written"]) == [names[0], names[2]]


def test_an_input_is_never_overwritten(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moving = tmp_path / "moving.nii.gz"
    moving.write_bytes((data / "imagesTr" / "ReMIND2Reg_0099_0001.nii.gz").read_bytes())
    before = moving.read_bytes()
    fixed = data / "imagesTr" / "ReMIND2Reg_0099_0000.nii.gz"
    assert process.main([str(fixed), str(moving), str(moving)]) == process.BAD_INPUT
    assert moving.read_bytes() == before
    assert "expected another output than an input" in capsys.readouterr().err


def test_images_that_are_named_like_results_are_not_overwritten_either(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [tmp_path / f"disp_0001_0000_0001_000{channel}.nii.gz" for channel in range(2)]
    for channel, path in enumerate(named):
        path.write_bytes((data / "imagesTr" / f"ReMIND2Reg_0099_000{channel}.nii.gz").read_bytes())
    before = named[1].read_bytes()
    arguments = [str(tmp_path), "--task", "ReMIND2Reg", "--output"]
    assert process.main([*arguments, str(tmp_path)]) == process.BAD_INPUT
    assert "expected another output than an input" in capsys.readouterr().err
    assert files(tmp_path) == [path.name for path in named]
    assert named[1].read_bytes() == before
    assert process.main([*arguments, str(tmp_path / "out")]) == 0


def test_an_interrupted_run_reports_what_was_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pipeline.register
    calls = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(case_compute, "register", interrupted)
    assert process.main([str(data), "--output", str(tmp_path)]) == 130
    assert list(json.loads((tmp_path / "report.json").read_text())["cases"]) == ["0098"]
    assert "stopped after 1 of 2 case(s)" in capsys.readouterr().err


def test_the_next_run_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [str(data), "--output", str(tmp_path), "--case", "0098"]
    assert process.main(first) == 0
    kept = tmp_path / "disp_0098_0000_0098_0001.nii.gz"
    made = kept.stat().st_mtime_ns
    assert process.main([str(data), "--output", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "case 0098: done before" in output
    assert "3 displacement(s) written" in output
    assert kept.stat().st_mtime_ns == made
    assert set(json.loads((tmp_path / "report.json").read_text())["cases"]) == {"0098", "0099"}
    assert process.main([*first, "--overwrite"]) == 0
    assert kept.stat().st_mtime_ns > made


def test_a_result_of_another_processor_is_kept_and_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(data), "--output", str(tmp_path), "--case", "0098"]
    assert process.main(arguments) == 0
    assert re.search(r"device: cpu \(.*, [A-Z0-9 ]+, \d+ threads?", capsys.readouterr().out)
    assert process.main(arguments) == 0
    assert "so that it may differ" not in capsys.readouterr().out
    monkeypatch.setattr("mcbo.runs.resume.describe_device", lambda device: f"{device} (an older processor, AVX2, 1 thread)")
    assert process.main(arguments) == 0
    assert re.search(r"skipped .*; on cpu \(.*\), so that it may differ from here by rounding", capsys.readouterr().out)


@pytest.mark.parametrize("change", ["input", "output", "config", "warped", "report"])
def test_what_is_stale_is_done_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    dataset = broken_dataset(tmp_path, data, "none")
    out = tmp_path / "out"
    arguments = [str(dataset), "--output", str(out), "--case", "0099"]
    assert process.main(arguments) == 0
    if change == "input":
        image = tmp_path / "imagesTr" / "ReMIND2Reg_0099_0001.nii.gz"
        array = np.asarray(nibabel.load(image).dataobj).copy()  # type: ignore[attr-defined]
        array[3, 3, 3] += 1
        write_nifti(image, array)
    elif change == "output":
        (out / "disp_0099_0000_0099_0001.nii.gz").write_bytes(b"foreign")
    elif change == "config":
        monkeypatch.setattr(
            ledger, "earlier_cases", lambda path, config: earlier_cases(path, replace(config, consistency_rounds=2))
        )
    elif change == "warped":
        arguments.append("--warped")
    else:
        (out / "report.json").write_text("{}")
    assert process.main(arguments) == 0
    assert "done before" not in capsys.readouterr().out
    assert read_displacement(out / "disp_0099_0000_0099_0001.nii.gz").shape == (1, 3, *SHAPE)


def test_sigterm_ends_the_run_and_leaves_whole_files(tmp_path: Path) -> None:
    big = demo.write_dataset(make_phantom((64, 60, 56), wedge=True), tmp_path / "big")
    command = [sys.executable, process.__file__, str(big), "--output", str(tmp_path / "out")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    while "preset" not in running.stdout.readline():
        pass
    time.sleep(1)
    running.terminate()
    _, errors = running.communicate(timeout=10)
    assert running.returncode == process.TERMINATED
    assert errors == "ERROR: stopped after 0 of 1 case(s); nothing was finished\n"
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_are_heard_while_the_program_is_still_loading(tmp_path: Path, number: signal.Signals, status: int) -> None:
    command = [sys.executable, process.__file__, str(tmp_path), "--output", str(tmp_path / "out")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(0.4)
    running.send_signal(number)
    assert running.communicate(timeout=10) == ("", "")
    assert running.returncode == status


def run_alone(arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a shell would run it, for what cannot be seen from inside."""
    command = f"exec {shlex.quote(sys.executable)} {shlex.quote(str(Path(process.__file__)))} {arguments}"
    return subprocess.run(
        ["/bin/bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_nobody_reading_on_does_not_stop_the_run(data: Path, tmp_path: Path) -> None:
    done = run_alone(f"{data} --output {tmp_path / 'out'} > >(head -1)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "disp_0099_0000_0099_0001.nii.gz" in files(tmp_path / "out")
    closed = run_alone(f"{data} --output {tmp_path / 'closed'} --case 0099 >&-")
    assert (closed.returncode, closed.stderr) == (0, "")


def test_nothing_is_written_outside_the_output(data: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = run_alone(f"{data} --output {tmp_path / 'out'} --case 0099", HOME=str(home), PYTHONDONTWRITEBYTECODE="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert files(home) == []
    homeless = run_alone(f"{data} --output {tmp_path / 'out'} --case 0099", HOME="/nonexistent", XDG_CACHE_HOME="")
    assert (homeless.returncode, homeless.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}", "--task", "Brains"], "task 'Brains' is not known: expected one of ReMIND2Reg, COMULIS3DCLEM"),
        (["{data}", "--preset", "best"], "preset 'best' is not known"),
        (["{data}", "--split", "dev"], "--split: expected one of val, test, train, got 'dev'"),
        (["{data}", "--split", "test"], "there are pairs for --split val"),
        (["{data}", "--format", "mha"], "--format: expected one of nii.gz, npz, got 'mha'"),
        (["{data}", "--case", "7"], "case 7 is not in the dataset"),
        (["{data}", "--moving", "0009"], "moving channel 0009 is not in the dataset"),
        (["{data}", "--device", "tpu"], "device 'tpu' is not known"),
        (["{data}", "--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["{data}", "--memory-gb", "0"], "--memory-gb: expected a number above 0"),
        (["{data}", "--memory-gb", "inf"], "--memory-gb: expected a number above 0"),
        (["{data}", "--case", "0099", "--moving", "0002"], "moving channel 0002 is not in the dataset: expected one of 0001"),
        (["{data}", "--memory-gb", "much"], "--memory-gb"),
        (["{data}", "{data}"], "expected no path, one (a dataset JSON) or three"),
        (["a.nii", "b.nii", "c.mha"], "expected an output file ending in .nii.gz, .nii or .npz"),
        (["--input", "{data}/absent"], "no such file or folder"),
        (["--nonsense"], "nonsense"),
        (["--demo", "{data}"], "--demo generates its own input: expected no path"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    filled = [argument.format(data=data) for argument in arguments]
    output = [] if filled[-1] == "c.mha" else ["--output", str(tmp_path / "out")]
    assert process.main([*filled, *output]) == process.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("disp*"))


def test_an_output_that_cannot_be_written_is_known_before_the_work(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert process.main([str(data), "--output", str(tmp_path / "file")]) == process.BAD_INPUT
    output = capsys.readouterr()
    assert "results cannot be written there" in output.err
    assert "level" not in output.out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert process.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mcbo {__version__}\n"
    assert process.main(["--help"]) == 0
    assert "DATASET_JSON" in capsys.readouterr().out


def test_a_memory_limit_that_is_too_small_names_both_figures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(data), "--output", str(tmp_path), "--case", "0099", "--memory-gb", "0.0001"]
    assert process.main(arguments) == process.BAD_INPUT
    assert re.search(
        r"0099_0000\.nii\.gz: 14×12×17 voxels .* need at least [\d.]+ MB of memory, but the run may use 0\.10 MB",
        capsys.readouterr().err,
    )


def test_the_log_may_be_json_or_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "none.json"), "--output", str(tmp_path / "out")]
    assert process.main([*arguments, "--log-json"]) == 1
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "ERROR"
    assert "no such file" in line["message"]
    assert process.main([*arguments, "--quiet", "--verbose"]) == 1
    assert "expected --quiet or --verbose, got both" in capsys.readouterr().err
