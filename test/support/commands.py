"""Every command that writes, as calls on one small folder of inputs: what is true of one door is tried at all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from helpers import random_tensor, write_nifti, write_phantoms

import process
from evaluation.__main__ import main as judge
from mcbo.cli.main import main as mcbo
from mcbo.geometry.grid import Grid
from mcbo.io.itk_files import write_transform
from mcbo.io.nifti import write_displacement

SHAPE = (20, 18, 22)
JSON = "data/ReMIND2Reg_dataset.json"
FIXED, MOVING = (f"data/imagesTr/ReMIND2Reg_0001_000{channel}.nii.gz" for channel in range(2))
LANDMARKS, LABELS = "data/landmarksTr/ReMIND2Reg_0001_0000.csv", "data/labelsTr/ReMIND2Reg_0001_0000.nii.gz"
FIELD, POINTS, TRANSFORM = "field.nii.gz", "points.csv", "transform.h5"
PREDICTION, REPORT = "submission/disp_0001_0000_0001_0001.nii.gz", "submission/report.json"


@dataclass(frozen=True)
class Call:
    """A command that writes.

    Attributes:
        main: the program.
        words: its arguments, where ``@NAME`` is a file or folder of the inputs, and ``>`` what is to be written.
        output: its usual name in the folder ``out``; empty, if the command is given that folder itself.
        writes: the files in ``out``.
        inputs: those among its inputs whose suffix the output may have.
    """

    main: Callable[[list[str]], int]
    words: str
    output: str
    writes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def run(self, folder: Path, output: Path | None = None) -> int:
        """The status of the call, on inputs in ``folder``."""
        target = output or folder / "out" / self.output
        words = [word.replace("@", f"{folder}/") for word in self.words.split()]
        return self.main([str(target) if word == ">" else word for word in words])


def _calls() -> Mapping[str, Call]:
    fast = "--preset mcbo2024"
    judged = f"--dataset @{JSON} --predictions @submission"
    pair = f"@{FIXED} @{MOVING}"
    warp = f"warp @{FIELD} --output >"
    return {
        "process": Call(
            process.main, f"@{JSON} --output > {fast} --quiet", "", ("disp_0001_0000_0001_0001.nii.gz", "report.json")
        ),
        "pair": Call(
            process.main, f"{pair} > {fast} --quiet", "a.nii.gz", ("a.nii.gz", "a.report.json"), inputs=(FIXED, MOVING)
        ),
        "register": Call(
            mcbo,
            f"register {pair} --output > {fast} --quiet",
            "",
            ("displacement.nii.gz", "inverse.nii.gz", "report.json", "transform.h5", "warped.nii.gz"),
        ),
        "warp": Call(mcbo, f"{warp} --image @{MOVING} --reference @{FIXED}", "a.nii.gz", inputs=(FIELD, MOVING, FIXED)),
        "warp nrrd": Call(mcbo, f"{warp} --image @{MOVING}", "a.nrrd"),
        "warp labels": Call(mcbo, f"{warp} --labels @{LABELS}", "a.mha"),
        "warp points": Call(mcbo, f"{warp} --points @{POINTS}", "a.csv", inputs=(POINTS,)),
        "export itk": Call(mcbo, f"export @{FIELD} --to itk --output >", "a.h5"),
        "export text": Call(mcbo, f"export @{FIELD} --to itk --output >", "a.tfm"),
        "export ants": Call(mcbo, f"export @{FIELD} --to ants --output >", "a.nii.gz", inputs=(FIELD,)),
        "export slicer": Call(mcbo, f"export @{FIELD} --to slicer --output >", "a.nrrd"),
        "export npz": Call(mcbo, f"export @{FIELD} --to npz --output >", "a.npz"),
        "import": Call(mcbo, f"import @{TRANSFORM} --reference @{FIXED} --output >", "a.nii.gz", inputs=(FIXED,)),
        "invert": Call(mcbo, f"invert @{FIELD} --reference @{MOVING} --output >", "a.nii.gz", inputs=(FIELD, MOVING)),
        "compose": Call(mcbo, f"compose @{FIELD} @{FIELD} --output >", "a.nii.gz", inputs=(FIELD,)),
        "report": Call(
            mcbo,
            f"report @submission --dataset @{JSON} --output >",
            "a.html",
            inputs=(JSON, REPORT, PREDICTION, FIXED, LANDMARKS),
        ),
        "benchmark": Call(mcbo, f"benchmark --size 16 --repeat 1 {fast} --json >", "a.json"),
        "ablate": Call(mcbo, f"ablate --dataset @{JSON} {fast} --json >", "a.json", inputs=(JSON, FIXED, LANDMARKS)),
        "ablate table": Call(mcbo, f"ablate --dataset @{JSON} {fast} --markdown >", "a.md", inputs=(LABELS,)),
        "score": Call(
            judge, f"score {judged} --output >", "a.json", inputs=(JSON, FIXED, MOVING, PREDICTION, LANDMARKS, LABELS)
        ),
        "score csv": Call(judge, f"score {judged} --csv >", "a.csv", inputs=(LANDMARKS,)),
        "score html": Call(judge, f"score {judged} --html >", "a.html", inputs=(LANDMARKS,)),
        "leaderboard": Call(judge, f"leaderboard one=@submission --dataset @{JSON} --output >", "a.csv", inputs=(LANDMARKS,)),
        "zero": Call(judge, f"zero --dataset @{JSON} --output >", "", ("disp_0001_0000_0001_0001.nii.gz",)),
    }


CALLS = _calls()
FILES = {name: call for name, call in CALLS.items() if call.output}
"""Those that are given the name of a file."""


def make_inputs(folder: Path) -> Path:
    """The inputs of all calls; returns the folder."""
    data = write_phantoms(folder / "data", ["0001"], SHAPE)
    for channel in range(2):
        name = f"ReMIND2Reg_0001_000{channel}"
        (data / "landmarksTr").mkdir(exist_ok=True)
        (data / "landmarksTr" / f"{name}.csv").write_text("5,6,7\n8,9,10\n11,8,9\n")
        labels = np.zeros(SHAPE, np.uint8)
        labels[5:12, 6:11, 7:13] = 1
        write_nifti(data / "labelsTr" / f"{name}.nii.gz", labels)
    field = random_tensor(1, 3, *SHAPE)
    write_displacement(folder / FIELD, field, np.eye(4))
    write_transform(folder / TRANSFORM, field, Grid(SHAPE, np.eye(4)))
    (folder / POINTS).write_text("5,6,7\n8,9,10\n")
    assert CALLS["process"].run(folder, folder / "submission") == 0
    return folder
