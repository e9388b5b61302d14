"""Puts the corpus of malformed files through the commands and the Python API, in one process, as ``front_doors`` does.

``python test/support/command_doors.py FOLDER``; ``test_corpus.py`` runs it and judges what it prints.
"""

import html
import json
import os
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from front_doors import attempt, listing, peak_bytes
from malformed import SHAPE, Sample
from malformed_arrays import field_samples, nifti, ramp
from malformed_files import file_samples
from malformed_inputs import (
    displacement_samples,
    leaves,
    object_samples,
    point_samples,
    report_samples,
    transform_samples,
)

Call = list[str]

MEMORY_BYTES = 2 * 10**9
"""Of the machine on which the commands believe to run."""

LEAVES_SKIPPED = 31
"""Of so many reports with one other value, one is shown; a prime, so that every place and every value has its turn."""

SHOWN = ("No pictures of the images: ", "The report names it, but ", "No pictures at all: ")
"""How the page begins a sentence on what it cannot show."""


def samples() -> Iterator[Sample]:
    """The whole corpus but for objects and leaves."""
    yield from file_samples()
    yield from transform_samples()
    yield from displacement_samples()
    yield from (s for s in field_samples() if s.suffix != ".npz" and s.method)
    yield from point_samples()
    yield from report_samples()


def make_around(folder: Path) -> None:
    """What a call needs besides the sample."""
    folder.mkdir(parents=True)
    (folder / "good.nii").write_bytes(nifti(ramp(*SHAPE)))
    (folder / "field.nii").write_bytes(nifti(np.zeros((*SHAPE, 3), np.float32)))
    (folder / "points.csv").write_text("1,2,3\n")
    sitk.WriteTransform(sitk.Euler3DTransform(), str(folder / "rigid.tfm"))


def calls(sample: Sample, turn: int) -> list[Call]:
    """The calls that meet a sample; images take turns, so that every command meets many."""
    it, field, good = f"spoiled{sample.suffix}", "field.nii", "good.nii"
    size = ["--spacing", "1,1,1"] if sample.kind == "tiff" else []
    out = ["--output", "out/o.nii.gz"]
    if sample.kind in ("image", "tiff"):
        others = [
            ["register", it, good, "--output", "out", *size],
            ["register", good, it, "--output", "out", *size],
            ["api", it, *size] if size else ["register", good, good, "--output", "out", "--fixed-mask", it],
            ["warp", field, "--labels", it, *out, *size],
            ["warp", field, "--points", "points.csv", "--reference", it, "--output", "out/o.csv", *size],
            ["invert", field, "--reference", it, *out, *size],
            ["import", "rigid.tfm", "--reference", it, *out, *size],
            ["api", it, *size],
            ["warp", field, "--image", it, *out, *size],
            ["report", it, good, *size],
        ]
        return [others[turn % len(others)]]
    return {
        "transform": [["import", it, *out], ["import", it, "--reference", good, *out],
                      ["register", good, good, "--initial", it, "--output", "out"]],
        "vectors": [["import", it, "--reference", good, *out]],
        "matrix": [["register", good, good, "--initial", it, "--output", "out"]],
        "npz": [["import", it, "--reference", good, *out]],
        "field": [["warp", it, "--image", good, *out], ["export", it, "--to", "itk", "--output", "out/o.h5"],
                  ["invert", it, *out], ["compose", it, field, *out], ["compose", field, it, *out]],
        "points": [["warp", field, "--points", it, "--output", f"out/o{sample.suffix}"]],
        "report": [["report"]],
    }[sample.kind]  # fmt: skip


