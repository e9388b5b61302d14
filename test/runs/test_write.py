"""What a case leaves on the disk: modalities that share a displacement get copies of one file, and digests are true."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import paper_config, random_tensor, write_dataset, write_nifti

from mcbo.core.errors import OutputError
from mcbo.core.timing import StageTimer
from mcbo.core.types import Displacement
from mcbo.dataset.learn2reg import open_input
from mcbo.io.files import digest
from mcbo.io.nifti import read_displacement, write_displacement
from mcbo.runs import outputs
from mcbo.runs.case import CaseRun
from mcbo.runs.options import Options, Setup
from mcbo.runs.write import write

SHAPE = (6, 7, 8)
NAMES = ["disp_0001_0000_0001_0001", "disp_0001_0000_0001_0002"]


def computed(folder: Path, *fields: Displacement, suffix: str = ".nii.gz", warped: bool = False) -> CaseRun:
    """A case with two modalities that was computed."""
    pairs = [("ReMIND2Reg_0001_0000.nii.gz", f"ReMIND2Reg_0001_000{channel}.nii.gz") for channel in (1, 2)]
    for name in {name for pair in pairs for name in pair}:
        write_nifti(folder / "imagesTr" / name, np.arange(336, dtype=np.int16).reshape(SHAPE))
    write_dataset(folder, pairs)
    (case,) = open_input(folder, split="val").cases
    options = Options(folder / "out", suffix=suffix, warped=warped)
    run = CaseRun(case, Setup(paper_config(), options, torch.device("cpu")))
    run.displacements = dict(zip(NAMES, fields, strict=True))
    if warped:
        run.warped = {name: random_tensor(1, 1, *SHAPE, seed=seed) for seed, name in enumerate(NAMES)}
    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the displacements that are written otherwise than by copying."""
    names: list[str] = []

    def writing(path: Path, *arguments: Any) -> str | None:
        names.append(path.name)
        return write_displacement(path, *arguments)

    monkeypatch.setattr(outputs, "write_displacement", writing)
    return names


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".npz"])
@pytest.mark.parametrize("shared", [True, False])
def test_every_pair_gets_its_displacement_and_its_digest(tmp_path: Path, calls: list[str], shared: bool, suffix: str) -> None:
    first = random_tensor(1, 3, *SHAPE)
    second = first if shared else random_tensor(1, 3, *SHAPE, seed=1)
    result = write(computed(tmp_path, first, second, suffix=suffix, warped=True), timer=StageTimer())
    assert len(calls) == (1 if shared else 2)
    files = [tmp_path / "out" / f"{name}{suffix}" for name in NAMES]
    assert result.written == files
    for file, field in zip(files, (first, second), strict=True):
        assert torch.equal(read_displacement(file), field)
    assert (files[0].read_bytes() == files[1].read_bytes()) == shared
    assert len(result.report.written) == 4
    assert result.report.written == {name: digest(tmp_path / "out" / name) for name in result.report.written}
    assert result.failed == {}


def test_a_pair_that_cannot_be_written_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    field = random_tensor(1, 3, *SHAPE)

    def failing(path: Path, *arguments: Any) -> str | None:
        if path.name.startswith(NAMES[0]):
            raise OutputError(f"{path}: cannot be written")
        calls.append(path.name)
        return write_displacement(path, *arguments)

    monkeypatch.setattr(outputs, "write_displacement", failing)
    result = write(computed(tmp_path, field, field), timer=StageTimer())
    assert list(result.failed) == [NAMES[0]]
    assert calls == [f"{NAMES[1]}.nii.gz"]
    assert result.written == [tmp_path / "out" / f"{NAMES[1]}.nii.gz"]
    assert result.report.written == {result.written[0].name: digest(result.written[0])}


def test_a_copy_that_cannot_be_written_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mcbo.runs.outputs.shutil.copyfile", full)
    field = random_tensor(1, 3, *SHAPE)
    result = write(computed(tmp_path, field, field), timer=StageTimer())
    assert result.failed == {NAMES[1]: f"{tmp_path / 'out' / NAMES[1]}.nii.gz: cannot be written: No space left on device"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{NAMES[0]}.nii.gz"]
