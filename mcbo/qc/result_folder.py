"""A folder of results: its report, the displacements that the report names, and their images."""

from collections.abc import Sequence
from pathlib import Path

from mcbo.core.errors import InputError
from mcbo.dataset.learn2reg import SPLITS, Pair, group_pairs, read_json, strip_suffix
from mcbo.io.files import is_file, is_folder
from mcbo.report import REPORT, CaseReport


def find_report(path: Path) -> Path:
    """The report in a folder of results, or the path itself if it is a file; ``InputError`` unless there is exactly one."""
    if is_file(path):
        return path
    if is_file(path / REPORT):
        return path / REPORT
    found = sorted(path.glob("*.report.json")) if is_folder(path) else []
    if len(found) > 1:
        raise InputError(f"{path}: expected one report, found {', '.join(file.name for file in found)}; name the one to show")
    if not found:
        raise InputError(f"{path}: expected a folder of results with a {REPORT}, found none")
    return found[0]


def dataset_pairs(path: Path) -> dict[str, Pair]:
    """The pairs of all splits of a dataset JSON, by displacement name; raises ``InputError`` if there are none."""
    pairs: dict[str, Pair] = {}
    problems = []
    for split in SPLITS:
        try:
            pairs |= {pair.field_name: pair for case in read_json(path, split=split).cases for pair in case.pairs}
        except InputError as error:  # one split is enough
            problems.append(error)
    if not pairs:
        raise problems[0]
    return pairs


def displacement_files(case: CaseReport) -> dict[str, str]:
    """File names of the displacements of a case, by displacement name; one each, even if there are several formats."""
    if case.files:  # written by the command register, keyed by moving image
        return {label: Path(files["displacement"]).name for label, files in case.files.items() if "displacement" in files}
    names = [Path(name).name for name in case.written]
    stems = {strip_suffix(name): name for name in names}
    warped = {f"warped_{stem.removeprefix('disp_')}" for stem in stems}
    return {stem: name for stem, name in stems.items() if stem not in warped}


def input_pairs(case: CaseReport, names: Sequence[str]) -> dict[str, Pair]:
    """The images of each displacement: matched by name, or the only pair if there is just one."""
    if case.images and case.images[0]:
        named_images = zip(case.files, case.images[1:], strict=False)
        return {name: Pair(Path(case.images[0]), Path(moving), name, "") for name, moving in named_images if moving}
    fixed, *movings = map(Path, case.inputs) if case.inputs else [Path()]
    try:
        named = {pair.field_name: pair for group in group_pairs((fixed, moving) for moving in movings) for pair in group.pairs}
    except InputError:  # images with arbitrary names, given as three paths
        named = {}
    if len(movings) == len(names) == 1 and names[0] not in named:
        named[names[0]] = Pair(fixed, movings[0], names[0], "")
    return named