class Programs:
    """The commands, and what stands for them."""

    def __init__(self) -> None:
        import mcbo
        from mcbo.api.transform import Transform
        from mcbo.cli.main import main
        from mcbo.core.errors import McboError
        from mcbo.core.log import printable
        from mcbo.geometry.grid import Grid

        self.command, self.register, self.error, self.printable = main, mcbo.register, McboError, printable
        grid = Grid(SHAPE, np.eye(4))
        import torch

        self.transform = Transform(torch.zeros((1, 3, *SHAPE)), grid, grid)
        self.report: dict[str, Any] = {}

    def run(self, call: Call) -> int:
        """Its exit status; of the Python API 1 for an error of ours, of reports also for what the page cannot show."""
        if call[0] == "api":
            return self.use(Path(call[1]), spacing=(1, 1, 1) if "--spacing" in call else None)
        if call[0] != "report":
            return self.command(call)
        if len(call) > 1:
            case = self.report["cases"]["result"]
            settings = case["settings"] | {"spacing": "1,1,1" if "--spacing" in call else None}
            changed = case | {"images": [call[1], call[2]], "settings": settings}
            Path("report.json").write_text(json.dumps(self.report | {"cases": {"result": changed}}))
        else:
            Path("spoiled.json").rename("report.json")
        return self.show()

    def show(self) -> int:
        status = self.command(["report", "report.json", "--output", "out/report.html"])
        if status == 0:
            page = html.unescape(Path("out/report.html").read_text(encoding="utf-8"))
            complaints = [line for line in page.splitlines() if any(words in line for words in SHOWN)]
            print("\n".join(line[:1999] for line in complaints))
            status = int(bool(complaints))
        return status

    def meet(self, image: Any, _: Call) -> int:
        """``use``, as a program."""
        return self.use(image)

    def use(self, image: Any, spacing: tuple[int, int, int] | None = None) -> int:
        """An image, or what is none, in the Python API."""
        doors: list[Callable[[], object]] = [partial(self.register, image, "good.nii", spacing=spacing)]
        doors += [] if spacing else [partial(self.transform.warp, image)]
        for door in doors:
            try:
                door()
            except self.error as error:
                print(self.printable(str(error))[:1999])
            else:
                return 0
        return 1

    def make_report(self) -> None:
        """A true report of a registration in world coordinates, and its displacement."""
        Path("displacement.nii").write_bytes(nifti(np.zeros((*SHAPE, 3), np.float32)))
        from mcbo.methods.presets import find_config
        from mcbo.report import CaseReport, Stage, WorkingGrid, write_report

        label = {"displacement": "displacement.nii"}
        case = CaseReport(
            inputs={"good.nii": None}, shape=SHAPE, device="cpu", written={"displacement.nii": None}, warnings=["a"], failed={},
            seconds=1.5, spans_s={"read": (0.0, 1.0)}, stages={"read": Stage(seconds=1.0, peak_memory_mb=3)},
            coordinates="world",
            working_grid=WorkingGrid(shape=SHAPE, affine=np.eye(4).tolist()), initial=np.eye(4).tolist(),
            images=["good.nii", "good.nii"], files={"moving": label}, settings={"spacing": None},
        )  # fmt: skip
        write_report(Path("report.json"), {"result": case}, find_config("ReMIND2Reg", "mcbo2024"), "cpu")
        self.report = json.loads(Path("report.json").read_text())
        self.report["config"] = {"name": "cascade", "judgement": {"doubtful": 0.5}}  # fewer leaves


def tell(name: str, call: str, expected: str | None, result: dict[str, Any], new: list[str]) -> None:
    print(json.dumps({"name": name, "program": call, "expected": expected, "new": new} | result), flush=True)


def main(root: Path) -> None:
    """Runs everything."""
    from mcbo.core import memory

    memory._container_free_bytes = lambda *_: [MEMORY_BYTES]
    programs = Programs()
    make_around(root / "model")
    os.chdir(root / "model")
    programs.make_report()

    def at(number: str) -> Path:
        folder = root / number
        shutil.copytree(root / "model", folder)
        (folder / "out").mkdir()
        os.chdir(folder)
        return folder

    for turn, sample in enumerate(samples()):
        for door, call in enumerate(calls(sample, turn)):
            folder = at(f"{turn}-{door}")
            sample.build(folder / f"spoiled{sample.suffix}")
            before = listing(folder) | {str(folder / name) for name in ("report.json", "out")}
            result = attempt(programs.run, call)
            expected = sample.method if (call[0], sample.method) != ("register", "found the value") else None
            tell(sample.name, call[0], expected, result, sorted(listing(folder) - before))
            os.chdir(root)
            shutil.rmtree(folder)
    for number, (name, report) in enumerate(leaves(programs.report)):
        if number % LEAVES_SKIPPED == 0:
            folder = at(f"leaf-{number}")
            Path("report.json").write_text(json.dumps(report))
            tell(name, "report", "", attempt(lambda _: programs.show(), []), [])
            shutil.rmtree(folder)
    at("objects")
    for name, make, says in object_samples():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = make()
        tell(name, "api", says, attempt(partial(programs.meet, made), []), [])
    from mcbo.io.sandbox import client

    client.close()
    children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"peak_bytes": peak_bytes() + children}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(Path(sys.argv[1]))
