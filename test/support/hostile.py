"""Calls of every command with a hostile word in each of its arguments."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from helpers import write_nifti, write_phantoms

import process
from evaluation.__main__ import main as judge
from mcbo.cli.main import main as mcbo

Call = tuple[str, Callable[[list[str]], int], list[str]]
"""A name, a program, its arguments."""


def make_around(folder: Path) -> None:
    """A dataset and a prediction."""
    write_phantoms(folder / "data", ["0001"], (16, 16, 16))
    write_nifti(folder / "predictions/disp_0001_0000_0001_0001.nii.gz", np.zeros((16, 16, 16, 3), np.float32))
    (folder / "points.csv").write_text("1,2,3\n")


def calls(folder: Path, word: str, output: str) -> Iterator[Call]:
    """Calls that end before anything is computed, with the word as input or option, or a path that ends with it as output."""
    dataset, field = str(folder / "data/ReMIND2Reg_dataset.json"), str(folder / "predictions/disp_0001_0000_0001_0001.nii.gz")
    fixed, moving = (str(folder / f"data/imagesTr/ReMIND2Reg_0001_000{channel}.nii.gz") for channel in (0, 1))
    out, image = str(folder / "out"), str(folder / "out.nii.gz")
    method = [dataset, "--output", out]
    yield "process: json", process.main, [word, "--output", out]
    yield "process: folder", process.main, ["--input", word, "--output", out]
    yield "process: fixed", process.main, [word, moving, f"{out}/f.nii.gz"]
    yield "process: moving", process.main, [fixed, word, f"{out}/f.nii.gz"]
    yield "process: two", process.main, [word, word]
    yield "process: output", process.main, [dataset, "--output", output, "--device", "cpu", "--memory-gb", "0.00001"]
    yield "process: output file", process.main, [fixed, moving, f"{output}.nii.gz", "--memory-gb", "0.00001"]
    yield "process: option", process.main, [f"--{word}"]
    yield "process: scheduler", process.main, [*method, "--scheduler", word, "--device", "cpu"]
    for option in ("task", "preset", "expect", "split", "case", "moving", "device", "format", "memory-gb", "shard", "workers"):
        yield f"process: {option}", process.main, [*method, f"--{option}", word]
    pair = ["register", fixed, moving, "--output", f"{out}/register"]
    yield "register: fixed", mcbo, ["register", word, moving, "--output", f"{out}/register"]
    yield "register: moving", mcbo, ["register", fixed, word, "--output", f"{out}/register"]
    yield "register: output", mcbo, [*pair[:-1], output, "--memory-gb", "0.000001"]
    for option in ("preset", "task", "expect", "initial", "fixed-mask", "moving-mask", "spacing", "without", "device"):
        yield f"register: {option}", mcbo, [*pair, f"--{option}", word]
    yield "report", mcbo, ["report", word]
    yield "report: dataset", mcbo, ["report", str(folder), "--dataset", word]
    yield "report: too much", mcbo, ["report", str(folder), word]
    warp = ["warp", field, "--output", image]
    yield "warp: field", mcbo, ["warp", word, "--image", fixed, "--output", image]
    yield "warp: points", mcbo, ["warp", field, "--points", word, "--output", f"{out}.csv"]
    yield "warp: output", mcbo, ["warp", field, "--image", fixed, "--output", f"{output}.nii.gz"]
    yield "warp: output of points", mcbo, ["warp", field, "--points", str(folder / "points.csv"), "--output", f"{output}.csv"]
    for option in ("image", "labels"):
        yield f"warp: {option}", mcbo, [*warp, f"--{option}", word]
    for option in ("reference", "direction", "unit", "interpolation", "outside", "spacing"):
        yield f"warp: {option}", mcbo, [*warp, "--image", fixed, f"--{option}", word]
    yield "export", mcbo, ["export", word, "--to", "itk"]
    yield "export: output", mcbo, ["export", field, "--to", "npz", "--output", f"{output}.npz"]
    yield "export: output for ITK", mcbo, ["export", field, "--to", "itk", "--output", f"{output}.h5"]
    yield "export: to", mcbo, ["export", field, "--to", word]
    yield "import", mcbo, ["import", f"{word}.h5", "--output", image]
    yield "import: npz", mcbo, ["import", f"{word}.npz", "--output", image, "--reference", fixed]
    yield "import: reference", mcbo, ["import", field, "--output", image, "--reference", word]
    yield "invert", mcbo, ["invert", word, "--output", image]
    yield "invert: output", mcbo, ["invert", field, "--output", f"{output}.nii.gz"]
    yield "compose", mcbo, ["compose", field, word, "--output", image]
    for option in ("size", "scaling", "modalities", "task", "preset", "device", "threads", "repeat"):
        yield f"benchmark: {option}", mcbo, ["benchmark", f"--{option}", word]
    ablate = ["ablate", "--dataset", dataset]
    yield "ablate: dataset", mcbo, ["ablate", "--dataset", word]
    for option in ("preset", "change", "split", "case", "moving", "truth", "device"):
        yield f"ablate: {option}", mcbo, [*ablate, f"--{option}", word]
    yield "a command", mcbo, [word]
    predictions = str(folder / "predictions")
    score = ["score", "--dataset", dataset, "--predictions", predictions]
    yield "score: dataset", judge, ["score", "--dataset", word, "--predictions", predictions]
    yield "score: predictions", judge, ["score", "--dataset", dataset, "--predictions", word]
    for option in ("split", "metrics", "config", "program"):
        yield f"score: {option}", judge, [*score, f"--{option}", word]
    for option in ("output", "csv", "html"):
        yield f"score: {option}", judge, [*score, f"--{option}", output]
    yield "validate", judge, ["validate", "--dataset", dataset, "--predictions", word]
    yield "leaderboard: name", judge, ["leaderboard", f"{word}={predictions}", "--dataset", dataset, "--output", f"{out}.md"]
    yield "leaderboard: folder", judge, ["leaderboard", f"A={word}", "--dataset", dataset, "--output", f"{out}.md"]
    yield "leaderboard: output", judge, ["leaderboard", f"A={predictions}", "--dataset", dataset, "--output", output]
    yield "zero: output", judge, ["zero", "--dataset", dataset, "--output", output]
    yield "evaluation: an option", judge, ["score", f"--{word}"]
